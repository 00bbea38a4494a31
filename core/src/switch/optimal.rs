//! Switch where the predicted cost is least: ours.

use super::bandwidth::Smoothed;
use super::fixed::{FACTOR_PLACES, exp2};
use super::trend::Trend;
use super::{Decision, FAULTS_PERCENT, Reason, RoundEnd, SwitchSetting, Verdict};
use crate::strategy::StallWeight;
use crate::units::{Nanos, Pages};

/// How many rounds ahead are considered: a prediction holds no longer.
const HORIZON: u32 = 8;
/// Waiting must save more than this part of what switching costs now: it is predicted, the other is known.
const SAVING: u128 = 4;
/// Page times are counted in so many parts.
const PARTS: u128 = 1024;
/// Counts are exact up to this, 1 PiB of pages; larger ones are read as that.
const COUNT_MAX: u64 = 1 << 38;
/// The stall of a fault in page times, likewise.
const STALL_MAX: u128 = 1 << 40;

// The largest product: a guest left to post-copy.
const _: () = assert!(
    (COUNT_MAX as u128)
        .checked_mul(PARTS * STALL_MAX * StallWeight::MAX.get() as u128 * SAVING)
        .is_some()
);

/// `optimal[:W]`: post-copy when no number of further rounds is predicted to cost less than switching now.
///
/// **Costs**, in time of the link. A page sent in a round costs its time on the link once more. A page left to post-copy costs that, too,
/// and holds the guest up if it is waited for, which one in five is (Hines & Gopalan 2009: faults within 21 % of the working
/// set): for [`fault_stall`](SwitchSetting::fault_stall), at least the page's own time. A second of that counts as W seconds of the link,
/// 128 where nobody says otherwise: the larger W, the longer it waits for progress. A rest that fits the
/// downtime costs only its time on the link, whatever W: the caller has agreed to that pause.
///
/// **Prediction.** The bandwidth is smoothed (the newest round weighs 0.4). What the guest dirties in a round is, by the points
/// (T(i), V(i)) measured so far, in proportion to the round's length, V(i+1) = f·V(i), up to the largest V seen, where the curve
/// saturates. f is the *best* that the rounds leave possible, since a decision for post-copy cannot be taken back:
///
/// * of the last 2, 3, … 16 steps log2 V(i)/V(i−1), the mean less what chance may have added (Student's t, 2 in 10 000), whichever window
///   bounds it best; equal steps leave no room, so that a plateau proves itself in two of them;
/// * of the last 9, 10, … 17 values, the slope of a line through log2 V(i), less what chance may have added, where steps up and steps down
///   take turns (their correlation is below −1/2): noise about a course says more of it in a few values than their steps do;
/// * f ≥ 1 if V has risen above the first or the lowest before for two rounds, by more than a falling load with that spread would in
///   one of ten migrations (a sequential test; the spread seen so far counts with 15 % beforehand);
/// * f ≥ 1 if in 16 rounds the lowest V has not fallen by a sixteenth: a noisy plateau is not waited at for ever.
///
/// Then for k = 1 to 8 further rounds what they send and what is left after them cost together is compared with the cost of what is left
/// now; k must save a quarter.
///
/// **Relation to other rules**, each a special case that leaves something out. Let c be what a page left to post-copy costs in page
/// times. Looking one round ahead, waiting pays if V + f·V·c < V·c, which is 1 − f > 1/c: with everything dirty sent and f = λ(i) that
/// is SDF(i) > α, α = 1/c. So `sdf` knows both costs, in α, but takes one round's noise for the load and sees neither later rounds
/// nor that the rest may come to fit; `sdf:auto` finds 1/c for a stall weight of 1. As c grows, 1/c vanishes: λ < 1, `heuristic`, and
/// with three rounds against noise `lambda`, leave out what sending again costs, so that they wait at a plateau, where it is all there
/// is. `kubevirt-stall` and `nova10` ask for progress instead of costs. A local minimum of what is left is where f passes 1;
/// `kubevirt-stall` looks for one by waiting for the clock.
///
/// O(16 + 16 + 8) per round, 340 bytes. The score is f, 0 while it is not known.
#[derive(Clone, Debug)]
pub struct Optimal {
    downtime: Nanos,
    fault_stall: Nanos,
    weight: StallWeight,
    bandwidth: Smoothed,
    trend: Trend,
}

