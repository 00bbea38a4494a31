//! From what an attempt cost to the report people and programs read.

use std::time::Duration;

use dunlin_agent::host::EpochEnd;
use dunlin_agent::message::SoftKind;
use dunlin_core::choose::{Bound, Interval, Metric};
use dunlin_core::message::{AbortReason, Mode};
use dunlin_core::migrate::{RoundReport as RoundEnded, SourceOutcome};
use dunlin_core::strategy::Strategy;
use dunlin_core::switch::{Decision, Reason};
use dunlin_core::units::Nanos;

use super::source::{HintResult, SamplingCost, SourceOptions, SourceResult};
use crate::report::{
    ByteCounts, ChoiceReport, GuestImpact, HintReport, MigrationReport, Outcome, PostcopyReport, Predicted,
    RoundReport, SamplingReport, SwitchReport, Verification,
};

/// The report of one attempt. `steps_per_second_before` is the guest's speed in the second before, 0 if unknown.
pub(super) fn report(options: &SourceOptions, result: &SourceResult, steps_per_second_before: u64) -> MigrationReport {
    let mut report = MigrationReport::new(result.strategy.to_string(), outcome(result));
    report.reason = reason(options, result);
    report.warnings.clone_from(&result.warnings);
    report.total_time_us = micros(result.total_time);
    report.downtime_us = result.downtime.map_or(0, micros);
    report.goal_met = goal_met(options, result);
    report.guest_gap_us = micros(guest_gap(result));
    report.total_pages = result.total.0;
    report.static_done_after = Some(result.static_done_after).filter(|round| (1..u32::MAX).contains(round));
    report.sampling = result
        .sampling
        .map(|cost| sampling(&cost, result.total_time, steps_per_second_before));
    report.hints = result.hints.as_ref().filter(|hints| hints.end.is_some()).map(hints);
    report.choice = choice(options, result);
    report.rounds = result
        .rounds
        .iter()
        .map(|(round, bytes)| round_report(round, *bytes))
        .collect();
    let ended = result.rounds.iter().map(|(round, _)| round);
    report.switch = result.mode.map(|mode| switch_report(ended, mode, &result.strategy));
    report.postcopy = postcopy(result);
    report.bytes = ByteCounts {
        migration: result.migration_bytes,
        storage: result.storage_bytes,
        fault: result.fault_bytes,
        control: result.control_bytes,
    };
    report.guest = impact(result, steps_per_second_before);
    report.verified = result
        .target
        .and_then(|target| target.verified)
        .map(|(pages, mismatches)| Verification {
            pages,
            mismatches,
            time_us: micros(result.verify_time),
        });
    report
}

fn choice(options: &SourceOptions, result: &SourceResult) -> Option<ChoiceReport> {
    let (goal, auto) = (options.goal.as_ref()?, result.auto.as_ref()?);
    let observed = result.sampling.map_or(Duration::ZERO, |cost| cost.learning);
    let time = |interval: Interval<Nanos>, actual: Duration| Predicted {
        low: interval.low.as_micros(),
        likely: interval.likely.as_micros(),
        high: interval.high.as_micros(),
        actual: micros(actual),
    };
    let forecast = &auto.forecast;
    Some(ChoiceReport {
        goal: goal.to_string(),
        strategy: result.strategy.to_string(),
        why: auto.why.clone(),
        revised_after: auto.revised.as_ref().map(|(round, _)| *round),
        revised_why: auto.revised.as_ref().map(|(_, why)| why.clone()),
        time_us: time(forecast.time, result.total_time.saturating_sub(observed)),
        downtime_us: time(forecast.downtime, result.downtime.unwrap_or_default()),
        bytes: Predicted {
            low: forecast.bytes.low.0,
            likely: forecast.bytes.likely.0,
            high: forecast.bytes.high.0,
            actual: result.migration_bytes + result.storage_bytes + result.fault_bytes,
        },
    })
}

fn sampling(cost: &SamplingCost, total_time: Duration, before: u64) -> SamplingReport {
    let mean = cost.time.as_nanos() / u128::from(cost.samples.max(1));
    SamplingReport {
        learning_us: micros(cost.learning),
        total_time_without_us: micros(total_time.saturating_sub(cost.learning)),
        samples: cost.samples,
        time_us: micros(cost.time),
        mean_ns: u64::try_from(mean).unwrap_or(u64::MAX),
        longest_us: micros(cost.longest),
        slowdown_milli: cost.steps_per_second.and_then(|during| slowdown_milli(during, before)),
    }
}

