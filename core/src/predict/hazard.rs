//! When a page was written last, how long it takes between writes, and what such pages did next.

mod shape;

use super::fixed::{log2_steps, probability_of};
use super::window::{Inside, bitmap_words, bits, no_room};
use super::{PredictError, Predictor, Score};
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
/// Pages whose open intervals are looked at by an aim, about: more say little more.
const SAMPLED: u64 = 1 << 15;

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
/// days, then stop. When a class has counted as many intervals as the guest has pages, its counts are halved.
///
/// 8 bytes per page and 120 KiB. A window costs O(words + pages written), a write O(1), [`aim`](Predictor::aim) at most 2^16
/// pages, a score five logarithms and four look-ups.
#[derive(Debug)]
pub struct Hazard<'a> {
    /// Per page a packed [`State`], 0 if it was never written.
    states: &'a mut [u64],
    shape: Shape<'a>,
    /// When the first window began, for ticks to count from; `None` before.
    origin: Option<Nanos>,
    /// The tick of the last window or write.
    now: u32,
    /// What the last aim was for, in ticks.
    aimed: Aim,
    pages: u64,
    overlooked: u64,
}

/// What scores are for, in ticks.
#[derive(Clone, Copy, Debug, Default)]
struct Aim {
    now: u32,
    horizon: u32,
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

    /// The class of the interval under way, and the logarithm of what it is measured against.
    #[inline(always)]
    const fn class(self) -> (usize, u32) {
        let class = CLASS_OF[(self.count << 2 | self.long) as usize & 63] as usize;
        // Without an interval the mean is 0.
        (
            class,
            log2_steps(if self.count == 0 { UNIT_OF_FIRST } else { self.mean }),
        )
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
            Some(_) => (pages.0 as usize).saturating_add(Shape::WORDS),
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
        let (shape, states) = storage.split_at_mut(Shape::WORDS);
        Ok(Self {
            states,
            shape: Shape::new(shape, pages.0),
            origin: None,
            now: 0,
            aimed: Aim::default(),
            pages: pages.0,
            overlooked: 0,
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

    /// A page was written now.
    #[inline(always)]
    fn write(state: &mut u64, shape: &mut Shape<'_>, now: u32) {
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
            let (class, unit) = known.class();
            shape.count(class, bin(log2_steps(interval), unit));
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

    /// The score of a page in this state.
    #[inline(always)]
    fn score_of(&self, state: u64) -> u32 {
        if state == 0 {
            return 0;
        }
        let known = State::unpack(state);
        let age = self.aimed.now.saturating_sub(known.last);
        let (class, unit) = known.class();
        let hazard = |age: u32| self.shape.cumulative(class, bin(log2_steps(to_units(age)), unit));
        let so_far = hazard(age);
        let within =
            |times: u32| probability_of(hazard(age.saturating_add(self.aimed.horizon.saturating_mul(times))) - so_far);
        (2 * within(1) + within(2) + within(4)) / 4
    }
}

/// Ticks in the units of a mean, from 1 up to what 32 bits hold.
#[inline(always)]
const fn to_units(ticks: u32) -> u32 {
    let most = u32::MAX >> MEAN_SHIFT;
    (if ticks > most { most } else { ticks } << MEAN_SHIFT) | 1
}

/// The bin of an interval or age with logarithm `log`, measured from `unit`.
#[inline(always)]
const fn bin(log: u32, unit: u32) -> usize {
    let half = BINS as u32 / 2;
    let bin = (log + half).saturating_sub(unit);
    (if bin >= BINS as u32 { BINS as u32 - 1 } else { bin }) as usize
}

impl Predictor for Hazard<'_> {
    fn on_window(&mut self, written: &[u64], end: Nanos) -> Result<(), PredictError> {
        self.advance(end);
        let inside = Inside::of(written, self.pages);
        for (index, word) in inside.words().filter(|&(_, word)| word != 0) {
            for bit in bits(word) {
                Self::write(&mut self.states[index * 64 + bit as usize], &mut self.shape, self.now);
            }
        }
        no_room(inside.outside, &mut self.overlooked)
    }

    #[inline]
    fn on_write(&mut self, gfn: Gfn, _vcpu: u16, at: Nanos) -> Result<(), PredictError> {
        self.advance(at);
        match usize::try_from(gfn.0).ok().and_then(|page| self.states.get_mut(page)) {
            Some(state) => {
                Self::write(state, &mut self.shape, self.now);
                Ok(())
            }
            None => no_room(1, &mut self.overlooked),
        }
    }

    fn aim(&mut self, now: Nanos, horizon: Nanos) {
        let ticks = u32::try_from(horizon.0.div_ceil(1 << TICK_SHIFT)).unwrap_or(u32::MAX);
        self.aimed = Aim {
            now: self.tick(now),
            horizon: ticks,
        };
        self.shape.clear_open();
        let every = (self.pages / SAMPLED).max(1);
        for &state in self.states.iter().step_by(every as usize).filter(|&&state| state != 0) {
            let known = State::unpack(state);
            let age = self.aimed.now.saturating_sub(known.last);
            let (class, unit) = known.class();
            self.shape.count_open(class, bin(log2_steps(to_units(age)), unit));
        }
        self.shape.integrate(every);
    }

    fn score(&self, gfn: Gfn) -> Score {
        let state = usize::try_from(gfn.0).ok().and_then(|page| self.states.get(page));
        Score(state.map_or(0, |&state| self.score_of(state)))
    }

    fn score_word(&self, index: usize, pages: u64, scores: &mut [u32; 64]) {
        let states = self.states.get(index * 64..).unwrap_or_default();
        for bit in bits(pages) {
            scores[bit as usize] = states.get(bit as usize).map_or(0, |&state| self.score_of(state));
        }
    }

    fn overlooked(&self) -> Pages {
        Pages(self.overlooked)
    }
}