impl Optimal {
    /// Before round 1.
    pub const fn new(weight: StallWeight, setting: &SwitchSetting) -> Self {
        Self {
            downtime: setting.downtime,
            fault_stall: setting.fault_stall,
            weight,
            bandwidth: Smoothed::new(),
            trend: Trend::new(),
        }
    }

    /// Takes the round in and compares waiting with switching.
    pub fn on_round(&mut self, end: &RoundEnd) -> Verdict {
        self.bandwidth.update(end);
        let trend = self.trend.update(end.dirty);
        let (Some((log, evidence)), Some(stall_parts)) = (trend, self.bandwidth.in_page_times(self.fault_stall, PARTS))
        else {
            return Verdict {
                decision: Decision::Continue,
                score_milli: 0,
                reason: Reason::OptimalUnknown,
            };
        };
        let factor = exp2(log);
        // At most 2^48 / 2^32 · 1000.
        let factor_milli = ((u128::from(factor) * 1000) >> FACTOR_PLACES) as i64;
        let stall_parts = stall_parts.clamp(PARTS, PARTS * STALL_MAX);
        let left_parts = PARTS + u128::from(self.weight.get()) * FAULTS_PERCENT * stall_parts / 100;
        let (decision, reason) = match self.pays_after(end.dirty, factor, left_parts) {
            Some(rounds) => (Decision::Continue, Reason::OptimalWaits { rounds, factor_milli }),
            None => (Decision::PostCopy, Reason::OptimalSwitches { factor_milli, evidence }),
        };
        Verdict {
            decision,
            score_milli: factor_milli,
            reason,
        }
    }

    /// The first number of further rounds that pays, if any does. `left_parts` is the cost of a page left to post-copy.
    fn pays_after(&self, dirty: Pages, factor: u64, left_parts: u128) -> Option<u32> {
        let largest = u128::from(self.trend.highest().0.min(COUNT_MAX));
        let mut left = u128::from(dirty.0.min(COUNT_MAX));
        let bound = left * left_parts * (SAVING - 1);
        let mut sent = 0;
        (1..=HORIZON).find(|_| {
            sent += left;
            left = ((left * u128::from(factor)) >> FACTOR_PLACES).min(largest);
            let fits = self.bandwidth.sends_within(Pages(left as u64), self.downtime);
            let rest = left * if fits { PARTS } else { left_parts };
            (sent * PARTS + rest) * SAVING < bound
        })
    }
}

#[cfg(test)]
#[expect(clippy::float_arithmetic, reason = "compared with floating point")]
mod tests {
    use super::super::Evidence;
    use super::super::tests::round;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// 1000 pages a second, faults of a page time: a page left to post-copy costs 27.88 page times by the default weight.
    const SETTING: SwitchSetting = SwitchSetting {
        downtime: Nanos::from_millis(300),
        fault_stall: Nanos::from_millis(1),
        ..SwitchSetting::new(Pages(100_000))
    };

    /// Everything dirty is sent, at 1000 pages a second.
    fn verdicts(setting: &SwitchSetting, dirty: &[u64]) -> Vec<Verdict> {
        weighted(StallWeight::DEFAULT, setting, dirty)
    }

    fn weighted(weight: StallWeight, setting: &SwitchSetting, dirty: &[u64]) -> Vec<Verdict> {
        let mut rule = Optimal::new(weight, setting);
        let sent = core::iter::once(setting.total.0).chain(dirty.iter().copied());
        let ends = sent.zip(dirty).zip(1..);
        ends.map(|((sent, &dirty), number)| rule.on_round(&round(number, sent, dirty, sent)))
            .collect()
    }

