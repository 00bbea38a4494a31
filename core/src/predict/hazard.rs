//! When a page was written last, how long it takes between writes, and what such pages did next.

mod shape;

use super::fixed::{OCTAVE, log2_steps};
use super::window::{Inside, bitmap_words, bits, no_room};
use super::{PredictError, Predictor, Score, Write};
use crate::units::{Gfn, Nanos, Pages};
use shape::{BINS, Shape};

/// A tick is 2^this nanoseconds, 1.05 ms.
const TICK_SHIFT: u32 = 20;
/// Writes closer together than this are one: what dirty tracking sees of them, and what matters to a round.
const SAME_WRITE: u32 = 32;
/// Intervals counted for a page, at most.
const COUNT_MAX: u32 = 15;
/// Units of a mean interval to a tick are 2^this.
const MEAN_SHIFT: u32 = 4;
/// The largest mean interval: 17 to 18 minutes.
const MEAN_MAX: u32 = (1 << 24) - 1;
/// Bitmap words, at most about, whose pages the shape is learned from: 2^16 pages say as much as all.
const SAMPLED_WORDS: u64 = 1 << 10;
/// Writes whose states are read ahead at once.
const BATCH: usize = 32;
/// Entries of the table of ages: 64 to the octave of ticks.
const AGES: usize = 32 * OCTAVE as usize;
/// The horizons a score looks at, in rounds.
const HORIZONS: [u32; 3] = [1, 2, 4];

/// A renewal model: each page's writes are intervals, and how long the intervals are, relative to the page's own mean, is
/// learned from all pages together.
///
/// The 2017 paper names a better predictor than its first-order Markov model as future work. Its weakness is the horizon: it
/// forecasts the next 50 ms for a round that lasts seconds. Here each page has the time of its last write, the mean of its
/// intervals, their number, and whether each of the last two was longer than the mean then, in 8 bytes. Each interval
/// that ends is counted by x = interval / mean before it, on a logarithmic scale. Pages are counted apart by what is known
/// of them: no interval so far (then x is in units of 4 s), one, and from there on by 2–3 or more intervals and by which
/// of the last two were long, as in prediction by partial matching. From the counts [`aim`](Predictor::aim) makes for each
/// class the survival function S(x), the share of intervals still open at x; the open intervals of pages that fell
/// silent count as censored (Kaplan & Meier 1958), which is how a page that is idle for much longer than its interval goes
/// cold. A page of age a and mean µ is then written within the time t with probability
///
/// P(t) = 1 − S((a + t)/µ) / S(a/µ).
///
/// For memoryless writers S is exponential and P(t) = 1 − e^(−t/µ) whatever the age, lower by how little a mean of few
/// intervals knows. For periodic ones S drops at x = 1: a page written half a period ago is safe for half a period. Where
/// short and long intervals take turns, the last two tell which one comes. Nothing is assumed of any; until enough intervals
/// have ended, S leans on an exponential worth 16 of them.
///
/// The score for a horizon H is ½·P(H) + ¼·P(2H) + ¼·P(4H). A page that is written just after the round's end was sent in
/// vain, too, and among pages that are safe for this round it is best to send those that stay safe longest.
///
/// Rounding: times are kept in ticks of 1.05 ms, logarithms in 64 steps to the octave from 2⁻⁶ to 2⁶ means, probabilities in
/// 2⁻²⁴. A page idle for more than 64 means scores 0. Writes within 34 ms of a page's last are one with it. The mean
/// goes over all intervals, from the sixteenth on with a weight of a sixteenth; it stops at 17 minutes. Ages count up to 52
/// days, then stop. The shape is learned from all pages of a guest of 256 MiB, from some 65 536 of a larger one, in groups of 64
/// spread over the guest. When a class has counted eight times as many intervals as these are pages, its counts are halved. S is
/// never taken to be less than 2⁻²⁰.
///
/// 8 bytes per page and 136 KiB. A window costs O(words + pages written), a write O(1), [`aim`](Predictor::aim) O(words) and
/// some 65 536 pages, a score one logarithm and six look-ups.
#[derive(Debug)]
pub struct Hazard<'a> {
    /// Per page a packed [`State`], 0 if it was never written.
    states: &'a mut [u64],
    shape: Shape<'a>,
    /// For each age, the logarithms of the age and of its sums with the horizons, 16 bits each.
    ages: &'a mut [u64],
    /// A bitmap word is sampled if the upper bits of its hash, shifted down by this, are 0; all are if it is 64.
    sample_shift: u32,
    /// When the first window began, for ticks to count from; `None` before.
    origin: Option<Nanos>,
    /// The tick of the last window or write.
    now: u32,
    /// The tick of the last aim.
    aimed_at: u32,
    pages: u64,
    overlooked: u64,
    /// What reading ahead saw, kept only so that it is done.
    read_ahead: u64,
}

