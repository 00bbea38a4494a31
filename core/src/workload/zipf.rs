//! Zipf's distribution, drawn in constant time from tables of fixed size, in integers.
//!
//! Ranks 1 to 31 have probabilities of their own. The ranks above are treated as a density x^-S over real x, rounded to
//! whole ranks, and cut into octaves from 31.5 on: within every octave the density has the same shape, so one table of
//! its inverse serves all. Which rank or octave it is comes from an alias table (Walker 1977, Vose 1991). The last
//! octave may reach beyond the last rank; such draws are repeated, at worst every second one.

use super::layout::MAX_MEMORY;
use super::random::Random;
use super::spec::Milli;
use crate::units::PAGE_SIZE;

/// Ranks with a probability of their own.
const SINGLE: usize = 31;
/// Entries of the alias table: single ranks and octaves.
const SLOTS: usize = 64;
/// Intervals of equal probability in the inverse.
const INTERVALS: usize = 256;
/// The largest exponent, in thousandths.
const MAX_EXPONENT: u16 = 3000;
/// The most ranks.
const MAX_RANKS: u64 = 1 << 31;

/// The weight of a slot of the alias table: all slots together have 2^63, so that no sum overflows.
const SLOT: u64 = 1 << 57;
/// Fraction bits of the inverse's values, which lie in 1 ..= 2.
const INVERSE_BITS: u32 = 30;

const _: () = assert!(
    MAX_RANKS >= 4 * (MAX_MEMORY / PAGE_SIZE),
    "items of a slab over the largest memory have ranks"
);

/// A sampler of ranks: rank k of `ranks` has a probability proportional to k^-S.
///
/// Every rank's probability is within 2 % of exact, as long as it is above 2^-50; from exponent 0 (uniform) to 3. A
/// draw takes one or two random numbers and a few table reads, building one some 30 000 integer instructions.
#[derive(Clone, Debug)]
pub struct Zipf {
    exponent: Milli,
    ranks: u64,
    /// Of each slot, the part that is its own, in 64ths of 2^64; the rest goes to its alias.
    thresholds: [u64; SLOTS],
    aliases: [u8; SLOTS],
    /// Where in its octave, relative to the start, each interval begins; the last is the octave's end.
    inverse: [u32; INTERVALS + 1],
}

impl Zipf {
    /// A sampler with one rank, to be replaced; costs nothing.
    pub(super) const EMPTY: Self = Self {
        exponent: Milli(0),
        ranks: 1,
        thresholds: [0; SLOTS],
        aliases: [0; SLOTS],
        inverse: [0; INTERVALS + 1],
    };

    /// A sampler of `ranks` ranks, 1 to 2^31, with an exponent of 0 to 3; values outside are brought to the nearest
    /// inside.
    pub fn new(exponent: Milli, ranks: u64) -> Self {
        let exponent = Milli(exponent.0.min(MAX_EXPONENT));
        let ranks = ranks.clamp(1, MAX_RANKS);
        let shape = Shape::new(exponent);
        let (thresholds, aliases) = alias_table(&weights(exponent, ranks, shape.integral));
        Self {
            exponent,
            ranks,
            thresholds,
            aliases,
            inverse: shape.inverse,
        }
    }

    /// Whether this sampler is already the one that [`new`](Self::new) would make.
    pub(super) const fn is(&self, exponent: Milli, ranks: u64) -> bool {
        self.exponent.0 == exponent.0 && self.ranks == ranks
    }

    /// A rank, counted from 0 for the most popular.
    #[inline]
    pub fn draw(&self, random: &mut Random) -> u64 {
        loop {
            let bits = random.next_bits();
            let slot = (bits >> (u64::BITS - SLOTS.ilog2())) as usize;
            let slot = if bits << SLOTS.ilog2() < self.thresholds[slot] {
                slot
            } else {
                self.aliases[slot].into()
            };
            if slot < SINGLE {
                return slot as u64;
            }
            let rank = self.in_octave((slot - SINGLE) as u32, (random.next_bits() >> 32) as u32);
            if rank < self.ranks {
                return rank;
            }
        }
    }

    /// The rank, counted from 0, at a place in an octave given by 32 random bits.
    #[inline]
    fn in_octave(&self, octave: u32, place: u32) -> u64 {
        let interval = (place >> 24) as usize;
        let (start, end) = (self.inverse[interval], self.inverse[interval + 1]);
        let x = u64::from(start) + ((u64::from(end - start) * u64::from(place & 0xff_ffff)) >> 24);
        // 31.5 * 2^octave * x, rounded to whole ranks, which are counted from 1 there.
        ((((63 * x) << octave) + (1 << INVERSE_BITS)) >> (INVERSE_BITS + 1)) - 1
    }
}

