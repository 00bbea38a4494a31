//! A vCPU whose steps a workload generates.

use dunlin_core::units::{Gfn, Nanos, Pages};
use dunlin_core::workload::{Generator, PlanError, Spec, Step};

use super::Fault;
use crate::sim::SimSetup;
use crate::sim::pace::Pace;

/// The steps of one vCPU, and when they are.
#[derive(Debug)]
pub(super) struct Generated {
    spec: Spec,
    vcpus: u32,
    generator: Generator,
    /// A step that could not be done.
    held_up: Option<Step>,
    pace: Pace,
    phase: usize,
}

impl Generated {
    /// Of vCPU `vcpu` of the guest of this setup, whose workload has that much room.
    pub(super) fn new(spec: &Spec, room: Pages, vcpu: u32, setup: &SimSetup) -> Result<Self, PlanError> {
        let working_set = spec.ws().unwrap_or(room).min(room);
        let mut generated = Self {
            spec: spec.clone(),
            vcpus: setup.vcpus,
            generator: Generator::simulated(spec, working_set, setup.vcpus, vcpu, setup.seed)?,
            held_up: None,
            pace: Pace::new(setup.step_cost),
            phase: usize::MAX,
        };
        generated.follow_phase();
        Ok(generated)
    }

    pub(super) fn steps(&self) -> u64 {
        self.generator.steps() - u64::from(self.held_up.is_some())
    }

    pub(super) const fn free(&self) -> Nanos {
        self.pace.free()
    }

    pub(super) fn wait_until(&mut self, time: Nanos) {
        self.pace.wait_until(time);
    }

    pub(super) const fn set_step_cost(&mut self, cost: Nanos) {
        self.pace.set_step_cost(cost);
    }

    /// Does all steps that start before `until`, as far as `touch` lets it.
    #[inline]
    pub(super) fn run(
        &mut self,
        until: Nanos,
        mut touch: impl FnMut(Step) -> Result<(), (Step, Gfn)>,
        longest_gap: &mut Nanos,
    ) -> Option<Fault> {
        loop {
            let most = self.pace.steps_before(until);
            if most == 0 {
                return None;
            }
            let (done, missed) = match self.held_up.take() {
                Some(step) => {
                    let missed = touch(step).err();
                    (u64::from(missed.is_none()), missed)
                }
                None => {
                    let before = self.generator.steps();
                    let steps = most.min(self.generator.left_in_phase());
                    let missed = self.generator.run_steps(steps, &mut touch).err();
                    // The step that missed its page counts as done there.
                    (self.generator.steps() - before - u64::from(missed.is_some()), missed)
                }
            };
            *longest_gap = (*longest_gap).max(self.pace.advance(done));
            if let Some((step, gfn)) = missed {
                let at = self.pace.next_at();
                self.pace.wait_until(at);
                self.held_up = Some(step);
                return Some(Fault { at, gfn });
            }
            self.follow_phase();
        }
    }

    /// Takes the rate of the phase that the next step belongs to, if that is another one.
    fn follow_phase(&mut self) {
        let phase = self.generator.phase_index();
        if phase != self.phase {
            self.phase = phase;
            self.pace
                .set_rate(self.spec.rate_at(self.generator.steps()), self.vcpus);
        }
    }
}
