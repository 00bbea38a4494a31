//! A vCPU that does again what a recorded one did.

use std::sync::Arc;

use dunlin_core::units::{Gfn, Nanos};
use dunlin_core::workload::{Kind, Step};

use super::Fault;
use crate::sim::pace::CATCH_UP;
use crate::sim::recording::Recording;

/// The recorded writes of one vCPU, from the first again behind the last.
#[derive(Debug)]
pub(super) struct Recorded {
    recording: Arc<Recording>,
    vcpu: u32,
    next: usize,
    times_over: u64,
    /// By how much later everything is than it was recorded: for being held up, and for starting over.
    later: Nanos,
    steps: u64,
    step_cost: Nanos,
    free: Nanos,
    last_step: Nanos,
}

impl Recorded {
    pub(super) fn new(recording: &Arc<Recording>, vcpu: u32, step_cost: Nanos) -> Self {
        Self {
            recording: Arc::clone(recording),
            vcpu,
            next: 0,
            times_over: 0,
            later: Nanos::ZERO,
            steps: 0,
            step_cost,
            free: Nanos::ZERO,
            last_step: Nanos::ZERO,
        }
    }

    pub(super) const fn steps(&self) -> u64 {
        self.steps
    }

    pub(super) const fn times_over(&self) -> u64 {
        self.times_over
    }

    pub(super) const fn free(&self) -> Nanos {
        self.free
    }

    pub(super) fn wait_until(&mut self, time: Nanos) {
        self.free = self.free.max(time);
    }

    pub(super) const fn set_step_cost(&mut self, cost: Nanos) {
        self.step_cost = cost;
    }

    /// Does all writes that start before `until`, as far as `touch` lets it. What it is held up by more than it may catch up stays
    /// lost: all that follows is later by that much.
    #[inline]
    pub(super) fn run(
        &mut self,
        until: Nanos,
        mut touch: impl FnMut(Step) -> Result<(), (Step, Gfn)>,
        longest_gap: &mut Nanos,
    ) -> Option<Fault> {
        let track = self.recording.track(self.vcpu);
        while let Some((recorded_at, page)) = track.get(self.next) {
            let due = recorded_at.saturating_add(self.later);
            let at = due.max(self.free);
            if at >= until {
                return None;
            }
            let step = Step {
                page,
                kind: Kind::Write,
            };
            if let Err((_, gfn)) = touch(step) {
                self.free = at;
                return Some(Fault { at, gfn });
            }
            self.steps += 1;
            // A guest that did nothing when it was recorded is not held up.
            *longest_gap = (*longest_gap).max(at.saturating_sub(due.max(self.last_step)));
            self.last_step = at;
            self.free = at.saturating_add(self.step_cost);
            let lost = at.saturating_sub(due).saturating_sub(CATCH_UP);
            self.later = self.later.saturating_add(lost);
            self.next += 1;
            if self.next == track.len() {
                self.next = 0;
                self.times_over += 1;
                self.later = self.later.saturating_add(self.recording.length());
            }
        }
        None
    }
}
