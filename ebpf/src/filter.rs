//! Which events concern the traced guest: its process, its memory.

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use dunlin_core::record::REGIONS_MAX;

/// The traced process.
#[unsafe(no_mangle)]
static TGID: Global<u32> = Global::new(0);

/// Runs of guest memory: where each is mapped in the process, its length in bytes (0: there is no such run), its first guest
/// frame, and KVM's memory slot.
#[unsafe(no_mangle)]
static REGION_ADDRESS: [Global<u64>; REGIONS_MAX] = [const { Global::new(0) }; REGIONS_MAX];
#[unsafe(no_mangle)]
static REGION_BYTES: [Global<u64>; REGIONS_MAX] = [const { Global::new(0) }; REGIONS_MAX];
#[unsafe(no_mangle)]
static REGION_FRAME: [Global<u64>; REGIONS_MAX] = [const { Global::new(0) }; REGIONS_MAX];
#[unsafe(no_mangle)]
static REGION_SLOT: [Global<u64>; REGIONS_MAX] = [const { Global::new(0) }; REGIONS_MAX];

const PAGE_SHIFT: u64 = 12;

/// The current thread's number, if it belongs to the traced process.
#[inline(always)]
pub(crate) fn traced() -> Option<u32> {
    let id = bpf_get_current_pid_tgid();
    if (id >> 32) as u32 == TGID.load() {
        Some(id as u32)
    } else {
        None
    }
}

/// The guest frame at an address of the process.
#[inline(always)]
pub(crate) fn frame_at(address: u64) -> Option<u64> {
    for region in 0..REGIONS_MAX {
        let offset = address.wrapping_sub(REGION_ADDRESS[region].load());
        if offset < REGION_BYTES[region].load() {
            return Some(REGION_FRAME[region].load() + (offset >> PAGE_SHIFT));
        }
    }
    None
}

/// The guest frame at a page of a memory slot.
#[inline(always)]
pub(crate) fn frame_in_slot(slot: u64, page: u64) -> Option<u64> {
    for region in 0..REGIONS_MAX {
        let pages = REGION_BYTES[region].load() >> PAGE_SHIFT;
        if slot == REGION_SLOT[region].load() && page < pages {
            return Some(REGION_FRAME[region].load() + page);
        }
    }
    None
}

/// Whether a guest frame belongs to the guest's memory.
#[inline(always)]
pub(crate) fn is_guest_memory(frame: u64) -> bool {
    for region in 0..REGIONS_MAX {
        let pages = REGION_BYTES[region].load() >> PAGE_SHIFT;
        if frame.wrapping_sub(REGION_FRAME[region].load()) < pages {
            return true;
        }
    }
    false
}
