//! Reading a vCPU out of KVM, and putting it into another.
//!
//! One call per part and one for all model-specific registers: with the vCPU's load and unload around each, the number of
//! calls is what a hand-over waits for. The x87 and SSE registers are part of XSAVE and have no call of their own.

use std::io;

use kvm_bindings::{
    Msrs, kvm_clock_data, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::super::GuestError;
use super::super::pace::PaceState;
use super::super::state::Blob;
use super::vm::{Vm, kvm_error};

/// MSR_KVM_PV_EOI_EN: readable, but refused where there is no local APIC.
const PV_EOI: u32 = 0x4b56_4d04;
/// MSR_KVM_ASYNC_PF_INT: likewise.
const ASYNC_PF_INT: u32 = 0x4b56_4d06;
/// Interrupt controllers of a VM: two PICs, one I/O APIC.
const IRQCHIPS: u32 = 3;

/// All of a guest that is not RAM.
#[derive(Serialize, Deserialize)]
pub(super) struct VmState<'a> {
    #[serde(borrow)]
    pub(super) vcpus: Vec<VcpuState<'a>>,
    /// Nanoseconds of the guest's kvmclock.
    pub(super) clock: u64,
    #[serde(borrow)]
    pub(super) irqchips: Vec<Blob<'a>>,
}

/// One vCPU.
#[derive(Serialize, Deserialize)]
pub(super) struct VcpuState<'a> {
    #[serde(borrow)]
    pub(super) registers: Blobs<'a>,
    /// Index and value.
    pub(super) msrs: Vec<(u32, u64)>,
    pub(super) mp_state: u32,
    /// What the device behind the pacing port knows.
    pub(super) pace: PaceState,
    /// What was written to the halt port.
    pub(super) halted: Option<u32>,
}

/// The parts that are structures of KVM's.
#[derive(PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Blobs<'a> {
    #[serde(borrow)]
    regs: Blob<'a>,
    #[serde(borrow)]
    sregs: Blob<'a>,
    #[serde(borrow)]
    xcrs: Blob<'a>,
    #[serde(borrow)]
    xsave: Blob<'a>,
    #[serde(borrow)]
    debug: Blob<'a>,
    #[serde(borrow)]
    events: Blob<'a>,
    #[serde(borrow)]
    lapic: Option<Blob<'a>>,
}

/// A vCPU's parts as KVM has them.
pub(super) struct Parts {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    xsave: kvm_xsave,
    debug: kvm_debugregs,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    lapic: Option<kvm_lapic_state>,
    msrs: Vec<(u32, u64)>,
}

/// The VM's parts that belong to no vCPU.
pub(super) struct VmParts {
    clock: u64,
    irqchips: Vec<kvm_irqchip>,
}

/// Names a part for an error.
fn failed(action: &'static str, vcpu: u32, part: &'static str) -> impl Fn(kvm_ioctls::Error) -> GuestError {
    move |error| GuestError::Vcpu {
        vcpu,
        action,
        part,
        source: error.into(),
    }
}

/// Reads a vCPU that has no access pending.
pub(super) fn save(fd: &VcpuFd, vcpu: u32, irqchip: bool, msrs: &mut Msrs) -> Result<Parts, GuestError> {
    let failed = |part| failed("save", vcpu, part);
    Ok(Parts {
        // Before the registers: it may take in what is pending.
        mp_state: fd.get_mp_state().map_err(failed("mp_state"))?,
        regs: fd.get_regs().map_err(failed("registers"))?,
        sregs: fd.get_sregs().map_err(failed("special registers"))?,
        xcrs: fd.get_xcrs().map_err(failed("extended control registers"))?,
        xsave: fd.get_xsave().map_err(failed("extended state"))?,
        debug: fd.get_debug_regs().map_err(failed("debug registers"))?,
        lapic: if irqchip {
            Some(fd.get_lapic().map_err(failed("local APIC"))?)
        } else {
            None
        },
        msrs: {
            let read = fd.get_msrs(msrs).map_err(failed("model-specific registers"))?;
            let entries = msrs.as_slice();
            if read < entries.len() {
                let source = io::Error::other(format!("MSR {:#x} cannot be read", entries[read].index));
                return Err(GuestError::Vcpu {
                    vcpu,
                    action: "save",
                    part: "model-specific registers",
                    source,
                });
            }
            entries.iter().map(|entry| (entry.index, entry.data)).collect()
        },
        events: fd.get_vcpu_events().map_err(failed("events"))?,
    })
}

