//! A guest of either kind.

use std::sync::Arc;
use std::time::Duration;

use dunlin_core::pageset::Run;
use dunlin_core::units::Nanos;

use super::kvm::KvmGuest;
use super::thread::ThreadGuest;
use super::{AgentLine, Guest, GuestConfig, GuestError, GuestKind, Machine, Progress, Tracking, TrackingState};
use crate::memory::GuestMemory;
use crate::track::rings::RingWindow;

/// A guest of the kind its configuration asks for.
pub enum AnyGuest {
    /// Under KVM.
    Kvm(Box<KvmGuest>),
    /// Threads of this process.
    Thread(Box<ThreadGuest>),
}

impl AnyGuest {
    /// Builds a guest that is ready to start, tracked by a bitmap.
    ///
    /// # Errors
    /// What the configuration, memory or KVM are lacking.
    pub fn create(config: GuestConfig) -> Result<Self, GuestError> {
        Self::create_tracked(config, Tracking::default())
    }

    /// Builds a guest that is ready to start, tracked in this way.
    ///
    /// # Errors
    /// What the configuration, memory or KVM are lacking.
    pub fn create_tracked(config: GuestConfig, tracking: Tracking) -> Result<Self, GuestError> {
        Ok(match config.kind {
            GuestKind::Kvm => Self::Kvm(Box::new(KvmGuest::create(config, tracking)?)),
            GuestKind::Thread => Self::Thread(Box::new(ThreadGuest::create(config)?)),
        })
    }

    /// Builds a guest that takes over from one with this machine on another host, tracked by a bitmap. Its memory is empty.
    ///
    /// # Errors
    /// As [`create`](Self::create), and what KVM refuses of a machine that this host cannot be.
    pub fn create_incoming(config: GuestConfig, machine: Machine) -> Result<Self, GuestError> {
        Self::create_incoming_tracked(config, machine, Tracking::default())
    }

    /// The same, tracked in this way, which need not be that of the other host.
    ///
    /// # Errors
    /// As [`create_incoming`](Self::create_incoming).
    pub fn create_incoming_tracked(
        config: GuestConfig,
        machine: Machine,
        tracking: Tracking,
    ) -> Result<Self, GuestError> {
        Ok(match config.kind {
            GuestKind::Kvm => Self::Kvm(Box::new(KvmGuest::create_incoming(config, machine, tracking)?)),
            GuestKind::Thread => Self::Thread(Box::new(ThreadGuest::create_incoming(config)?)),
        })
    }

    /// What this host can offer to a guest of this kind.
    ///
    /// # Errors
    /// As [`KvmGuest::host_machine`].
    pub fn host_machine(kind: GuestKind) -> Result<Machine, GuestError> {
        match kind {
            GuestKind::Kvm => KvmGuest::host_machine(),
            GuestKind::Thread => Ok(ThreadGuest::host_machine()),
        }
    }

    fn guest(&self) -> &dyn Guest {
        match self {
            Self::Kvm(guest) => &**guest,
            Self::Thread(guest) => &**guest,
        }
    }
}

impl Guest for AnyGuest {
    fn config(&self) -> &GuestConfig {
        self.guest().config()
    }

    fn memory(&self) -> &Arc<GuestMemory> {
        self.guest().memory()
    }

    fn machine(&self) -> &Machine {
        self.guest().machine()
    }

    fn start_tracking(&self) -> Result<(), GuestError> {
        self.guest().start_tracking()
    }

    fn harvest(&self, dirty: &mut [u64]) -> Result<(), GuestError> {
        self.guest().harvest(dirty)
    }

    fn harvest_window(&self, dirty: &mut [u64], window: &mut RingWindow) -> Result<(), GuestError> {
        self.guest().harvest_window(dirty, window)
    }

    fn keep_order(&self, on: bool) {
        self.guest().keep_order(on);
    }

    fn tracking_state(&self) -> TrackingState {
        self.guest().tracking_state()
    }

    fn tracker_cpu(&self) -> Nanos {
        self.guest().tracker_cpu()
    }

    fn vcpu_threads(&self) -> Vec<u32> {
        self.guest().vcpu_threads()
    }

    fn agent(&self) -> Option<&Arc<AgentLine>> {
        self.guest().agent()
    }

    fn mark_dirty(&self, run: Run) {
        self.guest().mark_dirty(run);
    }

    fn stop_tracking(&self) -> Result<(), GuestError> {
        self.guest().stop_tracking()
    }

    fn pause(&self) -> Result<(), GuestError> {
        self.guest().pause()
    }

    fn hold(&self) {
        self.guest().hold();
    }

    fn resume(&self) -> Result<(), GuestError> {
        self.guest().resume()
    }

    fn save_state(&self) -> Result<Vec<u8>, GuestError> {
        self.guest().save_state()
    }

    fn restore_state(&self, state: &[u8]) -> Result<(), GuestError> {
        self.guest().restore_state(state)
    }

    fn progress(&self) -> Progress {
        self.guest().progress()
    }

    fn mark(&self) {
        self.guest().mark();
    }

    fn check_workload(&self) -> Result<(), GuestError> {
        self.guest().check_workload()
    }

    fn wait_halted(&self, timeout: Duration) -> Result<bool, GuestError> {
        self.guest().wait_halted(timeout)
    }
}
