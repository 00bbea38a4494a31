//! Carrying a vCPU's steps out over guest memory.

mod check;
mod mortal;

pub use mortal::next_free;

use super::boot::BootBlock;
use super::generator::{Generator, GeneratorState};
use super::layout::{Fill, HOLE, HOLE_PAGES, Progress, State};
use super::plan::{Plan, PlanError};
use super::spec::PhaseAt;
use super::stamp::{Places, StampError};
use crate::units::PAGE_SIZE;
use crate::workload::Ram;

/// The part of a [`Runner`] that is not in guest memory: what a guest that is no virtual machine moves as its vCPU
/// state.
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
/// A step of a simple pattern takes 27 instructions on x86-64, eight of which access memory. The ledger, which says
/// what to expect, is part of guest memory: what it says and what the pages hold move together or are found out.
#[derive(Clone, Debug)]
pub struct Runner {
    plan: Plan,
    generator: Generator,
    vcpu: u32,
    seed: u64,
    fill: Fill,
    /// Mean number of writes after which a page is freed; 0 for never.
    life: u16,
    goal: u64,
    /// Guest-physical address of the ledger entry that page 0 would have, wrapping.
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
            life: boot.spec.life(),
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

    /// Does the next batch and writes the number of steps into the progress line. Returns how many it did, which is
    /// what goes to [`Pacer::on_batch`](super::Pacer::on_batch), directly or through
    /// [`PORT_PACE`](super::layout::PORT_PACE).
    ///
    /// # Errors
    /// The [`StampError`] of a page that is not as it should be; it is in the progress line as well, and the vCPU must
    /// not go on.
    pub fn run_batch(&mut self, ram: &mut impl Ram) -> Result<u32, StampError> {
        let steps = self.batch();
        let result = self.run(steps, ram);
        if let Err(error) = result {
            let progress = Progress {
                steps: self.steps(),
                state: State::StampError,
                error: Some(error),
            };
            progress.write(self.vcpu, ram);
            return Err(error);
        }
        Progress::write_steps(self.steps(), self.vcpu, ram);
        Ok(steps as u32)
    }

    /// Does one step, without progress. Does nothing when finished.
    ///
    /// # Errors
    /// As [`run_batch`](Self::run_batch).
    pub fn step(&mut self, ram: &mut impl Ram) -> Result<(), StampError> {
        self.run(self.batch().min(1), ram)
    }

    fn run(&mut self, steps: u64, ram: &mut impl Ram) -> Result<(), StampError> {
        if self.life != 0 {
            return self.run_mortal(steps, ram);
        }
        let origin = self.generator.origin();
        let first = self.plan.gfn(0).0;
        let (to_head, head_to_tail) = Places::offsets(self.vcpu);
        let base = (first + origin) * PAGE_SIZE + to_head;
        let ledger = self.ledger.wrapping_add(2 * origin);
        let (seed, fill) = (self.seed, self.fill);
        let fill = move |address| fill.word(seed, address);
        // The hole costs instructions only where there is one.
        if self.plan.end_gfn() <= HOLE.start {
            self.generator.run(steps, move |page, write| {
                let places = Places::at(base + page * PAGE_SIZE, head_to_tail);
                touch(places, ledger.wrapping_add(2 * page), write, &fill, ram)
            })
        } else {
            let below = HOLE.start.0.saturating_sub(first + origin);
            self.generator.run(steps, move |page, write| {
                let hole = if page < below { 0 } else { HOLE_PAGES * PAGE_SIZE };
                let places = Places::at(base + page * PAGE_SIZE + hole, head_to_tail);
                touch(places, ledger.wrapping_add(2 * page), write, &fill, ram)
            })
        }
    }
}

/// Checks a page against its ledger entry, and writes the next stamp.
#[inline(always)]
fn touch(
    places: Places,
    entry: u64,
    write: bool,
    fill: &impl Fn(u64) -> u64,
    ram: &mut impl Ram,
) -> Result<(), StampError> {
    let sequence = ram.read_u16(entry);
    let stamp = places.stamp(sequence);
    if !places.hold(stamp, ram) {
        places.judge(sequence, fill, ram)?;
    }
    if write {
        // 0 stays the mark of a page never written.
        let (sequence, stamp) = match sequence.wrapping_add(1) {
            0 => places.first_again(),
            next => (next, Places::next_stamp(stamp)),
        };
        places.put(stamp, ram);
        ram.write_u16(entry, sequence);
    }
    Ok(())
}
