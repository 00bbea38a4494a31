//! Post-copy: how many pages the guest asks for before they are pushed, and how long that holds it up.

use super::Dirtied;
use crate::units::{BytesPerSec, Nanos, Pages};

/// Into how many steps of equal transfer post-copy is cut.
const STEPS: u64 = 32;
/// Halvings of a step in which the guest's own time is searched for.
const HALVINGS: u32 = 24;
/// Fractional bits of a count of pages.
const FRACTION: u32 = 20;

/// What the guest has touched of the missing pages, and how often it is held up.
#[derive(Clone, Copy, Debug)]
pub struct PostCopy<'a> {
    /// How the guest writes.
    pub dirtied: Dirtied<'a>,
    /// Pages not yet at the target as post-copy begins.
    pub missing: Pages,
    /// If the missing pages are those written in the last round, how long that was in the guest's time: what was written
    /// lately is written again more often, or, by a guest that goes round in a circle, less. `None` if any page may be missing.
    pub written_in: Option<Nanos>,
    /// The migration channel, shared by pushed and demanded pages.
    pub link: BytesPerSec,
    /// How long one fault holds a vCPU up.
    pub fault_stall: Nanos,
    /// How many vCPUs share the work, at least 1.
    pub vcpus: u32,
}

/// What post-copy costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PostCopyCost {
    /// Until no page is missing, rounded up.
    pub time: Nanos,
    /// Pages demanded before they were pushed, rounded up; at most the missing ones.
    pub faults: Pages,
    /// By how much the guest falls behind: the stalls of all faults, divided by the vCPUs; at most `time`. The vCPUs that wait for
    /// none go on.
    pub stalled: Nanos,
}

impl PostCopy<'_> {
    /// Forecasts it. 32 steps of 24 halvings; nothing overflows up to 2⁴⁰ pages.
    ///
    /// # The model
    /// M pages are missing and leave at the bandwidth B in all, pushed or demanded, so that post-copy takes M/B whoever asks.
    /// Let the guest have run for g of its own time; O(g) is how many distinct missing pages it has touched by then: D(g)
    /// if anything may be missing, and D(a) + D(g) − D(a + g) if the missing pages are those written in the window of length a
    /// before ([`Dirtied::written_again`]); scaled where M differs from D(a). A time t into post-copy
    ///
    /// - M − B·t pages are missing, none of which the guest has touched, as it would have demanded it;
    /// - M − O(g) pages are not touched, missing or not;
    /// - pushes go by page number and so know nothing of the guest: the next page it touches for the first time is missing
    ///   with probability u = (M − B·t) / (M − O(g)).
    ///
    /// While a step of duration Δt passes, the guest advances by Δg, demands u·(O(g + Δg) − O(g)) pages, and waits for each of them:
    /// Δg is the largest with Δg + stall/vCPUs·demanded ≤ Δt, and with no more demanded than the link brings in Δt.
    ///
    /// Only pages that are written are seen in D: faults of pages that are only read come on top.
    pub fn cost(&self) -> PostCopyCost {
        let time = self.link.time_to_send(self.missing.bytes());
        let missing = u128::from(self.missing.0);
        let link_brings = (missing << FRACTION) / u128::from(STEPS);
        let mut guest_time = 0;
        let mut faults = 0;
        for step in 0..STEPS {
            let step_time = time.0 / STEPS;
            let touched = self.touched(guest_time);
            let untouched = (missing - touched).max(1);
            // In the middle of the step.
            let still_missing = (missing << FRACTION) * u128::from(2 * (STEPS - step) - 1) / u128::from(2 * STEPS);
            let demanded = |advance: u64| {
                let newly = self.touched(guest_time.saturating_add(advance)).saturating_sub(touched);
                (newly * still_missing / untouched).min(newly << FRACTION)
            };
            let fits = |advance: u64| {
                let demanded = demanded(advance);
                demanded <= link_brings && u128::from(advance) + self.stall_of(demanded) <= u128::from(step_time)
            };
            let advance = largest(step_time, fits);
            faults += demanded(advance);
            guest_time = guest_time.saturating_add(advance);
        }
        let stalled = u64::try_from(self.stall_of(faults)).unwrap_or(u64::MAX);
        let faults = faults.div_ceil(1 << FRACTION).min(missing);
        PostCopyCost {
            time,
            faults: Pages(faults as u64),
            stalled: Nanos(stalled).min(time),
        }
    }

    /// O(g), at most the missing pages.
    fn touched(&self, guest_time: u64) -> u128 {
        let (guest_time, missing) = (Nanos(guest_time), u128::from(self.missing.0));
        let touched = match self.written_in {
            None => u128::from(self.dirtied.pages_in(guest_time).0),
            Some(window) => {
                let again = u128::from(self.dirtied.written_again(window, guest_time).0);
                let written = u128::from(self.dirtied.pages_in(window).0).max(1);
                again * missing / written
            }
        };
        touched.min(missing)
    }

    /// How long demanded pages, with their fraction, hold the guest up.
    fn stall_of(&self, demanded: u128) -> u128 {
        let whole = demanded.saturating_mul(u128::from(self.fault_stall.0)) >> FRACTION;
        whole / u128::from(self.vcpus.max(1))
    }
}