    fn first_switch(dirty: &[u64]) -> Option<usize> {
        let verdicts = verdicts(&SETTING, dirty);
        let at = verdicts
            .iter()
            .position(|verdict| verdict.decision == Decision::PostCopy);
        at.map(|at| at + 1)
    }

    #[test]
    fn a_plateau_is_left_after_three_rounds() {
        let verdicts = verdicts(&SETTING, &[8000; 3]);
        let reasons: Vec<Reason> = verdicts.iter().map(|verdict| verdict.reason).collect();
        assert_eq!(reasons[..2], [Reason::OptimalUnknown; 2]);
        let switches = Reason::OptimalSwitches {
            factor_milli: 1000,
            evidence: Evidence::Steady,
        };
        assert_eq!(reasons[2], switches);
    }

    #[test]
    fn ten_percent_a_round_are_worth_waiting_for() {
        let dirty: Vec<u64> = (0..20).map(|n| (50_000.0 * 0.9f64.powi(n)) as u64).collect();
        assert_eq!(first_switch(&dirty), None);
        // From 14 580 on, five rounds send 4.1 times that and leave 0.59 of it, at 27.88 each: 20.6 < 3/4 · 27.88 = 20.9. Four: 21.7.
        let slow = verdicts(&SETTING, &[20_000, 18_000, 16_200, 14_580]);
        let waits = Reason::OptimalWaits {
            rounds: 5,
            factor_milli: 899,
        };
        assert_eq!(slow[3].reason, waits);
    }

    #[test]
    fn a_page_left_behind_costs_its_own_time_as_well() {
        // 7.7 % a round: eight rounds send 6.146 times what is left and leave 0.527 of it. Waiting pays if a page left behind costs
        // more than 6.146 / (0.75 − 0.527) = 27.5 page times: 27.88 is enough, and 26.88, what its faults cost, would not be.
        let dirty: Vec<u64> = (0..12).map(|n| (1e12 * 0.923f64.powi(n)) as u64).collect();
        let waits = Reason::OptimalWaits {
            rounds: 8,
            factor_milli: 922,
        };
        assert_eq!(verdicts(&SETTING, &dirty)[11].reason, waits);
    }

    #[test]
    fn progress_that_costs_more_than_it_saves_is_left() {
        // 5 % a round: eight rounds send 6.7 times what is left and leave 0.66 of it, 25.2 in all.
        let dirty: Vec<u64> = (0..4).map(|n| (1e9 * 0.95f64.powi(n)) as u64).collect();
        let left = verdicts(&SETTING, &dirty)[3];
        assert_eq!(left.decision, Decision::PostCopy);
        // If faults take a thousand times as long, what is sent again counts for nothing.
        let dear = SwitchSetting {
            fault_stall: Nanos::from_secs(1),
            ..SETTING
        };
        assert_eq!(verdicts(&dear, &dirty)[3].decision, Decision::Continue);
    }

    #[test]
    fn the_less_waiting_guests_count_the_sooner_progress_is_left() {
        // 15 % a round: eight rounds send 4.85 times what is left and leave 0.27 of it, which pays from 1 + 0.21·W = 10.2 on: 43.
        let dirty: Vec<u64> = (0..4).map(|n| (1e9 * 0.85f64.powi(n)) as u64).collect();
        let decision = |weight| {
            let weight = StallWeight::new(weight).expect("in range");
            weighted(weight, &SETTING, &dirty)[3].decision
        };
        let decisions = [1, 10, 43, 44, 128, 1000].map(decision);
        let (wait, leave) = (Decision::Continue, Decision::PostCopy);
        assert_eq!(decisions, [leave, leave, leave, wait, wait, wait]);
    }