/// Reads the VM's own parts.
pub(super) fn save_vm(vm: &Vm, irqchip: bool) -> Result<VmParts, GuestError> {
    let clock = vm.fd().get_clock().map_err(failed("save", 0, "clock"))?.clock;
    let irqchips = (0..if irqchip { IRQCHIPS } else { 0 })
        .map(|chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.fd()
                .get_irqchip(&mut chip)
                .map_err(failed("save", 0, "interrupt controller"))?;
            Ok(chip)
        })
        .collect::<Result<_, GuestError>>()?;
    Ok(VmParts { clock, irqchips })
}

impl Parts {
    pub(super) fn encode(&self, pace: PaceState, halted: Option<u32>) -> VcpuState<'_> {
        VcpuState {
            registers: Blobs {
                regs: Blob(self.regs.as_bytes()),
                sregs: Blob(self.sregs.as_bytes()),
                xcrs: Blob(self.xcrs.as_bytes()),
                xsave: Blob(self.xsave.as_bytes()),
                debug: Blob(self.debug.as_bytes()),
                events: Blob(self.events.as_bytes()),
                lapic: self.lapic.as_ref().map(|lapic| Blob(lapic.as_bytes())),
            },
            msrs: self.msrs.clone(),
            mp_state: self.mp_state.mp_state,
            pace,
            halted,
        }
    }

    pub(super) fn decode(state: &VcpuState<'_>, irqchip: bool) -> Result<Self, GuestError> {
        let Blobs {
            regs,
            sregs,
            xcrs,
            xsave,
            debug,
            events,
            lapic,
        } = &state.registers;
        if lapic.is_some() != irqchip {
            return Err(GuestError::State("only one side has interrupt controllers"));
        }
        Ok(Self {
            regs: read(regs)?,
            sregs: read(sregs)?,
            xcrs: read(xcrs)?,
            xsave: read(xsave)?,
            debug: read(debug)?,
            events: read(events)?,
            lapic: lapic.as_ref().map(read).transpose()?,
            msrs: state.msrs.clone(),
            mp_state: kvm_mp_state {
                mp_state: state.mp_state,
            },
        })
    }

    /// Writes all parts into a vCPU whose CPUID and TSC rate are set, in the order in which they depend on each other.
    pub(super) fn restore(&self, fd: &VcpuFd, vcpu: u32) -> Result<(), GuestError> {
        let failed = |part| failed("restore", vcpu, part);
        fd.set_sregs(&self.sregs).map_err(failed("special registers"))?;
        fd.set_regs(&self.regs).map_err(failed("registers"))?;
        fd.set_xcrs(&self.xcrs).map_err(failed("extended control registers"))?;
        // SAFETY: KVM reads more than the structure only for features that a process must ask the kernel for (AMX); this
        // one never does.
        unsafe { fd.set_xsave(&self.xsave) }.map_err(failed("extended state"))?;
        fd.set_debug_regs(&self.debug).map_err(failed("debug registers"))?;
        if let Some(lapic) = &self.lapic {
            fd.set_lapic(lapic).map_err(failed("local APIC"))?;
        }
        restore_msrs(fd, vcpu, &self.msrs)?;
        fd.set_vcpu_events(&self.events).map_err(failed("events"))?;
        fd.set_mp_state(self.mp_state).map_err(failed("mp_state"))
    }
}

impl VmParts {
    pub(super) fn encode<'a>(&'a self, vcpus: Vec<VcpuState<'a>>) -> VmState<'a> {
        VmState {
            vcpus,
            clock: self.clock,
            irqchips: self.irqchips.iter().map(|chip| Blob(chip.as_bytes())).collect(),
        }
    }

