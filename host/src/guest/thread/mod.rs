//! Guests without a virtual machine: threads that run the same workload over the same memory map, paced the same way.
//! For machines without KVM, and for everything that does not depend on it.

mod worker;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dunlin_core::pageset::Run;
use dunlin_core::tracefile::Source;
use dunlin_core::workload::BootBlock;

use super::gate::{Gates, VcpuState};
use super::prepare::VcpuThread;
use super::state::{self, STATE_VERSION};
use super::{Guest, GuestConfig, GuestError, GuestKind, Machine, Progress, TrackingState, prepare};
use crate::memory::GuestMemory;
use crate::track::pagemap::PagemapTracker;
use worker::{Worker, WorkerState};

/// A guest whose vCPUs are threads of this process. Tracked by [`PagemapTracker`], which sees writes of the host too.
pub struct ThreadGuest {
    config: GuestConfig,
    machine: Machine,
    memory: Arc<GuestMemory>,
    boot: BootBlock,
    workers: Vec<Arc<Worker>>,
    threads: Vec<VcpuThread>,
    tracker: Mutex<Option<PagemapTracker>>,
}

impl ThreadGuest {
    /// What every host offers to a guest of this kind.
    pub fn host_machine() -> Machine {
        Machine {
            state_version: STATE_VERSION,
            ..Machine::default()
        }
    }

    /// Builds a guest that is ready to start.
    ///
    /// # Errors
    /// What the configuration or memory are lacking.
    pub fn create(config: GuestConfig) -> Result<Self, GuestError> {
        let guest = Self::create_incoming(config)?;
        prepare::fill(&guest.memory, &guest.boot)?;
        guest
            .memory
            .write(dunlin_core::workload::layout::BOOT_BLOCK, &guest.boot.encode())?;
        Ok(guest)
    }

    /// Builds a guest that takes over from another one.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_incoming(config: GuestConfig) -> Result<Self, GuestError> {
        let boot = config.boot_block()?;
        let memory = prepare::map(&config)?;
        let workers = (0..config.vcpus)
            .map(|vcpu| Worker::new(&boot, vcpu, memory.clone()).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let machine = Self::host_machine();
        let mut guest = Self {
            config,
            machine,
            memory,
            boot,
            workers,
            threads: Vec::new(),
            tracker: Mutex::new(None),
        };
        for (worker, vcpu) in guest.workers.iter().cloned().zip(0..) {
            guest
                .threads
                .push(prepare::spawn_vcpu(&guest.config.name, vcpu, move || worker.work())?);
        }
        Ok(guest)
    }

    fn gates(&self) -> Gates<'_> {
        self.workers.iter().map(|worker| &worker.gate).collect()
    }

    fn tracker(&self) -> MutexGuard<'_, Option<PagemapTracker>> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest for ThreadGuest {
    fn config(&self) -> &GuestConfig {
        &self.config
    }

    fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn start_tracking(&self) -> Result<(), GuestError> {
        let mut tracker = self.tracker();
        if tracker.is_none() {
            *tracker = Some(PagemapTracker::start(self.memory.clone())?);
        }
        Ok(())
    }

    fn harvest(&self, dirty: &mut [u64]) -> Result<(), GuestError> {
        self.tracker().as_ref().ok_or(GuestError::NotTracking)?.harvest(dirty)
    }

    fn tracking_state(&self) -> TrackingState {
        TrackingState {
            source: Source::PagemapScan,
            on: self.tracker().is_some(),
            ring_entries: 0,
            overruns: 0,
        }
    }

    fn vcpu_threads(&self) -> Vec<u32> {
        self.threads.iter().map(|thread| thread.tid).collect()
    }

    /// Nothing to do: the tracker has seen it.
    fn mark_dirty(&self, _: Run) {}

    fn stop_tracking(&self) -> Result<(), GuestError> {
        *self.tracker() = None;
        Ok(())
    }

    fn pause(&self) -> Result<(), GuestError> {
        self.gates().pause(|_| {})?;
        self.memory.set_guest_runs(false);
        Ok(())
    }

    fn hold(&self) {
        self.gates().hold();
    }

    fn resume(&self) -> Result<(), GuestError> {
        self.memory.set_guest_runs(true);
        self.gates().resume()
    }

    fn save_state(&self) -> Result<Vec<u8>, GuestError> {
        self.gates().check_paused()?;
        let workers: Vec<WorkerState> = self
            .workers
            .iter()
            .map(|worker| match worker.gate.state() {
                VcpuState::Halted(code) => worker.save(Some(code)),
                _ => worker.save(None),
            })
            .collect();
        Ok(state::encode(GuestKind::Thread, &workers))
    }

    fn restore_state(&self, bytes: &[u8]) -> Result<(), GuestError> {
        self.gates().check_paused()?;
        let states: Vec<WorkerState> = state::decode(GuestKind::Thread, bytes)?;
        if states.len() != self.workers.len() {
            return Err(GuestError::State("it is of a guest with another number of vCPUs"));
        }
        self.workers
            .iter()
            .zip(&states)
            .try_for_each(|(worker, state)| worker.restore(&self.boot, state))
    }

    fn progress(&self) -> Progress {
        self.gates().progress()
    }

    fn mark(&self) {
        self.gates().mark();
    }

    fn check_workload(&self) -> Result<(), GuestError> {
        prepare::check_workload(&self.memory, self.config.vcpus)
    }

    fn wait_halted(&self, timeout: Duration) -> Result<bool, GuestError> {
        self.gates().wait_halted(timeout)
    }
}

impl Drop for ThreadGuest {
    fn drop(&mut self) {
        // A thread that waits for a missing page keeps the memory until the process ends.
        if self.gates().quit(|_| {}) {
            for thread in self.threads.drain(..) {
                let _ = thread.handle.join();
            }
        }
    }
}