    #[test]
    fn a_rest_that_comes_to_fit_is_waited_for() {
        // 2 % a round again, but 306 pages are 300 after one round.
        assert_eq!(first_switch(&[326, 319, 313, 306]), None);
        // A hundred times as many do not fit for long.
        let many = verdicts(&SETTING, &[33_200, 32_536, 31_885, 31_247]);
        assert_eq!(many[3].decision, Decision::PostCopy);
    }

    #[test]
    fn nothing_left_is_nothing_to_save() {
        assert_eq!(first_switch(&[0; 3]), Some(3));
    }

    #[test]
    fn doubling_is_left_and_a_single_burst_is_not() {
        assert_eq!(first_switch(&[1000, 2000, 4000]), Some(3));
        assert_eq!(first_switch(&[5000, 4300, 3900, 3300, 9900, 3100, 2800, 2300]), None);
    }

    #[test]
    fn extremes_are_decided_without_overflow() {
        let all = u64::MAX;
        let setting = SwitchSetting {
            fault_stall: Nanos(all),
            ..SwitchSetting::new(Pages(all))
        };
        let mut rule = Optimal::new(StallWeight::MAX, &setting);
        for number in 1..40 {
            rule.on_round(&round(number, all, all, 1));
        }
        let mut rule = Optimal::new(StallWeight::MAX, &SETTING);
        for number in 1..40 {
            assert_eq!(
                rule.on_round(&round(number, 0, 7, 0)).reason,
                Reason::OptimalUnknown,
                "no bandwidth"
            );
        }
        for end in [
            round(1, 1, 0, all),
            round(2, 0, 0, 0),
            round(3, 1, 1, all),
            round(4, 1 << 32, 1 << 32, 1),
        ] {
            rule.on_round(&end);
        }
    }

    /// The costs again, in floating point and without the ring of steps: the best of waiting by switching now.
    fn ratio(dirty: u64, highest: u64, factor: f64, weight: u32, setting: &SwitchSetting) -> f64 {
        let page = 1e6;
        let stall = (setting.fault_stall.0 as f64).max(page);
        let left_cost = page + f64::from(weight) * 0.21 * stall;
        let (mut left, mut sent, mut best) = (dirty as f64, 0.0, f64::INFINITY);
        for _ in 0..8 {
            sent += left * page;
            left = (left * factor).floor().min(highest as f64);
            let fits = left * page <= setting.downtime.0 as f64;
            best = f64::min(best, sent + left * if fits { page } else { left_cost });
        }
        best / (dirty as f64 * left_cost)
    }

    proptest! {
        #[test]
        fn waits_where_floating_point_waits(
            start in 1000..1u64 << 32,
            drift in -0.2..0.1f64,
            noise in prop_oneof![Just(0.0), Just(0.005), Just(0.1)],
            draws in proptest::collection::vec(-1.0..1.0f64, 3..25),
            stall in 0..100_000_000u64,
            weight in prop_oneof![Just(1u32), Just(10), Just(128), Just(1000), 1..=1000u32],
        ) {
            let mut level = start as f64;
            let dirty: Vec<u64> = draws
                .iter()
                .map(|draw| {
                    level *= (drift + noise * draw).exp();
                    (level as u64).max(400)
                })
                .collect();
            let setting = SwitchSetting { fault_stall: Nanos(stall), total: Pages(start), ..SETTING };
            let mut trend = Trend::new();
            let mut highest = 0;
            let by = StallWeight::new(weight).expect("in range");
            for (verdict, &dirty) in weighted(by, &setting, &dirty).iter().zip(&dirty) {
                highest = highest.max(dirty);
                let Some((log, _)) = trend.update(Pages(dirty)) else {
                    prop_assert_eq!(verdict.reason, Reason::OptimalUnknown);
                    continue;
                };
                let factor = exp2(log) as f64 / (1u64 << 32) as f64;
                let ratio = ratio(dirty, highest, factor, weight, &setting);
                if (ratio - 0.75).abs() > 0.01 {
                    prop_assert_eq!(verdict.decision == Decision::Continue, ratio < 0.75, "{}", ratio);
                }
            }
        }
    }
}
