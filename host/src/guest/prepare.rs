//! What all kinds of guest have in common when they are built and when they end.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};

use dunlin_core::pageset::Run;
use dunlin_core::units::Pages;
use dunlin_core::workload::layout::{HALT_BOOT, HALT_DONE, HALT_PANIC, HALT_STAMP};
use dunlin_core::workload::{BootBlock, Fill, Progress, Ram};
use rustix::thread::gettid;

use super::{GuestConfig, GuestError};
use crate::memory::{GuestMemory, MemoryLayout};

/// Guest memory as a workload sees it.
#[derive(Debug)]
pub(super) struct WorkloadRam<'a>(pub(super) &'a GuestMemory);

impl Ram for WorkloadRam<'_> {
    fn read_u64(&self, address: u64) -> u64 {
        self.0.read_u64(address)
    }

    fn write_u64(&mut self, address: u64, value: u64) {
        self.0.write_u64(address, value);
    }
}

/// Maps the memory of a guest.
pub(super) fn map(config: &GuestConfig) -> Result<Arc<GuestMemory>, GuestError> {
    Ok(Arc::new(GuestMemory::new(MemoryLayout::new(config.memory)?)?))
}

/// Fills memory as the boot block says.
pub(super) fn fill(memory: &GuestMemory, boot: &BootBlock) -> Result<(), GuestError> {
    if boot.fill == Fill::Zero {
        return Ok(());
    }
    let plan = boot.plan().map_err(|error| GuestError::Workload(error.to_string()))?;
    for frames in plan.fill_frames() {
        let run = Run::new(frames.start, Pages(frames.end.0.saturating_sub(frames.start.0)));
        if !run.is_empty() {
            memory.fill(run, |address| boot.fill.word(boot.seed, address))?;
        }
    }
    Ok(())
}

/// The thread of a vCPU.
#[derive(Debug)]
pub(super) struct VcpuThread {
    pub(super) handle: JoinHandle<()>,
    /// The kernel's number for it.
    pub(super) tid: u32,
}

/// Starts the thread of a vCPU.
pub(super) fn spawn_vcpu(
    guest: &str,
    vcpu: u32,
    body: impl FnOnce() + Send + 'static,
) -> Result<VcpuThread, GuestError> {
    let (tell, told) = sync_channel(1);
    let handle = spawn(&format!("vcpu{vcpu} {guest}"), move || {
        // The receiver waits for this and nothing else.
        let _ = tell.send(gettid().as_raw_nonzero().get());
        body();
    })?;
    let tid = told.recv().expect("a thread that was started says its number first");
    Ok(VcpuThread {
        handle,
        tid: tid.unsigned_abs(),
    })
}

/// Starts a thread of this name, of which the kernel shows 15 bytes.
pub(super) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, GuestError> {
    let name: String = name.chars().filter(|letter| *letter != '\0').collect();
    Builder::new().name(name).spawn(body).map_err(GuestError::Thread)
}

/// What the vCPUs' lines of the progress page say about damage.
pub(super) fn check_workload(memory: &GuestMemory, vcpus: u32) -> Result<(), GuestError> {
    for vcpu in 0..vcpus {
        if let Some(error) = Progress::read(vcpu, &WorkloadRam(memory)).error {
            return Err(GuestError::Damaged {
                vcpu,
                what: error.to_string(),
            });
        }
    }
    Ok(())
}

/// Why a vCPU that halted with this code cannot go on, unless it was the regular end. The vCPU has just written its line
/// of the progress page, so that is present.
pub(super) fn abnormal_halt(code: u32, vcpu: u32, memory: &GuestMemory) -> Option<String> {
    Some(match code {
        HALT_DONE => return None,
        HALT_STAMP => match Progress::read(vcpu, &WorkloadRam(memory)).error {
            Some(error) => format!("it found damaged memory: {error}"),
            None => "it found damaged memory and lost what it found".into(),
        },
        HALT_BOOT => "its boot block was damaged or of another version".into(),
        HALT_PANIC => "the payload panicked (its log says where)".into(),
        code => format!("it halted with the unknown code {code}"),
    })
}
