//! The dirty ring: Linux 5.11 on x86, 6.2 on arm64. virt/kvm/dirty_ring.c.

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use dunlin_core::record::{Kind, NO_VCPU, counter};

use crate::emit;
use crate::filter::{frame_in_slot, traced};

/// Where `struct kvm_dirty_ring` has the vCPU's index; the largest number if that is not known.
#[unsafe(no_mangle)]
static RING_INDEX_OFFSET: Global<u64> = Global::new(u64::MAX);

/// `(struct kvm_dirty_ring *ring, u32 slot, u64 offset)`, in the thread of the vCPU.
#[raw_tracepoint(tracepoint = "kvm_dirty_ring_push")]
fn kvm_dirty_ring_push(ctx: RawTracePointContext) -> i32 {
    let Some(tid) = traced() else { return 0 };
    // The slot's address space is in the upper half. System management mode sees the same memory.
    let (slot, page) = (ctx.arg::<u32>(1), ctx.arg::<u64>(2));
    let (space, slot) = (slot >> 16, slot & 0x7fff);
    match frame_in_slot(u64::from(slot), page) {
        Some(frame) => emit::write(tid, Kind::RingPush, (space << 15 | slot) as u16, frame),
        None => emit::count(counter::OUTSIDE),
    }
    0
}

/// `(struct kvm_dirty_ring *ring)`, in the thread that harvested.
#[raw_tracepoint(tracepoint = "kvm_dirty_ring_reset")]
fn kvm_dirty_ring_reset(ctx: RawTracePointContext) -> i32 {
    let Some(tid) = traced() else { return 0 };
    emit::new_epoch();
    let mut vcpu = NO_VCPU;
    let offset = RING_INDEX_OFFSET.load();
    if offset != u64::MAX {
        let index = (ctx.arg::<u64>(0) + offset) as *const i32;
        // SAFETY: the helper checks the address.
        match unsafe { bpf_probe_read_kernel(index) } {
            Ok(index) => vcpu = index as u16,
            Err(_) => emit::unreadable(Kind::RingReset),
        }
    }
    emit::event(tid, Kind::RingReset, vcpu, 0);
    0
}

/// `(struct kvm_vcpu *vcpu)`, in the thread of the vCPU.
#[raw_tracepoint(tracepoint = "kvm_dirty_ring_exit")]
fn kvm_dirty_ring_exit(_: RawTracePointContext) -> i32 {
    if let Some(tid) = traced() {
        emit::event(tid, Kind::RingExit, 0, 0);
    }
    0
}
