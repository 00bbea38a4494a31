//! The order of the tests by hand, and every decision against a model that works differently: reduced fractions, whole
//! histories, division instead of cross-multiplication.

use super::{Decision, Reason, RoundEnd, SwitchSetting, Switcher, Verdict};
use crate::strategy::SwitchRule;
use crate::units::{Nanos, Pages};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, prop_assert_eq, prop_oneof, proptest};
use std::vec::Vec;

fn round(round: u32, sent: u64, dirty: u64, millis: u64) -> RoundEnd {
    RoundEnd {
        round,
        sent: Pages(sent),
        dirty: Pages(dirty),
        previous_dirty: Pages(sent),
        duration: Nanos::from_millis(millis),
        elapsed: Nanos::from_millis(millis),
    }
}

fn switcher(rule: SwitchRule) -> Switcher {
    limited(rule, Nanos::from_millis(300), 30)
}

fn limited(rule: SwitchRule, downtime: Nanos, max_rounds: u32) -> Switcher {
    let setting = SwitchSetting {
        downtime,
        max_rounds,
        ..SwitchSetting::new(Pages(10_000))
    };
    Switcher::new(rule, setting)
}

fn decided(verdict: Verdict) -> (Decision, Reason) {
    (verdict.decision, verdict.reason)
}

#[test]
fn the_rest_fits_up_to_the_last_page() {
    // 10 000 pages in 3 s: 1 000 pages in 300 ms.
    let verdict = |dirty| decided(switcher(SwitchRule::Never).on_round(&round(1, 10_000, dirty, 3000)));
    assert_eq!(verdict(1000), (Decision::StopCopy, Reason::Fits));
    assert_eq!(verdict(1001), (Decision::Continue, Reason::DoesNotFit));
}

#[test]
fn fitting_comes_before_the_rule_and_the_rule_before_the_limit() {
    let mut both = switcher(SwitchRule::Rounds(1));
    assert_eq!(
        decided(both.on_round(&round(1, 10_000, 1000, 3000))),
        (Decision::StopCopy, Reason::Fits)
    );
    let mut at_limit = limited(SwitchRule::Rounds(1), Nanos::ZERO, 1);
    let by_rule = (Decision::PostCopy, Reason::RoundsDone { rounds: 1 });
    assert_eq!(decided(at_limit.on_round(&round(1, 10_000, 1000, 3000))), by_rule);
}

#[test]
fn the_limit_ends_pre_copy_by_what_the_rule_can_enter() {
    let at_limit = |rule, number| decided(switcher(rule).on_round(&round(number, 100, 100, 1000)));
    let limit = Reason::RoundLimit { max_rounds: 30 };
    assert_eq!(
        at_limit(SwitchRule::Never, 29),
        (Decision::Continue, Reason::DoesNotFit)
    );
    assert_eq!(at_limit(SwitchRule::Never, 30), (Decision::StopCopy, limit));
    assert_eq!(at_limit(SwitchRule::Rounds(99), 30), (Decision::PostCopy, limit));
    assert_eq!(at_limit(SwitchRule::Lambda, 30), (Decision::PostCopy, limit));
    assert_eq!(at_limit(SwitchRule::Lambda, u32::MAX), (Decision::PostCopy, limit));
}

#[test]
fn a_round_that_sent_nothing_is_judged_by_the_last_known_bandwidth() {
    let mut known = switcher(SwitchRule::Never);
    assert_eq!(
        known.on_round(&round(1, 10_000, 5000, 3000)).decision,
        Decision::Continue
    );
    assert_eq!(known.on_round(&round(2, 0, 1001, 100)).decision, Decision::Continue);
    assert_eq!(known.on_round(&round(3, 0, 1000, 100)).decision, Decision::StopCopy);
    let mut unknown = switcher(SwitchRule::Never);
    assert_eq!(unknown.on_round(&round(1, 0, 1, 100)).decision, Decision::Continue);
    assert_eq!(
        unknown.on_round(&round(2, 0, 0, 100)).decision,
        Decision::StopCopy,
        "nothing always fits"
    );
}

#[test]
fn the_rule_hears_of_rounds_in_which_the_rest_fits() {
    let mut switcher = limited(SwitchRule::Lambda, Nanos::from_secs(1), 30);
    let lambdas = [(1, 100, 100, 2000), (2, 100, 110, 500), (3, 110, 120, 2000)];
    let reasons: Vec<Reason> = lambdas
        .map(|(n, sent, dirty, millis)| switcher.on_round(&round(n, sent, dirty, millis)).reason)
        .into();
    let diverging = Reason::LambdaDiverging {
        above: 2,
        mean_milli: 1063,
    };
    assert_eq!(reasons, [Reason::LambdaTooFew { values: 1 }, Reason::Fits, diverging]);
}

