//! Which dirty pages the rounds beside a static copy leave for later.
//!
//! Li & Cao 2023 ("Parallel migration process", Algorithm 1) send every dirty page in every round while the static copy is on its
//! way. Nothing can be decided before that is merged, so a page that is written again before then was sent for nothing, and the
//! paper sets no limit to how often that happens. With `hold=hot`:
//!
//! * A page that was written stays behind until it has been quiet for as long as the copy still takes. What was quiet that long
//!   is expected to stay quiet that long: of two intervals of equal length, nothing but the writes of the page itself tells
//!   one from the other. Two sets are all that needs: time is cut into epochs, each of which ends when it has lasted as long as the
//!   copy still takes, after a half of the copy, then after a half of the rest, and so on. What was written in the
//!   epoch before or in this one stays behind.
//! * Nothing stays behind any more when sending what is dirty takes as long as the copy still does: what is dirty now, then in
//!   another round what the guest writes meanwhile, and so on until the rounds are as short as rounds can be, or do not get
//!   shorter any more. How many different pages the guest writes in a given time is read between what it wrote since the round
//!   before and what it wrote in an epoch. Two shortest rounds are allowed for besides: the source can only change its mind
//!   between rounds.
//!
//! How long the copy still takes follows from how far it is, page by page in the order of RAM: pages of zeros, which cost nothing,
//! are expected to be spread evenly. How fast the channel is follows from the rounds beside the copy; as long as none of them has
//! sent anything, nothing stays behind. Nor does anything after the copy is merged or given up: then the round that goes on
//! sends what was left.
//!
//! What stays behind is dirty: V counts it, S does not, so λ and SDF of such a round say nothing of the guest. The switch rule
//! therefore begins anew with the first round that sends everything, and no other round decides.

use super::{Source, Step};
use crate::message::Region;
use crate::migrate::regions::remove_outside;
use crate::pageset::{PageSet, PageSetError};
use crate::units::{Nanos, Pages};

use super::speed::Speed;
use super::static_copy::StaticCopy;

/// Rounds that are looked ahead: there are few between the longest and the shortest where they get shorter at all.
const ROUNDS_AHEAD: u32 = 16;

/// The two sets, and what is measured. Two [`PageSet`]s over the VM, borrowed.
#[derive(Debug)]
pub(super) struct Holding<'w> {
    /// Written in the epoch before this one, or in this one.
    hot: PageSet<'w>,
    /// Written in this epoch.
    young: PageSet<'w>,
    epoch_began: Nanos,
    /// Different pages written in the epoch before.
    epoch: Option<Speed>,
    /// And between the last two harvests.
    recent: Speed,
    harvested: Nanos,
    /// The pages of `hot` are not among the pending ones.
    withheld: bool,
}

impl<'w> Holding<'w> {
    /// With words for one set after the other.
    pub(super) fn new(words: &'w mut [u64], pages: Pages) -> Result<Self, PageSetError> {
        let (hot, young) = words.split_at_mut(words.len() / 2);
        Ok(Self {
            hot: PageSet::new(hot, pages)?,
            young: PageSet::new(young, pages)?,
            epoch_began: Nanos::ZERO,
            epoch: None,
            recent: Speed::default(),
            harvested: Nanos::ZERO,
            withheld: false,
        })
    }

    /// The copy begins, and the first epoch.
    pub(super) const fn begin(&mut self, now: Nanos) {
        self.epoch_began = now;
        self.harvested = now;
    }

    /// What the guest wrote since the last time.
    fn written(&mut self, words: &[u64], regions: &[Region], now: Nanos) {
        let pages = words.iter().map(|word| u64::from(word.count_ones())).sum();
        self.recent = Speed::new(Pages(pages), now.saturating_sub(self.harvested));
        self.harvested = now;
        for set in [&mut self.hot, &mut self.young] {
            // They have the capacity of the pending set, which took these words.
            let _ = set.union_words(0, words);
            remove_outside(set, regions);
        }
    }

