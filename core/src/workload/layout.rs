//! The guest-physical memory map, and what lies at its fixed places.
//!
//! | from | what |
//! |---|---|
//! | [`BOOT_BLOCK`] 0x1000 | [`BootBlock`](super::BootBlock), written by the host before the guest starts |
//! | [`PROGRESS`] 0x2000 | one 64-byte line of [`Progress`] per vCPU |
//! | [`MAILBOX`] 0x3000 | messages to the guest, 1 KiB per vCPU; used by the agent on vCPU 0 |
//! | [`PML4`] 0x8000 | page tables of a KVM guest, from the host: identity, 2 MiB pages, accessed and dirty preset |
//! | [`STACKS`] 0x60000 | one stack of [`STACK_BYTES`] per vCPU, growing down from its end |
//! | [`PAYLOAD`] 0x100000 | the payload's ELF segments, at most [`PAYLOAD_BYTES`] |
//! | [`WORKLOAD`] 0x200000 | the workload's ledger, behind it the working set: see [`Plan`](super::Plan) |
//! | [`HOLE`] | 64 pages that are never RAM; RAM beyond moves up by as much |

use core::ops::Range;

use crate::units::{Gfn, PAGE_SIZE};
use crate::workload::{Ram, StampError, StampErrorKind};

/// Where the host puts the encoded boot block; one page.
pub const BOOT_BLOCK: u64 = 0x1000;
/// Where vCPU v reports: a [`Progress`] line at `PROGRESS + 64 v`; one page.
pub const PROGRESS: u64 = 0x2000;
/// Bytes of one progress line: a cache line, so that vCPUs do not disturb each other.
pub const PROGRESS_LINE: u64 = 64;
/// The mailbox page.
pub const MAILBOX: u64 = 0x3000;
/// The part of the mailbox page that belongs to one vCPU.
pub const MAILBOX_BYTES: u64 = 1024;
/// Bytes that fit in a vCPU's part of it, behind their number.
pub const MAILBOX_ROOM: u64 = MAILBOX_BYTES - 8;
/// Top-level page table.
pub const PML4: u64 = 0x8000;
/// Second-level page table, one entry per GiB.
pub const PDPT: u64 = 0x9000;
/// The first page directory; one page per GiB of guest-physical memory follow.
pub const PAGE_DIRECTORIES: u64 = 0xa000;
/// The lowest stack's lowest byte.
pub const STACKS: u64 = 0x6_0000;
/// Bytes of one vCPU's stack; that of vCPU v ends at `STACKS + (v + 1) * STACK_BYTES`.
pub const STACK_BYTES: u64 = 0x1_0000;
/// Where the payload is linked.
pub const PAYLOAD: u64 = 0x10_0000;
/// Room for the payload's segments.
pub const PAYLOAD_BYTES: u64 = 0x10_0000;
/// Where the ledger starts, page-aligned. Everything below keeps the same place in every guest.
pub const WORKLOAD: u64 = 0x20_0000;

/// Guest frames that are never RAM: the local APIC's page and what shares a word of dirty bitmap with it.
pub const HOLE: Range<Gfn> = Gfn(0xfee00)..Gfn(0xfee40);
/// Pages in the [`HOLE`].
pub const HOLE_PAGES: u64 = HOLE.end.0 - HOLE.start.0;

/// The most vCPUs a guest has: as many as there are stacks.
pub const MAX_VCPUS: u32 = 4;
/// The largest guest memory, in bytes: 64 GiB, whose page directories fit between [`PAGE_DIRECTORIES`] and [`STACKS`].
pub const MAX_MEMORY: u64 = 64 << 30;

/// I/O port for pacing: the guest writes, as 32 bits, how many steps the batch had that it has just finished.
pub const PORT_PACE: u16 = 0x10;
/// I/O port by which a vCPU says that it ends: it writes one of the `HALT_` codes as 32 bits, then halts for good.
pub const PORT_HALT: u16 = 0x11;
/// I/O port for bytes of the agent, which vCPU 0 runs between its batches. What the host says to it, the host puts into the mailbox while
/// that vCPU stands at [`PORT_PACE`]: how many bytes, as a word, then these; the agent takes them and writes 0 as their number.
pub const PORT_AGENT: u16 = 0x12;
/// I/O port for log bytes: a stream of defmt frames, rzCOBS-encoded.
pub const PORT_LOG: u16 = 0xe9;

/// Halt code: all steps done, stacks, log and mailbox cleared.
pub const HALT_DONE: u32 = 0;
/// Halt code: a page was not as it should be; the progress line names it.
pub const HALT_STAMP: u32 = 1;
/// Halt code: the boot block cannot be used.
pub const HALT_BOOT: u32 = 2;
/// Halt code: the payload panicked.
pub const HALT_PANIC: u32 = 3;

