//! Carrying a vCPU's steps out over guest memory.

use super::boot::BootBlock;
use super::generator::{Generator, GeneratorState, Kind, Step};
use super::layout::{Fill, Progress, State};
use super::plan::{Plan, PlanError};
use super::spec::PhaseAt;
use super::stamp::{Lines, StampError};
use crate::workload::Ram;

/// The part of a [`Runner`] that is not in guest memory: what a guest that is no virtual machine moves as its vCPU state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct RunnerState {
    generator: GeneratorState,
}

/// Why a runner cannot go on from a saved state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResumeError {
    /// The boot block does not fit the guest.
    Plan(PlanError),
    /// The state is none that this workload can reach.
    State,
}

impl core::fmt::Display for ResumeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Plan(error) => error.fmt(f),
            Self::State => f.write_str(
                "the saved state does not belong to this workload: save and resume with the same boot block",
            ),
        }
    }
}

impl core::error::Error for ResumeError {}

impl From<PlanError> for ResumeError {
    fn from(error: PlanError) -> Self {
        Self::Plan(error)
    }
}

/// One vCPU at work: every step is checked against what earlier steps left, then stamped.
///
/// A step costs some 45 integer instructions on top of the [`Generator`]'s. The ledger, which says what to expect, is
/// part of guest memory: what it says and what the pages hold move together or are found out.
#[derive(Clone, Debug)]
pub struct Runner {
    plan: Plan,
    generator: Generator,
    vcpu: u32,
    seed: u64,
    fill: Fill,
    goal: u64,
    /// Guest-physical address of the ledger entry that page 0 would have.
    ledger: u64,
}

impl Runner {
    /// The runner of vCPU `vcpu`, before its first step.
    ///
    /// # Errors
    /// A [`PlanError`] if the workload does not fit the guest or there is no such vCPU.
    pub fn new(boot: &BootBlock, vcpu: u32) -> Result<Self, PlanError> {
        let plan = boot.plan()?;
        let generator = Generator::new(&boot.spec, plan.ws(), boot.vcpus, vcpu, boot.seed)?;
        let (ledger, pages) = plan.ledger(vcpu);
        Ok(Self {
            plan,
            generator,
            vcpu,
            seed: boot.seed,
            fill: boot.fill,
            goal: if boot.steps == 0 { u64::MAX } else { boot.steps },
            ledger: ledger.wrapping_sub(2 * pages.start),
        })
    }

    /// The runner that goes on where [`state`](Self::state) was taken, over a memory that moved along.
    ///
    /// # Errors
    /// [`ResumeError`], whatever the state holds; it never panics.
    pub fn resume(boot: &BootBlock, vcpu: u32, state: RunnerState) -> Result<Self, ResumeError> {
        let mut runner = Self::new(boot, vcpu)?;
        if !runner.generator.resume(state.generator) || runner.steps() > runner.goal {
            return Err(ResumeError::State);
        }
        Ok(runner)
    }

    /// What must move beside guest memory for [`resume`](Self::resume). Between batches, at any step.
    pub const fn state(&self) -> RunnerState {
        RunnerState {
            generator: self.generator.state(),
        }
    }

    /// Steps done.
    pub const fn steps(&self) -> u64 {
        self.generator.steps()
    }

    /// Whether all steps are done.
    pub const fn finished(&self) -> bool {
        self.steps() >= self.goal
    }

    /// Where the next step is in the spec.
    pub fn phase(&self) -> PhaseAt {
        self.generator.phase()
    }

    /// Which phase the next step belongs to, counted from 0.
    pub const fn phase_index(&self) -> usize {
        self.generator.phase_index()
    }

    /// Where everything lies.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How many steps the next batch has: see [`Generator::batch`]; 0 when finished.
    pub const fn batch(&self) -> u64 {
        let (batch, left) = (self.generator.batch(), self.goal - self.steps());
        if batch < left { batch } else { left }
    }

    /// Does the next batch and writes the number of steps into the progress line. Returns how many it did, which is what
    /// goes to [`Pacer::on_batch`](super::Pacer::on_batch), directly or through
    /// [`PORT_PACE`](super::layout::PORT_PACE).
    ///
    /// # Errors
    /// The [`StampError`] of a page that is not as it should be; it is in the progress line as well, and the vCPU must not
    /// go on.
    pub fn run_batch(&mut self, ram: &mut impl Ram) -> Result<u32, StampError> {
        let steps = self.batch();
        if self.generator.is_idle() {
            self.generator.skip_idle(steps);
        } else {
            for _ in 0..steps {
                if let Err(error) = self.step(ram) {
                    let progress = Progress {
                        steps: self.steps(),
                        state: State::StampError,
                        error: Some(error),
                    };
                    progress.write(self.vcpu, ram);
                    return Err(error);
                }
            }
        }
        Progress::write_steps(self.steps(), self.vcpu, ram);
        Ok(steps as u32)
    }

    /// Does one step, without progress.
    ///
    /// # Errors
    /// As [`run_batch`](Self::run_batch).
    #[inline]
    pub fn step(&mut self, ram: &mut impl Ram) -> Result<(), StampError> {
        let Step { page, kind } = self.generator.next_step();
        match kind {
            Kind::Nothing => Ok(()),
            Kind::Read => self.touch(page, false, ram),
            Kind::Write => self.touch(page, true, ram),
        }
    }

    #[inline]
    fn touch(&self, page: u64, write: bool, ram: &mut impl Ram) -> Result<(), StampError> {
        let lines = Lines::new(self.plan.gfn(page), self.vcpu);
        let entry = self.ledger.wrapping_add(2 * page);
        let (address, shift) = (entry & !7, (entry & 6) * 8);
        let word = ram.read_u64(address);
        let sequence = word >> shift & 0xffff;
        let right = if sequence == 0 {
            lines.untouched(|address| self.fill.word(self.seed, address), ram)
        } else {
            lines.holds(sequence, ram)
        };
        if !right {
            return Err(lines.diagnose(sequence, |address| self.fill.word(self.seed, address), ram));
        }
        if write {
            // 0 stays the mark of a page never written.
            let next = if sequence == 0xffff { 1 } else { sequence + 1 };
            lines.write(next, ram);
            ram.write_u64(address, word ^ ((sequence ^ next) << shift));
        }
        Ok(())
    }
}
