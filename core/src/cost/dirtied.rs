//! A guest's curve made ready for forecasts: bounded, scaled, and continued beyond what was measured.

use crate::pattern::{Profile, WwsCurve};
use crate::units::{Nanos, Pages};

/// What is assumed of windows longer than any that was measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Beyond {
    /// No page more: the least there can be.
    Flat,
    /// Fewer and fewer more, by the same factor in every further half of the longest window: as a guest goes on that writes the
    /// pages of one set at random.
    Decay,
    /// As many more pages a second as in the second half of the longest window: the most there can be if the curve is concave, as
    /// that of every real trace is (Denning, "Working Sets Past and Present", 1980).
    Slope,
}

/// Fractional bits of pages beyond the last point and of the factor.
const FRACTION: u32 = 32;
/// Halves of the longest window in which growth decays; it is constant after that.
const DECAYING: u32 = 256;

/// Distinct pages written in a window, scaled for a guest that writes more or less than it did when it was measured.
#[derive(Clone, Copy, Debug)]
pub struct Dirtied<'a> {
    curve: &'a WwsCurve,
    total: Pages,
    permille: u32,
    beyond: Beyond,
}

impl<'a> Dirtied<'a> {
    /// The profile's curve times `permille` / 1000, never more than all pages of the guest.
    pub const fn new(profile: &'a Profile, permille: u32, beyond: Beyond) -> Self {
        Self {
            curve: &profile.curve,
            total: profile.total,
            permille,
            beyond,
        }
    }

    /// D(window), rounded down; never falls as the window grows. O(log points).
    pub fn pages_in(&self, window: Nanos) -> Pages {
        let measured = u128::from(self.curve.pages_in(window).0) + self.continued(window);
        let scaled = measured.saturating_mul(u128::from(self.permille)) / 1000;
        Pages(u64::try_from(scaled).unwrap_or(u64::MAX)).min(self.total)
    }

    /// Pages beyond the last point. At most [`DECAYING`] steps.
    fn continued(&self, window: Nanos) -> u128 {
        let Some(&(longest, saturation)) = self.curve.points().last() else {
            return 0;
        };
        if self.beyond == Beyond::Flat || window <= longest {
            return 0;
        }
        let [quarter, half] = [4, 2].map(|part| self.curve.pages_in(Nanos(longest.0 / part)));
        let rise = u128::from(saturation.0.saturating_sub(half.0));
        let span = u128::from(longest.0 - longest.0 / 2);
        let mut left = u128::from(window.0 - longest.0);
        if self.beyond == Beyond::Slope {
            // Both factors are below 2⁶⁴.
            return rise * left / span;
        }
        let factor = decay(rise, u128::from(half.0.saturating_sub(quarter.0)));
        let mut step = rise.min(1 << 63) << FRACTION;
        let mut more = 0u128;
        for _ in 0..DECAYING {
            let below = step & ((1 << FRACTION) - 1);
            step = (step >> FRACTION) * factor + ((below * factor) >> FRACTION);
            if left <= span || step == 0 {
                break;
            }
            more += step;
            left -= span;
        }
        let rest = (step >> FRACTION).saturating_mul(left) / span;
        (more >> FRACTION).saturating_add(rest)
    }

    /// Pages written in a window that were also written in the one before it, on average: D(a) + D(b) − D(a + b), as both
    /// windows together are one of length a + b. Exact for any stationary guest; rounded, at most three pages off.
    pub fn written_again(&self, before: Nanos, window: Nanos) -> Pages {
        let apart = self.pages_in(before).saturating_add(self.pages_in(window));
        apart.saturating_sub(self.pages_in(before.saturating_add(window)))
    }
}

