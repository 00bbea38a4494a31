//! The dirty ring of one vCPU, seen from user space (Documentation/virt/kvm/api.rst, KVM_CAP_DIRTY_LOG_RING;
//! virt/kvm/dirty_ring.c).
//!
//! KVM pushes an entry for a written page at its *dirty index* and sets the entry's DIRTY flag; user space takes entries in the same
//! order and sets RESET in each; KVM_RESET_DIRTY_RINGS takes back all entries with RESET from its *reset index* on, up to the first
//! without, protecting their pages again. Only the entries are shared: neither of KVM's two indices can be read.
//!
//! **Order of memory accesses.** KVM fills slot and offset in, then sets DIRTY (`smp_wmb` between them); so DIRTY is loaded with
//! Acquire, and what is read after it is what was pushed. KVM loads RESET with `smp_load_acquire` and reads slot and offset again, and
//! may then reuse the entry; so RESET is stored with Release, and our reads are over before. Nothing else is shared.
//!
//! **What proves a harvest complete.** Let all entries taken before be reset, so that KVM's reset index R is our own position.
//! 1. The pass over the entries from R on comes to one that is not DIRTY within one lap: then KVM had pushed nothing behind it at that
//!    moment. Had its dirty index been more than a lap ahead, every entry of the lap would have been pushed, and only we take the flag
//!    away.
//! 2. Exactly the taken entries come back as reset: none of them had been overwritten before KVM looked at it.
//! 3. When they are back, the last entry of the lap has not been pushed: so KVM's dirty index was less than a lap ahead all the time, and
//!    no push can have fallen on an entry at the very moment at which it was reset, which would have taken DIRTY away again.
//!
//! KVM that runs guests on hardware keeps to all three by not running a vCPU whose ring is nearly full. One that emulates whole batches
//! of instructions looks at the ring too rarely: entries are overwritten, one of the three fails, and the pass says so.
//!
//! **After an overrun** KVM's dirty index is anywhere. R is still known, because every reset is counted. With logging switched off
//! nothing is pushed, and all flags can be cleared; the first entry that is DIRTY once logging is on again is where the dirty index was.
//! It is R plus some distance below a lap, plus whole laps. The distance is caught up with by setting RESET in the entries between;
//! the laps show in that KVM refuses to run the vCPU although the ring is empty: then at least [`soft_limit`](Reader::soft_limit) entries
//! lie between its two indices, so that many can be given back. R is never moved beyond the dirty index: the ring would count as full
//! until 2³² entries later.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// KVM_DIRTY_GFN_F_DIRTY: KVM has pushed this entry.
const DIRTY: u32 = 1 << 0;
/// KVM_DIRTY_GFN_F_RESET: user space has taken it.
const RESET: u32 = 1 << 1;

/// The fewest entries of a ring that is used here: more than twice what KVM keeps in reserve.
pub const ENTRIES_MIN: u32 = 2048;
/// The most entries that KVM takes (KVM_DIRTY_RING_MAX_ENTRIES).
pub const ENTRIES_MAX: u32 = 65_536;
/// The most entries that KVM keeps in reserve: 64, and the 512 of Intel's page modification log.
const RESERVED: u32 = 64 + 512;

/// `struct kvm_dirty_gfn`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Entry {
    flags: AtomicU32,
    slot: AtomicU32,
    offset: AtomicU64,
}

/// What one pass over a ring found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// How many entries were handed out.
    pub entries: u32,
    /// Whether the pass came to the end of what had been pushed. Otherwise entries were overwritten before they were taken, and nobody
    /// knows which.
    pub complete: bool,
}

/// User space's side of one ring. Positions count from 0 and wrap at 2³², like KVM's.
#[derive(Debug)]
pub struct Reader {
    size: u32,
    /// The next entry to take.
    fetch: u32,
    /// KVM's reset index.
    reset: u32,
    /// The dirty index is unknown since an overrun; all entries were cleared then.
    lost: bool,
}

impl Reader {
    /// Of a new ring.
    ///
    /// # Panics
    /// If the size is not a power of two from [`ENTRIES_MIN`] to [`ENTRIES_MAX`].
    pub fn new(size: u32) -> Self {
        assert!(size.is_power_of_two() && (ENTRIES_MIN..=ENTRIES_MAX).contains(&size));
        Self {
            size,
            fetch: 0,
            reset: 0,
            lost: false,
        }
    }

    /// The least number of entries that a ring must hold for KVM to refuse to run its vCPU.
    pub const fn soft_limit(&self) -> u32 {
        self.size - RESERVED
    }

    /// The next entry to take, as an index into the ring.
    pub const fn next(&self) -> u32 {
        self.fetch & (self.size - 1)
    }

    /// Entries given back and not yet reset by KVM.
    pub const fn outstanding(&self) -> u32 {
        self.fetch.wrapping_sub(self.reset)
    }

