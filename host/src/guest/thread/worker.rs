//! One vCPU of a thread guest.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dunlin_core::workload::layout::{HALT_DONE, HALT_STAMP};
use dunlin_core::workload::{BootBlock, Progress, Runner, RunnerState, State};
use serde::{Deserialize, Serialize};

use super::super::GuestError;
use super::super::gate::{Gate, VcpuState};
use super::super::pace::{Pace, PaceState};
use super::super::prepare::{self, WorkloadRam};
use crate::memory::GuestMemory;

/// A vCPU, shared between its thread and those who control it.
pub(super) struct Worker {
    pub(super) gate: Gate,
    core: Mutex<Core>,
    memory: Arc<GuestMemory>,
    vcpu: u32,
}

/// What the thread works with.
struct Core {
    runner: Runner,
    pace: Pace,
}

/// What moves of a vCPU beside its memory.
#[derive(Serialize, Deserialize)]
pub(super) struct WorkerState {
    runner: RunnerState,
    pace: PaceState,
    halted: Option<u32>,
}

impl Worker {
    pub(super) fn new(boot: &BootBlock, vcpu: u32, memory: Arc<GuestMemory>) -> Result<Self, GuestError> {
        let runner = Runner::new(boot, vcpu).map_err(|error| GuestError::Workload(error.to_string()))?;
        let pace = Pace::new(boot.spec.clone(), boot.vcpus);
        Ok(Self {
            gate: Gate::new(),
            core: Mutex::new(Core { runner, pace }),
            memory,
            vcpu,
        })
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn save(&self, halted: Option<u32>) -> WorkerState {
        let core = self.core();
        WorkerState {
            runner: core.runner.state(),
            pace: core.pace.save(),
            halted,
        }
    }

    pub(super) fn restore(&self, boot: &BootBlock, state: &WorkerState) -> Result<(), GuestError> {
        let mut core = self.core();
        core.runner = Runner::resume(boot, self.vcpu, state.runner)
            .map_err(|_| GuestError::State("it is none that this workload can reach"))?;
        core.pace.restore(&state.pace);
        self.gate.take_over(state.pace.steps, state.halted);
        Ok(())
    }

    /// Body of the vCPU's thread.
    pub(super) fn work(&self) {
        while self.gate.wait_to_run() {
            match catch_unwind(AssertUnwindSafe(|| self.run(&mut self.core()))) {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => self.gate.finish(VcpuState::Halted(HALT_DONE)),
                Ok(Err(failure)) => self.gate.finish(VcpuState::Failed(failure)),
                Err(_) => self.gate.finish(VcpuState::Failed("its thread panicked".into())),
            }
        }
    }

    /// Runs until the vCPU is to stop; `true` when it has done all its steps.
    fn run(&self, core: &mut Core) -> Result<bool, String> {
        core.pace.resume();
        let mut ram = WorkloadRam(&self.memory);
        if core.runner.steps() == 0 {
            Progress {
                state: State::Running,
                ..Progress::default()
            }
            .write(self.vcpu, &mut ram);
        }
        while !core.runner.finished() {
            if let Some(due) = core.pace.due() {
                if !self.gate.sleep_until(due) {
                    return Ok(false);
                }
                core.pace.waited();
            }
            if self.gate.stop_wanted() {
                return Ok(false);
            }
            self.run_batch(core, &mut ram)?;
        }
        core.runner.settle(&mut ram);
        let steps = core.runner.steps();
        Progress {
            steps,
            state: State::Done,
            error: None,
        }
        .write(self.vcpu, &mut ram);
        Ok(true)
    }

    /// Does a batch, or as much of it as there is time for.
    fn run_batch(&self, core: &mut Core, ram: &mut WorkloadRam<'_>) -> Result<(), String> {
        let mut done = 0;
        for _ in 0..core.runner.batch() {
            if let Err(error) = core.runner.step(ram) {
                let steps = core.runner.steps();
                Progress {
                    steps,
                    state: State::StampError,
                    error: Some(error),
                }
                .write(self.vcpu, ram);
                let failure = prepare::abnormal_halt(HALT_STAMP, self.vcpu, &self.memory);
                return Err(failure.expect("a wrong stamp is no regular end"));
            }
            done += 1;
            if self.gate.stop_wanted() {
                break;
            }
        }
        Progress::write_steps(core.runner.steps(), self.vcpu, ram);
        self.gate.reports.report(core.pace.on_batch(done));
        Ok(())
    }
}
