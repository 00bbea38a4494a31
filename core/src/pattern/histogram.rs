//! How long pages are left alone between two writes, counted in buckets.

use core::ops::RangeInclusive;

use crate::units::Nanos;

/// Bits of a value below its highest that a bucket tells apart: 4 buckets per doubling.
const SUB_BITS: u32 = 2;
const SUB_BUCKETS: usize = 1 << SUB_BITS;
/// Buckets that hold every 64-bit value.
const BUCKETS: usize = (u64::BITS - SUB_BITS + 1) as usize * SUB_BUCKETS;

/// Intervals between two writes of the same page, in log-linear buckets with the sum of what fell into each.
///
/// Values below 4 have a bucket each; above, every doubling is divided into 4 equal buckets, so a bucket is at most a quarter as
/// wide as its lower end. Because the sums are kept, totals are exact and only what lies *inside* one bucket is not:
/// [`min_sum`](Self::min_sum) is exact at every bucket's end. Counts stop at the largest number. 6 KiB.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IntervalHistogram {
    counts: [u64; BUCKETS],
    /// The sum of the intervals in each bucket: below 2^128, as each of at most 2^64 is below 2^64.
    sums: [u128; BUCKETS],
}

impl Default for IntervalHistogram {
    fn default() -> Self {
        Self::new()
    }
}

impl IntervalHistogram {
    /// Nothing counted.
    pub const fn new() -> Self {
        Self {
            counts: [0; BUCKETS],
            sums: [0; BUCKETS],
        }
    }

    /// Counts one interval. O(1): no division, no search.
    #[inline]
    pub fn record(&mut self, interval: Nanos) {
        let bucket = bucket_of(interval.0);
        if self.counts[bucket] < u64::MAX {
            self.counts[bucket] += 1;
            self.sums[bucket] += u128::from(interval.0);
        }
    }

    /// Counts all that `other` did. O(buckets).
    pub(super) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine = mine.saturating_add(*theirs);
        }
        for (mine, theirs) in self.sums.iter_mut().zip(&other.sums) {
            *mine = mine.saturating_add(*theirs);
        }
    }

    /// Intervals counted, stopping at the largest number. O(buckets), 252 of them.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, &count| sum.saturating_add(count))
    }

    /// The sum of all intervals, in nanoseconds, exact as long as it stays below 2^128. O(buckets).
    pub fn sum(&self) -> u128 {
        self.sums.iter().fold(0, |sum, &one| sum.saturating_add(one))
    }

    /// The buckets that hold something, in ascending order: what falls into each, and how many did.
    pub fn buckets(&self) -> impl Iterator<Item = (RangeInclusive<Nanos>, u64)> + '_ {
        let filled = self.counts.iter().enumerate().filter(|&(_, &count)| count > 0);
        filled.map(|(bucket, &count)| {
            let (start, end) = bounds_of(bucket);
            // Below 2^64 both.
            (Nanos(start as u64)..=Nanos((end - 1) as u64), count)
        })
    }

    /// The bucket in which the interval lies that `milli` thousandths of all (rounded up, at least one) are not longer
    /// than: 500 asks for the median. `None` if nothing was counted. More than 1000 is read as that. O(buckets).
    pub fn quantile(&self, milli: u16) -> Option<RangeInclusive<Nanos>> {
        let rank = (u128::from(self.count()) * u128::from(milli.min(1000)))
            .div_ceil(1000)
            .max(1);
        let mut below = 0;
        self.buckets().find_map(|(range, count)| {
            below += u128::from(count);
            (below >= rank).then_some(range)
        })
    }

    /// Bounds of Σ min(interval, `window`) over all intervals counted, in nanoseconds: what the working-set curve is made of.
    ///
    /// Exact, low = high, where the window [is a bucket's end](Self::is_exact). In between, only intervals in the window's own
    /// bucket are uncertain. With c of them in a bucket from a to b, Σ min is concave in the window, so it is at least the
    /// chord from c·a to their sum, and at most both c·window and their sum; high − low is at most c·(b − a)/4, a
    /// sixteenth of what these intervals contribute. O(buckets).
    pub fn min_sum(&self, window: Nanos) -> RangeInclusive<u128> {
        let window = window.0;
        let own = bucket_of(window);
        let below = self.sums[..own].iter().sum::<u128>();
        let longer: u128 = self.counts[own + 1..].iter().map(|&count| u128::from(count)).sum();
        let outside = below + longer * u128::from(window);
        let (count, sum) = (u128::from(self.counts[own]), self.sums[own]);
        let (start, end) = bounds_of(own);
        let (width, into) = (end - start, u128::from(window) - start);
        let least = count * start;
        // (sum − least)·into / width, divided first where the product may not fit.
        let rise = sum - least;
        let chord = least + rise / width * into + rise % width * into / width;
        outside + chord..=outside + sum.min(count * u128::from(window))
    }

    /// Whether [`min_sum`](Self::min_sum) is exact for this window whatever was counted: 0 to 8, and all numbers whose
    /// binary digits after the first three are zero, so every power of two.
    pub const fn is_exact(window: Nanos) -> bool {
        let digits = u64::BITS - window.0.leading_zeros();
        digits <= SUB_BITS + 1 || window.0.trailing_zeros() >= digits - (SUB_BITS + 1)
    }
}

/// The bucket that a value falls into.
#[inline]
const fn bucket_of(value: u64) -> usize {
    if value < SUB_BUCKETS as u64 {
        return value as usize;
    }
    let exponent = value.ilog2();
    let sub = (value >> (exponent - SUB_BITS)) as usize % SUB_BUCKETS;
    (exponent - SUB_BITS + 1) as usize * SUB_BUCKETS + sub
}

