//! One vCPU: its thread, what makes it leave the guest, and the devices behind its ports.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};
use dunlin_core::workload::layout::{MAILBOX, MAILBOX_ROOM, PORT_AGENT, PORT_HALT, PORT_LOG, PORT_PACE};
use dunlin_core::workload::{Ram as _, Spec};
use kvm_bindings::KVM_EXIT_DIRTY_RING_FULL;
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::super::AgentLine;
use super::super::gate::{Gate, VcpuState};
use super::super::pace::Pace;
use super::super::prepare::{self, WorkloadRam};
use super::super::progress::Reports;
use super::log::Log;
use super::ring::DirtyRings;
use super::vm::Vm;
use super::written::Written;
use crate::memory::GuestMemory;

/// One vCPU, shared between its thread and those who control it.
pub(super) struct Vcpu {
    pub(super) gate: Gate,
    core: Mutex<Core>,
    /// `immediate_exit` of the structure that the vCPU shares with KVM; mapped as long as `core` lives.
    immediate_exit: NonNull<u8>,
    vm: Arc<Vm>,
    rings: Option<Arc<DirtyRings>>,
    index: u32,
}

// SAFETY: `immediate_exit` points into a mapping that `core` owns, and is only accessed atomically.
unsafe impl Send for Vcpu {}
// SAFETY: as above.
unsafe impl Sync for Vcpu {}

/// What the vCPU's thread works with while the vCPU runs, and others only while it is stopped.
pub(super) struct Core {
    pub(super) fd: VcpuFd,
    pub(super) devices: Devices,
}

/// The devices behind the ports.
pub(super) struct Devices {
    pub(super) pace: Pace,
    log: Log,
    /// On the vCPU that runs an agent.
    agent: Option<Arc<AgentLine>>,
    written: Arc<Written>,
}

/// Why the vCPU cannot go on.
type Failure = String;

impl Vcpu {
    pub(super) fn new(
        mut fd: VcpuFd,
        index: u32,
        devices: Devices,
        vm: Arc<Vm>,
        rings: Option<Arc<DirtyRings>>,
    ) -> Self {
        install_signal_handler();
        let immediate_exit = NonNull::from(&mut fd.get_kvm_run().immediate_exit);
        Self {
            gate: Gate::new(),
            core: Mutex::new(Core { fd, devices }),
            immediate_exit,
            vm,
            rings,
            index,
        }
    }

    /// The stopped vCPU's inside. While it runs this would wait until it stops.
    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Body of the vCPU's thread.
    pub(super) fn work(&self) {
        yield_to_the_host();
        while self.gate.wait_to_run() {
            let outcome = catch_unwind(AssertUnwindSafe(|| self.run(&mut self.core())));
            match outcome {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(code))) => self.gate.finish(VcpuState::Halted(code)),
                Ok(Err(failure)) => self.gate.finish(VcpuState::Failed(failure)),
                Err(_) => self.gate.finish(VcpuState::Failed("its thread panicked".into())),
            }
        }
    }

    /// Makes the vCPU leave the guest, together with a signal to its thread.
    pub(super) fn leave(&self) {
        self.set_immediate_exit(1);
    }

    fn set_immediate_exit(&self, value: u8) {
        // SAFETY: the pointer is to a byte of a mapping that lives as long as `self`; KVM only reads it, and nobody else
        // accesses it but through here.
        unsafe { AtomicU8::from_ptr(self.immediate_exit.as_ptr()) }.store(value, Ordering::SeqCst);
    }

    /// Runs until the vCPU is to stop or halts (then with its code), and completes what it had begun.
    fn run(&self, core: &mut Core) -> Result<Option<u32>, Failure> {
        core.devices.pace.resume();
        let halted = self.run_until_stop(core)?;
        let halted = self.complete(core)?.or(halted);
        match halted.and_then(|code| prepare::abnormal_halt(code, self.index, self.vm.memory())) {
            Some(failure) => Err(failure),
            None => Ok(halted),
        }
    }

    fn run_until_stop(&self, core: &mut Core) -> Result<Option<u32>, Failure> {
        loop {
            if let Some(due) = core.devices.pace.due() {
                if !self.gate.sleep_until(due) {
                    return Ok(None);
                }
                core.devices.pace.waited();
            }
            // In this order: whoever wants a stop says so first and sets `immediate_exit` then.
            self.set_immediate_exit(0);
            if self.gate.stop_wanted() {
                return Ok(None);
            }
            if let Entry::Halted(code) = self.enter(core)? {
                return Ok(Some(code));
            }
        }
    }

    /// An instruction that accesses a port or a device is only finished when KVM_RUN is entered again: does that, without
    /// running the guest any further. Registers are only valid afterwards (Documentation/virt/kvm/api.rst, KVM_RUN).
    fn complete(&self, core: &mut Core) -> Result<Option<u32>, Failure> {
        self.set_immediate_exit(1);
        let mut halted = None;
        loop {
            match self.enter(core)? {
                Entry::Exit => {}
                Entry::Halted(code) => halted = Some(code),
                Entry::Interrupted => return Ok(halted),
            }
        }
    }

    /// Enters the guest once and handles what made it leave.
    fn enter(&self, core: &mut Core) -> Result<Entry, Failure> {
        let Core { fd, devices } = core;
        let rings = self.rings.as_deref();
        let resets = rings.map_or(0, |rings| rings.resets(self.index));
        let failure = match (fd.run(), rings) {
            (Ok(VcpuExit::Intr), _) => return Ok(Entry::Interrupted),
            (Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)), Some(rings)) => {
                rings.on_full(self.index, resets);
                return Ok(Entry::Exit);
            }
            (Ok(exit), _) => match devices.on_exit(exit, self.vm.memory(), &self.gate.reports) {
                Ok(entry) => {
                    if let Some(rings) = rings {
                        rings.on_exit(self.index);
                    }
                    return Ok(entry);
                }
                Err(failure) => failure,
            },
            (Err(error), _) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Ok(Entry::Interrupted),
            (Err(error), _) => format!("KVM_RUN: {error}"),
        };
        let rip = fd.get_regs().map_or(0, |regs| regs.rip);
        Err(format!("{failure} (at instruction {rip:#x})"))
    }
}

