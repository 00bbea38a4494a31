//! Virtual machines under KVM.

mod backend;
mod boot;
mod log;
mod state;
mod vcpu;
mod vm;

pub use backend::Backend;

use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use dunlin_core::pageset::Run;
use dunlin_core::workload::BootBlock;
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state};
use kvm_ioctls::Cap;

use super::gate::{Gates, VcpuState};
use super::state::STATE_VERSION;
use super::{Guest, GuestConfig, GuestError, GuestKind, Machine, Progress, prepare};
use crate::memory::GuestMemory;
use crate::track::pagemap::set_bits;
use state::{Parts, VmParts, VmState};
use vcpu::{Devices, Vcpu};
use vm::{Vm, kvm_error};

/// A virtual machine under KVM that runs the bare-metal payload.
pub struct KvmGuest {
    config: GuestConfig,
    machine: Machine,
    memory: Arc<GuestMemory>,
    vm: Arc<Vm>,
    vcpus: Vec<Arc<Vcpu>>,
    threads: Vec<JoinHandle<()>>,
    /// The model-specific registers that move, and room for their values.
    msrs: Mutex<Msrs>,
    tracking: Mutex<Tracking>,
    /// Pages the host wrote since the last harvest, one bit each, and whether there are any.
    written: Vec<AtomicU64>,
    any_written: AtomicBool,
}

#[derive(Default)]
struct Tracking {
    on: bool,
    scratch: Vec<u64>,
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

    /// Builds a guest that is ready to start.
    ///
    /// # Errors
    /// What the configuration, memory or KVM are lacking.
    pub fn create(config: GuestConfig) -> Result<Self, GuestError> {
        let boot = config.boot_block()?;
        let machine = Self::host_machine()?;
        let guest = Self::build(config, machine, &boot)?;
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
    pub fn create_incoming(config: GuestConfig, machine: Machine) -> Result<Self, GuestError> {
        let boot = config.boot_block()?;
        Self::build(config, machine, &boot)
    }

    fn build(config: GuestConfig, machine: Machine, boot: &BootBlock) -> Result<Self, GuestError> {
        let kvm = vm::open()?;
        let memory = prepare::map(&config)?;
        let vm = Arc::new(Vm::new(&kvm, memory.clone(), config.irqchip)?);
        let vcpus = (0..config.vcpus)
            .map(|index| build_vcpu(&vm, &config, &machine, boot, index).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let msrs = state::movable_msrs(&kvm, &vcpus[0].core().fd, config.irqchip)?;
        let written = (0..memory.layout().words()).map(|_| AtomicU64::new(0)).collect();
        let mut guest = Self {
            config,
            machine,
            memory,
            vm,
            vcpus,
            threads: Vec::new(),
            msrs: Mutex::new(msrs),
            tracking: Mutex::default(),
            written,
            any_written: AtomicBool::new(false),
        };
        for (vcpu, index) in guest.vcpus.iter().cloned().zip(0..) {
            guest
                .threads
                .push(prepare::spawn(&guest.config.name, index, move || vcpu.work())?);
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
        unsafe { libc::pthread_kill(thread.as_pthread_t(), vcpu::kick_signal()) };
    }

    fn tracking(&self) -> MutexGuard<'_, Tracking> {
        self.tracking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves what the host wrote into `dirty`.
    fn harvest_written(&self, dirty: &mut [u64]) {
        if self.any_written.swap(false, Ordering::AcqRel) {
            for (word, written) in dirty.iter_mut().zip(&self.written) {
                *word |= written.swap(0, Ordering::AcqRel);
            }
        }
    }
}

fn build_vcpu(
    vm: &Arc<Vm>,
    config: &GuestConfig,
    machine: &Machine,
    boot: &BootBlock,
    index: u32,
) -> Result<Vcpu, GuestError> {
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
    let devices = Devices::new(boot.spec.clone(), config.vcpus, log::Log::new(&config.name, index));
    Ok(Vcpu::new(fd, index, devices, vm.clone()))
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
        let mut tracking = self.tracking();
        if !tracking.on {
            self.vm.set_logging(true)?;
            tracking.on = true;
        }
        Ok(())
    }

    fn harvest(&self, dirty: &mut [u64]) -> Result<(), GuestError> {
        assert!(
            dirty.len() >= self.memory.layout().words(),
            "the bitmap is shorter than guest memory"
        );
        let mut tracking = self.tracking();
        if !tracking.on {
            return Err(GuestError::NotTracking);
        }
        self.harvest_written(dirty);
        self.vm.harvest(dirty, &mut tracking.scratch)
    }

    fn mark_dirty(&self, run: Run) {
        if !self.tracking().on || self.memory.check(run).is_err() {
            return;
        }
        let mut bit = run.first.0;
        while bit < run.end().0 {
            let mut word = [0];
            let next = (bit / 64 + 1) * 64;
            set_bits(&mut word, bit % 64, run.end().0.min(next) - bit / 64 * 64);
            self.written[usize::try_from(bit / 64).expect("an index of the bitmap")]
                .fetch_or(word[0], Ordering::AcqRel);
            bit = next;
        }
        self.any_written.store(true, Ordering::Release);
    }

    fn stop_tracking(&self) -> Result<(), GuestError> {
        let mut tracking = self.tracking();
        if tracking.on {
            tracking.on = false;
            self.any_written.store(false, Ordering::Release);
            self.written.iter().for_each(|word| word.store(0, Ordering::Release));
            self.vm.set_logging(false)?;
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
        let ended = self.gates().quit(|index| self.kick(index));
        // A vCPU that waits for a missing page keeps its thread, and with it VM and memory, until the process ends.
        if ended {
            for thread in self.threads.drain(..) {
                let _ = thread.join();
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
        let guest = KvmGuest::create(config).unwrap();
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