    /// Takes out of `pending` what stays behind in the round that begins; the copy still takes `left`.
    fn choose(&mut self, pending: &mut PageSet<'_>, channel: Speed, left: Nanos, min_round: Nanos, now: Nanos) {
        let lasted = now.saturating_sub(self.epoch_began);
        if lasted >= left {
            self.epoch = Some(Speed::new(self.young.len(), lasted));
            self.hot.intersect(&self.young);
            self.young.clear();
            self.epoch_began = now;
        }
        // What was sent and not written since is no member of what is to be sent.
        self.hot.intersect(pending);
        let dirtying = Dirtying {
            recent: self.recent,
            epoch: self.epoch.unwrap_or(Speed::new(self.young.len(), lasted)),
        };
        let needed = dirtying.time_to_drain(pending.len(), channel, min_round);
        if needed.is_none_or(|needed| needed >= left) {
            self.hot.clear();
        }
        self.withheld = !self.hot.is_empty();
        if self.withheld {
            pending.subtract(&self.hot);
        }
    }

    /// Puts what stays behind back; whether anything did.
    fn put_back(&mut self, pending: &mut PageSet<'_>) -> bool {
        if self.withheld {
            // The two have the same capacity.
            let _ = pending.union(&self.hot);
        }
        core::mem::take(&mut self.withheld)
    }
}

/// How many different pages the guest writes in a short time and in a long one.
#[derive(Clone, Copy, Debug)]
struct Dirtying {
    recent: Speed,
    epoch: Speed,
}

impl Dirtying {
    /// How long rounds that send everything go on until they get no shorter, and two shortest rounds besides; `None` if the
    /// channel's speed is not known.
    fn time_to_drain(self, pending: Pages, channel: Speed, min_round: Nanos) -> Option<Nanos> {
        let mut needed = min_round.saturating_add(min_round);
        let mut pages = pending;
        for _ in 0..ROUNDS_AHEAD {
            let round = channel.time_for(pages)?;
            if round <= min_round {
                break;
            }
            needed = needed.saturating_add(round);
            let next = self.pages_in(round);
            if next >= pages {
                break;
            }
            pages = next;
        }
        Some(needed)
    }

    /// Different pages that the guest writes in `time`. Their number grows ever more slowly, so it lies above the straight line
    /// between the two times it is known for, and below both the line through zero and the first of them, and the number
    /// for the second. A quarter of the way up is about right for writers as different as uniform and skewed ones.
    fn pages_in(self, time: Nanos) -> Pages {
        let (short, long) = (self.recent, self.epoch);
        if time <= short.time || long.time <= short.time {
            return short.pages_in(time);
        }
        let beyond = time.saturating_sub(short.time);
        let slope = Speed::new(
            long.pages.saturating_sub(short.pages),
            long.time.saturating_sub(short.time),
        );
        let low = short.pages.saturating_add(slope.pages_in(beyond));
        let high = short.pages_in(time).min(long.pages).max(low);
        Pages(low.0 + (high.0 - low.0) / 4)
    }
}