/// By how much slower than before, in thousandths; `None` if there was nothing before.
fn slowdown_milli(during: u64, before: u64) -> Option<i64> {
    let ratio = during.saturating_mul(1000).checked_div(before)?;
    Some(1000 - i64::try_from(ratio).unwrap_or(i64::MAX))
}

fn hints(result: &HintResult) -> HintReport {
    let named = |kind| result.named.get(&kind).copied().unwrap_or_default();
    let (end, refusal, cpu_us) = match result.end {
        Some(EpochEnd::Complete { cpu_us }) => ("complete", None, cpu_us),
        Some(EpochEnd::Refused(why)) => ("refused", Some(why.to_string()), 0),
        Some(EpochEnd::Unable) => ("unable", None, 0),
        Some(EpochEnd::TimedOut) | None => ("timed-out", None, 0),
    };
    HintReport {
        pages: result.pages.0,
        saved_bytes: result.pages.bytes().0,
        requests: result.requests,
        free_pages: named(SoftKind::Free),
        balloon_pages: named(SoftKind::Balloon),
        outside_pages: result.ignored.outside,
        took_us: micros(result.took),
        cpu_us: cpu_us.into(),
        end: end.into(),
        refusal,
    }
}

fn outcome(result: &SourceResult) -> Outcome {
    match result.outcome {
        SourceOutcome::Completed => match result.target.and_then(|target| target.verified) {
            // An unverifiable migration is a failed one.
            Some((_, mismatches)) if mismatches > 0 => Outcome::Failed,
            _ => Outcome::Completed,
        },
        SourceOutcome::Aborted {
            reason: AbortReason::Cancelled,
            ..
        } => Outcome::Cancelled,
        _ => Outcome::Failed,
    }
}

/// Whether the comparison that was asked for took place.
fn compared(options: &SourceOptions, result: &SourceResult) -> bool {
    !options.verify || result.target.is_some_and(|target| target.verified.is_some())
}

fn reason(options: &SourceOptions, result: &SourceResult) -> Option<String> {
    let text = match result.outcome {
        SourceOutcome::Completed if !compared(options, result) => {
            return Some(
                "the VM is whole on the target, but without a network its pages could not be compared with those here".to_owned(),
            );
        }
        SourceOutcome::Completed => {
            let (_, mismatches) = result.target?.verified.filter(|verified| verified.1 > 0)?;
            return Some(format!(
                "{mismatches} pages differ between source and target: the VM runs on the target with wrong memory; stop it there"
            ));
        }
        SourceOutcome::Aborted { reason, target_may_hold } => {
            let held = if target_may_hold {
                "; the target may still hold a copy that it cannot run: it drops it when it hears of this side, or by `dunlin resolve --give-up` there"
            } else {
                ""
            };
            match reason {
                // The outcome says that already.
                AbortReason::Cancelled => format!("the guest runs on here{held}"),
                reason => format!("{reason}; the guest runs on here{held}"),
            }
        }
        SourceOutcome::Refused(refusal) => return Some(format!("refused: {refusal}; the guest runs on here")),
        SourceOutcome::GaveUp => "given up by hand: whatever the target has is all there is".to_owned(),
        SourceOutcome::Lost => {
            "the connection was lost in post-copy and the strategy says cut=fail: the VM waits on the target for pages that will not come"
                .to_owned()
        }
    };
    Some(match (&result.trouble, result.outcome) {
        // The broken frame is a consequence of the cancellation, and a connection that failed says more itself.
        (
            Some(_),
            SourceOutcome::Aborted {
                reason: AbortReason::Cancelled,
                ..
            },
        )
        | (None, _) => text,
        (
            Some(trouble),
            SourceOutcome::Aborted {
                reason: AbortReason::LinkLost,
                ..
            },
        ) => {
            let known = if result.control_bytes == 0 {
                trouble.clone()
            } else {
                format!("the connection was lost: {trouble}")
            };
            text.replacen(&AbortReason::LinkLost.to_string(), &known, 1)
        }
        (Some(trouble), _) => format!("{text} ({trouble})"),
    })
}