/// The largest number up to `most` that fits, if smaller numbers fit as well, to 2⁻²⁴ of `most`; 0 if none does.
fn largest(most: u64, fits: impl Fn(u64) -> bool) -> u64 {
    if fits(most) {
        return most;
    }
    let (mut fitting, mut too_large) = (0, most);
    for _ in 0..HALVINGS {
        let middle = fitting + (too_large - fitting) / 2;
        if fits(middle) {
            fitting = middle;
        } else {
            too_large = middle;
        }
    }
    fitting
}

#[cfg(test)]
#[expect(
    clippy::float_arithmetic,
    reason = "integers are compared with a floating-point model"
)]
mod tests {
    use super::*;
    use crate::cost::Beyond;
    use crate::pattern::{Profile, WwsCurve};
    use proptest::prelude::*;

    /// A guest that writes `rate` other pages a second until it has written `working_set`.
    fn linear(rate: u64, working_set: u64) -> Profile {
        let end = Nanos(working_set * 1_000_000_000 / rate);
        let curve = WwsCurve::new(&[(end, Pages(working_set))]).expect("a curve");
        Profile::new(Pages(1 << 20), Pages(1 << 20), curve, end, 1)
    }

    fn cost(profile: &Profile, missing: u64, pages_per_sec: u64, fault_stall: Nanos) -> PostCopyCost {
        let post_copy = PostCopy {
            dirtied: Dirtied::new(profile, 1000, Beyond::Flat),
            missing: Pages(missing),
            written_in: None,
            link: BytesPerSec(pages_per_sec * 4096),
            fault_stall,
            vcpus: 1,
        };
        post_copy.cost()
    }

    /// By hand: the guest touches half as many pages a second as the link brings, and waits for none: with x = 1/2 the share
    /// demanded is ∫ x·(1 − t)/(1 − x·t) dt = 1 + ln(1/2) = 0.3069.
    #[test]
    fn a_linear_guest_by_hand() {
        let cost = cost(&linear(5000, 100_000), 100_000, 10_000, Nanos::ZERO);
        assert_eq!((cost.time, cost.stalled), (Nanos::from_secs(10), Nanos::ZERO));
        assert!(cost.faults.0.abs_diff(30_685) < 400, "{cost:?}");
    }

    /// By hand: every touch is demanded and takes 1 ms, far longer than the rest: 10 s / 1 ms faults, less what arrived before.
    #[test]
    fn a_guest_that_mostly_waits() {
        let cost = cost(&linear(1_000_000, 1 << 20), 1 << 20, 100_000, Nanos::from_millis(1));
        assert!(cost.faults.0 > 10_200 && cost.faults.0 <= 10_486, "{cost:?}");
        assert!(cost.stalled <= cost.time);
    }

    #[test]
    fn a_working_set_is_demanded_once() {
        // 1000 pages within a millisecond, while 100 000 take 10 s.
        let cost = cost(&linear(1_000_000, 1000), 100_000, 10_000, Nanos::ZERO);
        assert!((950..=1000).contains(&cost.faults.0), "{cost:?}");
    }