#[test]
fn nothing_is_decided_beside_a_static_copy_and_nothing_is_forgotten() {
    let beside = |rule, max_rounds| {
        let setting = SwitchSetting {
            static_done_after: 4,
            max_rounds,
            ..SwitchSetting::new(Pages(10_000))
        };
        Switcher::new(rule, setting)
    };
    // λ: 1, then two above 1; the mean of the last three is 1.1 at the end of round 4.
    let lambdas = [(100, 150), (100, 120), (100, 120), (100, 90)];
    let mut number = 0;
    let mut lambda = beside(SwitchRule::Lambda, 30);
    let verdicts = lambdas.map(|(sent, dirty)| {
        number += 1;
        decided(lambda.on_round(&round(number, sent, dirty, 1000)))
    });
    let runs = (Decision::Continue, Reason::StaticCopyRuns { until: 4 });
    let diverging = Reason::LambdaDiverging {
        above: 2,
        mean_milli: 1100,
    };
    assert_eq!(verdicts, [runs, runs, runs, (Decision::PostCopy, diverging)]);

    // What fits, a number of rounds and the limit wait, too.
    let at = |rule, number, dirty| decided(beside(rule, 2).on_round(&round(number, 100, dirty, 1000)));
    for rule in [SwitchRule::Never, SwitchRule::Rounds(1), SwitchRule::Lambda] {
        assert_eq!(at(rule, 3, 0), runs, "{rule}");
        assert_eq!(at(rule, 3, 100), runs, "{rule}");
        assert_eq!(at(rule, 4, 0), (Decision::StopCopy, Reason::Fits), "{rule}");
    }
    let limit = Reason::RoundLimit { max_rounds: 2 };
    assert_eq!(at(SwitchRule::Never, 4, 100), (Decision::StopCopy, limit));
}

#[test]
fn the_time_of_the_rest_is_that_of_the_last_pages_sent() {
    let mut switcher = switcher(SwitchRule::Never);
    assert_eq!(switcher.time_to_send(Pages(1)), None);
    switcher.on_round(&round(1, 3, 10, 1));
    assert_eq!(switcher.time_to_send(Pages(10)), Some(Nanos(3_333_334)));
    switcher.on_round(&round(2, 0, 10, 100));
    assert_eq!(switcher.time_to_send(Pages(3)), Some(Nanos::from_millis(1)));
    assert_eq!(switcher.time_to_send(Pages(u64::MAX)), Some(Nanos(u64::MAX)));
}

#[test]
fn only_rounds_of_zero_start_with_post_copy() {
    assert!(switcher(SwitchRule::Rounds(0)).starts_with_post_copy());
    for rule in [SwitchRule::Never, SwitchRule::Rounds(1), SwitchRule::Lambda] {
        assert!(!switcher(rule).starts_with_post_copy(), "{rule}");
    }
}

#[test]
fn progress_is_signed_and_rounded_toward_zero() {
    let sdf = |previous, dirty, sent| {
        RoundEnd {
            previous_dirty: Pages(previous),
            ..round(2, sent, dirty, 1)
        }
        .sdf_milli()
    };
    assert_eq!(sdf(1000, 400, 1000), 600);
    assert_eq!(sdf(1000, 1002, 3), -666);
    assert_eq!(sdf(3, 1, 3), 666);
    assert_eq!(sdf(5, 9, 0), 0, "nothing sent is no progress");
    assert_eq!((sdf(0, u64::MAX, 1), sdf(u64::MAX, 0, 1)), (i64::MIN, i64::MAX));
}

/// The same rules, written down a second time.
mod model {
    use super::{Decision, RoundEnd, SwitchRule};
    use std::vec::Vec;

    /// A reduced fraction.
    #[derive(Clone, Copy)]
    struct Fraction(i128, i128);

    impl Fraction {
        fn new(numerator: i128, denominator: i128) -> Self {
            let divisor = gcd(numerator.abs(), denominator);
            Self(numerator / divisor, denominator / divisor)
        }

        fn plus(self, other: Self) -> Self {
            let common = self.1 / gcd(self.1, other.1) * other.1;
            Self::new(self.0 * (common / self.1) + other.0 * (common / other.1), common)
        }

        fn whole_and_rest(self) -> (i128, i128) {
            (self.0.div_euclid(self.1), self.0.rem_euclid(self.1))
        }
    }

    fn gcd(a: i128, b: i128) -> i128 {
        if b == 0 { a.max(1) } else { gcd(b, a % b) }
    }

    fn lambda(end: &RoundEnd) -> Fraction {
        match (end.round, end.sent.0, end.dirty.0) {
            (1, _, _) => Fraction(1, 1),
            (_, 0, 0) => Fraction(0, 1),
            (_, 0, _) => Fraction(1, 1),
            (_, sent, dirty) => Fraction::new(dirty.into(), sent.into()),
        }
    }

    pub(super) fn lambda_milli(end: &RoundEnd) -> i128 {
        let lambda = lambda(end);
        Fraction::new(lambda.0 * 1000, lambda.1).whole_and_rest().0
    }

