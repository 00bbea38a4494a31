//! The weight α of the switched decision factor, from what was measured instead of by hand.

use crate::units::{Nanos, Pages};

/// Parts of 1 in which shares of pages are kept.
const MILLION: u128 = 1_000_000;

/// α in thousandths, 0 to 1000: what a page sent in vain costs, as a share of that and what a page left for post-copy costs.
///
/// `page` is the time a page keeps the link, `fault` how long a fault holds a vCPU up, `fault_share` the probability, in
/// millionths, that a page left for post-copy is demanded before it is pushed (more than 10⁶ is read as 10⁶). `page` is a
/// fraction, nanoseconds / pages, so that no link is too fast for it. The result is rounded down. If neither costs anything,
/// or the page's denominator is zero, it is 1000: there is nothing to gain by another round.
///
/// # Where it comes from
/// "A novel hybrid-copy algorithm for live migration" (2017) minimises F(n) = α·V1(n) + (1 − α)·V2(n), V1 being the pages
/// sent in vain until round n and V2 those still dirty, and leaves how to choose α to future work. With R(n) pages sent until
/// round n, a switch after it makes the migration send R(n) + V2(n) = N + V1(n) pages, N being those of the guest; and of the
/// V2(n) a share p is demanded. So the switch costs page·(N + V1(n)) + fault·p·V2(n), which is F(n) up to a factor and a
/// constant if and only if
///
/// α = page / (page + fault·p).
///
/// # What F leaves out
/// - p falls with V2, as fewer missing pages arrive sooner: F holds it fixed. [`RoundCost`] measures it anew in each round.
/// - The next round only: F(n) < F(n − 1) compares neighbours, and a rule by it stops at the first local minimum.
/// - The downtime, which a round more may bring under its limit so that no page is left at all; the tests around every
///   [`switch`](crate::switch) rule see to that.
/// - What rounds cost that send little (their barriers, and idling up to the minimum round), and what tracking dirty pages
///   costs the guest.
///
/// Time on the link and the stall of a vCPU count alike here. Where a stall hurts more, multiply `fault` by how much more.
///
/// Exact as long as pages stay below 2⁴⁰ and times below 2⁵⁶ ns (two years); beyond, a factor stops at the largest number.
pub const fn auto_alpha_milli(page: (Nanos, Pages), fault: Nanos, fault_share: u64) -> u32 {
    let (time, pages) = page;
    let fault_share = if fault_share > 1_000_000 {
        1_000_000
    } else {
        fault_share
    };
    let in_vain = time.0 as u128 * MILLION;
    let left = (fault.0 as u128 * pages.0 as u128).saturating_mul(fault_share as u128);
    if left == 0 || pages.0 == 0 {
        return 1000;
    }
    let both = in_vain.saturating_add(left);
    (in_vain.saturating_mul(1000) / both) as u32
}

/// A round as α sees it.
///
/// ```
/// use dunlin_core::cost::RoundCost;
/// use dunlin_core::units::{Nanos, Pages};
///
/// // 8 000 pages in a second, of which 2 000 are dirty again; a fault takes 500 us, as long as four pages.
/// let round = RoundCost {
///     sent: Pages(8000),
///     dirty: Pages(2000),
///     duration: Nanos::from_secs(1),
///     fault_stall: Nanos::from_micros(500),
/// };
/// assert_eq!(round.fault_share(), Some(65_340)); // 6.5 % of the 2 000 would be demanded
/// assert_eq!(round.alpha_milli(), Some(792)); // 125 us / (125 us + 500 us × 0.0653)
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RoundCost {
    /// S(i): pages sent in the round.
    pub sent: Pages,
    /// V(i): pages dirty as the round ends.
    pub dirty: Pages,
    /// T(i): time spent sending.
    pub duration: Nanos,
    /// How long one post-copy fault holds a vCPU up.
    pub fault_stall: Nanos,
}

