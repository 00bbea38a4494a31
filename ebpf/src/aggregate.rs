//! Tables for long recordings: which pages were written in a window, and how often.
//!
//! There are two halves. Programs write one, the host reads and clears the other and turns them over at the end of a window.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use dunlin_core::record::counter;

use crate::{atomic, emit};

/// One bit for each page, in two halves. The host sets its size.
#[map]
static WRITTEN: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// How often each page was written, in two halves. The host sets its size.
#[map]
static COUNTS: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Pages of a half, a multiple of 64.
#[unsafe(no_mangle)]
static HALF_PAGES: Global<u64> = Global::new(0);

/// Whether writes of a page are counted: 0 or 1.
#[unsafe(no_mangle)]
static COUNT_WRITES: Global<u32> = Global::new(0);

/// Notes a write in a half.
#[inline(always)]
pub(crate) fn add(half: u64, frame: u64) {
    let pages = HALF_PAGES.load();
    if frame >= pages {
        emit::count(counter::OUTSIDE);
        return;
    }
    let place = (half & 1) * pages + frame;
    if let Some(word) = WRITTEN.get_ptr_mut((place / 64) as u32) {
        // SAFETY: the element is there.
        unsafe { atomic::or(word, 1 << (place % 64)) };
    }
    if COUNT_WRITES.load() == 1
        && let Some(count) = COUNTS.get_ptr_mut(place as u32)
    {
        // SAFETY: the element is there.
        unsafe { atomic::add(count, 1) };
    }
}
