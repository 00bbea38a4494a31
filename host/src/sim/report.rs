//! What a simulated migration cost, as a live one is reported.

use std::time::Duration;

use dunlin_core::message::{Mode, TargetReport};
use dunlin_core::migrate::{RoundReport as RoundEnded, Source, SourceOutcome};
use dunlin_core::pageset::PageSet;
use dunlin_core::strategy::Strategy;
use dunlin_core::units::{Nanos, Pages};

use super::guest::Guest;
use super::world::World;
use super::{SimResult, SimSetup, Work};
use crate::report::{
    ByteCounts, GuestImpact, MigrationReport, Outcome, PostcopyReport, SamplingReport, Verification, duration,
};
use crate::run::{is_forced, round_report, switch_report};

/// What is measured on the way.
#[derive(Debug)]
pub(super) struct Measured {
    began: Nanos,
    pub(super) ended: Nanos,
    steps_at_begin: u64,
    steps_per_second_before: u64,
    pub(super) migration_bytes: u64,
    pub(super) fault_bytes: u64,
    pub(super) control_bytes: u64,
    bytes_at_round: u64,
    bytes_at_running: Option<u64>,
    rounds: Vec<(RoundEnded, u64)>,
    /// From a fault to the page, in nanoseconds.
    pub(super) latencies: Vec<u64>,
    /// Since when the guest runs at the target, and when nothing was missing any more.
    pub(super) runs_since: Option<Nanos>,
    whole_at: Option<Nanos>,
    pub(super) compared: Option<(u64, u64)>,
    pub(super) timeline: Vec<u64>,
}

impl Measured {
    /// Of a guest that has warmed up.
    pub(super) fn before(setup: &SimSetup, guest: &mut Guest) -> Self {
        let _ = guest.take_longest_gap();
        let millis = u128::from(setup.warm_up.0 / 1_000_000);
        let rate = (u128::from(guest.steps()) * 1000).checked_div(millis).unwrap_or(0);
        Self {
            began: setup.warm_up,
            ended: setup.warm_up,
            steps_at_begin: guest.steps(),
            steps_per_second_before: u64::try_from(rate).unwrap_or(u64::MAX),
            migration_bytes: 0,
            fault_bytes: 0,
            control_bytes: 0,
            bytes_at_round: 0,
            bytes_at_running: None,
            rounds: Vec::new(),
            latencies: Vec::new(),
            runs_since: None,
            whole_at: None,
            compared: None,
            timeline: Vec::new(),
        }
    }

    /// Takes what the source knows of a round that ended, and of the hand-over; how long the round took, what it sent and what it left.
    pub(super) fn source_went_on(&mut self, source: &mut Source<'_>) -> Option<(Nanos, Pages, Pages)> {
        let mut ended = None;
        if let Some(round) = source.take_round() {
            ended = Some((round.duration, round.sent, round.dirty));
            self.rounds.push((round, self.migration_bytes - self.bytes_at_round));
            self.bytes_at_round = self.migration_bytes;
        }
        if source.downtime().is_some() && self.bytes_at_running.is_none() {
            self.bytes_at_running = Some(self.migration_bytes);
        }
        ended
    }

    pub(super) fn post_copy_went_on(&mut self, missing: Option<&PageSet<'_>>, now: Nanos) {
        if missing.is_some_and(PageSet::is_empty) {
            self.whole_at.get_or_insert(now);
        }
    }

    pub(super) fn target_report(&self, guest: &Guest) -> TargetReport {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let quantile = |percent: usize| match sorted.len() {
            0 => Nanos::ZERO,
            count => Nanos(sorted[(count * percent / 100).min(count - 1)]),
        };
        let duration = self
            .whole_at
            .zip(self.runs_since)
            .map_or(Nanos::ZERO, |(whole, since)| whole.saturating_sub(since));
        TargetReport {
            steps: guest.steps(),
            postcopy_duration: duration,
            fault_p50: quantile(50),
            fault_p99: quantile(99),
            ..TargetReport::default()
        }
    }
}