/// Fraction bits of the numbers used in building the tables.
const BITS: u32 = 56;
const ONE: u64 = 1 << BITS;
/// The natural logarithm of 2.
const LN_2: u64 = 0xb1_7217_f7d1_cf7a;
/// Fraction bits of weights: more, as they span many orders of magnitude.
const WEIGHT_BITS: u32 = 118;

fn multiply(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> BITS) as u64
}

/// e^x for |x| < 1.
fn exp(x: i64) -> u64 {
    let (mut sum, mut term, mut n) = (ONE as i64, ONE as i64, 1);
    while term != 0 {
        term = ((i128::from(term) * i128::from(x)) >> BITS) as i64 / n;
        sum += term;
        n += 1;
    }
    sum as u64
}

/// e^-x with [`WEIGHT_BITS`], x below 256.
fn exp_negative(x: u64) -> u128 {
    (u128::from(exp(-((x % LN_2) as i64))) << (WEIGHT_BITS - BITS)) >> (x / LN_2).min(127)
}

/// The logarithms of 1 to N, by ln(k + 1) = ln k + 2 artanh(1 / (2k + 1)).
fn logarithms<const N: usize>() -> [u64; N] {
    let mut logarithms = [0; N];
    let mut last = 0;
    for (k, logarithm) in (1u64..).zip(&mut logarithms) {
        *logarithm = last;
        let odd = 2 * k + 1;
        let (mut power, mut n) = (2 * ONE / odd, 1);
        while power != 0 {
            last += power / n;
            power /= odd * odd;
            n += 2;
        }
    }
    logarithms
}

/// The relative weights of the single ranks and, behind them, of the octaves.
fn weights(Milli(exponent): Milli, ranks: u64, integral: u64) -> [u128; SLOTS] {
    let mut weights = [0; SLOTS];
    let logarithms = logarithms::<SINGLE>();
    let times = |logarithm: u64, thousandths: u16| (u128::from(logarithm) * u128::from(thousandths) / 1000) as u64;
    // 63 / 2 = 9 * 7 / 2 = 31.5
    let ln_start = logarithms[8] + logarithms[6] - LN_2;
    let octaves = (0..(SLOTS - SINGLE) as u64).take_while(|octave| 63 << octave < 2 * ranks + 1);
    let octaves = if ranks > SINGLE as u64 {
        octaves.count() as u64
    } else {
        0
    };
    // Octave i weighs (31.5 * 2^i)^(1 - S) times the integral over 1 to 2: growing with i for S < 1, when all weights
    // are taken relative to the last octave's so that none is above 1.
    let falling = exponent.saturating_sub(1000);
    let rising = 1000u16.saturating_sub(exponent);
    let relative = match octaves {
        0 => 0,
        _ => times(ln_start + (octaves - 1) * LN_2, rising),
    };
    for (weight, logarithm) in weights
        .iter_mut()
        .zip(logarithms)
        .take(ranks.min(SINGLE as u64) as usize)
    {
        *weight = exp_negative(times(logarithm, exponent) + relative);
    }
    for (octave, weight) in (0..octaves).zip(&mut weights[SINGLE..]) {
        let power = match rising {
            0 => exp_negative(times(ln_start + octave * LN_2, falling)),
            _ => exp_negative(times((octaves - 1 - octave) * LN_2, rising)),
        };
        *weight = (power >> (BITS / 2)) * u128::from(integral >> (BITS / 2));
    }
    weights
}

/// The density t^-S over one octave, t = 1 to 2.
struct Shape {
    /// Its integral.
    integral: u64,
    /// The inverse of its cumulative distribution at equal steps.
    inverse: [u32; INTERVALS + 1],
}

impl Shape {
    /// Over a grid of t = e^z with equal steps of z, where dt / t^S = e^((1 - S) z) dz, by the trapezoidal rule, whose
    /// error is below 10^-5 here.
    fn new(Milli(exponent): Milli) -> Self {
        let step = (LN_2 / INTERVALS as u64) as i64;
        let ratio = exp(step);
        let density_ratio = exp(step * (1000 - i64::from(exponent)) / 1000);
        let mut integral = 0;
        let mut density = ONE;
        for _ in 0..INTERVALS {
            integral += slice(&mut density, density_ratio);
        }
        let mut inverse = [0; INTERVALS + 1];
        let mut density = ONE;
        let (mut t, mut next_t) = (ONE, ratio);
        let (mut below, mut width) = (0, slice(&mut density, density_ratio));
        for (target, value) in (0u64..).map(|i| (integral >> 8) * i).zip(&mut inverse) {
            while target > below + width {
                below += width;
                width = slice(&mut density, density_ratio);
                (t, next_t) = (next_t, multiply(next_t, ratio));
            }
            let inside = ((next_t - t) >> 24) * ((target - below) >> 20) / (width >> 20);
            *value = ((t + (inside << 24)) >> (BITS - INVERSE_BITS)) as u32;
        }
        inverse[INTERVALS] = 2 << INVERSE_BITS;
        Self {
            integral: multiply(integral, LN_2),
            inverse,
        }
    }
}

