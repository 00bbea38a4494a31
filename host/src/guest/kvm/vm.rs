//! The virtual machine: capabilities, memory slots, the dirty bitmap.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use dunlin_core::units::PAGE_SIZE;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, kvm_cpuid_entry2, kvm_dirty_log};
use kvm_bindings::{kvm_dirty_log__bindgen_ty_1, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::super::{CpuidEntry, GuestError};
use crate::memory::{GuestMemory, Run};

// _IOW(KVMIO, 0x42, struct kvm_dirty_log), include/uapi/linux/kvm.h
const KVM_GET_DIRTY_LOG: libc::c_ulong = 0x4010_ae42;

/// Capabilities without which nothing works here, and what they are called in an error.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "user memory regions (KVM_CAP_USER_MEMORY)"),
    (Cap::ImmediateExit, "immediate exit (KVM_CAP_IMMEDIATE_EXIT)"),
    (Cap::ExtCpuid, "CPUID configuration (KVM_CAP_EXT_CPUID)"),
    (Cap::Xsave, "extended state (KVM_CAP_XSAVE)"),
    (Cap::Xcrs, "extended control registers (KVM_CAP_XCRS)"),
    (Cap::VcpuEvents, "vCPU events (KVM_CAP_VCPU_EVENTS)"),
];

pub(super) fn kvm_error(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> GuestError {
    move |error| GuestError::Kvm {
        call,
        source: error.into(),
    }
}

/// Opens /dev/kvm.
pub(super) fn open() -> Result<Kvm, GuestError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => GuestError::NoKvm,
        libc::EACCES | libc::EPERM => GuestError::KvmDenied,
        _ => GuestError::Kvm {
            call: "open(/dev/kvm)",
            source: error.into(),
        },
    })?;
    if kvm.get_api_version() != 12 {
        return Err(GuestError::KvmLacks("API version 12"));
    }
    match NEEDED.iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
        Some((_, name)) => Err(GuestError::KvmLacks(name)),
        None => Ok(kvm),
    }
}

/// CPUID as this host can offer it to a guest.
pub(super) fn supported_cpuid(kvm: &Kvm) -> Result<Vec<CpuidEntry>, GuestError> {
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_error("KVM_GET_SUPPORTED_CPUID"))?;
    Ok(cpuid.as_slice().iter().map(from_kvm).collect())
}

fn from_kvm(entry: &kvm_cpuid_entry2) -> CpuidEntry {
    CpuidEntry {
        function: entry.function,
        index: entry.index,
        flags: entry.flags,
        registers: [entry.eax, entry.ebx, entry.ecx, entry.edx],
    }
}

/// CPUID of one vCPU: what the machine shows, and the vCPU's own number where a processor tells its number.
pub(super) fn vcpu_cpuid(machine: &[CpuidEntry], vcpu: u32) -> Result<CpuId, GuestError> {
    let entries: Vec<kvm_cpuid_entry2> = machine
        .iter()
        .map(|entry| {
            let [eax, mut ebx, ecx, mut edx] = entry.registers;
            match entry.function {
                0x1 => ebx = ebx & 0x00ff_ffff | vcpu << 24,
                0xb | 0x1f => edx = vcpu,
                _ => {}
            }
            let CpuidEntry {
                function, index, flags, ..
            } = *entry;
            kvm_cpuid_entry2 {
                function,
                index,
                flags,
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            }
        })
        .collect();
    CpuId::from_entries(&entries).map_err(|_| GuestError::State("it has too many CPUID leaves"))
}

/// A virtual machine with all its memory in place. The memory outlives it.
pub(super) struct Vm {
    fd: VmFd,
    memory: Arc<GuestMemory>,
}

impl Vm {
    pub(super) fn new(kvm: &Kvm, memory: Arc<GuestMemory>, irqchip: bool) -> Result<Self, GuestError> {
        let fd = kvm.create_vm().map_err(kvm_error("KVM_CREATE_VM"))?;
        if irqchip {
            fd.create_irq_chip().map_err(kvm_error("KVM_CREATE_IRQCHIP"))?;
        }
        let vm = Self { fd, memory };
        vm.set_slots(0).map_err(|source| GuestError::Kvm {
            call: "KVM_SET_USER_MEMORY_REGION",
            source,
        })?;
        Ok(vm)
    }

    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }

    pub(super) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Starts (or ends) recording which pages are written; works on a running guest.
    pub(super) fn set_logging(&self, on: bool) -> Result<(), GuestError> {
        let flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        self.set_slots(flags).map_err(|source| {
            if on {
                // Whatever was switched on costs write faults for nothing; that it fails too changes nothing.
                let _ = self.set_slots(0);
            }
            GuestError::Tracking {
                call: "KVM_SET_USER_MEMORY_REGION",
                source,
            }
        })
    }

    fn set_slots(&self, flags: u32) -> io::Result<()> {
        for (slot, region) in (0..).zip(self.memory.layout().regions()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: region.first.0 * PAGE_SIZE,
                memory_size: region.count.bytes().0,
                userspace_addr: self.memory.host_address(region.first),
            };
            // SAFETY: the region is RAM of `memory`, which `self` keeps mapped for longer than the VM exists; guests and
            // host share it knowingly (see `memory`).
            unsafe { self.fd.set_user_memory_region(region) }?;
        }
        Ok(())
    }

    /// ORs the pages written since the last call into `dirty`, a bitmap over all of the flat index. `scratch` is reused
    /// between calls. KVM takes each word and protects its pages again before it returns, so a later write is found later.
    pub(super) fn harvest(&self, dirty: &mut [u64], scratch: &mut Vec<u64>) -> Result<(), GuestError> {
        for (slot, region) in (0..).zip(self.memory.layout().regions()) {
            let words = words(*region);
            if scratch.len() < words {
                scratch.resize(words, 0);
            }
            let log = kvm_dirty_log {
                slot,
                padding1: 0,
                __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
                    dirty_bitmap: scratch.as_mut_ptr().cast(),
                },
            };
            // SAFETY: KVM writes one bit per page of the slot, rounded up to 64-bit words: `words` of them, which
            // `scratch` has.
            if unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_GET_DIRTY_LOG, &raw const log) } != 0 {
                let source = io::Error::last_os_error();
                return Err(GuestError::Tracking {
                    call: "KVM_GET_DIRTY_LOG",
                    source,
                });
            }
            let first = usize::try_from(region.first.0 / 64).expect("an index of the bitmap");
            for (word, found) in dirty[first..first + words].iter_mut().zip(&*scratch) {
                *word |= found;
            }
        }
        Ok(())
    }
}

fn words(region: Run) -> usize {
    usize::try_from(region.count.0.div_ceil(64)).expect("bounded by the layout")
}