/// What is known of a page, unpacked: 32 bits, 24, 4 and 2 of a word.
#[derive(Clone, Copy)]
struct State {
    /// When it was written last, in ticks from 1.
    last: u32,
    /// The mean interval in 1/16 ticks; not 0 if `count` is not.
    mean: u32,
    /// Intervals, stopping at 15.
    count: u32,
    /// For each of the last two intervals, the last one in bit 0: whether it was longer than the mean before it.
    long: u32,
}

impl State {
    #[inline(always)]
    const fn pack(self) -> u64 {
        (self.last as u64) << 32 | (self.mean as u64) << 8 | (self.count as u64) << 4 | (self.long as u64)
    }

    #[inline(always)]
    const fn unpack(word: u64) -> Self {
        Self {
            last: (word >> 32) as u32,
            mean: (word >> 8) as u32 & MEAN_MAX,
            count: word as u32 >> 4 & COUNT_MAX,
            long: word as u32 & 3,
        }
    }

    /// The class of the interval under way.
    #[inline(always)]
    const fn class(self) -> usize {
        CLASS_OF[(self.count << 2 | self.long) as usize & 63] as usize
    }

    /// The logarithm of what the interval under way is measured against.
    #[inline(always)]
    const fn unit(self) -> u32 {
        // Without an interval the mean is 0.
        log2_steps(if self.count == 0 { UNIT_OF_FIRST } else { self.mean | 1 })
    }
}

/// What the first interval of a page is measured against: 4.2 s in units of a mean.
const UNIT_OF_FIRST: u32 = 1 << (12 + MEAN_SHIFT);

/// The class by number of intervals (times four) and which of the last two were long.
const CLASS_OF: [u8; 64] = {
    let mut classes = [0; 64];
    let mut index = 0;
    while index < 64 {
        let (count, long) = (index / 4, index % 4);
        classes[index] = match count {
            0 | 1 => count,
            2 | 3 => 2 + long,
            _ => 6 + long,
        } as u8;
        index += 1;
    }
    classes
};

/// 2¹⁶/(n + 1), rounded up: the weight of the next interval in the mean of n.
const WEIGHT: [u32; 16] = {
    let mut weights = [0; 16];
    let mut n = 0;
    while n < 16 {
        weights[n] = (1_u32 << 16).div_ceil(n as u32 + 1);
        n += 1;
    }
    weights
};

impl<'a> Hazard<'a> {
    /// Words of storage for a guest of `pages`; `usize::MAX` if they cannot be counted.
    pub const fn words_needed(pages: Pages) -> usize {
        match bitmap_words(pages) {
            Some(_) => (pages.0 as usize).saturating_add(Shape::WORDS + AGES),
            None => usize::MAX,
        }
    }

    /// Nothing known yet, of a guest of `pages`.
    ///
    /// # Errors
    /// [`PredictError::StorageTooSmall`].
    pub fn new(storage: &'a mut [u64], pages: Pages) -> Result<Self, PredictError> {
        let (needed, given) = (Self::words_needed(pages), storage.len());
        let too_small = PredictError::StorageTooSmall { needed, given };
        let storage = storage.get_mut(..needed).ok_or(too_small)?;
        storage.fill(0);
        let (shape, rest) = storage.split_at_mut(Shape::WORDS);
        let (ages, states) = rest.split_at_mut(AGES);
        // One word in 2^k, so that about SAMPLED_WORDS are left.
        let one_in = (states.len() as u64 / (64 * SAMPLED_WORDS)).max(1).ilog2();
        Ok(Self {
            states,
            shape: Shape::new(shape, u32::try_from(pages.0 >> one_in << 3).unwrap_or(u32::MAX)),
            ages,
            sample_shift: 64 - one_in,
            origin: None,
            now: 0,
            aimed_at: 0,
            pages: pages.0,
            overlooked: 0,
            read_ahead: 0,
        })
    }