/// What came of entering the guest.
enum Entry {
    /// It left and can go on.
    Exit,
    /// It has ended with this code.
    Halted(u32),
    /// It was not let in, or was called out.
    Interrupted,
}

impl Devices {
    pub(super) fn new(spec: Spec, vcpus: u32, log: Log, agent: Option<Arc<AgentLine>>, written: Arc<Written>) -> Self {
        Self {
            pace: Pace::new(spec, vcpus),
            log,
            agent,
            written,
        }
    }

    /// Puts what the agent is told into its mailbox, if it has taken what was there.
    fn deliver(&self, memory: &GuestMemory) {
        let mut ram = WorkloadRam(memory);
        let Some(line) = self.agent.as_ref().filter(|_| ram.read_u64(MAILBOX) == 0) else {
            return;
        };
        let mut bytes = line.to_guest(MAILBOX_ROOM as usize);
        let length = bytes.len() as u64;
        if length == 0 {
            return;
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        for (word, address) in bytes.as_chunks::<8>().0.iter().zip((MAILBOX + 8..).step_by(8)) {
            ram.write_u64(address, u64::from_le_bytes(*word));
        }
        ram.write_u64(MAILBOX, length);
        self.written.mark(Run::new(Gfn(MAILBOX / PAGE_SIZE), Pages(1)));
    }

    fn on_exit(&mut self, exit: VcpuExit<'_>, memory: &GuestMemory, reports: &Reports) -> Result<Entry, Failure> {
        match exit {
            VcpuExit::IoOut(PORT_LOG, bytes) => self.log.put(bytes),
            VcpuExit::IoOut(PORT_PACE, bytes) => {
                for batch in bytes.chunks_exact(4) {
                    reports.report(self.pace.on_batch(word(batch)));
                }
                self.deliver(memory);
            }
            VcpuExit::IoOut(PORT_AGENT, bytes) => {
                if let Some(line) = &self.agent {
                    line.on_said(bytes);
                }
            }
            VcpuExit::IoOut(PORT_HALT, bytes) => return Ok(Entry::Halted(word(bytes))),
            VcpuExit::IoOut(port, _) => return Err(format!("it wrote to port {port:#x}, where there is no device")),
            VcpuExit::IoIn(port, _) => return Err(format!("it read from port {port:#x}, where there is no device")),
            VcpuExit::MmioRead(address, _) | VcpuExit::MmioWrite(address, _) => {
                let page = Run::new(Gfn(address / PAGE_SIZE), Pages(1));
                return Err(if memory.layout().contains(page) {
                    format!("the host's memory behind guest-physical {address:#x} is gone")
                } else {
                    format!("it accessed guest-physical {address:#x}, where there is neither RAM nor a device")
                });
            }
            VcpuExit::Hlt => return Err("it waits for an interrupt that cannot come".into()),
            VcpuExit::Shutdown => return Err("it took an exception (triple fault)".into()),
            VcpuExit::InternalError => return Err("KVM could not emulate an instruction".into()),
            VcpuExit::FailEntry(reason, _) => return Err(format!("the processor refused to run it ({reason:#x})")),
            VcpuExit::MemoryFault { gpa, .. } => {
                return Err(format!("the host's memory behind guest-physical {gpa:#x} is gone"));
            }
            other => {
                // What comes with it is the guest's own affair.
                let all = format!("{other:?}");
                let name = all
                    .split(|character: char| !character.is_alphanumeric())
                    .next()
                    .unwrap_or_default();
                return Err(format!("KVM_RUN returned with {name}, which is not handled"));
            }
        }
        Ok(Entry::Exit)
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// A vCPU that wakes up (resumed, or its page has come) shall not take the processor from the thread that woke it, which
/// may have others to wake: `SCHED_BATCH` of sched(7). Its share of the processor stays the same. On two busy cores this
/// takes a third off the 99th percentile of post-copy faults.
fn yield_to_the_host() {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads `none` and changes nothing but the scheduling of this thread. Where it is not allowed the thread
    // stays as it is, which is only slower.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &none) };
}

/// The signal that calls a vCPU's thread out of the guest.
pub(super) fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Gives the signal a handler that does nothing, so that it interrupts and does not kill.
fn install_signal_handler() {
    extern "C" fn interrupt(_: libc::c_int) {}
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: all zeros is an empty mask and no flags; the handler touches nothing, so it may run anywhere.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = interrupt as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(kick_signal(), &action, std::ptr::null_mut())
        };
        assert_eq!(result, 0, "sigaction takes every real-time signal");
    });
}
