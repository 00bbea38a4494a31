//! Virtual machines under KVM.

mod backend;
mod boot;
mod log;
mod ring;
mod state;
mod vcpu;
mod vm;
mod written;

pub use backend::Backend;

use std::os::unix::thread::JoinHandleExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use dunlin_core::pageset::Run;
use dunlin_core::tracefile::Source;
use dunlin_core::units::Nanos;
use dunlin_core::workload::BootBlock;
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state};
use kvm_ioctls::{Cap, VcpuFd};

use super::gate::{Gates, VcpuState};
use super::prepare::VcpuThread;
use super::state::STATE_VERSION;
use super::{
    AgentLine, Guest, GuestConfig, GuestError, GuestKind, Machine, Progress, Tracking, TrackingState, prepare,
};
use crate::memory::GuestMemory;
use crate::track::rings::RingWindow;
use ring::DirtyRings;
use state::{Parts, VmParts, VmState};
use vcpu::{Devices, Vcpu};
use vm::{Vm, kvm_error};
use written::Written;

/// A virtual machine under KVM that runs the bare-metal payload.
pub struct KvmGuest {
    config: GuestConfig,
    machine: Machine,
    memory: Arc<GuestMemory>,
    vm: Arc<Vm>,
    vcpus: Vec<Arc<Vcpu>>,
    threads: Vec<VcpuThread>,
    /// Instead of dirty bitmaps.
    rings: Option<Arc<DirtyRings>>,
    /// The model-specific registers that move, and room for their values.
    msrs: Mutex<Msrs>,
    tracker: Mutex<Tracker>,
    /// Pages the host wrote since the last harvest.
    written: Arc<Written>,
    /// If there is an agent.
    agent: Option<Arc<AgentLine>>,
}

#[derive(Default)]
struct Tracker {
    on: bool,
    /// Of bitmaps.
    scratch: Vec<u64>,
    /// Of rings.
    harvester: Option<JoinHandle<()>>,
}

impl KvmGuest {
    /// The processors that this host can give to a guest.
    ///
    /// # Errors
    /// [`GuestError::NoKvm`], [`KvmDenied`](GuestError::KvmDenied), [`KvmLacks`](GuestError::KvmLacks),
    /// [`Kvm`](GuestError::Kvm).
    pub fn host_machine() -> Result<Machine, GuestError> {
        let kvm = vm::open()?;
        let vcpu = kvm
            .create_vm()
            .map_err(kvm_error("KVM_CREATE_VM"))?
            .create_vcpu(0)
            .map_err(kvm_error("KVM_CREATE_VCPU"))?;
        Ok(Machine {
            cpuid: vm::supported_cpuid(&kvm)?,
            tsc_khz: vcpu.get_tsc_khz().map_err(kvm_error("KVM_GET_TSC_KHZ"))?,
            state_version: STATE_VERSION,
        })
    }

    /// Whether this host can give a guest a time stamp counter of any rate, not only its own.
    ///
    /// # Errors
    /// As [`host_machine`](Self::host_machine).
    pub fn scales_tsc() -> Result<bool, GuestError> {
        Ok(vm::open()?.check_extension(Cap::TscControl))
    }

    /// Checks that KVM makes dirty rings of so many entries.
    ///
    /// # Errors
    /// [`GuestError::KvmLacks`], [`GuestError::RingSize`], and those of [`host_machine`](Self::host_machine).
    pub fn check_ring(entries: u32) -> Result<(), GuestError> {
        ring::check(&vm::open()?, entries).map(drop)
    }

    /// Builds a guest that is ready to start.
    ///
    /// # Errors
    /// What the configuration, memory or KVM are lacking.
    pub fn create(config: GuestConfig, tracking: Tracking) -> Result<Self, GuestError> {
        let boot = config.boot_block()?;
        let machine = Self::host_machine()?;
        let guest = Self::build(config, machine, &boot, tracking)?;
        prepare::fill(&guest.memory, &boot)?;
        let entry = boot::load(&guest.memory, &boot)?;
        for (vcpu, index) in guest.vcpus.iter().zip(0..) {
            let core = vcpu.core();
            let mut sregs = core.fd.get_sregs().map_err(kvm_error("KVM_GET_SREGS"))?;
            boot::set_sregs(&mut sregs);
            core.fd.set_sregs(&sregs).map_err(kvm_error("KVM_SET_SREGS"))?;
            core.fd
                .set_regs(&boot::regs(entry, index))
                .map_err(kvm_error("KVM_SET_REGS"))?;
            // With interrupt controllers only the first vCPU is runnable by itself.
            let runnable = kvm_mp_state {
                mp_state: KVM_MP_STATE_RUNNABLE,
            };
            core.fd.set_mp_state(runnable).map_err(kvm_error("KVM_SET_MP_STATE"))?;
        }
        Ok(guest)
    }

    /// Builds a guest that takes over from one with this machine: everything that can be done before its state arrives.
    ///
    /// # Errors
    /// As [`create`](Self::create), and what KVM refuses of a machine that this host cannot be.
    pub fn create_incoming(config: GuestConfig, machine: Machine, tracking: Tracking) -> Result<Self, GuestError> {
        let boot = config.boot_block()?;
        Self::build(config, machine, &boot, tracking)
    }