    /// The tick of a time, from 1; never before the last.
    #[inline(always)]
    fn tick(&self, at: Nanos) -> u32 {
        let since = at.saturating_sub(self.origin.unwrap_or(at)).0 >> TICK_SHIFT;
        (since.min(u64::from(u32::MAX) - 1) as u32 + 1).max(self.now)
    }

    #[inline(always)]
    fn advance(&mut self, at: Nanos) {
        self.origin.get_or_insert(at);
        self.now = self.tick(at);
    }

    /// Whether the shape is learned from the pages of this bitmap word.
    #[inline(always)]
    const fn is_sampled(index: u64, shift: u32) -> bool {
        // Fibonacci hashing: multiples of a power of two are spread as well as any.
        let hash = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        match hash.checked_shr(shift) {
            Some(upper) => upper == 0,
            None => true,
        }
    }

    /// A page was written now.
    #[inline(always)]
    fn write(state: &mut u64, shape: &mut Shape<'_>, sampled: bool, now: u32) {
        let known = State::unpack(*state);
        let interval = now - known.last;
        if *state == 0 {
            *state = State {
                last: now,
                mean: 0,
                count: 0,
                long: 0,
            }
            .pack();
        } else if interval >= SAME_WRITE {
            let interval = interval.min(MEAN_MAX >> MEAN_SHIFT) << MEAN_SHIFT;
            if sampled {
                shape.count(known.class(), bin(log2_steps(interval), known.unit()));
            }
            let weight = i64::from(WEIGHT[known.count as usize & 15]);
            let step = ((i64::from(interval) - i64::from(known.mean)) * weight) >> 16;
            *state = State {
                last: now,
                // Between the mean and the interval, as the weight is at most 1 and rounding is toward the lower.
                mean: (i64::from(known.mean) + step) as u32,
                count: (known.count + 1).min(COUNT_MAX),
                long: (known.long << 1 | u32::from(interval > known.mean)) & 3,
            }
            .pack();
        }
    }

    /// The score of a page in this state: Σ weight·(S(a) − S(a + t))/S(a).
    #[inline(always)]
    fn score_of(&self, state: u64) -> u32 {
        if state == 0 {
            return 0;
        }
        let known = State::unpack(state);
        let (class, unit) = (known.class(), known.unit());
        let logs = self.ages[age_entry(self.aimed_at.saturating_sub(known.last))];
        let survival = |nth: u32| {
            self.shape
                .survival(class, bin((logs >> (16 * nth)) as u32 & 0xffff, unit))
        };
        let (now, inverse) = survival(0);
        let [round, two, four] = [survival(1).0, survival(2).0, survival(3).0].map(u64::from);
        // At most 4·S(a)/S(a) in units of 2^-44.
        let lost = 4 * u64::from(now) - (2 * round + two + four);
        ((lost * u64::from(inverse)) >> (32 + 12 + 2 - 24)).min(u64::from(Score::CERTAIN.0 - 1)) as u32
    }
}

/// The entry of an age in ticks: its octave, and which 64th of it.
#[inline(always)]
const fn age_entry(age: u32) -> usize {
    let age = age | 1;
    let octave = 31 - age.leading_zeros();
    let part = ((age as u64) << OCTAVE.ilog2() >> octave) as u32 % OCTAVE;
    (octave * OCTAVE + part) as usize % AGES
}

/// The least age with this entry; if that is more than one age, and the entry is one.
const fn age_of(entry: usize) -> u64 {
    let (octave, part) = (entry as u32 / OCTAVE, entry as u32 % OCTAVE);
    ((OCTAVE + part) as u64) << octave >> OCTAVE.ilog2()
}

/// The logarithm of a time in ticks, in units of a mean.
const fn log_of(ticks: u64) -> u32 {
    let most = (u32::MAX >> MEAN_SHIFT) as u64;
    log2_steps((if ticks > most { most } else { ticks } as u32) << MEAN_SHIFT | 1)
}