    /// Takes all entries that have been pushed, in their order, at most a whole ring, and hands out slot and offset of each. Afterwards
    /// have the ring reset, and tell [`on_reset`](Self::on_reset).
    pub fn take(&mut self, ring: &[Entry], mut each: impl FnMut(u32, u64)) -> Taken {
        let mut taken = Taken {
            entries: 0,
            complete: true,
        };
        if self.lost {
            match self.find(ring) {
                Found::Nothing => return taken,
                Found::At(position) if self.catch_up(ring, position) => {}
                Found::At(_) | Found::Full => {
                    taken.complete = false;
                    return taken;
                }
            }
        }
        while taken.entries < self.size {
            let entry = self.at(ring, self.fetch);
            if entry.flags.load(Ordering::Acquire) & DIRTY == 0 {
                taken.complete = !self.is_gap(ring);
                return taken;
            }
            each(entry.slot.load(Ordering::Relaxed), entry.offset.load(Ordering::Relaxed));
            entry.flags.store(RESET, Ordering::Release);
            self.fetch = self.fetch.wrapping_add(1);
            taken.entries += 1;
        }
        taken.complete = false;
        taken
    }

    /// Whether the entry behind the next one was pushed, and the next one was not: then KVM's dirty index is not where it is thought to
    /// be. The order of the two looks matters.
    fn is_gap(&self, ring: &[Entry]) -> bool {
        let behind = self.at(ring, self.fetch.wrapping_add(1));
        behind.flags.load(Ordering::Acquire) & DIRTY != 0
            && self.at(ring, self.fetch).flags.load(Ordering::Acquire) & DIRTY == 0
    }

    /// KVM says that it has reset so many entries of this ring. Some of those [`outstanding`](Self::outstanding) may be left: then it was
    /// interrupted ([`is_interrupted`](Self::is_interrupted)), or the oldest of them has been overwritten.
    pub fn on_reset(&mut self, entries: u32) {
        self.reset = self.reset.wrapping_add(entries);
    }

    /// Whether the ring is still short of the lap that began `entries` before KVM's reset index.
    pub fn is_within_lap(&self, ring: &[Entry], entries: u32) -> bool {
        let last = self.reset.wrapping_sub(entries).wrapping_sub(1);
        self.at(ring, last).flags.load(Ordering::Acquire) & DIRTY == 0
    }

    /// Whether KVM could go on with its reset.
    pub fn is_interrupted(&self, ring: &[Entry]) -> bool {
        self.at(ring, self.reset).flags.load(Ordering::Acquire) & RESET != 0
    }

    /// Forgets all that was pushed, after an overrun. Nothing must be pushed meanwhile: logging is off.
    pub fn forget(&mut self, ring: &[Entry]) {
        ring.iter().for_each(|entry| entry.flags.store(0, Ordering::Release));
        self.fetch = self.reset;
        self.lost = true;
    }

    /// Gives entries back that were never seen, for KVM to reset next. Only when KVM refuses to run the vCPU although a
    /// [`take`](Self::take) found nothing, and no entry was reset in between; the vCPU must not run meanwhile.
    pub fn give_back(&mut self, ring: &[Entry]) {
        self.fetch = self.reset;
        self.give(ring, self.soft_limit());
        // Where KVM pushes next is not known to be here.
        self.lost = true;
    }

    /// Whether none of them had been pushed.
    fn give(&mut self, ring: &[Entry], entries: u32) -> bool {
        let mut free = true;
        for _ in 0..entries {
            // KVM may push at the same moment, if it has come around.
            free &= self.at(ring, self.fetch).flags.swap(RESET, Ordering::AcqRel) & DIRTY == 0;
            self.fetch = self.fetch.wrapping_add(1);
        }
        free
    }

    /// Goes to the position, an index into the ring, at which KVM has gone on. False if it has come around since: the entries up to there
    /// are part of the lap.
    fn catch_up(&mut self, ring: &[Entry], position: u32) -> bool {
        let distance = position.wrapping_sub(self.fetch) & (self.size - 1);
        self.lost = false;
        self.give(ring, distance)
    }

    /// Where the pushed entries begin, in a ring that was cleared.
    fn find(&self, ring: &[Entry]) -> Found {
        let pushed = |position: u32| self.at(ring, position).flags.load(Ordering::Acquire) & DIRTY != 0;
        let Some(mut first) = (0..self.size).find(|position| pushed(*position)) else {
            return Found::Nothing;
        };
        // Entries before the first look need not be cleared: the run of pushed ones may lie around the end of the ring.
        for _ in 0..self.size {
            if !pushed(first.wrapping_sub(1)) {
                return Found::At(first);
            }
            first = first.wrapping_sub(1);
        }
        Found::Full
    }

    fn at<'a>(&self, ring: &'a [Entry], position: u32) -> &'a Entry {
        &ring[(position & (self.size - 1)) as usize]
    }
}

/// Whether this entry of the ring has been pushed and not taken. With an index half a ring behind the next entry to take, it says
/// whether the ring is more than half full.
pub fn is_pushed(ring: &[Entry], index: u32) -> bool {
    ring[index as usize & (ring.len() - 1)].flags.load(Ordering::Relaxed) & DIRTY != 0
}

enum Found {
    Nothing,
    At(u32),
    /// Every entry was pushed: which one first cannot be told.
    Full,
}

#[cfg(test)]
mod tests;