const _: () = {
    assert!(PAGE_DIRECTORIES + (MAX_MEMORY / (1 << 30) + 1) * PAGE_SIZE <= STACKS);
    assert!(STACKS + MAX_VCPUS as u64 * STACK_BYTES <= PAYLOAD);
    assert!(PAYLOAD + PAYLOAD_BYTES <= WORKLOAD);
    assert!(MAX_VCPUS as u64 * MAILBOX_BYTES <= PAGE_SIZE);
    assert!(HOLE.start.0.is_multiple_of(64) && HOLE_PAGES.is_multiple_of(64));
};

/// The frame that holds the `index`-th page of RAM, counted without the hole.
pub const fn ram_gfn(index: u64) -> Gfn {
    if index < HOLE.start.0 {
        Gfn(index)
    } else {
        Gfn(index + HOLE_PAGES)
    }
}

/// What is in a working set before its first write.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Fill {
    /// Zeros.
    #[default]
    Zero,
    /// Words that no compressor shortens, different in every page and for every seed.
    Random,
}

impl Fill {
    /// The word that stands at this guest-physical address, a multiple of 8, before the workload writes there.
    ///
    /// The host fills [`Plan::fill_frames`](super::Plan::fill_frames) with it; all other memory starts as zeros. It is
    /// the SplitMix64 sequence that starts at `seed` and has one value per word of address space.
    #[inline]
    pub const fn word(self, seed: u64, address: u64) -> u64 {
        match self {
            Self::Zero => 0,
            Self::Random => super::random::mix(seed.wrapping_add((address / 8).wrapping_mul(super::random::GOLDEN))),
        }
    }
}

/// What a vCPU is doing, as its progress line says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum State {
    /// Nothing has been reported yet.
    #[default]
    Starting,
    /// Steps are being done.
    Running,
    /// All steps are done.
    Done,
    /// A page was not as it should be.
    StampError,
    /// The boot block could not be used.
    BadBoot,
    /// The payload panicked.
    Panicked,
}

impl State {
    /// The number that stands for this state in a progress line.
    pub const fn code(self) -> u64 {
        match self {
            Self::Starting => 0,
            Self::Running => 1,
            Self::Done => 2,
            Self::StampError => 3,
            Self::BadBoot => 4,
            Self::Panicked => 5,
        }
    }

    /// The state that this number stands for.
    pub const fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            0 => Self::Starting,
            1 => Self::Running,
            2 => Self::Done,
            3 => Self::StampError,
            4 => Self::BadBoot,
            5 => Self::Panicked,
            _ => return None,
        })
    }
}

/// One vCPU's line in the progress page.
///
/// Eight words: steps, state, then of a stamp error its kind, gfn, expected and found word, then two zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Steps this vCPU has done. Written at the end of each batch.
    pub steps: u64,
    /// What it is doing.
    pub state: State,
    /// The page it found wrong; [`State::StampError`] then.
    pub error: Option<StampError>,
}

impl Progress {
    /// Guest-physical address of the line of this vCPU.
    pub const fn address(vcpu: u32) -> u64 {
        PROGRESS + PROGRESS_LINE * vcpu as u64
    }

    /// Writes the line of this vCPU: the state last, so that whoever sees [`State::StampError`] also sees the error.
    pub fn write(&self, vcpu: u32, ram: &mut impl Ram) {
        let line = Self::address(vcpu);
        let error = self
            .error
            .map_or([0; 4], |e| [e.kind.code(), e.gfn.0, e.expected, e.found]);
        ram.write_u64(line, self.steps);
        for (word, address) in error.into_iter().zip((line + 16..).step_by(8)) {
            ram.write_u64(address, word);
        }
        ram.write_u64(line + 8, self.state.code());
    }

    /// Writes only the number of steps: the two words that change while a guest runs share nothing else.
    #[inline]
    pub fn write_steps(steps: u64, vcpu: u32, ram: &mut impl Ram) {
        ram.write_u64(Self::address(vcpu), steps);
    }

    /// Reads the line of this vCPU. A state or kind of error that does not exist, which only corrupted memory holds,
    /// reads as a corrupt progress page.
    pub fn read(vcpu: u32, ram: &impl Ram) -> Self {
        let line = Self::address(vcpu);
        let mut words = [0; 8];
        for (word, address) in words.iter_mut().zip((line..).step_by(8)) {
            *word = ram.read_u64(address);
        }
        Self::from_words(&words)
    }

    /// As [`read`](Self::read), from the line's eight words.
    pub fn from_words(words: &[u64; 8]) -> Self {
        let [steps, state, kind, gfn, expected, found, _, _] = *words;
        let corrupt = |found| StampError {
            kind: StampErrorKind::Corrupt,
            gfn: Gfn(PROGRESS / PAGE_SIZE),
            expected: State::Running.code(),
            found,
        };
        let (state, error) = match State::from_code(state) {
            Some(State::StampError) => {
                let error = match StampErrorKind::from_code(kind) {
                    Some(kind) => StampError {
                        kind,
                        gfn: Gfn(gfn),
                        expected,
                        found,
                    },
                    None => corrupt(kind),
                };
                (State::StampError, Some(error))
            }
            Some(state) => (state, None),
            None => (State::StampError, Some(corrupt(state))),
        };
        Self { steps, state, error }
    }
}