/// The bin of an interval or age with logarithm `log`, measured from `unit`.
#[inline(always)]
const fn bin(log: u32, unit: u32) -> usize {
    let bin = (log + BINS as u32 / 2).saturating_sub(unit);
    (if bin >= BINS as u32 { BINS as u32 - 1 } else { bin }) as usize
}

impl Predictor for Hazard<'_> {
    fn on_window(&mut self, written: &[u64], end: Nanos) -> Result<(), PredictError> {
        self.advance(end);
        let inside = Inside::of(written, self.pages);
        for (index, word) in inside.words().filter(|&(_, word)| word != 0) {
            let sampled = Self::is_sampled(index as u64, self.sample_shift);
            let states = &mut self.states[index * 64..];
            for bit in bits(word) {
                Self::write(&mut states[bit as usize], &mut self.shape, sampled, self.now);
            }
        }
        no_room(inside.outside, &mut self.overlooked)
    }

    #[inline]
    fn on_write(&mut self, gfn: Gfn, _vcpu: u16, at: Nanos) -> Result<(), PredictError> {
        self.advance(at);
        match usize::try_from(gfn.0).ok().and_then(|page| self.states.get_mut(page)) {
            Some(state) => {
                let sampled = Self::is_sampled(gfn.0 / 64, self.sample_shift);
                Self::write(state, &mut self.shape, sampled, self.now);
                Ok(())
            }
            None => no_room(1, &mut self.overlooked),
        }
    }

    fn on_writes(&mut self, writes: &[Write]) -> Result<(), PredictError> {
        let mut left_out = 0;
        for batch in writes.chunks(BATCH) {
            // Reading all states first lets memory answer for them at the same time.
            self.read_ahead = batch.iter().fold(0, |seen, write| {
                seen | self.states.get(write.gfn.0 as usize).copied().unwrap_or(0)
            });
            for write in batch {
                left_out += u64::from(self.on_write(write.gfn, write.vcpu, write.at).is_err());
            }
        }
        match left_out {
            0 => Ok(()),
            pages => Err(PredictError::NoRoom { pages: Pages(pages) }),
        }
    }

    fn aim(&mut self, now: Nanos, horizon: Nanos) {
        self.aimed_at = self.tick(now);
        let ticks = horizon.0.div_ceil(1 << TICK_SHIFT);
        for (entry, logs) in self.ages.iter_mut().enumerate() {
            let age = age_of(entry);
            *logs = u64::from(log_of(age));
            for (nth, &times) in HORIZONS.iter().enumerate() {
                let later = age.saturating_add(ticks.saturating_mul(u64::from(times)));
                *logs |= u64::from(log_of(later)) << (16 * (nth + 1));
            }
        }
        self.shape.clear_open();
        for (index, states) in self.states.chunks(64).enumerate() {
            if !Self::is_sampled(index as u64, self.sample_shift) {
                continue;
            }
            for known in states
                .iter()
                .filter(|&&state| state != 0)
                .map(|&state| State::unpack(state))
            {
                let age = u64::from(self.aimed_at.saturating_sub(known.last));
                self.shape.count_open(known.class(), bin(log_of(age), known.unit()));
            }
        }
        self.shape.integrate();
    }

    fn score(&self, gfn: Gfn) -> Score {
        let state = usize::try_from(gfn.0).ok().and_then(|page| self.states.get(page));
        Score(state.map_or(0, |&state| self.score_of(state)))
    }

    fn score_word(&self, index: usize, pages: u64, scores: &mut [u32]) {
        let Some(states) = self
            .states
            .get(index * 64..)
            .and_then(|states| states.first_chunk::<64>())
        else {
            // The guest's last word, or none of its words.
            for (score, bit) in scores.iter_mut().zip(bits(pages)) {
                *score = self.score(Gfn(index as u64 * 64 + u64::from(bit))).0;
            }
            return;
        };
        let mut rest = pages;
        for score in scores.iter_mut().take(pages.count_ones() as usize) {
            *score = self.score_of(states[rest.trailing_zeros() as usize & 63]);
            rest &= rest - 1;
        }
    }

    fn overlooked(&self) -> Pages {
        Pages(self.overlooked)
    }
}
