//! The stamp in every written page, and how a wrong page is told from a right one.
//!
//! A stamp is one word that holds page, vCPU, sequence and a check: `(head << 10 | sequence) * K`, where `head` is the
//! guest-physical address at which it stands and K is odd, so that it can be undone; what comes back is only a small
//! number if the word was a stamp. The same word stands at the head of the page, in the middle and at the tail: places
//! of different ages mean that the page was copied while it was written. Each vCPU has its own three 64-byte lines in a
//! page, so that two vCPUs may write one page without writing one line.
//!
//! The sequence counts the writes of this vCPU to the page, 1 to 65 535 and then from 1 again; 0 stands for a page
//! never written. The next stamp of a page is the last one plus K: all this must cost little where every instruction is
//! emulated.

use crate::units::{Gfn, PAGE_SIZE};
use crate::workload::Ram;

/// What is wrong with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum StampErrorKind {
    /// A whole, valid stamp of this page, but of another time. Expected and found are sequences; 0: as before its first
    /// write.
    Stale,
    /// Its lines come from different times. Expected is the sequence they should carry, found one that some carry.
    Torn,
    /// A valid stamp of another page. Expected and found are the frames' numbers.
    Swapped,
    /// Nothing that a workload writes there. Expected and found are the words.
    Corrupt,
}

impl StampErrorKind {
    /// The number that stands for this kind in a progress line; never 0.
    pub const fn code(self) -> u64 {
        match self {
            Self::Stale => 1,
            Self::Torn => 2,
            Self::Swapped => 3,
            Self::Corrupt => 4,
        }
    }

    /// The kind that this number stands for.
    pub const fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            1 => Self::Stale,
            2 => Self::Torn,
            3 => Self::Swapped,
            4 => Self::Corrupt,
            _ => return None,
        })
    }
}

/// A page that is not as the workload left it: memory was lost or mixed up outside the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct StampError {
    /// What is wrong.
    pub kind: StampErrorKind,
    /// The page in which it was found.
    pub gfn: Gfn,
    /// What should be there, see the kind.
    pub expected: u64,
    /// What is there, see the kind.
    pub found: u64,
}

impl core::fmt::Display for StampError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self {
            kind,
            gfn,
            expected,
            found,
        } = *self;
        match kind {
            StampErrorKind::Stale => write!(
                f,
                "page {:#x} is stale: write {found} of it instead of {expected}",
                gfn.0
            )?,
            StampErrorKind::Torn => {
                write!(
                    f,
                    "page {:#x} is torn: parts of write {found} in what should be {expected}",
                    gfn.0
                )?;
            }
            StampErrorKind::Swapped => write!(f, "page {:#x} holds the contents of page {found:#x}", gfn.0)?,
            StampErrorKind::Corrupt => {
                write!(f, "page {:#x} is corrupt: {found:#x} instead of {expected:#x}", gfn.0)?;
            }
        }
        f.write_str("; the memory was changed outside the guest: do not use this copy of the guest")
    }
}

impl core::error::Error for StampError {}

/// Odd, and below 2^31: then one x86 instruction multiplies by it.
const KEY: u64 = 0x7feb_352d;
/// The inverse of [`KEY`] modulo 2^64.
const INVERSE: u64 = 0x1f71_05e5_1d69_e2a5;
const _: () = assert!(KEY.wrapping_mul(INVERSE) == 1);

/// Bits by which the head's address, a multiple of 64, is shifted to make room for the sequence.
const SHIFT: u32 = 10;
/// From the head to the middle of the same vCPU.
const MIDDLE: u64 = 2048;

/// The three places of a page that belong to one vCPU.
///
/// Those of vCPU v: head at 64 v, middle at 2048 + 64 v, tail at 4088 - 64 v.
#[derive(Clone, Copy)]
pub(super) struct Places {
    head: u64,
    head_to_tail: u64,
}

impl Places {
    /// What must be added to a page's first address to get the head of this vCPU, and from there to its tail.
    pub(super) const fn offsets(vcpu: u32) -> (u64, u64) {
        let line = 64 * vcpu as u64;
        (line, 4088 - 2 * line)
    }

