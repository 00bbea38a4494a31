//! The order of the tests by hand, and every decision against a model that works differently: reduced fractions, whole
//! histories, division instead of cross-multiplication.

mod model;
#[expect(clippy::float_arithmetic, reason = "a model in floating point")]
mod optimal;
pub(super) use optimal::{line, quantiles};

use super::{Decision, Reason, RoundEnd, SwitchSetting, Switcher, Verdict};
use crate::strategy::{Alpha, StallWeight, SwitchRule};
use crate::units::{BytesPerSec, Nanos, Pages, Ratio};
use core::cell::Cell;
use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::test_runner::TestRunner;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

pub(super) fn round(round: u32, sent: u64, dirty: u64, millis: u64) -> RoundEnd {
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
    assert_eq!(
        at_limit(SwitchRule::Qemu, u32::MAX),
        (Decision::Continue, Reason::DoesNotFit),
        "QEMU has no limit"
    );
    assert_eq!(
        decided(limited(SwitchRule::Xen, Nanos::ZERO, 2).on_round(&round(2, 100, 100, 1))),
        (Decision::StopCopy, Reason::RoundLimit { max_rounds: 2 })
    );
}

#[test]
fn ovirt_brings_its_own_downtime() {
    // A page a millisecond: 100, 150 and 200 pages fit, of which the hand-over takes 2.
    let setting = SwitchSetting {
        handover_cost: Nanos::from_millis(2),
        ..SwitchSetting::new(Pages(10_000))
    };
    let verdict = |number, dirty| Switcher::new(SwitchRule::Ovirt, setting).on_round(&round(number, 1000, dirty, 1000));
    for (number, downtime) in [(1, 100), (2, 150), (3, 200), (4, 200)] {
        let fits = Reason::FitsStep {
            downtime: Nanos::from_millis(downtime),
        };
        assert_eq!(decided(verdict(number, downtime - 2)), (Decision::StopCopy, fits));
        assert_ne!(verdict(number, downtime - 1).decision, Decision::StopCopy);
    }
}

#[test]
fn few_pages_stop_before_progress_is_asked_for() {
    let sdf = SwitchRule::Sdf(Alpha::from_milli(1000).expect("at most 1"));
    for rule in [sdf, SwitchRule::SdfAuto, SwitchRule::Xen] {
        // They take a second each.
        let mut slow = switcher(rule);
        let few = Reason::FewDirty { dirty: Pages(49) };
        assert_eq!(
            decided(slow.on_round(&round(1, 49, 49, 49_000))),
            (Decision::StopCopy, few),
            "{rule}"
        );
    }
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
    for rule in [
        SwitchRule::Never,
        SwitchRule::Rounds(1),
        SwitchRule::Lambda,
        SwitchRule::Dyn,
        SwitchRule::Ovirt,
    ] {
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
        let mut elapsed = Nanos::ZERO;
        let ends = rounds
            .into_iter()
            .zip(1..)
            .map(|((some, dirty, duration, everything), round)| {
                let sent = if everything { previous_dirty } else { Pages(some) };
                elapsed = elapsed.saturating_add(Nanos(duration.max(100_000_000)));
                let end = RoundEnd {
                    round,
                    sent,
                    dirty: Pages(dirty),
                    previous_dirty,
                    duration: Nanos(duration),
                    elapsed,
                };
                previous_dirty = end.dirty;
                end
            });
        ends.collect()
    })
}

fn rule() -> impl Strategy<Value = SwitchRule> {
    let alpha = (0..=1000u16).prop_map(|milli| Alpha::from_milli(milli).expect("at most 1"));
    let window = prop_oneof![0..20u64, 0..100_000u64];
    prop_oneof![
        1 => Just(SwitchRule::Never),
        1 => Just(SwitchRule::Qemu),
        1 => (0..40u32).prop_map(SwitchRule::Rounds),
        3 => Just(SwitchRule::Lambda),
        2 => alpha.prop_map(SwitchRule::Sdf),
        2 => Just(SwitchRule::SdfAuto),
        2 => Just(SwitchRule::Dyn),
        1 => Just(SwitchRule::Heuristic),
        1 => Just(SwitchRule::Xen),
        4 => window.prop_map(|seconds| SwitchRule::KubevirtStall(Nanos::from_secs(seconds))),
        1 => Just(SwitchRule::Nova10),
        1 => Just(SwitchRule::Ovirt),
    ]
}

