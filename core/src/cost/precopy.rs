//! Pre-copy round by round, for every model of how a guest dirties its pages.

use crate::pattern::WwsCurve;
use crate::units::{Bytes, BytesPerSec, Nanos, Pages};

/// How many distinct pages a guest dirties while a round runs.
pub trait Dirtying {
    /// Distinct pages written from `from` to `until`, both since the migration began.
    fn dirtied(&self, from: Nanos, until: Nanos) -> Pages;
}

/// The model called AVG: every page written is another one, at a constant rate (Akoush et al., "Predicting the Performance
/// of Virtual Machine Migration", 2010). The number of pages per second; O(1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct AverageRate(pub u64);

impl Dirtying for AverageRate {
    fn dirtied(&self, from: Nanos, until: Nanos) -> Pages {
        let pages = u128::from(self.0) * u128::from(until.saturating_sub(from).0) / 1_000_000_000;
        Pages(u64::try_from(pages).unwrap_or(u64::MAX))
    }
}

/// The model called HIST: the guest will dirty what it dirtied in an earlier run, interval by interval (Akoush et al. 2010).
///
/// The sets of the earlier run follow one another, a bit per page, each as many words as the others. The paper does not say
/// what happens in a migration longer than the record; here it begins anew. An interval that a round touches counts
/// whole. O(words of the touched intervals, at most of the record), memory borrowed.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    interval: Nanos,
    words_per_set: usize,
    sets: &'a [u64],
}

impl<'a> History<'a> {
    /// The record; `None` if the interval or the sets are empty, or if the last set is not complete.
    pub const fn new(interval: Nanos, words_per_set: usize, sets: &'a [u64]) -> Option<Self> {
        if interval.0 == 0 || words_per_set == 0 || sets.is_empty() || !sets.len().is_multiple_of(words_per_set) {
            return None;
        }
        Some(Self {
            interval,
            words_per_set,
            sets,
        })
    }
}

impl Dirtying for History<'_> {
    fn dirtied(&self, from: Nanos, until: Nanos) -> Pages {
        if until <= from {
            return Pages::ZERO;
        }
        let recorded = (self.sets.len() / self.words_per_set) as u64;
        let first = from.0 / self.interval.0;
        let intervals = (until.0.div_ceil(self.interval.0) - first).min(recorded);
        let sets = (0..intervals).map(|index| ((first + index) % recorded) as usize * self.words_per_set);
        let pages = (0..self.words_per_set).map(|word| {
            let union = sets.clone().fold(0, |union, set| union | self.sets[set + word]);
            u64::from(union.count_ones())
        });
        Pages(pages.sum())
    }
}

/// The saturating model: a window of a length has the distinct pages of the guest's curve, whenever it begins. Where rounds
/// send all that is dirty, V(i + 1) = D(V(i) / B), which settles on a plateau instead of growing beyond the working set.
impl Dirtying for WwsCurve {
    fn dirtied(&self, from: Nanos, until: Nanos) -> Pages {
        self.pages_in(until.saturating_sub(from))
    }
}

/// One round of pre-copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Round {
    /// From 1, the full copy.
    pub round: u32,
    /// Pages sent.
    pub sent: Pages,
    /// How long that took, rounded up.
    pub duration: Nanos,
    /// Pages dirty when it ends, at most those of the guest.
    pub dirty: Pages,
}

/// The rounds of a pre-copy that sends all that is dirty and does not stop by itself.
#[derive(Clone, Debug)]
pub struct Rounds<'a, D> {
    dirtying: &'a D,
    memory: Pages,
    link: BytesPerSec,
    now: Nanos,
    next: Round,
}

/// Every round of a pre-copy over this link, the first of which sends the whole memory. O(1) and one question to the
/// model for each; times stop at the largest.
pub const fn rounds<D: Dirtying>(dirtying: &D, memory: Pages, link: BytesPerSec) -> Rounds<'_, D> {
    let next = Round {
        round: 0,
        sent: Pages::ZERO,
        duration: Nanos::ZERO,
        dirty: memory,
    };
    Rounds {
        dirtying,
        memory,
        link,
        now: Nanos::ZERO,
        next,
    }
}

impl<D: Dirtying> Iterator for Rounds<'_, D> {
    type Item = Round;

    fn next(&mut self) -> Option<Round> {
        let sent = self.next.dirty;
        let duration = self.link.time_to_send(sent.bytes());
        let end = self.now.saturating_add(duration);
        self.next = Round {
            round: self.next.round.checked_add(1)?,
            sent,
            duration,
            dirty: self.dirtying.dirtied(self.now, end).min(self.memory),
        };
        self.now = end;
        Some(self.next)
    }
}