impl RoundCost {
    /// The share, in millionths, of the dirty pages that would be demanded before they are pushed if post-copy began now;
    /// `None` if the round sent nothing and so says nothing about the link. O(1).
    ///
    /// The model: the V(i) pages arrive at the round's bandwidth S/T, in an order that has nothing to do with the guest's;
    /// demanded pages share the link with pushed ones; and the guest goes on touching V/T pages a second, all of them missing
    /// ones, but waits for every fault. In page times, one touch takes S/V + f, f being the stall; so the guest touches
    /// x = min(1, 1 / (S/V + f)) pages while one arrives. A share t of the time into post-copy, (1 − t)·V pages are missing of
    /// the (1 − x·t)·V which the guest has not touched, so the share of V demanded in all is
    ///
    /// p = x·∫₀¹ (1 − t)/(1 − x·t) dt = x/2 + x²/6 + x³/12 + … ≈ x·(3 − x)/(6 − 4·x),
    ///
    /// right at x = 0 and x = 1 and in the first two terms, and nowhere more than 0.045 too high. Rounded down, x as well.
    pub fn fault_share(&self) -> Option<u64> {
        let Self {
            sent,
            dirty,
            duration,
            fault_stall,
        } = *self;
        if sent == Pages::ZERO {
            return None;
        }
        let [sent, dirty, duration, stall] = [sent.0, dirty.0, duration.0.max(1), fault_stall.0].map(u128::from);
        // 1 / (S/V + f·S/T) = V·T / (S·(T + f·V)).
        let each = sent.saturating_mul(duration.saturating_add(stall * dirty));
        let x = ((dirty * duration).saturating_mul(MILLION) / each).min(MILLION);
        let share = x * (3 * MILLION - x) / (6 * MILLION - 4 * x);
        Some(share as u64)
    }

    /// α after this round, in thousandths: [`auto_alpha_milli`] of what a page and a fault cost in it. `None` if it sent
    /// nothing: keep the α of the round before. O(1).
    pub fn alpha_milli(&self) -> Option<u32> {
        let fault_share = self.fault_share()?;
        Some(auto_alpha_milli(
            (self.duration, self.sent),
            self.fault_stall,
            fault_share,
        ))
    }
}