/// One slice of the integral, in units in which an octave is 1 wide; the density moves on to the next.
fn slice(density: &mut u64, ratio: u64) -> u64 {
    let next = multiply(*density, ratio);
    let slice = (*density + next) >> 9;
    *density = next;
    slice
}

const _: () = assert!(INTERVALS == 1 << 8, "slice() and the targets shift by 8");

/// Thresholds and aliases for these weights, of which the first is not zero.
fn alias_table(weights: &[u128; SLOTS]) -> ([u64; SLOTS], [u8; SLOTS]) {
    let sum: u128 = weights.iter().sum::<u128>();
    let mut parts = weights.map(|weight| ((weight << 7) / (sum >> 56).max(1)) as u64);
    let total: u64 = parts[1..].iter().sum();
    parts[0] = (SLOT * SLOTS as u64).saturating_sub(total);
    let mut thresholds = [0; SLOTS];
    // A slot that is all its own is its own alias.
    let mut aliases = core::array::from_fn(|slot| slot as u8);
    let mut small = heapless::Vec::<u8, SLOTS>::new();
    let mut large = heapless::Vec::<u8, SLOTS>::new();
    for slot in 0..SLOTS as u8 {
        let list = if parts[usize::from(slot)] < SLOT {
            &mut small
        } else {
            &mut large
        };
        list.push(slot).expect("each slot is in one list");
    }
    while let (Some(needy), Some(giver)) = (small.pop(), large.pop()) {
        thresholds[usize::from(needy)] = parts[usize::from(needy)] << 7;
        aliases[usize::from(needy)] = giver;
        let left = parts[usize::from(giver)] - (SLOT - parts[usize::from(needy)]);
        parts[usize::from(giver)] = left;
        let list = if left < SLOT { &mut small } else { &mut large };
        list.push(giver).expect("each slot is in one list");
    }
    (thresholds, aliases)
}

#[cfg(test)]
#[expect(clippy::float_arithmetic, reason = "tests compare with exact probabilities")]
mod exact {
    use std::vec::Vec;

    use super::*;

    impl Zipf {
        /// The probability of every rank as the tables have it, in order, without any drawing.
        pub(in crate::workload) fn probabilities(&self) -> Vec<f64> {
            let unit = 2f64.powi(-64) / SLOTS as f64;
            let mut slots = [0.0; SLOTS];
            for (slot, (&threshold, &alias)) in self.thresholds.iter().zip(&self.aliases).enumerate() {
                slots[slot] += threshold as f64 * unit;
                slots[usize::from(alias)] += (2f64.powi(64) - threshold as f64) * unit;
            }
            let cumulative = |x: f64| {
                // Of all slots and, within its octave, of all places whose rank, before rounding, is below x.
                let mut sum = 0.0;
                for (octave, &slot) in slots[SINGLE..].iter().enumerate() {
                    let t = x / (31.5 * 2f64.powi(octave as i32)) * 2f64.powi(INVERSE_BITS as i32);
                    let interval = self.inverse.partition_point(|&start| f64::from(start) <= t);
                    sum += slot
                        * match interval {
                            0 => 0.0,
                            _ if interval > INTERVALS => 1.0,
                            _ => {
                                let (start, end) = (self.inverse[interval - 1], self.inverse[interval]);
                                let inside = (t - f64::from(start)) / f64::from(end - start);
                                (interval as f64 - 1.0 + inside) / INTERVALS as f64
                            }
                        };
                }
                sum
            };
            let mut weights: Vec<f64> = slots[..SINGLE.min(self.ranks as usize)].to_vec();
            let mut below = 0.0;
            for rank in SINGLE as u64 + 1..=self.ranks {
                let next = cumulative(rank as f64 + 0.5);
                weights.push(next - below);
                below = next;
            }
            let kept: f64 = weights.iter().sum();
            weights.iter().map(|weight| weight / kept).collect()
        }
    }
}