/// The least value of a bucket, and the least of the next; that of the last is 2^64.
const fn bounds_of(bucket: usize) -> (u128, u128) {
    (least_of(bucket), least_of(bucket + 1))
}

const fn least_of(bucket: usize) -> u128 {
    let (octave, sub) = ((bucket / SUB_BUCKETS) as u32, (bucket % SUB_BUCKETS) as u128);
    match octave {
        0 => sub,
        _ => (SUB_BUCKETS as u128 + sub) << (octave - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn histogram(intervals: &[u64]) -> IntervalHistogram {
        let mut histogram = IntervalHistogram::new();
        intervals.iter().for_each(|&interval| histogram.record(Nanos(interval)));
        histogram
    }

    #[test]
    fn buckets_join_without_gaps_and_are_narrow() {
        for bucket in 0..BUCKETS {
            let (start, end) = bounds_of(bucket);
            assert_eq!(bucket_of(start as u64), bucket);
            assert_eq!(bucket_of((end - 1) as u64), bucket);
            assert!(
                end - start <= 1 || 4 * (end - start) <= start,
                "{bucket}: {start} to {end}"
            );
        }
        assert_eq!(bounds_of(0), (0, 1));
        assert_eq!(bounds_of(BUCKETS - 1).1, 1 << 64);
    }

    #[test]
    fn sums_by_hand() {
        // Buckets 3, 8 to 9, 96 to 111.
        let histogram = histogram(&[3, 9, 9, 100]);
        assert_eq!((histogram.count(), histogram.sum()), (4, 121));
        assert_eq!(histogram.min_sum(Nanos(8)), 27..=27); // 3 + 3·8
        assert_eq!(histogram.min_sum(Nanos(9)), 29..=30); // 3 + 18 + 9 is right; the bucket does not tell 9, 9 from 8, 10
        assert_eq!(histogram.min_sum(Nanos(10)), 31..=31); // 3 + 18 + 10
        assert_eq!(histogram.min_sum(Nanos(u64::MAX)), 121..=121);
        // The chord from 96 at 96 to 100 at 112 is at 99.5; both 110 and the sum, 100, bound it from above.
        assert_eq!(histogram.min_sum(Nanos(110)), 120..=121);
        assert_eq!(histogram.min_sum(Nanos(0)), 0..=0);
        assert_eq!(histogram.quantile(500), Some(Nanos(8)..=Nanos(9)));
        assert_eq!(histogram.quantile(0), Some(Nanos(3)..=Nanos(3)));
        assert_eq!(histogram.quantile(1000), Some(Nanos(96)..=Nanos(111)));
        assert_eq!(IntervalHistogram::new().quantile(500), None);
        let counts: Vec<_> = histogram.buckets().map(|(_, count)| count).collect();
        assert_eq!(counts, [1, 2, 1]);
    }

    #[test]
    fn the_largest_intervals_do_not_overflow() {
        let mut histogram = histogram(&[u64::MAX; 3]);
        assert_eq!(histogram.sum(), 3 * u128::from(u64::MAX));
        assert_eq!(histogram.min_sum(Nanos(1 << 63)), 3 << 63..=3 << 63);
        // 2^32 pages, each left alone for a day, ten thousand times over.
        let day = Nanos::from_secs(86_400).0;
        let bucket = bucket_of(day);
        histogram.counts[bucket] = (1 << 32) * 10_000;
        histogram.sums[bucket] = u128::from(histogram.counts[bucket]) * u128::from(day);
        let all = histogram.min_sum(Nanos(day));
        assert_eq!(*all.end(), u128::from(day) * ((1 << 32) * 10_000 + 3));
        assert!(all.end() - all.start() <= all.end() / 16);
    }

    proptest! {
        #[test]
        fn bounds_hold_and_powers_of_two_are_exact(
            intervals in vec(prop_oneof![0..40u64, 900..1100u64, 0..5000u64, any::<u64>()], 0..60),
            window in prop_oneof![0..40u64, 900..1100u64, 0..5000u64, any::<u64>()],
            power in 0..64u32,
        ) {
            let histogram = histogram(&intervals);
            let truth = |window: u64| intervals.iter().map(|&interval| u128::from(interval.min(window))).sum::<u128>();
            let bounds = histogram.min_sum(Nanos(window));
            prop_assert!(bounds.contains(&truth(window)), "{bounds:?} without {}", truth(window));
            let own = histogram.buckets().find(|(range, _)| range.contains(&Nanos(window)));
            let (width, count) = own.map_or((0, 0), |(range, count)| (u128::from(range.end().0 - range.start().0) + 1, count));
            prop_assert!(4 * (bounds.end() - bounds.start()) <= u128::from(count) * width + 4);
            if IntervalHistogram::is_exact(Nanos(window)) {
                prop_assert_eq!(bounds.start(), bounds.end());
            }
            prop_assert!(IntervalHistogram::is_exact(Nanos(1 << power)));
            prop_assert_eq!(histogram.min_sum(Nanos(1 << power)), truth(1 << power)..=truth(1 << power));
            prop_assert_eq!(histogram.sum(), truth(u64::MAX));
        }

        #[test]
        fn a_quantile_is_in_its_bucket(mut intervals in vec(0..100_000u64, 1..80), milli in 0..=1000u16) {
            let range = histogram(&intervals).quantile(milli).expect("not empty");
            intervals.sort_unstable();
            let rank = (intervals.len() * usize::from(milli)).div_ceil(1000).max(1);
            prop_assert!(range.contains(&Nanos(intervals[rank - 1])));
        }
    }
}