impl Source<'_> {
    /// As a round begins: what of the dirty pages it leaves for later.
    pub(super) fn hold_back(&mut self, now: Nanos) {
        let left = self
            .static_left(now)
            .filter(|_| self.static_copy == StaticCopy::Running);
        if let (Some(holding), Some(left)) = (&mut self.holding, left) {
            holding.choose(&mut self.pending, self.channel_speed, left, self.config.min_round, now);
        }
        if self.misled && self.held_back() == Pages::ZERO {
            self.begin_rule_anew(self.switcher.static_done_after());
        }
    }

    /// As a round ends, before the rule is asked: what stayed behind is dirty, like what was written meanwhile.
    pub(super) fn put_back(&mut self, now: Nanos, harvest: &[u64]) {
        if let Some(holding) = &mut self.holding {
            self.misled |= holding.put_back(&mut self.pending);
            holding.written(harvest, &self.config.regions, now);
        }
    }

    /// The copy is merged, and nothing stays behind any more. The round that decides first: this one, if it still can send
    /// everything.
    pub(super) fn release(&mut self) -> u32 {
        if self.held_back() == Pages::ZERO {
            return self.round;
        }
        if !self.in_round() {
            return self.round + 1;
        }
        let before = self.pending.len();
        self.put_held_back();
        // A page of the copy that this round has taken may be held back as well, from before.
        let put_back = self.pending.len().saturating_sub(before);
        self.round_pages = self.round_pages.saturating_add(put_back);
        self.begin_rule_anew(self.round);
        self.round
    }

    /// What stays behind is among the pending pages again.
    pub(super) fn put_held_back(&mut self) {
        if let Some(holding) = &mut self.holding {
            holding.put_back(&mut self.pending);
        }
    }

    /// Dirty pages that the present round leaves for later: they are not among the [pending](Source::pending) ones until it ends.
    pub fn held_back(&self) -> Pages {
        match &self.holding {
            Some(holding) if holding.withheld => holding.hot.len(),
            _ => Pages::ZERO,
        }
    }

    /// No round has begun, and the host does nothing else either.
    pub(super) fn between_rounds(&self) -> bool {
        self.step == Step::RoundStart && !self.outstanding
    }

    /// A round that still sends pages, or is about to.
    pub(super) fn in_round(&self) -> bool {
        self.step == Step::RoundPages || (self.step == Step::RoundStart && self.outstanding)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::pageset::words_needed;
    use crate::units::Gfn;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    const PAGES: Pages = Pages(64);
    const REGION: Region = Region {
        first: Gfn(0),
        pages: PAGES,
    };
    const SECOND: Nanos = Nanos::from_secs(1);
    /// A channel for which nothing here is too much.
    const FAST: Speed = Speed::new(Pages(1_000_000), SECOND);

    fn set() -> PageSet<'static> {
        PageSet::new(vec![0; words_needed(PAGES)].leak(), PAGES).expect("sized for it")
    }

    fn holding() -> Holding<'static> {
        Holding::new(vec![0; 2 * words_needed(PAGES)].leak(), PAGES).expect("sized for it")
    }

    /// A round that begins at `now` after `written` was harvested; what it sends.
    fn round(holding: &mut Holding<'_>, pending: &mut PageSet<'_>, written: u64, channel: Speed, at: [u64; 2]) -> u64 {
        let [now, left] = at.map(Nanos::from_secs);
        pending.union_words(0, &[written]).expect("in range");
        holding.put_back(pending);
        holding.written(&[written], &[REGION], now);
        holding.choose(pending, channel, left, Nanos::ZERO, now);
        let sent = pending.words()[0];
        pending.clear();
        sent
    }

    #[test]
    fn a_page_is_sent_once_it_was_quiet_for_as_long_as_the_copy_takes() {
        let (mut holding, mut pending) = (holding(), set());
        holding.begin(Nanos::ZERO);
        let mut sends = |written, at| round(&mut holding, &mut pending, written, FAST, at);
        assert_eq!(sends(0b0111, [1, 15]), 0);
        assert_eq!(sends(0b1000, [2, 14]), 0);
        // The first epoch ends, and all of these were written in it.
        assert_eq!(sends(0b0001, [8, 8]), 0);
        assert_eq!(sends(0b0001, [10, 6]), 0);
        assert_eq!(sends(0b0010, [11, 5]), 0);
        // The second: pages 2 and 3 were not written in it.
        assert_eq!(sends(0, [12, 4]), 0b1100);
        assert_eq!(sends(0b0100, [13, 3]), 0, "what is written again stays behind again");
        assert_eq!(sends(0, [14, 2]), 0b0011);
        assert_eq!(sends(0, [15, 1]), 0b0100);
    }

    #[test]
    fn everything_is_sent_in_time() {
        let slow = Speed::new(Pages(1), SECOND);
        for (left, sent) in [(5, 0), (4, 0), (3, 0b111), (2, 0b111)] {
            let (mut holding, mut pending) = (holding(), set());
            assert_eq!(
                round(&mut holding, &mut pending, 0b111, slow, [1, left]),
                sent,
                "{left} s"
            );
            assert_eq!(holding.withheld, sent == 0, "{left} s");
        }
    }

    #[test]
    fn without_a_speed_everything_is_sent() {
        let (mut holding, mut pending) = (holding(), set());
        assert_eq!(
            round(&mut holding, &mut pending, 0b111, Speed::default(), [1, 100]),
            0b111
        );
        assert_eq!(round(&mut holding, &mut pending, 0b101, FAST, [2, 99]), 0);
    }

    #[test]
    fn what_lies_outside_of_memory_is_not_held() {
        let (mut holding, region) = (
            holding(),
            Region {
                first: Gfn(0),
                pages: Pages(8),
            },
        );
        holding.written(
            &[0xfff],
            &[
                region,
                Region {
                    first: Gfn(16),
                    pages: Pages(1),
                },
            ],
            SECOND,
        );
        assert_eq!((holding.hot.len(), holding.young.len()), (Pages(8), Pages(8)));
    }

    #[test]
    fn rounds_are_looked_ahead_until_they_get_no_shorter() {
        let second = |pages| Speed::new(Pages(pages), SECOND);
        let long = |pages| Speed::new(Pages(pages), Nanos::from_secs(100));
        let min_round = Nanos::from_millis(100);
        for (recent, epoch, pending, milli) in [
            // Nothing is written: one round.
            (0, 0, 1000, 1200),
            // Shorter than the shortest.
            (0, 0, 100, 200),
            // As fast as the channel.
            (1000, 100_000, 5000, 5200),
            // Half as fast: 4 s, 2 s, 1 s, half a second, a quarter, an eighth.
            (500, 50_000, 4000, 200 + 4000 + 2000 + 1000 + 500 + 250 + 125),
            // The same pages all over: what a second writes is the same in a shorter round.
            (
                800,
                800,
                4000,
                200 + 4000 + 800 + 640 + 512 + 409 + 327 + 261 + 208 + 166 + 132 + 105,
            ),
        ] {
            let dirtying = Dirtying {
                recent: second(recent),
                epoch: long(epoch),
            };
            let time = dirtying.time_to_drain(Pages(pending), second(1000), min_round);
            let time = time.expect("the speed is known");
            assert_eq!(time.as_micros() / 1000, milli, "{recent} and {epoch}");
        }
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let most = Speed::new(Pages(u64::MAX), Nanos(u64::MAX));
        let dirtying = Dirtying {
            recent: most,
            epoch: most,
        };
        assert_eq!(
            dirtying.time_to_drain(Pages(u64::MAX), Speed::new(Pages(1), Nanos(u64::MAX)), Nanos(u64::MAX)),
            Some(Nanos(u64::MAX))
        );
        assert_eq!(most.pages_in(Nanos(u64::MAX)), Pages(u64::MAX));
        assert_eq!(most.pages_in(Nanos::ZERO), Pages::ZERO);
    }

    proptest! {
        /// Nothing is lost, and nobody is held back who was quiet for two epochs or as long as the copy takes at the end of one.
        #[test]
        fn what_is_held_was_written_lately(rounds in prop::collection::vec((1..4u64, any::<u64>(), any::<u64>()), 1..60)) {
            let (mut holding, mut pending) = (holding(), set());
            let mut last_written = [None; 64];
            let (mut now, mut epochs, mut owed) = (0, vec![0], 0);
            holding.begin(Nanos::ZERO);
            for (time, some, others) in rounds {
                now += time;
                let (written, left) = (some & others, 200_u64.saturating_sub(now) / 2);
                for (page, last) in last_written.iter_mut().enumerate() {
                    if written >> page & 1 == 1 {
                        *last = Some(now);
                    }
                }
                owed |= written;
                let sent = round(&mut holding, &mut pending, written, FAST, [now, left]);
                prop_assert_eq!(sent & !owed, 0);
                owed &= !sent;
                let held = if holding.withheld { holding.hot.words()[0] } else { 0 };
                prop_assert_eq!(held, owed, "what is not sent stays behind");
                let ends = now - epochs[epochs.len() - 1] >= left;
                if ends {
                    epochs.push(now);
                }
                let since = epochs[epochs.len().saturating_sub(2)];
                let pages: Vec<usize> = (0..64).filter(|page| held >> page & 1 == 1).collect();
                for page in pages {
                    let at = last_written[page].expect("it was written");
                    prop_assert!(at > since || since == 0, "page {} of {} at {}", page, at, now);
                    prop_assert!(!ends || now - at <= now - since, "page {}", page);
                }
            }
        }
    }
}