/// The longest gap on either side, or across the hand-over: each part by the clock of the host it happened on.
fn guest_gap(result: &SourceResult) -> Duration {
    let target = result.target.unwrap_or_default();
    let across = result.downtime.map_or(Duration::ZERO, |downtime| {
        result.gap_before_pause + downtime + Duration::from_nanos(target.first_progress_gap.0)
    });
    across
        .max(result.source_gap)
        .max(Duration::from_nanos(target.guest_gap.0))
}

/// Not by a migration that did not take place. Pre-copy that does not converge ends at the round limit, or where the rule says so (after Xen's five rounds, within oVirt's downtime
/// of the round), however long the VM has to stop then.
fn goal_met(options: &SourceOptions, result: &SourceResult) -> bool {
    let late = result.downtime.is_some_and(|downtime| downtime > options.downtime);
    let forced = late && result.rounds.iter().any(|(round, _)| is_forced(round));
    let kept = match (&options.goal, &result.auto) {
        (Some(goal), Some(_)) => goal.bounds().iter().all(|bound| keeps(bound, result)),
        _ => !forced,
    };
    result.outcome == SourceOutcome::Completed && compared(options, result) && kept
}

/// What was not measured is not missed.
fn keeps(bound: &Bound, result: &SourceResult) -> bool {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let observed = result.sampling.map_or(Duration::ZERO, |cost| cost.learning);
    let was = match bound.metric {
        Metric::Time => nanos(result.total_time.saturating_sub(observed)),
        Metric::Downtime => nanos(result.downtime.unwrap_or_default()),
        Metric::Bytes => result.migration_bytes + result.storage_bytes + result.fault_bytes,
        Metric::Faults => result.target.map_or(0, |target| target.faults),
        Metric::Stall => return true,
    };
    was < bound.limit
}

/// Whether a limit ended pre-copy there, however much was left.
pub(crate) fn is_forced(round: &RoundEnded) -> bool {
    round.verdict.decision == Decision::StopCopy && round.verdict.reason != Reason::Fits
}

/// A round for the report, with its bytes on the network.
pub(crate) fn round_report(round: &RoundEnded, bytes: u64) -> RoundReport {
    RoundReport {
        round: round.round,
        duration_us: round.duration.as_micros(),
        sent_pages: round.sent.0,
        zero_pages: round.zero.0,
        dirty_pages: round.dirty.0,
        bytes,
        lambda_milli: Some(round.lambda_milli),
        sdf_milli: Some(round.sdf_milli),
    }
}

/// What ended pre-copy, of rounds that ended so.
pub(crate) fn switch_report<'r>(
    mut rounds: impl Iterator<Item = &'r RoundEnded>,
    mode: Mode,
    strategy: &Strategy,
) -> SwitchReport {
    let decided = rounds.find(|round| round.verdict.decision != Decision::Continue);
    let reason = match (decided, mode) {
        (Some(round), _) => round.verdict.reason.to_string(),
        (None, Mode::PostCopy) => "post-copy from the start".to_owned(),
        (None, Mode::StopCopy) => "stop-and-copy from the start".to_owned(),
    };
    SwitchReport {
        round: decided.map_or(0, |round| round.round),
        rule: strategy.switch.to_string(),
        reason,
    }
}

fn postcopy(result: &SourceResult) -> Option<PostcopyReport> {
    let target = result.target?;
    (result.mode == Some(Mode::PostCopy)).then(|| PostcopyReport {
        duration_us: target.postcopy_duration.as_micros(),
        faults: target.faults,
        pushed: target.pushed,
        stored: target.stored,
        p50_us: (target.faults > 0).then(|| target.fault_p50.as_micros()),
        p99_us: (target.faults > 0).then(|| target.fault_p99.as_micros()),
        p50_ns: (target.faults > 0).then_some(target.fault_p50.0),
        p99_ns: (target.faults > 0).then_some(target.fault_p99.0),
        bytes: result.postcopy_bytes + result.fault_bytes,
    })
}

fn impact(result: &SourceResult, before: u64) -> GuestImpact {
    let mut impact = GuestImpact {
        steps_before: before,
        ..GuestImpact::default()
    };
    let millis = u64::try_from(result.total_time.as_millis()).unwrap_or(u64::MAX).max(1);
    // A guest that came to its end on the way was not slowed down.
    if let Some(target) = result.target
        && !result.halted
    {
        let during = target.steps.saturating_sub(result.steps_before).saturating_mul(1000) / millis;
        impact.slowdown_milli = slowdown_milli(during, before);
    }
    impact
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