/// What a migration by Xen's pre-copy costs in the simulators of Akoush et al. 2010.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct XenForecast {
    /// From the first page to the guest running on the target.
    pub time: Nanos,
    /// Of which the guest was paused.
    pub downtime: Nanos,
    /// Pages sent, some of them several times.
    pub sent: Pages,
    /// Rounds before the pause.
    pub rounds: u32,
}

/// What Xen spends beside sending, in the simulators of Akoush et al. 2010. The fixed costs depend on the machine; both are
/// to be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Overhead {
    /// Before the first page and after the last: setting up, reserving resources, activating the guest.
    pub running: Nanos,
    /// While the guest is paused.
    pub paused: Nanos,
}

/// Xen's `DEF_MAX_ITERS`: rounds after which pre-copy ends at the latest.
const MAX_ROUNDS: u32 = 29;
/// Xen's `DEF_MAX_FACTOR`: pre-copy ends once more than this many times the memory was sent.
const MAX_FACTOR: u64 = 3;
/// Pre-copy ends when fewer pages are dirty.
const FEW_PAGES: Pages = Pages(50);

/// The prediction of Akoush et al. 2010 for Xen's pre-copy: with [`AverageRate`] their model AVG, with [`History`] HIST; with
/// a [`WwsCurve`] ours. Pre-copy ends, as in Xen's `xc_domain_save` of that time, when fewer than 50 pages are dirty, after 29
/// rounds, or once more than three times the memory was sent. Xen also skips pages that are dirty again before their turn; the
/// models do not know, and count them. At most 29 rounds of one question each.
pub fn xen_forecast<D: Dirtying>(dirtying: &D, memory: Pages, link: BytesPerSec, overhead: Overhead) -> XenForecast {
    let mut sent = Pages::ZERO;
    let mut copying = Nanos::ZERO;
    for round in rounds(dirtying, memory, link) {
        sent = sent.saturating_add(round.sent);
        copying = copying.saturating_add(round.duration);
        let too_much = u128::from(sent.0) > u128::from(memory.0) * u128::from(MAX_FACTOR);
        if round.dirty < FEW_PAGES || round.round >= MAX_ROUNDS || too_much {
            let rest = link.time_to_send(round.dirty.bytes());
            let downtime = rest.saturating_add(overhead.paused);
            return XenForecast {
                time: copying.saturating_add(downtime).saturating_add(overhead.running),
                downtime,
                sent: sent.saturating_add(round.dirty),
                rounds: round.round,
            };
        }
    }
    unreachable!("the rounds do not end before the limit")
}

/// Between what a quantity must lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Bounds {
    /// At least.
    pub least: Nanos,
    /// At most.
    pub most: Nanos,
}

/// Bounds of the migration time whatever the guest does (Akoush et al. 2010): M/B and (5·M − 1 page)/B, plus the overhead. Three
/// memories less a page may be sent without passing Xen's factor; the round that passes it sends at most another, the
/// pause the fifth. Rounded up. As Xen compares with `>`, exactly three memories do not pass the factor either: a guest that
/// dirties everything in every round takes one page time longer than this.
pub fn xen_time_bounds(memory: Pages, link: BytesPerSec, overhead: Overhead) -> Bounds {
    let fixed = overhead.running.saturating_add(overhead.paused);
    let most = u128::from(memory.bytes().0) * 5;
    let most = most.saturating_sub(u128::from(Pages(1).bytes().0));
    let most = Bytes(u64::try_from(most).unwrap_or(u64::MAX));
    Bounds {
        least: link.time_to_send(memory.bytes()).saturating_add(fixed),
        // The rounds and the pause are rounded up one by one.
        most: link
            .time_to_send(most)
            .saturating_add(fixed)
            .saturating_add(Nanos(u64::from(MAX_ROUNDS))),
    }
}

/// Bounds of the downtime (Akoush et al. 2010): the overhead alone, and with all of the memory dirty, M/B more. Rounded up.
pub const fn xen_downtime_bounds(memory: Pages, link: BytesPerSec, overhead: Overhead) -> Bounds {
    Bounds {
        least: overhead.paused,
        most: link.time_to_send(memory.bytes()).saturating_add(overhead.paused),
    }
}

#[cfg(test)]
mod tests;
