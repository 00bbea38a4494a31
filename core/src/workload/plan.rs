//! Where a workload's data lies in a given guest.

use core::ops::Range;

use super::layout::{HOLE, HOLE_PAGES, MAX_MEMORY, MAX_VCPUS, WORKLOAD, ram_gfn};
use super::spec::Spec;
use crate::units::{Bytes, Gfn, PAGE_SIZE, Pages};

/// Bytes of one entry of the ledger: the low bits of a sequence.
const LEDGER_ENTRY: u64 = 2;
/// Bytes that one vCPU's ledger is a multiple of, so that no two vCPUs write one line.
const LEDGER_LINE: u64 = 64;

/// Why a workload does not fit a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum PlanError {
    /// No vCPU, or more than there is room for.
    Vcpus {
        /// How many were asked for.
        asked: u32,
    },
    /// There is no vCPU of this number.
    NoSuchVcpu {
        /// The vCPU asked for, counted from 0.
        vcpu: u32,
        /// How many there are.
        vcpus: u32,
    },
    /// Guest memory is not made of whole pages.
    Unaligned {
        /// The memory asked for.
        memory: Bytes,
    },
    /// Guest memory does not hold the fixed places, a ledger and a page for each vCPU.
    MemoryTooSmall {
        /// The memory asked for.
        memory: Bytes,
        /// The least that this workload needs with so many vCPUs.
        needed: Bytes,
    },
    /// Guest memory is more than [`MAX_MEMORY`].
    MemoryTooLarge {
        /// The memory asked for.
        memory: Bytes,
    },
    /// The working set does not fit behind the ledger.
    WorkingSetTooLarge {
        /// The working set asked for.
        ws: Pages,
        /// The most that fits.
        most: Pages,
    },
    /// The working set, or that of a phase, has fewer pages than there are vCPUs.
    WorkingSetTooSmall {
        /// The working set asked for.
        ws: Pages,
        /// The least that is needed: a page per vCPU.
        least: Pages,
    },
    /// The working set of a phase is larger than that of the workload.
    PhaseTooLarge {
        /// The working set of the phase.
        phase: Pages,
        /// The working set of the workload.
        ws: Pages,
    },
}

impl core::fmt::Display for PlanError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let kib = |pages: Pages| pages.bytes().0 >> 10;
        match *self {
            Self::Vcpus { asked } => write!(f, "{asked} vCPUs: ask for 1 to {MAX_VCPUS}"),
            Self::NoSuchVcpu { vcpu, vcpus } => write!(f, "no vCPU {vcpu} among {vcpus}: count from 0"),
            Self::Unaligned { memory } => {
                write!(
                    f,
                    "guest memory of {memory} B is not a multiple of {PAGE_SIZE} B: round it, or give its unit, 512MiB for example"
                )
            }
            Self::MemoryTooSmall { memory, needed } => write!(
                f,
                "guest memory of {} KiB is too small for this workload: give it at least {} KiB",
                memory.0 >> 10,
                needed.0.div_ceil(1024)
            ),
            Self::MemoryTooLarge { memory } => {
                write!(
                    f,
                    "guest memory of {} MiB: at most {} MiB are supported",
                    memory.0 >> 20,
                    MAX_MEMORY >> 20
                )
            }
            Self::WorkingSetTooLarge { ws, most } => write!(
                f,
                "a working set of {} KiB does not fit: ask for at most {} KiB, or give the guest more memory",
                kib(ws),
                kib(most)
            ),
            Self::WorkingSetTooSmall { ws, least } => write!(
                f,
                "a working set of {} KiB is too small: every vCPU needs a page, {} KiB in all",
                kib(ws),
                kib(least)
            ),
            Self::PhaseTooLarge { phase, ws } => write!(
                f,
                "a phase has a working set of {} KiB, but that of the whole workload is {} KiB: enlarge that with ws= \
                 behind the phases",
                kib(phase),
                kib(ws)
            ),
        }
    }
}

impl core::error::Error for PlanError {}

/// Where ledger and working set of a workload lie in a guest of some size.
///
/// The ledger starts at [`WORKLOAD`]: an array of 16-bit entries per vCPU, for the pages of its part, or for all
/// pages if vCPUs share some. The working set follows on the next page and steps over the [`HOLE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    memory: u64,
    vcpus: u32,
    ws: u64,
    shares: bool,
    first: u64,
}

impl Plan {
    /// Plans this workload in `memory` bytes of RAM, the hole not counted, with 1 to [`MAX_VCPUS`] vCPUs.
    ///
    /// # Errors
    /// A [`PlanError`] that says which of them is too small or too large, and what would do.
    pub fn new(spec: &Spec, memory: Bytes, vcpus: u32) -> Result<Self, PlanError> {
        check_vcpus(vcpus)?;
        if memory.0 > MAX_MEMORY {
            return Err(PlanError::MemoryTooLarge { memory });
        }
        if !memory.0.is_multiple_of(PAGE_SIZE) {
            return Err(PlanError::Unaligned { memory });
        }
        let shares = spec.shares_pages();
        let least = u64::from(vcpus);
        let start = WORKLOAD / PAGE_SIZE;
        let needed = start + ledger_pages(least, vcpus, shares) + least;
        let pages = memory.0 / PAGE_SIZE;
        if pages < needed {
            return Err(PlanError::MemoryTooSmall {
                memory,
                needed: Pages(needed).bytes(),
            });
        }
        let most = most_pages(pages - start, vcpus, shares);
        let ws = match spec.ws() {
            Some(ws) if ws.0 > most => return Err(PlanError::WorkingSetTooLarge { ws, most: Pages(most) }),
            Some(ws) => ws.0,
            None => most,
        };
        check_ws(spec, ws, vcpus)?;
        Ok(Self {
            memory: pages,
            vcpus,
            ws,
            shares,
            first: start + ledger_pages(ws, vcpus, shares),
        })
    }

