//! x86's page tables for the guest, where the processor walks them: arch/x86/kvm/mmu. While KVM's dirty log is on, a page is
//! writable only after its first write, so that the moment at which it becomes so is that write.

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use dunlin_core::record::{Kind, counter};

use crate::emit;
use crate::filter::{is_guest_memory, traced};

/// Of a page table entry, both Intel's and AMD's.
const WRITABLE: u64 = 1 << 1;
/// Of a fault's error code (and of Intel's exit qualification): it was a write.
const WRITE: u64 = 1 << 1;
const PAGE_SHIFT: u64 = 12;

/// Where `struct kvm_page_fault` has the guest's address.
#[unsafe(no_mangle)]
static FAULT_ADDRESS_OFFSET: Global<u64> = Global::new(0);

/// `(struct kvm_vcpu *vcpu, u64 fault_address, u64 error_code)` as of Linux 6.1. The host does not attach it to an older one,
/// which has no vCPU there.
#[raw_tracepoint(tracepoint = "kvm_page_fault")]
fn kvm_page_fault(ctx: RawTracePointContext) -> i32 {
    let Some(tid) = traced() else { return 0 };
    if ctx.arg::<u64>(2) & WRITE != 0 {
        write(tid, Kind::GuestFault, ctx.arg::<u64>(1) >> PAGE_SHIFT);
    }
    0
}

/// `(struct kvm_vcpu *vcpu, struct kvm_page_fault *fault, u64 *sptep, u64 old_spte, int ret)`. The numbers that `ret` may have
/// change from release to release; the entry tells what happened.
#[raw_tracepoint(tracepoint = "fast_page_fault")]
fn fast_page_fault(ctx: RawTracePointContext) -> i32 {
    let Some(tid) = traced() else { return 0 };
    let (fault, sptep, old) = (ctx.arg::<u64>(1), ctx.arg::<u64>(2), ctx.arg::<u64>(3));
    if sptep == 0 || old & WRITABLE != 0 {
        return 0;
    }
    let address = (fault + FAULT_ADDRESS_OFFSET.load()) as *const u64;
    // SAFETY: the helper checks the addresses.
    match unsafe {
        (
            bpf_probe_read_kernel(sptep as *const u64),
            bpf_probe_read_kernel(address),
        )
    } {
        (Ok(entry), Ok(address)) if entry & WRITABLE != 0 => write(tid, Kind::FastFault, address >> PAGE_SHIFT),
        (Ok(_), Ok(_)) => {}
        _ => emit::unreadable(Kind::FastFault),
    }
    0
}

/// `(int level, gfn_t gfn, u64 *sptep)`. Pages larger than 4 KiB are not tracked by KVM.
#[raw_tracepoint(tracepoint = "kvm_mmu_set_spte")]
fn kvm_mmu_set_spte(ctx: RawTracePointContext) -> i32 {
    let Some(tid) = traced() else { return 0 };
    if ctx.arg::<i32>(0) != 1 {
        return 0;
    }
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_kernel(ctx.arg::<*const u64>(2)) } {
        Ok(entry) if entry & WRITABLE != 0 => write(tid, Kind::SetSpte, ctx.arg::<u64>(1)),
        Ok(_) => {}
        Err(_) => emit::unreadable(Kind::SetSpte),
    }
    0
}

#[inline(always)]
fn write(tid: u32, kind: Kind, frame: u64) {
    if is_guest_memory(frame) {
        emit::write(tid, kind, 0, frame);
    } else {
        emit::count(counter::OUTSIDE);
    }
}
