//! Guests: what runs, writes memory, and is moved.
//!
//! A guest is built paused, by [`AnyGuest::create`] to be started here or by [`AnyGuest::create_incoming`] to take over
//! from another host; [`Guest::resume`] lets it run. All methods take `&self` and may be called from any thread; those
//! that change what the guest does (pause, resume, tracking, state) are meant for one caller at a time.

mod agent_line;
mod any;
mod config;
mod error;
mod gate;
pub mod kvm;
mod machine;
mod pace;
mod prepare;
mod progress;
mod state;
pub mod thread;
mod tracking;

pub use agent_line::AgentLine;
pub use any::AnyGuest;
pub use config::{GuestConfig, GuestKind};
pub use dunlin_core::workload::Fill;
pub use error::GuestError;
pub use machine::{CpuidEntry, Machine};
pub use progress::{Progress, RunState, VcpuProgress};
pub use tracking::{Tracking, TrackingState};

use std::sync::Arc;
use std::time::Duration;

use dunlin_core::pageset::Run;
use dunlin_core::units::Nanos;

use crate::memory::GuestMemory;
use crate::track::rings::RingWindow;

/// A virtual machine, or something that behaves like one.
pub trait Guest: Send + Sync {
    /// How it was built, and how to build it again elsewhere.
    fn config(&self) -> &GuestConfig;

    /// Its RAM.
    fn memory(&self) -> &Arc<GuestMemory>;

    /// What its processors look like to it; another host must offer the same.
    fn machine(&self) -> &Machine;

    /// From now on every write of the guest is remembered until the next [`harvest`](Self::harvest). Works on a running
    /// guest; only pages read afterwards are covered. Starting again is allowed, and forgets nothing.
    ///
    /// # Errors
    /// [`GuestError::Tracking`] when the kernel refuses.
    fn start_tracking(&self) -> Result<(), GuestError>;

    /// ORs the pages written since the last harvest into `dirty` (bit g of the flat index is page g) and forgets them here. A
    /// write that comes later is in the next harvest; so pages are read only after the harvest that named them.
    ///
    /// # Errors
    /// [`GuestError::NotTracking`]; [`GuestError::Tracking`] when the kernel refuses: some pages may then be named in no
    /// harvest, and all must be treated as dirty.
    ///
    /// # Panics
    /// If `dirty` is shorter than [`MemoryLayout::words`](crate::memory::MemoryLayout::words).
    fn harvest(&self, dirty: &mut [u64]) -> Result<(), GuestError>;

    /// As [`harvest`](Self::harvest), and tells what a dirty ring knows beyond that; without rings, `window` stays empty. The order of
    /// writes is kept since [`keep_order`](Self::keep_order).
    ///
    /// # Errors
    /// As [`harvest`](Self::harvest).
    ///
    /// # Panics
    /// As [`harvest`](Self::harvest).
    fn harvest_window(&self, dirty: &mut [u64], window: &mut RingWindow) -> Result<(), GuestError> {
        *window = RingWindow::default();
        self.harvest(dirty)
    }

    /// Keeps the order in which vCPUs write, or does not; without effect where there are no rings.
    fn keep_order(&self, _on: bool) {}

    /// How its tracking stands.
    fn tracking_state(&self) -> TrackingState;

    /// CPU time that threads of the guest's tracker have taken since it was started.
    fn tracker_cpu(&self) -> Nanos {
        Nanos::ZERO
    }

    /// The threads of its vCPUs, as the kernel numbers threads.
    fn vcpu_threads(&self) -> Vec<u32>;

    /// The line to the agent in it, if it has one.
    fn agent(&self) -> Option<&Arc<AgentLine>> {
        None
    }

    /// Puts pages that the *host* wrote into the next harvest. Without effect when nothing is tracked.
    fn mark_dirty(&self, run: Run);

    /// Ends tracking and forgets what was not harvested. Without effect when nothing is tracked.
    ///
    /// # Errors
    /// [`GuestError::Tracking`] when the kernel refuses.
    fn stop_tracking(&self) -> Result<(), GuestError>;

    /// Stops all vCPUs between two instructions with no access pending, and returns when they have stopped. Pausing twice is
    /// allowed.
    ///
    /// Never while pages may be missing (post-copy): a vCPU that waits for a page cannot leave. Use
    /// [`hold`](Self::hold) then.
    ///
    /// # Errors
    /// [`GuestError::PauseTimedOut`], after which the guest runs on; [`GuestError::VcpuFailed`].
    fn pause(&self) -> Result<(), GuestError>;

    /// Asks all vCPUs to stop at the next opportunity that arises by itself, and returns at once: nobody is interrupted. For
    /// a guest with missing pages that is not to go on; [`resume`](Self::resume) takes it back.
    fn hold(&self);

    /// Lets the vCPUs run (again). Those that have halted stay halted.
    ///
    /// # Errors
    /// [`GuestError::VcpuFailed`] when the guest cannot run any more.
    fn resume(&self) -> Result<(), GuestError>;

    /// Everything about the paused guest that is not RAM, as bytes for [`restore_state`](Self::restore_state) of a guest of
    /// the same configuration on any host.
    ///
    /// # Errors
    /// [`GuestError::NotPaused`]; [`GuestError::Vcpu`] naming what could not be read.
    fn save_state(&self) -> Result<Vec<u8>, GuestError>;

    /// Takes over what [`save_state`](Self::save_state) gave on the source. The bytes may come from anywhere: what is
    /// wrong with them is named, and the guest must not be run after an error.
    ///
    /// # Errors
    /// [`GuestError::NotPaused`], [`GuestError::State`], [`GuestError::Vcpu`].
    fn restore_state(&self, state: &[u8]) -> Result<(), GuestError>;

    /// How far the vCPUs are. Looks at nothing in guest memory, so it is safe at any time.
    fn progress(&self) -> Progress;

    /// From now on [`Progress::longest_gap`] means gaps that end after this moment.
    fn mark(&self);

    /// What the workload found wrong in its own memory, from the guest's progress page. That page must be present: after
    /// a post-copy, only when the memory is complete.
    ///
    /// # Errors
    /// [`GuestError::Damaged`] with the first damage found.
    fn check_workload(&self) -> Result<(), GuestError>;

    /// Waits until every vCPU has halted by itself; `false` when it took longer than `timeout`.
    ///
    /// # Errors
    /// [`GuestError::VcpuFailed`] when one of them never will.
    fn wait_halted(&self, timeout: Duration) -> Result<bool, GuestError>;
}