/// By what factor growth shrinks in each further half of a window, from the rise in its second half and that in its second
/// quarter, with its fraction; at most 1.
///
/// A guest that writes one set at random leaves a share 1 − D/W = exp(−t/τ) unwritten. With y what a quarter leaves, the
/// second quarter brings W·(y − y²) and the second half W·(y² − y⁴), so their quotient is r = y + y², and the factor is y².
fn decay(second_half: u128, second_quarter: u128) -> u128 {
    if second_half == 0 {
        return 0;
    }
    if second_quarter == 0 || second_half >= 2 * second_quarter {
        return 1 << FRACTION;
    }
    // y = (√(1 + 4·r) − 1) / 2; r is below 2, so its square with the fraction stays below 2⁶⁸.
    let quotient = (second_half << FRACTION) / second_quarter;
    let one = 1u128 << FRACTION;
    let root = ((one + 4 * quotient) << FRACTION).isqrt();
    let y = (root - one) / 2;
    (y * y) >> FRACTION
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn profile(points: &[(u64, u64)], total: u64) -> Profile {
        let points: std::vec::Vec<_> = points
            .iter()
            .map(|&(s, pages)| (Nanos::from_secs(s), Pages(pages)))
            .collect();
        let curve = WwsCurve::new(&points).expect("a curve");
        Profile::new(Pages(total), Pages(total), curve, Nanos::from_secs(1), 1)
    }

    /// 100 pages in a second, 160 in two: 60 more in every second to come, or none.
    #[test]
    fn by_hand() {
        let profile = profile(&[(1, 100), (2, 160)], 500);
        let at = |permille, beyond, seconds| {
            Dirtied::new(&profile, permille, beyond)
                .pages_in(Nanos::from_secs(seconds))
                .0
        };
        assert_eq!([1, 2, 3, 4].map(|s| at(1000, Beyond::Flat, s)), [100, 160, 160, 160]);
        assert_eq!([1, 2, 3, 4].map(|s| at(1000, Beyond::Slope, s)), [100, 160, 220, 280]);
        // The second quarter brings 50, the second half 60: r = 1.2, y = 0.7042, y² = 0.4958: 29.7 in the next second, then 14.7;
        // the unfinished half is rounded down by itself.
        assert_eq!([1, 2, 3, 4].map(|s| at(1000, Beyond::Decay, s)), [100, 160, 189, 203]);
        assert_eq!([1, 2, 4, 99].map(|s| at(1500, Beyond::Slope, s)), [150, 240, 420, 500]);
        assert_eq!(at(0, Beyond::Slope, 99), 0);
        assert_eq!(
            Dirtied::new(&profile, 1000, Beyond::Flat).written_again(Nanos::from_secs(1), Nanos::from_secs(1)),
            Pages(40)
        );
    }

    #[test]
    fn the_largest_guest_and_the_longest_window() {
        let curve = WwsCurve::new(&[(Nanos(1), Pages(1 << 32))]).expect("a curve");
        let profile = Profile::new(Pages(1 << 32), Pages(1 << 32), curve, Nanos(1), 1);
        let dirtied = Dirtied::new(&profile, u32::MAX, Beyond::Slope);
        let decaying = Dirtied::new(&profile, 1000, Beyond::Decay);
        assert_eq!(decaying.pages_in(Nanos(u64::MAX)), Pages(1 << 32));
        assert_eq!(dirtied.pages_in(Nanos(u64::MAX)), Pages(1 << 32));
        assert_eq!(dirtied.written_again(Nanos(u64::MAX), Nanos(u64::MAX)), Pages(1 << 32));
        let nothing = Profile::new(Pages(1), Pages(1), WwsCurve::FLAT, Nanos(0), 1);
        assert_eq!(
            Dirtied::new(&nothing, 1000, Beyond::Slope).pages_in(Nanos(u64::MAX)),
            Pages(0)
        );
    }

    /// W·(1 − exp(−t/τ)), of which only the first 2τ are known.
    #[test]
    fn a_random_writer_is_continued_as_it_is() {
        let exact = |t: f64| 1e6 * (1.0 - (-t).exp());
        let points: std::vec::Vec<_> = (1..=20u32)
            .map(|n| (Nanos(u64::from(n) * 1000), Pages(exact(f64::from(n) / 10.0) as u64)))
            .collect();
        let curve = WwsCurve::new(&points).expect("a curve");
        let profile = Profile::new(Pages(1 << 32), Pages(1 << 32), curve, Nanos(1), 1);
        for t in [25u32, 30, 50, 100, 10_000_000] {
            let pages = Dirtied::new(&profile, 1000, Beyond::Decay)
                .pages_in(Nanos(u64::from(t) * 1000))
                .0 as f64;
            let exact = exact(f64::from(t) / 10.0);
            assert!((pages - exact).abs() < exact * 0.012, "{t}: {pages} against {exact}");
        }
    }

    proptest! {
        /// A cyclic trace, one write a second: the curve and the overlap of neighbouring windows counted from sets.
        #[test]
        fn the_identity_holds_for_a_trace(
            cycle in prop::collection::vec(0..12u64, 1..24), before in 1..20usize, window in 1..20usize,
        ) {
            let sets = |start: usize, length: usize| -> BTreeSet<u64> {
                (start..start + length).map(|at| cycle[at % cycle.len()]).collect()
            };
            // Means over every start, times their number.
            let sum = |length| -> u64 { (0..cycle.len()).map(|start| sets(start, length).len() as u64).sum() };
            let points: std::vec::Vec<_> = (1..=32).map(|s| (Nanos::from_secs(s), Pages(sum(s as usize)))).collect();
            let curve = WwsCurve::new(&points).expect("a curve");
            let profile = Profile::new(Pages(1 << 20), Pages(1 << 20), curve, Nanos(1), 1);
            let again: usize = (0..cycle.len())
                .map(|start| sets(start, before).intersection(&sets(start + before, window)).count())
                .sum();
            prop_assume!(before + window <= 32);
            let dirtied = Dirtied::new(&profile, 1000, Beyond::Flat);
            let [before, window] = [before, window].map(|s| Nanos::from_secs(s as u64));
            prop_assert_eq!(dirtied.written_again(before, window), Pages(again as u64));
        }

        #[test]
        fn it_never_falls(percent in 0..3000u32, shorter in 0..1u64 << 50, more in 0..1u64 << 50, second in 0..100u64) {
            let profile = profile(&[(1, 100), (7000, 100 + second)], 10_000);
            for beyond in [Beyond::Flat, Beyond::Decay, Beyond::Slope] {
                let dirtied = Dirtied::new(&profile, percent, beyond);
                prop_assert!(dirtied.pages_in(Nanos(shorter)) <= dirtied.pages_in(Nanos(shorter + more)));
            }
        }
    }
}