    /// A guest in a circle does not come back soon to what it wrote last.
    #[test]
    fn what_was_written_last_is_not_touched_next_in_a_circle() {
        let profile = linear(1000, 10_000);
        let post_copy = PostCopy {
            dirtied: Dirtied::new(&profile, 1000, Beyond::Flat),
            missing: Pages(2000),
            written_in: Some(Nanos::from_secs(2)),
            link: BytesPerSec(1000 * 4096),
            fault_stall: Nanos::ZERO,
            vcpus: 1,
        };
        assert_eq!(post_copy.cost().faults, Pages(0));
        let slow_link = PostCopy {
            link: BytesPerSec(100 * 4096),
            ..post_copy
        };
        assert!(slow_link.cost().faults.0 > 300, "{:?}", slow_link.cost());
    }

    #[test]
    fn the_edges() {
        let idle = Profile::new(Pages(9), Pages(9), WwsCurve::FLAT, Nanos(1), 1);
        assert_eq!(cost(&idle, 9, 1, Nanos(9)).faults, Pages(0));
        let busy = linear(1000, 1000);
        let nothing = cost(&busy, 0, 1000, Nanos(9));
        assert_eq!(
            (nothing.time, nothing.faults, nothing.stalled),
            (Nanos(0), Pages(0), Nanos(0))
        );
        assert_eq!(cost(&busy, 1, 0, Nanos(9)).time, Nanos(u64::MAX), "no link");
        assert!(cost(&busy, 1, 1, Nanos(9)).faults <= Pages(1));
        let curve = WwsCurve::new(&[(Nanos::from_secs(1), Pages(1 << 32))]).expect("a curve");
        let largest = Profile::new(Pages(1 << 32), Pages(1 << 32), curve, Nanos(1), 1);
        let all = cost(&largest, 1 << 32, (1 << 32) / 86_400, Nanos::from_secs(86_400));
        assert!(all.faults <= Pages(2) && all.stalled <= all.time, "{all:?}");
    }

    /// The same in small steps of floating point, without halving.
    fn integrated(writes: f64, set: f64, missing: f64, link: f64, stall: f64) -> f64 {
        let total = missing / link;
        let steps = 20_000;
        let (mut guest, mut faults) = (0.0, 0.0);
        let touched = |guest: f64| (writes * guest).min(set);
        for step in 0..steps {
            let dt = total / f64::from(steps);
            let still = missing * (1.0 - (f64::from(step) + 0.5) / f64::from(steps));
            let share = (still / (missing - touched(guest)).max(1.0)).min(1.0);
            let newly = (touched(guest + dt) - touched(guest)) * share;
            let slowed = (dt / (dt + newly * stall)).min(if newly > link * dt { link * dt / newly } else { 1.0 });
            faults += newly * slowed;
            guest += dt * slowed;
        }
        faults
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn agrees_with_small_steps(
            rate in 100..100_000u64, share in 1..=10u64, missing in 20_000..200_000u64, link in 1000..50_000u64, stall_us in 0..1000u64,
        ) {
            let set = missing * share / 10;
            let cost = cost(&linear(rate, set), missing, link, Nanos::from_micros(stall_us));
            let exact = integrated(rate as f64, set as f64, missing as f64, link as f64, stall_us as f64 / 1e6);
            let error = (cost.faults.0 as f64 - exact).abs();
            prop_assert!(error <= exact * 0.05 + missing as f64 * 0.005, "{cost:?} against {exact}");
        }

        #[test]
        fn no_more_faults_than_missing_pages_nor_stalls_than_time(
            rate in 1..1u64 << 30, set in 1..1u64 << 20, missing in 0..1u64 << 20, link in 1..1u64 << 30, stall in 0..1u64 << 40,
        ) {
            let cost = cost(&linear(rate, set), missing, link, Nanos(stall));
            prop_assert!(cost.faults <= Pages(missing.min(set)));
            prop_assert!(cost.stalled <= cost.time);
        }
    }
}