    /// The places in the page whose head is at `head`.
    #[inline(always)]
    pub(super) const fn at(head: u64, head_to_tail: u64) -> Self {
        Self { head, head_to_tail }
    }

    /// The stamp of this sequence.
    #[inline(always)]
    pub(super) const fn stamp(self, sequence: u16) -> u64 {
        (self.head << SHIFT).wrapping_add(sequence as u64).wrapping_mul(KEY)
    }

    /// The stamp that follows this one, unless its sequence was the last.
    #[inline(always)]
    pub(super) const fn next_stamp(stamp: u64) -> u64 {
        stamp.wrapping_add(KEY)
    }

    /// Sequence and stamp that follow the last sequence. Rare: not worth an instruction elsewhere.
    #[cold]
    #[inline(never)]
    pub(super) fn first_again(self) -> (u16, u64) {
        (1, self.stamp(1))
    }

    /// Whether all three places hold this stamp.
    #[inline(always)]
    pub(super) fn hold(self, stamp: u64, ram: &impl Ram) -> bool {
        ram.read_u64(self.head) == stamp
            && ram.read_u64(self.head + MIDDLE) == stamp
            && ram.read_u64(self.head + self.head_to_tail) == stamp
    }

    /// Whether one of the places is at this address.
    pub(super) const fn are_at(self, address: u64) -> bool {
        address == self.head || address == self.head + MIDDLE || address == self.head + self.head_to_tail
    }

    /// Puts this stamp in all three places.
    #[inline(always)]
    pub(super) fn put(self, stamp: u64, ram: &mut impl Ram) {
        ram.write_u64(self.head, stamp);
        ram.write_u64(self.head + MIDDLE, stamp);
        ram.write_u64(self.head + self.head_to_tail, stamp);
    }

    /// Looks at a page that does not hold the stamp of sequence `expected`: right if that is 0, for a page never
    /// written, and the page still is as it was filled. Otherwise says what is wrong.
    #[cold]
    #[inline(never)]
    pub(super) fn judge(self, expected: u16, fill: impl Fn(u64) -> u64, ram: &impl Ram) -> Result<(), StampError> {
        let gfn = Gfn(self.head / PAGE_SIZE);
        let error = |kind, expected, found| {
            Err(StampError {
                kind,
                gfn,
                expected,
                found,
            })
        };
        let addresses = [self.head, self.head + MIDDLE, self.head + self.head_to_tail];
        let places = addresses.map(|address| {
            let word = ram.read_u64(address);
            (
                word,
                if word == fill(address) {
                    Found::Stamp(self.head, 0)
                } else {
                    Found::of(word)
                },
            )
        });
        if expected == 0 && places.iter().all(|(_, found)| *found == Found::Stamp(self.head, 0)) {
            return Ok(());
        }
        for (_, found) in places {
            if let Found::Stamp(head, _) = found
                && head / PAGE_SIZE != gfn.0
            {
                return error(StampErrorKind::Swapped, gfn.0, head / PAGE_SIZE);
            }
        }
        let mut sequences = [0; 3];
        for ((word, found), sequence) in places.into_iter().zip(&mut sequences) {
            match found {
                Found::Stamp(head, found) if head == self.head => *sequence = found,
                _ => return error(StampErrorKind::Corrupt, self.stamp(expected), word),
            }
        }
        let other = sequences
            .into_iter()
            .find(|sequence| *sequence != expected)
            .unwrap_or(expected);
        let same = sequences.iter().all(|sequence| *sequence == other);
        error(
            if same {
                StampErrorKind::Stale
            } else {
                StampErrorKind::Torn
            },
            expected.into(),
            other.into(),
        )
    }
}

/// What a word that should be a stamp is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// The stamp for this head with this sequence; 0 for what was there before the first.
    Stamp(u64, u16),
    /// No stamp.
    Garbage,
}

impl Found {
    fn of(word: u64) -> Self {
        let value = word.wrapping_mul(INVERSE);
        let (head, sequence) = ((value >> SHIFT) & !63, value as u16);
        let line = head % PAGE_SIZE / 64;
        let possible = head < 2 * super::layout::MAX_MEMORY && line < super::layout::MAX_VCPUS.into() && sequence != 0;
        if possible {
            Self::Stamp(head, sequence)
        } else {
            Self::Garbage
        }
    }
}
