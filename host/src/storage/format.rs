//! Header and index of a segment, as values and as bytes.

use std::path::Path;

use dunlin_core::message::{Regions, SessionId, VmId, run_in_regions};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};
use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::StorageError;
use crate::block::{BLOCK_BYTES, Block, Format};

/// Most pages of data in one segment: 64 MiB.
pub const SEGMENT_PAGES_MAX: u64 = 16 << 10;
/// Most pages of one run: 1 MiB, the piece that is read, checked and written at a time.
pub const RUN_PAGES_MAX: u64 = 256;
/// Most runs in one segment. A segment whose runs are all short ends by this before it is full.
pub(super) const RUNS_MAX: usize = 64 << 10;

const FORMAT: Format = Format {
    magic: *b"DUNLSEG",
    version: 1,
};

/// What the pages of a segment are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// All of memory as it was at some time during the first copy (Li & Cao 2023: StaticData). Whatever was written since
    /// travels on the migration channel, and what came that way is newer.
    Static,
    /// Pages that were dirty when the guest was paused, as they are for good (Li & Cao 2023: PbData).
    PbData,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::PbData => "pbdata",
        }
    }
}

/// Whose pages are moved, and in which attempt.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Vm {
    /// The migration.
    pub session: SessionId,
    /// The VM.
    pub id: VmId,
    /// Its RAM.
    pub regions: Regions,
}

/// What a segment says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Header {
    /// Whose pages it has.
    pub vm: Vm,
    /// What its pages are.
    pub kind: Kind,
    /// Its place among those of its kind, from 0.
    pub sequence: u32,
    /// No other of its kind follows.
    pub last: bool,
    /// Runs in the index.
    pub runs: u32,
    /// Pages with data.
    pub data_pages: u32,
    /// Pages that are zero.
    pub zero_pages: u64,
    /// XXH3-64 of the index without its padding.
    pub index_xxh3: u64,
}

/// One run in the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Entry {
    first: U64,
    count: U32,
    zero: U32,
    xxh3: U64,
}

impl Entry {
    pub(super) const BYTES: usize = size_of::<Self>();

    pub(super) fn data(run: Run, xxh3: u64) -> Self {
        Self {
            first: U64::new(run.first.0),
            count: U32::new(u32::try_from(run.count.0).expect("runs are short")),
            zero: U32::ZERO,
            xxh3: U64::new(xxh3),
        }
    }

    pub(super) fn zeros(run: Run) -> Self {
        Self {
            zero: U32::new(1),
            ..Self::data(run, 0)
        }
    }

    pub(super) fn run(&self) -> Run {
        Run::new(Gfn(self.first.get()), Pages(u64::from(self.count.get())))
    }

    /// The hash of its data; none if there is none.
    pub(super) fn xxh3(&self) -> Option<u64> {
        (self.zero.get() == 0).then_some(self.xxh3.get())
    }
}

impl Header {
    /// The header's bytes.
    pub(super) fn encode(&self) -> [u8; BLOCK_BYTES] {
        // Eight regions of two numbers each and ten more: less than 400 bytes.
        FORMAT.encode(self).expect("a header fits its block")
    }

    pub(super) fn decode(path: &Path, block: &[u8; BLOCK_BYTES]) -> Result<Self, StorageError> {
        let header: Self = match FORMAT.decode(block) {
            Block::Valid(header) => header,
            Block::Newer(found) => {
                return Err(StorageError::Newer {
                    path: path.into(),
                    found,
                });
            }
            Block::Invalid => return Err(damaged(path, "its header")),
        };
        let in_bounds = u64::from(header.data_pages) <= SEGMENT_PAGES_MAX && header.runs as usize <= RUNS_MAX;
        in_bounds
            .then_some(header)
            .ok_or_else(|| damaged(path, "the counts in its header"))
    }

    /// Where the index begins.
    pub(super) fn index_offset(&self) -> u64 {
        BLOCK_BYTES as u64 + u64::from(self.data_pages) * PAGE_SIZE
    }

    /// Bytes of the index with its padding.
    pub(super) fn index_bytes(&self) -> usize {
        (self.runs as usize * Entry::BYTES).next_multiple_of(BLOCK_BYTES)
    }

    /// Bytes of the whole file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.index_offset() + self.index_bytes() as u64
    }

    /// The entries of an index whose bytes have the right hash, if they are what a writer could have meant.
    pub(super) fn entries(&self, path: &Path, index: &[u8]) -> Result<Vec<Entry>, StorageError> {
        let bytes = index.get(..self.runs as usize * Entry::BYTES);
        let bytes = bytes.ok_or_else(|| damaged(path, "its length"))?;
        if twox_hash::XxHash3_64::oneshot(bytes) != self.index_xxh3 {
            return Err(damaged(path, "its index"));
        }
        let entries = <[Entry]>::ref_from_bytes(bytes).expect("entries have no alignment and the length is a multiple");
        let (mut data, mut zeros, mut next) = (0, 0, 0);
        for entry in entries {
            let run = entry.run();
            let longest = if entry.zero.get() == 0 {
                RUN_PAGES_MAX
            } else {
                u64::from(u32::MAX)
            };
            let sound = entry.zero.get() <= 1
                && (1..=longest).contains(&run.count.0)
                && run.first.0 >= next
                && run_in_regions(&self.vm.regions, run.first, run.count.0);
            if !sound {
                return Err(damaged(path, "a run in its index"));
            }
            *(if entry.zero.get() == 0 { &mut data } else { &mut zeros }) += run.count.0;
            next = run.end().0;
        }
        if (data, zeros) != (u64::from(self.data_pages), self.zero_pages) {
            return Err(damaged(path, "the number of its pages"));
        }
        Ok(entries.to_vec())
    }
}

pub(super) fn damaged(path: &Path, what: &'static str) -> StorageError {
    StorageError::Damaged {
        path: path.into(),
        what,
    }
}
