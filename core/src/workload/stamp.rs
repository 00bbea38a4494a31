//! The stamp in every written page, and how a wrong page is told from a right one.
//!
//! A vCPU writes three places of a page: at the head the words {page, sequence, check}, in the middle and at the tail
//! the sequence again. Each vCPU has its own three 64-byte lines in a page, so that two vCPUs may write one page without
//! writing one line. `page` is the frame's number: a page that lands in another's place names itself. The sequence
//! counts the writes of this vCPU to the page, 1 to 65 535 and then from 1 again; 0 stands for a page never written.
//! Head, middle and tail of different ages mean that the page was copied while it was written.

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
    /// Nothing that a workload writes. Expected and found are the first word that differs.
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

/// The lines of one vCPU in one page.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    gfn: u64,
    head: u64,
    middle: u64,
    tail: u64,
}

impl Lines {
    /// The lines of vCPU `vcpu`: head at 64 v, middle at 2048 + 64 v, tail at 4088 - 64 v.
    #[inline]
    pub(super) fn new(gfn: Gfn, vcpu: u32) -> Self {
        let (page, line) = (gfn.0 * PAGE_SIZE, 64 * u64::from(vcpu));
        Self {
            gfn: gfn.0,
            head: page + line,
            middle: page + 2048 + line,
            tail: page + 4088 - line,
        }
    }

    /// Writes the stamp of this sequence.
    #[inline]
    pub(super) fn write(self, sequence: u64, ram: &mut impl Ram) {
        ram.write_u64(self.head, self.gfn);
        ram.write_u64(self.head + 8, sequence);
        ram.write_u64(self.head + 16, check(self.gfn, sequence));
        ram.write_u64(self.middle, sequence);
        ram.write_u64(self.tail, sequence);
    }

    /// Whether the page holds exactly the stamp of this sequence.
    #[inline]
    pub(super) fn holds(self, sequence: u64, ram: &impl Ram) -> bool {
        let wrong = (ram.read_u64(self.head) ^ self.gfn)
            | (ram.read_u64(self.head + 8) ^ sequence)
            | (ram.read_u64(self.head + 16) ^ check(self.gfn, sequence))
            | (ram.read_u64(self.middle) ^ sequence)
            | (ram.read_u64(self.tail) ^ sequence);
        wrong == 0
    }

    /// Whether the page is as before its first write.
    pub(super) fn untouched(self, fill: impl Fn(u64) -> u64, ram: &impl Ram) -> bool {
        self.addresses()
            .into_iter()
            .all(|address| ram.read_u64(address) == fill(address))
    }

    /// Names what is wrong with a page that does not hold `expected`, a sequence or 0 for a page never written.
    #[cold]
    pub(super) fn diagnose(self, expected: u64, fill: impl Fn(u64) -> u64, ram: &impl Ram) -> StampError {
        let error = |kind, expected, found| StampError {
            kind,
            gfn: Gfn(self.gfn),
            expected,
            found,
        };
        let words @ [page, sequence, sum, middle, tail] = self.addresses().map(|address| ram.read_u64(address));
        let untouched = self.addresses().map(fill);
        if sum == check(page, sequence) && page != self.gfn {
            return error(StampErrorKind::Swapped, self.gfn, page);
        }
        if words == untouched {
            return error(StampErrorKind::Stale, expected, 0);
        }
        // Each place is of one age: that of its sequence, or never written.
        let head_age = if page == self.gfn && sum == check(page, sequence) {
            Some(sequence)
        } else {
            (words[..3] == untouched[..3]).then_some(0)
        };
        let age = |word, fill| if word == fill { 0 } else { word };
        let ages = [head_age, Some(age(middle, untouched[3])), Some(age(tail, untouched[4]))];
        match ages {
            [Some(a), Some(b), Some(c)] if a == b && b == c => error(StampErrorKind::Stale, expected, a),
            [Some(a), Some(b), Some(c)] if a.max(b).max(c) <= u64::from(u16::MAX) => {
                let other = [a, b, c].into_iter().find(|&age| age != expected).unwrap_or(a);
                error(StampErrorKind::Torn, expected, other)
            }
            _ => {
                let wanted = if expected == 0 {
                    untouched
                } else {
                    [self.gfn, expected, check(self.gfn, expected), expected, expected]
                };
                let differing = wanted.into_iter().zip(words).find(|(wanted, found)| wanted != found);
                let (wanted, found) = differing.unwrap_or((expected, sequence));
                error(StampErrorKind::Corrupt, wanted, found)
            }
        }
    }

    /// The words of head, middle and tail.
    fn addresses(self) -> [u64; 5] {
        [self.head, self.head + 8, self.head + 16, self.middle, self.tail]
    }
}

/// Ties page and sequence together; one to one in each of them while the other stays.
#[inline]
fn check(page: u64, sequence: u64) -> u64 {
    (page.rotate_left(32) ^ sequence ^ 0x5bd1_e995).wrapping_mul(super::random::GOLDEN)
}