    pub(super) fn decode(state: &VmState<'_>, irqchip: bool) -> Result<Self, GuestError> {
        let irqchips: Vec<kvm_irqchip> = state.irqchips.iter().map(read).collect::<Result<_, _>>()?;
        let wanted = 0..if irqchip { IRQCHIPS } else { 0 };
        if !irqchips.iter().map(|chip| chip.chip_id).eq(wanted) {
            return Err(GuestError::State("it has other interrupt controllers"));
        }
        Ok(Self {
            clock: state.clock,
            irqchips,
        })
    }

    /// To be called before the vCPUs are restored.
    pub(super) fn restore(&self, vm: &Vm) -> Result<(), GuestError> {
        for chip in &self.irqchips {
            vm.fd()
                .set_irqchip(chip)
                .map_err(failed("restore", 0, "interrupt controller"))?;
        }
        Ok(())
    }

    /// To be called when the vCPUs have been restored.
    pub(super) fn restore_clock(&self, vm: &Vm) -> Result<(), GuestError> {
        let clock = kvm_clock_data {
            clock: self.clock,
            ..Default::default()
        };
        vm.fd().set_clock(&clock).map_err(failed("restore", 0, "clock"))
    }
}

fn read<T: FromBytes + Immutable>(blob: &Blob<'_>) -> Result<T, GuestError> {
    T::read_from_bytes(blob.0).map_err(|_| GuestError::State("a part of it has the wrong length"))
}

/// Writes registers in batches. KVM stops at one that it does not take; that is no harm if it has the value already.
fn restore_msrs(fd: &VcpuFd, vcpu: u32, msrs: &[(u32, u64)]) -> Result<(), GuestError> {
    const PART: &str = "model-specific registers";
    let mut rest = msrs;
    while let Some((index, value)) = rest.first().copied() {
        let batch = entries(rest)?;
        let written = fd.set_msrs(&batch).map_err(failed("restore", vcpu, PART))?;
        if written > 0 {
            rest = &rest[written.min(rest.len())..];
            continue;
        }
        let mut one = entries(&[(index, 0)])?;
        let read = fd.get_msrs(&mut one).map_err(failed("restore", vcpu, PART))?;
        if read != 1 || one.as_slice()[0].data != value {
            let source = io::Error::other(format!("MSR {index:#x} does not take {value:#x}"));
            return Err(GuestError::Vcpu {
                vcpu,
                action: "restore",
                part: PART,
                source,
            });
        }
        rest = &rest[1..];
    }
    Ok(())
}

/// The model-specific registers that move: those that KVM lists for this, as far as a vCPU as it was built can read them
/// and takes them back.
pub(super) fn movable_msrs(kvm: &Kvm, fd: &VcpuFd, irqchip: bool) -> Result<Msrs, GuestError> {
    let list = kvm.get_msr_index_list().map_err(kvm_error("KVM_GET_MSR_INDEX_LIST"))?;
    let mut movable = Vec::new();
    for index in list.as_slice().iter().copied() {
        if !irqchip && matches!(index, PV_EOI | ASYNC_PF_INT) {
            continue;
        }
        let mut one = entries(&[(index, 0)])?;
        if fd.get_msrs(&mut one).is_ok_and(|read| read == 1) && fd.set_msrs(&one).is_ok_and(|written| written == 1) {
            movable.push((index, 0));
        }
    }
    entries(&movable)
}

