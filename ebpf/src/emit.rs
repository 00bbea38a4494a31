//! What becomes of an event: it is counted, and put into the ring buffer or into the tables.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray, RingBuf};
use aya_log_ebpf::warn;
use dunlin_core::record::{Kind, Record, control, counter};

use crate::{aggregate, atomic};

/// The ordered stream. One for all processors, so that its order is the order of events; the host sets its size.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 12, 0);

#[map]
static COUNTERS: PerCpuArray<[u64; counter::COUNT]> = PerCpuArray::with_max_entries(1, 0);

/// Shared with the host: see [`control`].
#[map]
static CONTROL: Array<u64> = Array::with_max_entries(control::COUNT as u32, BPF_F_MMAPABLE);

/// What each thread wrote last: its page and number, and the epoch. A thread's place is that of its number, so that the
/// look-up is an index and not a search; a thread that shares the place with another has its repeats reported.
#[map]
static LAST: Array<[u64; LAST_WORDS]> = Array::with_max_entries(LAST_THREADS, 0);
const LAST_THREADS: u32 = 1024;
/// A line of the processor's cache, so that threads do not take each other's away.
const LAST_WORDS: usize = 8;
/// Linux numbers no thread higher (`PID_MAX_LIMIT`).
const TID_BITS: u64 = 22;

/// Whether a thread's repeated writes to one page are left out: 0 or 1.
#[unsafe(no_mangle)]
static DROP_REPEATS: Global<u32> = Global::new(1);

/// Whether writes go into the tables instead of the ring buffer: 0 or 1.
#[unsafe(no_mangle)]
static AGGREGATE: Global<u32> = Global::new(0);

/// A page of the guest was written.
#[inline(always)]
pub(crate) fn write(tid: u32, kind: Kind, slot: u16, frame: u64) {
    count(kind as usize);
    let Some(last) = LAST.get_ptr_mut(tid % LAST_THREADS) else {
        return;
    };
    let this = [frame << TID_BITS | u64::from(tid), control(control::EPOCH as u32)];
    // SAFETY: the element is there, and no other thread of this number exists.
    let last = unsafe { &mut *last };
    if DROP_REPEATS.load() == 1 && last[0] == this[0] && last[1] == this[1] {
        count(counter::REPEATS);
        return;
    }
    if AGGREGATE.load() == 1 {
        aggregate::add(control(control::HALF as u32), frame);
    } else if !send(tid, kind, slot, frame) {
        return;
    }
    (last[0], last[1]) = (this[0], this[1]);
}

/// Something else happened.
#[inline(always)]
pub(crate) fn event(tid: u32, kind: Kind, slot: u16, value: u64) {
    count(kind as usize);
    if AGGREGATE.load() == 0 {
        send(tid, kind, slot, value);
    }
}

/// Puts a record into the ring buffer, unless that is full. Nobody is woken: the host looks every few milliseconds.
#[inline(always)]
fn send(tid: u32, kind: Kind, slot: u16, value: u64) -> bool {
    let Some(mut entry) = EVENTS.reserve::<Record>(0) else {
        count(counter::LOST);
        return false;
    };
    // After the reservation, whose order is that of the stream.
    // SAFETY: the helper has no argument.
    let at_ns = unsafe { bpf_ktime_get_ns() };
    entry.write(Record {
        at_ns,
        value,
        tid,
        slot,
        kind: kind as u16,
    });
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    true
}

/// Adds one to a counter of this processor.
#[inline(always)]
pub(crate) fn count(counter: usize) {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: `counter` is a constant below the array's length. Atomic, since a program may be interrupted by another one.
        unsafe { atomic::add((&raw mut (*counters)[counter]).cast(), 1) };
    }
}

/// Pages have been protected anew.
#[inline(always)]
pub(crate) fn new_epoch() {
    if let Some(epoch) = CONTROL.get_ptr_mut(control::EPOCH as u32) {
        // SAFETY: the element is there.
        unsafe { atomic::add(epoch, 1) };
    }
}

/// The page of an event could not be read: counted, and said once for each processor.
#[inline(always)]
pub(crate) fn unreadable(kind: Kind) {
    if let Some(counters) = COUNTERS.get(0)
        && counters[counter::UNREADABLE] == 0
    {
        warn!(&(), "{}: kernel memory could not be read", kind as u16);
    }
    count(counter::UNREADABLE);
}

#[inline(always)]
fn control(word: u32) -> u64 {
    match CONTROL.get_ptr(word) {
        // SAFETY: the element is there; the host changes it at any time.
        Some(word) => unsafe { word.read_volatile() },
        None => 0,
    }
}