fn setting() -> impl Strategy<Value = SwitchSetting> {
    let dirty_rate_before = proptest::option::of((0..1u64 << 40).prop_map(BytesPerSec));
    let stall = prop_oneof![Just(0), 0..1_000_000u64, 0..100_000_000_000u64];
    let beside = prop_oneof![Just(0), 0..10u32];
    (
        pages(),
        nanos(),
        0..45u32,
        dirty_rate_before,
        stall,
        0..200_000_000u64,
        beside,
    )
        .prop_map(
            |(total, downtime, max_rounds, dirty_rate_before, stall, handover_cost, static_done_after)| SwitchSetting {
                total: Pages(total),
                memory: Pages(total).bytes(),
                downtime: Nanos(downtime),
                max_rounds,
                fault_stall: Nanos(stall),
                static_done_after,
                handover_cost: Nanos(handover_cost),
                dirty_rate_before,
            },
        )
}

#[test]
fn optimal_decides_like_its_model() {
    let (asked, unsure) = (Cell::new(0), Cell::new(0));
    let mut runner = TestRunner::new(ProptestConfig::with_cases(6000));
    let histories = prop_oneof![1 => history(), 4 => optimal::developments()];
    let weights = prop_oneof![2 => Just(128), 1 => Just(10), 1 => 1..=1000u32]
        .prop_map(|weight| StallWeight::new(weight).expect("in range"));
    let done = runner.run(&(histories, setting(), weights), |(history, setting, weight)| {
        let rule = SwitchRule::Optimal(weight);
        let mut switcher = Switcher::new(rule, setting);
        for (end, count) in history.iter().zip(1..) {
            let (verdict, history) = (switcher.on_round(end), &history[..count]);
            let possible = optimal::possible(weight, &setting, history);
            asked.set(asked.get() + 1);
            unsure.set(unsure.get() + u32::from(possible.len() > 1));
            let decide = |&says: &Decision| model::decide_by(says, rule, &setting, history);
            let decisions: Vec<Decision> = possible.iter().map(decide).collect();
            prop_assert!(
                decisions.contains(&verdict.decision),
                "round {}: {:?} {}",
                count,
                decisions,
                verdict.reason
            );
            let scores = optimal::scores(history);
            prop_assert!(
                scores.contains(&(verdict.score_milli as f64)),
                "round {}: {} is not in {:?}",
                count,
                verdict.score_milli,
                scores
            );
        }
        Ok(())
    });
    done.unwrap_or_else(|error| panic!("{error}"));
    let (asked, unsure) = (asked.get(), unsure.get());
    assert!(
        unsure * 20 < asked,
        "the model knows no answer in {unsure} of {asked} rounds"
    );
}

proptest! {
    // There are many rules, each with settings of its own.
    #![proptest_config(ProptestConfig::with_cases(8000))]
    #[test]
    fn decides_like_the_model(history in history(), rule in rule(), setting in setting()) {
        let mut switcher = Switcher::new(rule, setting);
        for (end, count) in history.iter().zip(1..) {
            let verdict = switcher.on_round(end);
            prop_assert_eq!(verdict.decision, model::decide(rule, &setting, &history[..count]), "round {}", count);
            prop_assert!(!verdict.reason.to_string().is_empty());
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

    #[test]
    fn the_rule_of_no_progress_is_the_rule_of_lambda_one(previous in pages(), dirty in 50..1u64 << 32) {
        let end = RoundEnd { previous_dirty: Pages(previous), ..round(2, previous, dirty, 1) };
        let sdf = SwitchRule::Sdf(Alpha::from_milli(0).expect("at most 1"));
        let decision = limited(sdf, Nanos::ZERO, 30).on_round(&end).decision;
        let diverges = end.lambda() >= Ratio::ONE;
        prop_assert_eq!(decision == Decision::PostCopy, diverges);
    }
}
