//! How long intervals are relative to the mean before them, learned from all pages.

use crate::predict::fixed::{LOG2_E_Q32, OCTAVE, exp2_neg_q32, mul_q32};

/// The scale goes from 2^−this to 2^this means.
const REACH: u32 = 6;
/// Bins of the logarithmic scale.
pub(super) const BINS: usize = (2 * REACH * OCTAVE) as usize;
/// Classes of pages by what is known of them.
const CLASSES: usize = 10;
/// How many intervals of the exponential distribution are mixed into each class.
const PRIOR: u64 = 16;
/// S is never less than 2^−this.
const LEAST_SHIFT: u32 = 20;
/// S is kept in units of 2^−this while it is made.
const FINE_SHIFT: u32 = 48;

/// S(x) = e⁻ˣ at the beginning of each bin and beyond the last, in units of 2⁻³².
const EXPONENTIAL: [u64; BINS + 1] = {
    let mut survival = [0; BINS + 1];
    let mut bin = 0;
    while bin <= BINS {
        // x = 2^(bin/64 − REACH), as a power below 1, 2^(bin/64 − 2·REACH), shifted back.
        let steps = (2 * REACH * OCTAVE) as u64 - bin as u64;
        let x_q24 = exp2_neg_q32(steps << (16 - OCTAVE.ilog2())) >> (8 - REACH);
        // S = 2^−(x·log2 e).
        survival[bin] = exp2_neg_q32(mul_q32(x_q24, LOG2_E_Q32) >> 8);
        bin += 1;
    }
    survival
};

/// Counts of intervals by class and bin, and the survival functions that follow from them.
#[derive(Debug)]
pub(super) struct Shape<'a> {
    /// Intervals that ended (upper 32 bits) and that are open (lower), by class.
    counts: &'a mut [[u64; BINS]],
    /// By class, S at the beginning of each bin in units of 2⁻³² (lower 32 bits), and 1/S in units of 2⁻¹² (upper).
    survival: &'a mut [[u64; BINS]],
    /// Ended intervals by class.
    ended: [u32; CLASSES],
    /// Of these, the most before all are halved.
    limit: u32,
}

impl<'a> Shape<'a> {
    /// Words of storage.
    pub(super) const WORDS: usize = 2 * CLASSES * BINS;

    /// Over storage of zeros; counts of a class are halved when they exceed `limit`.
    pub(super) fn new(storage: &'a mut [u64], limit: u32) -> Self {
        let (counts, survival) = storage.split_at_mut(CLASSES * BINS);
        Self {
            counts: counts.as_chunks_mut().0,
            survival: survival.as_chunks_mut().0,
            ended: [0; CLASSES],
            limit: limit.clamp(1 << 12, 1 << 31),
        }
    }

    /// An interval ended.
    #[inline(always)]
    pub(super) fn count(&mut self, class: usize, bin: usize) {
        self.counts[class][bin] += 1 << 32;
        self.ended[class] += 1;
        if self.ended[class] > self.limit {
            self.halve(class);
        }
    }

    #[cold]
    fn halve(&mut self, class: usize) {
        self.ended[class] = 0;
        for count in &mut self.counts[class] {
            let ended = *count >> 33;
            *count = ended << 32;
            // At most half of a limit that fits.
            self.ended[class] += ended as u32;
        }
    }

    /// Forgets the open intervals.
    pub(super) fn clear_open(&mut self) {
        for count in self.counts.as_flattened_mut() {
            *count = *count >> 32 << 32;
        }
    }

    /// An interval is still open. At most 2^32 − 1 times before they are forgotten.
    pub(super) fn count_open(&mut self, class: usize, bin: usize) {
        self.counts[class][bin] += 1;
    }

    /// Makes the survival functions by the product-limit estimate of Kaplan & Meier (1958): at each bin, those that ended
    /// there are taken from those that got there, open ones included.
    pub(super) fn integrate(&mut self) {
        for (counts, survival) in self.counts.iter().zip(self.survival.iter_mut()) {
            let both = |count: u64| (count >> 32) + (count & 0xffff_ffff);
            let mut got_here = counts.iter().map(|&count| both(count)).sum::<u64>();
            let mut here = 1_u64 << FINE_SHIFT;
            for (bin, (&count, survival)) in counts.iter().zip(survival).enumerate() {
                *survival = packed(here);
                // With the prior, in units of 2⁻¹⁶ intervals; at most 2^34 of them.
                let prior = |bin: usize| (EXPONENTIAL[bin] * PRIOR) >> 16;
                let at_risk = (got_here << 16) + prior(bin);
                let left = ((got_here - (count >> 32)) << 16) + prior(bin + 1);
                if at_risk > 0 {
                    here = (u128::from(here) * u128::from(left) / u128::from(at_risk)) as u64;
                }
                got_here -= both(count);
            }
        }
    }

    /// S in units of 2⁻³², from 2⁻²⁰ to just below 1, never rising with the bin; and 1/S in units of 2⁻¹².
    #[inline(always)]
    pub(super) fn survival(&self, class: usize, bin: usize) -> (u32, u32) {
        let packed = self.survival[class][bin];
        (packed as u32, (packed >> 32) as u32)
    }
}

/// S and 1/S from S in units of 2⁻⁴⁸.
fn packed(fine: u64) -> u64 {
    let survival = (fine >> (FINE_SHIFT - 32)).clamp(1 << (32 - LEAST_SHIFT), u64::from(u32::MAX));
    // 2^12·2^32/S: at most 2^32, for the least S, which is cut to what fits.
    survival | ((1_u64 << 44) / survival).min(u64::from(u32::MAX)) << 32
}
