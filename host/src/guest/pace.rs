//! Holding a vCPU to its rate while it comes and goes between hosts: core's pacer on the host's clock.

use std::time::{Duration, Instant};

use dunlin_core::units::Nanos;
use dunlin_core::workload::{Pacer, Spec};
use serde::{Deserialize, Serialize};

/// A vCPU that takes over never waits longer than this for its next batch, whatever the state says.
const DUE_MAX: Duration = Duration::from_secs(10);

/// Counts a vCPU's steps and says when it may go on.
#[derive(Debug)]
pub(super) struct Pace {
    spec: Spec,
    vcpus: u32,
    pacer: Pacer,
    origin: Instant,
    due: Option<Instant>,
    steps: u64,
}

/// What moves of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct PaceState {
    /// Steps done.
    pub(super) steps: u64,
    /// Nanoseconds until the vCPU may go on; 0 for at once.
    due_in: u64,
}

impl Pace {
    /// Of a vCPU that has not started yet, in a guest with `vcpus` of them.
    pub(super) fn new(spec: Spec, vcpus: u32) -> Self {
        let pacer = Pacer::new(&spec, vcpus, 0, Nanos::ZERO);
        Self {
            spec,
            vcpus,
            pacer,
            origin: Instant::now(),
            due: None,
            steps: 0,
        }
    }

    /// The vCPU goes on, perhaps for the first time: what it could not do before it started it need not catch up with.
    pub(super) fn resume(&mut self) {
        if self.steps == 0 && self.due.is_none() {
            self.origin = Instant::now();
        }
    }

    /// When the vCPU may go on; `None`: at once.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// It has waited until then.
    pub(super) fn waited(&mut self) {
        self.due = None;
    }

    /// The vCPU has done `steps` more; returns how many in all.
    pub(super) fn on_batch(&mut self, steps: u32) -> u64 {
        self.steps = self.steps.saturating_add(u64::from(steps));
        let due = self.pacer.on_batch(steps, nanos(self.origin.elapsed()));
        self.due = Some(self.origin + Duration::from_nanos(due.0));
        self.steps
    }

    pub(super) fn save(&self) -> PaceState {
        let left = self
            .due
            .map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now()));
        PaceState {
            steps: self.steps,
            due_in: nanos(left).0,
        }
    }

    pub(super) fn restore(&mut self, state: &PaceState) {
        let left = Duration::from_nanos(state.due_in).min(DUE_MAX);
        self.steps = state.steps;
        self.origin = Instant::now();
        self.due = Some(self.origin + left);
        self.pacer = Pacer::new(&self.spec, self.vcpus, state.steps, nanos(left));
    }
}

fn nanos(duration: Duration) -> Nanos {
    Nanos(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}