    fn build(config: GuestConfig, machine: Machine, boot: &BootBlock, tracking: Tracking) -> Result<Self, GuestError> {
        let kvm = vm::open()?;
        let memory = prepare::map(&config)?;
        let vm = Arc::new(Vm::new(&kvm, memory.clone(), config.irqchip)?);
        if let Tracking::Ring { entries } = tracking {
            ring::enable(&kvm, vm.fd(), entries)?;
        }
        let fds = (0..config.vcpus)
            .map(|index| build_vcpu(&vm, &machine, index))
            .collect::<Result<Vec<_>, _>>()?;
        let rings = match tracking {
            Tracking::Bitmap => None,
            Tracking::Ring { entries } => Some(Arc::new(DirtyRings::new(vm.clone(), &fds, entries)?)),
        };
        let written = Arc::new(Written::new(memory.layout()));
        let agent = (boot.spec.life() > 0).then(|| Arc::new(AgentLine::default()));
        let vcpu = |(fd, index)| {
            let log = log::Log::new(&config.name, index);
            let line = agent.clone().filter(|_| index == 0);
            let devices = Devices::new(boot.spec.clone(), config.vcpus, log, line, written.clone());
            Arc::new(Vcpu::new(fd, index, devices, vm.clone(), rings.clone()))
        };
        let vcpus: Vec<_> = fds.into_iter().zip(0..).map(vcpu).collect();
        let msrs = state::movable_msrs(&kvm, &vcpus[0].core().fd, config.irqchip)?;
        let mut guest = Self {
            config,
            machine,
            memory,
            vm,
            vcpus,
            threads: Vec::new(),
            rings,
            msrs: Mutex::new(msrs),
            tracker: Mutex::default(),
            written,
            agent,
        };
        for (vcpu, index) in guest.vcpus.iter().cloned().zip(0..) {
            guest
                .threads
                .push(prepare::spawn_vcpu(&guest.config.name, index, move || vcpu.work())?);
        }
        Ok(guest)
    }

    fn gates(&self) -> Gates<'_> {
        self.vcpus.iter().map(|vcpu| &vcpu.gate).collect()
    }

    fn kick(&self, index: usize) {
        self.vcpus[index].leave();
        let Some(thread) = self.threads.get(index) else { return };
        // SAFETY: the thread is joined or let go only when this guest is dropped, so its handle is valid; the signal has a
        // handler that does nothing.
        unsafe { libc::pthread_kill(thread.handle.as_pthread_t(), vcpu::kick_signal()) };
    }

    fn tracker(&self) -> MutexGuard<'_, Tracker> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn harvest_into(&self, dirty: &mut [u64], window: Option<&mut RingWindow>) -> Result<(), GuestError> {
        assert!(
            dirty.len() >= self.memory.layout().words(),
            "the bitmap is shorter than guest memory"
        );
        let mut tracker = self.tracker();
        if !tracker.on {
            return Err(GuestError::NotTracking);
        }
        self.written.harvest(dirty);
        match &self.rings {
            Some(rings) => rings.harvest(dirty, window),
            None => self.vm.harvest(dirty, &mut tracker.scratch),
        }
    }
}

fn build_vcpu(vm: &Vm, machine: &Machine, index: u32) -> Result<VcpuFd, GuestError> {
    let fd = vm
        .fd()
        .create_vcpu(u64::from(index))
        .map_err(kvm_error("KVM_CREATE_VCPU"))?;
    fd.set_cpuid2(&vm::vcpu_cpuid(&machine.cpuid, index)?)
        .map_err(kvm_error("KVM_SET_CPUID2"))?;
    let host_khz = fd.get_tsc_khz().map_err(kvm_error("KVM_GET_TSC_KHZ"))?;
    if host_khz != machine.tsc_khz {
        let guest_khz = machine.tsc_khz;
        fd.set_tsc_khz(guest_khz)
            .map_err(|_| GuestError::Tsc { guest_khz, host_khz })?;
    }
    Ok(fd)
}