    pub(super) fn sdf_milli(end: &RoundEnd) -> i128 {
        let (before, after) = (i128::from(end.previous_dirty.0), i128::from(end.dirty.0));
        let size = match end.sent.0 {
            0 => return 0,
            sent => {
                Fraction::new((before - after).abs() * 1000, sent.into())
                    .whole_and_rest()
                    .0
            }
        };
        if before < after { -size } else { size }
    }

    fn fits(history: &[RoundEnd], downtime: u64) -> bool {
        let end = history[history.len() - 1];
        let sending = history.iter().rev().find(|end| end.sent.0 > 0);
        match (end.dirty.0, sending) {
            (0, _) => true,
            (_, None) => false,
            (dirty, Some(known)) => {
                let needed = i128::from(dirty) * i128::from(known.duration.0);
                let (whole, rest) = Fraction::new(needed, known.sent.0.into()).whole_and_rest();
                whole < downtime.into() || (whole == downtime.into() && rest == 0)
            }
        }
    }

    fn lambda_says_switch(history: &[RoundEnd]) -> bool {
        let lambdas: Vec<Fraction> = history.iter().map(lambda).collect();
        let Some(last) = lambdas.len().checked_sub(3).map(|start| &lambdas[start..]) else {
            return false;
        };
        let above = last.iter().filter(|lambda| lambda.0 > lambda.1).count();
        let sum = last.iter().fold(Fraction(0, 1), |sum, &lambda| sum.plus(lambda));
        above >= 2 && sum.whole_and_rest().0 >= 3
    }

    pub(super) fn decide(rule: SwitchRule, downtime: u64, max_rounds: u32, history: &[RoundEnd]) -> Decision {
        let rounds = history.len() as u32;
        if fits(history, downtime) {
            return Decision::StopCopy;
        }
        let switch = match rule {
            SwitchRule::Never => false,
            SwitchRule::Rounds(count) => rounds >= count,
            SwitchRule::Lambda => lambda_says_switch(history),
        };
        match (switch, rounds >= max_rounds, rule) {
            (true, _, _) => Decision::PostCopy,
            (false, true, SwitchRule::Never) => Decision::StopCopy,
            (false, true, _) => Decision::PostCopy,
            (false, false, _) => Decision::Continue,
        }
    }
}

/// Counts from none to a 16 TiB guest, with small numbers often, so that equalities occur.
fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..8u64, 3 => 0..2000u64, 1 => 0..=1u64 << 32]
}

/// Durations up to a day.
fn nanos() -> impl Strategy<Value = u64> {
    prop_oneof![2 => 0..8u64, 1 => 0..=86_400_000_000_000u64]
}

fn history() -> impl Strategy<Value = Vec<RoundEnd>> {
    let rounds = vec((pages(), pages(), nanos(), proptest::bool::weighted(0.6)), 1..40);
    (pages(), rounds).prop_map(|(total, rounds)| {
        let mut previous_dirty = Pages(total);
        let ends = rounds
            .into_iter()
            .zip(1..)
            .map(|((some, dirty, duration, everything), round)| {
                let sent = if everything { previous_dirty } else { Pages(some) };
                let end = RoundEnd {
                    round,
                    sent,
                    dirty: Pages(dirty),
                    previous_dirty,
                    duration: Nanos(duration),
                    elapsed: Nanos(duration),
                };
                previous_dirty = end.dirty;
                end
            });
        ends.collect()
    })
}

fn rule() -> impl Strategy<Value = SwitchRule> {
    prop_oneof![
        1 => Just(SwitchRule::Never),
        1 => (0..40u32).prop_map(SwitchRule::Rounds),
        3 => Just(SwitchRule::Lambda),
    ]
}

proptest! {
    #[test]
    fn decides_like_the_model(history in history(), rule in rule(), downtime in nanos(), max_rounds in 0..45u32) {
        let mut switcher = limited(rule, Nanos(downtime), max_rounds);
        for (end, count) in history.iter().zip(1..) {
            let decision = switcher.on_round(end).decision;
            prop_assert_eq!(decision, model::decide(rule, downtime, max_rounds, &history[..count]), "round {}", count);
        }
    }

    #[test]
    fn measures_like_the_model(history in history()) {
        for end in &history {
            prop_assert_eq!(i128::from(end.lambda_milli()), model::lambda_milli(end));
            prop_assert_eq!(i128::from(end.sdf_milli()), model::sdf_milli(end));
        }
    }

    #[test]
    fn progress_is_one_minus_lambda_if_all_that_was_dirty_was_sent(previous in 1..1u64 << 32, dirty in 0..1u64 << 32) {
        let end = RoundEnd { previous_dirty: Pages(previous), ..round(2, previous, dirty, 1) };
        // Both are rounded toward zero, so they may differ by one thousandth where 1 − λ is positive.
        let gap = 1000 - end.lambda_milli() - end.sdf_milli();
        let exact = dirty * 1000 % previous == 0 || dirty >= previous;
        prop_assert_eq!(gap, i64::from(!exact));
    }
}