impl World<'_, '_> {
    pub(super) fn result(mut self) -> SimResult {
        let gap = self.guest.take_longest_gap();
        let strategy = Strategy {
            slow: self.setup.strategy.slow,
            ..self.source.config().strategy
        };
        let measured = &self.measured;
        let target = self.target_report();
        let completed = self.source_outcome == Some(SourceOutcome::Completed);
        let mut report = MigrationReport::new(
            strategy.to_string(),
            if completed { Outcome::Completed } else { Outcome::Failed },
        );
        if !completed {
            report.reason = Some(format!("{:?} in {:?}", self.source_outcome, self.source.phase()));
        }
        report
            .warnings
            .extend(started_over(self.setup, self.guest.times_over()));
        let total = measured.ended.saturating_sub(measured.began);
        report.total_time_us = total.as_micros();
        report.downtime_us = self.source.downtime().map_or(0, Nanos::as_micros);
        report.goal_met = completed && !missed(measured, report.downtime_us, self.setup);
        report.guest_gap_us = gap.as_micros();
        report.total_pages = self.setup.pages().0;
        report.sampling = (self.source.samples() > 0).then(|| {
            let learned = self.source.learned_for();
            SamplingReport {
                learning_us: learned.as_micros(),
                total_time_without_us: total.saturating_sub(learned).as_micros(),
                samples: self.source.samples(),
                ..SamplingReport::default()
            }
        });
        let merged = self.source.static_done_after();
        report.static_done_after = Some(merged).filter(|round| (1..u32::MAX).contains(round));
        report.rounds = measured
            .rounds
            .iter()
            .map(|(round, bytes)| round_report(round, *bytes))
            .collect();
        let ended = measured.rounds.iter().map(|(round, _)| round);
        let mode = self.source.mode();
        report.switch = mode.map(|mode| switch_report(ended, mode, &strategy));
        report.postcopy = (self.source.mode() == Some(Mode::PostCopy)).then(|| {
            let some = !measured.latencies.is_empty();
            PostcopyReport {
                duration_us: target.postcopy_duration.as_micros(),
                faults: target.faults,
                pushed: target.pushed,
                stored: target.stored,
                p50_us: some.then(|| target.fault_p50.as_micros()),
                p99_us: some.then(|| target.fault_p99.as_micros()),
                p50_ns: some.then_some(target.fault_p50.0),
                p99_ns: some.then_some(target.fault_p99.0),
                bytes: measured.migration_bytes - measured.bytes_at_running.unwrap_or(measured.migration_bytes)
                    + measured.fault_bytes,
            }
        });
        report.bytes = ByteCounts {
            migration: measured.migration_bytes,
            storage: self.storage.bytes,
            fault: measured.fault_bytes,
            control: measured.control_bytes,
        };
        let before = measured.steps_per_second_before;
        let during = u128::from(self.guest.steps() - measured.steps_at_begin) * 1_000_000_000;
        let during = u64::try_from(during / u128::from(total.0.max(1))).unwrap_or(u64::MAX);
        report.guest = GuestImpact {
            steps_before: before,
            slowdown_milli: during
                .saturating_mul(1000)
                .checked_div(before)
                .map(|ratio| 1000 - i64::try_from(ratio).unwrap_or(i64::MAX)),
        };
        report.verified = measured.compared.map(|(pages, mismatches)| Verification {
            pages,
            mismatches,
            time_us: 0,
        });
        SimResult {
            report,
            steps: self.guest.steps(),
            stall: self.guest.stall(),
            virtual_time: self.now,
            moved_at_us: self
                .measured
                .runs_since
                .map(|at| at.saturating_sub(self.measured.began).as_micros()),
            choice: self
                .source
                .advisor()
                .and_then(|advisor| advisor.choice())
                .map(ToString::to_string),
            timeline: self.measured.timeline,
        }
    }
}

/// That the guest did longer what was recorded than it was recorded.
fn started_over(setup: &SimSetup, times: u64) -> Option<String> {
    let Work::Recorded(recording) = &setup.workload else {
        return None;
    };
    let length = duration(Duration::from_nanos(recording.length().0));
    let times = match times {
        0 => return None,
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    Some(format!(
        "the trace has only {length}, and started over {times}: what the guest does from then on is what it did before"
    ))
}

/// Whether a limit forced the guest to stop for longer than wanted.
fn missed(measured: &Measured, downtime_us: u64, setup: &SimSetup) -> bool {
    downtime_us > setup.downtime.as_micros() && measured.rounds.iter().any(|(round, _)| is_forced(round))
}
