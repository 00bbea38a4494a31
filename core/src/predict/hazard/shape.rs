//! How long intervals are relative to the mean before them, learned from all pages.

use crate::predict::fixed::{LOG2_E_Q32, OCTAVE, ONE_Q32, exp2_neg_q32, log2_q16, mul_q32};

/// The scale goes from 2^−this to 2^this means.
const REACH: u32 = 6;
/// Bins of the logarithmic scale.
pub(super) const BINS: usize = (2 * REACH * OCTAVE) as usize;
/// Classes of pages by what is known of them.
const CLASSES: usize = 10;
/// How many intervals of the exponential distribution are mixed into each class.
const PRIOR: u64 = 16;
/// The most that the cumulative hazard is in all, in units of 2⁻³² octaves of S: S is never less than 2⁻³².
const CUMULATIVE_MAX: u64 = 32 * ONE_Q32;

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
    /// −log2 S at the beginning of each bin, in units of 2⁻¹⁶, by class.
    cumulative: &'a mut [[u64; BINS]],
    /// Ended intervals by class.
    ended: [u64; CLASSES],
    /// Of these, the most before all are halved.
    limit: u64,
}

impl<'a> Shape<'a> {
    /// Words of storage.
    pub(super) const WORDS: usize = 2 * CLASSES * BINS;

    /// Over storage of zeros; counts of a class are halved when they exceed `limit`.
    pub(super) fn new(storage: &'a mut [u64], limit: u64) -> Self {
        let (counts, cumulative) = storage.split_at_mut(CLASSES * BINS);
        Self {
            counts: counts.as_chunks_mut().0,
            cumulative: cumulative.as_chunks_mut().0,
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
            self.ended[class] += ended;
        }
    }

    /// Forgets the open intervals.
    pub(super) fn clear_open(&mut self) {
        for count in self.counts.as_flattened_mut() {
            *count = *count >> 32 << 32;
        }
    }

    /// An interval is still open.
    pub(super) fn count_open(&mut self, class: usize, bin: usize) {
        self.counts[class][bin] += 1;
    }

    /// Makes the survival functions, each open interval counted `every` times: the product-limit estimate of Kaplan & Meier
    /// (1958), in which those that ended in a bin are divided by those that got there.
    pub(super) fn integrate(&mut self, every: u64) {
        for (counts, cumulative) in self.counts.iter().zip(self.cumulative.iter_mut()) {
            let of = |count: u64| (count >> 32) + (count & 0xffff_ffff) * every;
            let mut got_here = counts.iter().map(|&count| of(count)).sum::<u64>();
            let mut hazard = 0;
            for (bin, (&count, cumulative)) in counts.iter().zip(cumulative).enumerate() {
                *cumulative = hazard >> 16;
                // With the prior, in units of 2⁻¹⁶ intervals. At most 2^32 pages and 2^31 intervals: fits 64 bits.
                let prior = |bin: usize| (EXPONENTIAL[bin] * PRIOR) >> 16;
                let ended = ((count >> 32) << 16) + prior(bin) - prior(bin + 1);
                let at_risk = (got_here << 16) + prior(bin);
                hazard = (hazard + hazard_of(ended, at_risk)).min(CUMULATIVE_MAX);
                got_here -= of(count);
            }
        }
    }

    /// −log2 S in units of 2⁻¹⁶, at most 32 · 2¹⁶.
    #[inline(always)]
    pub(super) fn cumulative(&self, class: usize, bin: usize) -> u32 {
        self.cumulative[class][bin] as u32
    }
}

/// −log2(1 − ended/at_risk) in units of 2⁻³².
fn hazard_of(ended: u64, at_risk: u64) -> u64 {
    if ended == 0 {
        return 0;
    }
    let Some(left) = at_risk.checked_sub(ended).filter(|&left| left > 0) else {
        return CUMULATIVE_MAX;
    };
    let share = ((u128::from(ended) << 32) / u128::from(at_risk)) as u64;
    if share >= ONE_Q32 / 32 {
        return (log2_q16(at_risk) - log2_q16(left)) << 16;
    }
    // The series of −ln(1 − x), whose fourth term is below 2⁻²².
    let square = mul_q32(share, share);
    mul_q32(share + square / 2 + mul_q32(square, share) / 3, LOG2_E_Q32)
}