    /// RAM, the hole not counted.
    pub const fn memory(&self) -> Pages {
        Pages(self.memory)
    }

    /// One more than the last frame of RAM: the guest's frames are 0 .. `end_gfn` without the [`HOLE`].
    pub const fn end_gfn(&self) -> Gfn {
        Gfn(ram_gfn(self.memory - 1).0 + 1)
    }

    /// How many vCPUs.
    pub const fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// The size of the working set.
    pub const fn ws(&self) -> Pages {
        Pages(self.ws)
    }

    /// The frame of a page of the working set; `page` is below [`ws`](Self::ws).
    #[inline]
    pub const fn gfn(&self, page: u64) -> Gfn {
        ram_gfn(self.first + page)
    }

    /// The first page of the working set at or after a frame, if there is one.
    pub const fn page_at(&self, gfn: Gfn) -> Option<u64> {
        // RAM pages before it, the hole not counted.
        let index = if gfn.0 <= HOLE.start.0 {
            gfn.0
        } else if gfn.0 < HOLE.end.0 {
            HOLE.start.0
        } else {
            gfn.0 - HOLE_PAGES
        };
        let page = index.saturating_sub(self.first);
        if page < self.ws { Some(page) } else { None }
    }

    /// The frames of the working set: one range, and another behind the hole if it reaches so far. Empty ranges are
    /// possible.
    pub fn ws_frames(&self) -> [Range<Gfn>; 2] {
        frames(self.first, self.first + self.ws)
    }

    /// The frames that a [`Fill`](super::Fill) goes to: the working set and all RAM behind it, in at most two ranges.
    pub fn fill_frames(&self) -> [Range<Gfn>; 2] {
        frames(self.first, self.memory)
    }

    /// The pages of the working set that belong to a vCPU, as a range of page numbers.
    pub fn part(&self, vcpu: u32) -> Range<u64> {
        part(self.ws, self.vcpus, vcpu)
    }

    /// Guest-physical address of the ledger of a vCPU, and the pages it has entries for, in order.
    pub fn ledger(&self, vcpu: u32) -> (u64, Range<u64>) {
        let before: u64 = (0..vcpu).map(|v| ledger_bytes(self.ledger_part(v))).sum();
        (WORKLOAD + before, self.ledger_part(vcpu))
    }

    fn ledger_part(&self, vcpu: u32) -> Range<u64> {
        ledger_part(self.ws, self.vcpus, vcpu, self.shares)
    }
}

/// Checks that there may be so many vCPUs.
pub(super) fn check_vcpus(vcpus: u32) -> Result<(), PlanError> {
    if (1..=MAX_VCPUS).contains(&vcpus) {
        Ok(())
    } else {
        Err(PlanError::Vcpus { asked: vcpus })
    }
}

/// Checks that a working set of `ws` pages, and that of each phase, has a page for each vCPU.
pub(super) fn check_ws(spec: &Spec, ws: u64, vcpus: u32) -> Result<(), PlanError> {
    let (ws, least) = (Pages(ws), Pages(u64::from(vcpus)));
    let phases = || spec.phases().iter().filter_map(|phase| phase.ws);
    if let Some(ws) = phases().chain([ws]).find(|ws| *ws < least) {
        return Err(PlanError::WorkingSetTooSmall { ws, least });
    }
    match phases().find(|phase| *phase > ws) {
        Some(phase) => Err(PlanError::PhaseTooLarge { phase, ws }),
        None => Ok(()),
    }
}

/// The share of a vCPU in `pages` pages: all shares together are all pages, and none shrinks when `pages` grows.
pub(super) fn part(pages: u64, vcpus: u32, vcpu: u32) -> Range<u64> {
    let (vcpus, vcpu) = (u64::from(vcpus), u64::from(vcpu));
    let start = |v: u64| v * (pages / vcpus) + v.min(pages % vcpus);
    start(vcpu)..start(vcpu + 1)
}

fn ledger_part(ws: u64, vcpus: u32, vcpu: u32, shares: bool) -> Range<u64> {
    if shares { 0..ws } else { part(ws, vcpus, vcpu) }
}

fn ledger_bytes(part: Range<u64>) -> u64 {
    ((part.end - part.start) * LEDGER_ENTRY).next_multiple_of(LEDGER_LINE)
}

fn ledger_pages(ws: u64, vcpus: u32, shares: bool) -> u64 {
    let bytes: u64 = (0..vcpus)
        .map(|vcpu| ledger_bytes(ledger_part(ws, vcpus, vcpu, shares)))
        .sum();
    bytes.div_ceil(PAGE_SIZE)
}

/// The largest working set that fits with its ledger into `room` pages.
fn most_pages(room: u64, vcpus: u32, shares: bool) -> u64 {
    // A larger working set never has a smaller ledger, so what is left beside the ledger of `room` pages surely fits.
    let mut ws = room - ledger_pages(room, vcpus, shares).min(room);
    while ws < room && ws + 1 + ledger_pages(ws + 1, vcpus, shares) <= room {
        ws += 1;
    }
    ws
}

/// RAM pages `start .. end`, counted without the hole, as frames.
fn frames(start: u64, end: u64) -> [Range<Gfn>; 2] {
    let below = |page: u64| Gfn(page.min(HOLE.start.0));
    let above = |page: u64| Gfn(page.max(HOLE.start.0) + HOLE_PAGES);
    [below(start)..below(end), above(start)..above(end)]
}