fn entries(msrs: &[(u32, u64)]) -> Result<Msrs, GuestError> {
    let entries: Vec<kvm_msr_entry> = msrs
        .iter()
        .map(|(index, data)| kvm_msr_entry {
            index: *index,
            data: *data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).map_err(|_| GuestError::State("it has too many model-specific registers"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dunlin_core::units::Bytes;
    use dunlin_tests::{Capability, require};

    use super::*;
    use crate::guest::kvm::vm;
    use crate::memory::{GuestMemory, MemoryLayout};

    fn machine(irqchip: bool) -> (Vm, VcpuFd) {
        let kvm = vm::open().unwrap();
        let memory = Arc::new(GuestMemory::new(MemoryLayout::new(Bytes(1 << 20)).unwrap()).unwrap());
        let vm = Vm::new(&kvm, memory, irqchip).unwrap();
        let fd = vm.fd().create_vcpu(0).unwrap();
        let cpuid = vm::vcpu_cpuid(&vm::supported_cpuid(&kvm).unwrap(), 0).unwrap();
        fd.set_cpuid2(&cpuid).unwrap();
        (vm, fd)
    }

    /// Registers that our payload never touches move all the same.
    #[test]
    fn every_register_crosses() {
        const KERNEL_GS_BASE: u32 = 0xc000_0102;
        const TSC: u32 = 0x10;
        const KVM_CLOCKS: std::ops::RangeInclusive<u32> = 0x4b56_4d00..=0x4b56_4d01;
        if !require(Capability::Kvm) {
            return;
        }
        for irqchip in [false, true] {
            let (one, other) = (machine(irqchip), machine(irqchip));
            let mut msrs = movable_msrs(&vm::open().unwrap(), &one.1, irqchip).unwrap();
            let empty = save(&one.1, 0, irqchip, &mut msrs).unwrap();

            let regs = kvm_regs {
                rax: 1,
                r15: 2,
                rip: 0x1234,
                rflags: 2,
                ..empty.regs
            };
            one.1.set_regs(&regs).unwrap();
            one.1
                .set_sregs(&kvm_sregs {
                    cr2: 0x5678,
                    ..empty.sregs
                })
                .unwrap();
            // ST2 and XMM3 in the legacy area, and that they are in use in XSTATE_BV (Intel SDM 1 13.4).
            let mut xsave = empty.xsave;
            (xsave.region[64 / 4], xsave.region[208 / 4], xsave.region[512 / 4]) = (0xcd, 0xab, 0b11);
            // SAFETY: as in `Parts::restore`.
            unsafe { one.1.set_xsave(&xsave) }.unwrap();
            one.1
                .set_debug_regs(&kvm_debugregs {
                    db: [0, 0x1000, 0, 0],
                    ..empty.debug
                })
                .unwrap();
            assert_eq!(
                one.1.set_msrs(&entries(&[(KERNEL_GS_BASE, 0x77777)]).unwrap()).unwrap(),
                1
            );
            let mut events = empty.events;
            events.nmi.masked = 1;
            one.1.set_vcpu_events(&events).unwrap();
            if irqchip {
                let mut lapic = empty.lapic.unwrap();
                // Divide configuration: moves with the local APIC only.
                lapic.regs[0x3e0] = 0x0b;
                one.1.set_lapic(&lapic).unwrap();
            }

            let saved = save(&one.1, 0, irqchip, &mut msrs).unwrap();
            let pace = PaceState::default();
            let bytes = crate::guest::state::encode(crate::guest::GuestKind::Kvm, &saved.encode(pace, Some(3)));
            let state: VcpuState<'_> = crate::guest::state::decode(crate::guest::GuestKind::Kvm, &bytes).unwrap();
            assert_eq!(state.halted, Some(3));
            Parts::decode(&state, irqchip).unwrap().restore(&other.1, 0).unwrap();
            assert!(Parts::decode(&state, !irqchip).is_err());

            let crossed = save(&other.1, 0, irqchip, &mut msrs).unwrap();
            let (saved, crossed) = (saved.encode(pace, None), crossed.encode(pace, None));
            assert_eq!(crossed.registers.regs, saved.registers.regs);
            assert_eq!(crossed.registers.sregs, saved.registers.sregs);
            assert_eq!(crossed.registers.xcrs, saved.registers.xcrs);
            assert!(
                crossed.registers.xsave == saved.registers.xsave,
                "the extended state differs"
            );
            assert_eq!(crossed.registers.debug, saved.registers.debug);
            assert_eq!(crossed.registers.events, saved.registers.events);
            assert_eq!(crossed.registers.lapic, saved.registers.lapic);
            assert_eq!(crossed.mp_state, saved.mp_state);
            let still = |state: &VcpuState<'_>| -> Vec<(u32, u64)> {
                state
                    .msrs
                    .iter()
                    .copied()
                    .filter(|(msr, _)| *msr != TSC && !KVM_CLOCKS.contains(msr))
                    .collect()
            };
            assert_eq!(still(&crossed), still(&saved));
            assert!(still(&crossed).contains(&(KERNEL_GS_BASE, 0x77777)));
            assert!(saved.registers.xsave.0[64] == 0xcd && saved.registers.xsave.0[208] == 0xab);
        }
    }
}