impl Guest for KvmGuest {
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
        if !tracker.on {
            match &self.rings {
                Some(rings) => tracker.harvester = Some(rings.start(&self.config.name)?),
                None => self.vm.set_logging(true)?,
            }
            self.written.start();
            tracker.on = true;
        }
        Ok(())
    }

    fn harvest(&self, dirty: &mut [u64]) -> Result<(), GuestError> {
        self.harvest_into(dirty, None)
    }

    fn harvest_window(&self, dirty: &mut [u64], window: &mut RingWindow) -> Result<(), GuestError> {
        *window = RingWindow::default();
        self.harvest_into(dirty, Some(window))
    }

    fn keep_order(&self, on: bool) {
        if let Some(rings) = &self.rings {
            rings.keep_order(on);
        }
    }

    fn tracking_state(&self) -> TrackingState {
        let on = self.tracker().on;
        let rings = self.rings.as_ref();
        TrackingState {
            source: if rings.is_some() { Source::Ring } else { Source::Bitmap },
            on,
            ring_entries: rings.map_or(0, |rings| rings.entries()),
            overruns: rings.map_or(0, |rings| rings.overruns()),
        }
    }

    fn tracker_cpu(&self) -> Nanos {
        self.rings.as_ref().map_or(Nanos::ZERO, |rings| rings.cpu())
    }

    fn vcpu_threads(&self) -> Vec<u32> {
        self.threads.iter().map(|thread| thread.tid).collect()
    }

    fn agent(&self) -> Option<&Arc<AgentLine>> {
        self.agent.as_ref()
    }

    fn mark_dirty(&self, run: Run) {
        if self.memory.check(run).is_ok() {
            self.written.mark(run);
        }
    }

    fn stop_tracking(&self) -> Result<(), GuestError> {
        let mut tracker = self.tracker();
        if tracker.on {
            tracker.on = false;
            self.written.stop();
            match &self.rings {
                Some(rings) => {
                    let ended = rings.end();
                    // A panic in there has been printed.
                    let _ = tracker.harvester.take().map(JoinHandle::join);
                    ended?;
                }
                None => self.vm.set_logging(false)?,
            }
        }
        Ok(())
    }

    fn pause(&self) -> Result<(), GuestError> {
        self.gates().pause(|index| self.kick(index))?;
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
        let mut msrs = self.msrs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut vcpus = Vec::with_capacity(self.vcpus.len());
        for (vcpu, index) in self.vcpus.iter().zip(0..) {
            let halted = match vcpu.gate.state() {
                VcpuState::Halted(code) => Some(code),
                _ => None,
            };
            let core = vcpu.core();
            let parts = state::save(&core.fd, index, self.config.irqchip, &mut msrs)?;
            vcpus.push((parts, core.devices.pace.save(), halted));
        }
        let vm = state::save_vm(&self.vm, self.config.irqchip)?;
        let vcpus = vcpus
            .iter()
            .map(|(parts, pace, halted)| parts.encode(*pace, *halted))
            .collect();
        Ok(super::state::encode(GuestKind::Kvm, &vm.encode(vcpus)))
    }

    fn restore_state(&self, state: &[u8]) -> Result<(), GuestError> {
        self.gates().check_paused()?;
        let state: VmState<'_> = super::state::decode(GuestKind::Kvm, state)?;
        if state.vcpus.len() != self.vcpus.len() {
            return Err(GuestError::State("it is of a guest with another number of vCPUs"));
        }
        // All is decoded before anything is changed.
        let vm = VmParts::decode(&state, self.config.irqchip)?;
        let vcpus = state
            .vcpus
            .iter()
            .map(|vcpu| Ok((Parts::decode(vcpu, self.config.irqchip)?, vcpu.pace, vcpu.halted)))
            .collect::<Result<Vec<_>, GuestError>>()?;
        vm.restore(&self.vm)?;
        for ((vcpu, index), (parts, pace, halted)) in self.vcpus.iter().zip(0..).zip(&vcpus) {
            let mut core = vcpu.core();
            parts.restore(&core.fd, index)?;
            core.devices.pace.restore(pace);
            vcpu.gate.take_over(pace.steps, *halted);
        }
        vm.restore_clock(&self.vm)
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

impl Drop for KvmGuest {
    fn drop(&mut self) {
        if self.rings.is_some() {
            // The harvester would keep them, and the VM with them.
            let _ = self.stop_tracking();
        }
        let ended = self.gates().quit(|index| self.kick(index));
        // A vCPU that waits for a missing page keeps its thread, and with it VM and memory, until the process ends.
        if ended {
            for thread in self.threads.drain(..) {
                let _ = thread.handle.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dunlin_core::units::{Bytes, Gfn};
    use dunlin_core::workload::Fill;
    use dunlin_tests::{Capability, require};

    use super::*;

    #[test]
    fn memory_that_vanishes_under_a_guest_is_no_unknown_device() {
        if !require(Capability::Kvm) {
            return;
        }
        let config = GuestConfig {
            name: "test".into(),
            kind: GuestKind::Kvm,
            memory: Bytes(16 << 20),
            vcpus: 1,
            workload: "seq,ws=4MiB".into(),
            seed: 1,
            steps: Some(1_000_000),
            fill: Fill::Zero,
            irqchip: false,
        };
        let guest = KvmGuest::create(config, Tracking::Bitmap).unwrap();
        let gone = Gfn(0x300);
        // SAFETY: takes access away from 16 pages of the guest's RAM, which nobody but the guest touches afterwards.
        let result = unsafe {
            let address = guest.memory.host_address(gone) as *mut libc::c_void;
            libc::mprotect(address, 16 * 4096, libc::PROT_NONE)
        };
        assert_eq!(result, 0);
        guest.resume().unwrap();
        let why = guest.wait_halted(Duration::from_secs(60)).unwrap_err().to_string();
        assert!(
            why.contains("memory behind guest-physical 0x300") && why.contains("is gone"),
            "{why}"
        );
    }
}