#[cfg(test)]
#[expect(
    clippy::float_arithmetic,
    reason = "integers are compared with a floating-point model"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round(sent: u64, dirty: u64, duration: Nanos, fault_stall: Nanos) -> RoundCost {
        RoundCost {
            sent: Pages(sent),
            dirty: Pages(dirty),
            duration,
            fault_stall,
        }
    }

    /// By hand: a page takes 1 ms, a fault 3 ms, one page in three faults: 1 / (1 + 3/3) = 1/2.
    #[test]
    fn alpha_is_the_share_of_a_page_in_both_costs() {
        let page = (Nanos::from_millis(10), Pages(10));
        assert_eq!(auto_alpha_milli(page, Nanos::from_millis(3), 333_333), 500);
        assert_eq!(auto_alpha_milli(page, Nanos::from_millis(3), 1_000_000), 250);
        assert_eq!(auto_alpha_milli(page, Nanos::from_millis(3), u64::MAX), 250);
        assert_eq!(auto_alpha_milli(page, Nanos::ZERO, 1_000_000), 1000, "faults are free");
        assert_eq!(
            auto_alpha_milli(page, Nanos::from_secs(1), 0),
            1000,
            "there are no faults"
        );
        assert_eq!(
            auto_alpha_milli((Nanos::ZERO, Pages(1)), Nanos(1), 1),
            0,
            "pages are free"
        );
        assert_eq!(auto_alpha_milli((Nanos::ZERO, Pages(0)), Nanos(1), 1), 1000);
    }

    /// By hand: V/S = 1 and no stall: x = 1, every page is demanded, α = 1 / (1 + 0). With a stall of one page time x = 1/2,
    /// p = 0.5 · 2.5 / 4 = 0.3125, α = 1 / (1 + 0.3125) = 0.7619.
    #[test]
    fn the_share_of_faults_by_hand() {
        let second = Nanos::from_secs(1);
        assert_eq!(round(1000, 1000, second, Nanos::ZERO).fault_share(), Some(1_000_000));
        assert_eq!(round(1000, 1000, second, Nanos::ZERO).alpha_milli(), Some(1000));
        let stalling = round(1000, 1000, second, Nanos::from_millis(1));
        assert_eq!(
            (stalling.fault_share(), stalling.alpha_milli()),
            (Some(312_500), Some(761))
        );
        assert_eq!(round(1000, 0, second, Nanos::from_millis(1)).fault_share(), Some(0));
        assert_eq!(round(1000, 0, second, Nanos::from_millis(1)).alpha_milli(), Some(1000));
        assert_eq!(round(0, 5, second, Nanos::from_millis(1)).alpha_milli(), None);
    }

    #[test]
    fn the_largest_guest_and_a_day() {
        let (day, all) = (Nanos::from_secs(86_400), 1u64 << 32);
        assert_eq!(
            round(all, all, day, day).alpha_milli(),
            Some(1000),
            "such faults block the guest at once"
        );
        assert_eq!(round(1, all, day, Nanos::ZERO).fault_share(), Some(1_000_000));
        assert_eq!(round(all, all, Nanos::ZERO, Nanos::ZERO).alpha_milli(), Some(1000));
        let extreme = round(u64::MAX, u64::MAX, Nanos(u64::MAX), Nanos(u64::MAX));
        assert!(extreme.alpha_milli().is_some_and(|alpha| alpha <= 1000));
    }

    /// p by its integral, in small steps.
    fn integrated(x: f64) -> f64 {
        let steps = 100_000;
        let share = |t: f64| (1.0 - t) / (1.0 - x * t);
        (0..steps)
            .map(|step| x * share((f64::from(step) + 0.5) / f64::from(steps)) / f64::from(steps))
            .sum()
    }

    #[test]
    fn the_fraction_stands_for_the_integral() {
        for x in 1..=100u64 {
            let share = round(1_000_000, x * 10_000, Nanos::from_secs(1), Nanos::ZERO)
                .fault_share()
                .unwrap();
            let exact = integrated(x as f64 / 100.0);
            assert!(
                (share as f64 / 1e6 - exact).abs() < 0.045,
                "x = {x} %: {share} against {exact}"
            );
        }
    }

    proptest! {
        #[test]
        fn agrees_with_floating_point(
            sent in 1..1u64 << 32, dirty in 0..1u64 << 32, duration in 1..86_400_000_000_000u64, stall in 0..1_000_000_000u64,
        ) {
            let round = round(sent, dirty, Nanos(duration), Nanos(stall));
            let [s, v, t, f] = [sent, dirty, duration, stall].map(|n| n as f64);
            let x = if dirty == 0 { 0.0 } else { (1.0 / (s / v + f * s / t)).min(1.0) };
            let p = x * (3.0 - x) / (6.0 - 4.0 * x);
            let share = round.fault_share().unwrap() as f64 / 1e6;
            prop_assert!((share - p).abs() <= 1e-5, "{share} against {p}");
            // From the rounded share, as a rare fault may be long.
            let alpha = if share == 0.0 || stall == 0 { 1.0 } else { t / s / (t / s + f * share) };
            let milli = round.alpha_milli().unwrap();
            prop_assert!((f64::from(milli) - alpha * 1000.0).abs() <= 1.001, "{milli} against {alpha}");
        }

        #[test]
        fn dearer_faults_never_raise_it(
            page in 0..1u64 << 40, pages in 1..1u64 << 32, fault in 0..1u64 << 40, more in 0..1u64 << 40, share in 0..1_000_001u64,
        ) {
            let alpha = |fault| auto_alpha_milli((Nanos(page), Pages(pages)), Nanos(fault), share);
            prop_assert!(alpha(fault + more) <= alpha(fault));
        }
    }
}
