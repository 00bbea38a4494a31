//! Header and index of a segment, as values and as bytes.

use std::path::Path;

use dunlin_core::message::{Regions, SessionId, VmId, run_in_regions};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::error::Place;
use super::seal::{Name, Opener, Refused, SEALED, SealKey, TAG_BYTES};
use super::{SessionDirectory, StorageError};
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

    /// The name of a sealed segment.
    pub(super) fn seal_name(self, vm: &Vm, sequence: u32) -> Name {
        let holds = match self {
            Self::Static => 0,
            Self::PbData => 1,
        };
        Name::new(FORMAT.magic, vm, holds, sequence)
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
}

/// One run in the index, as it stands in that of a sealed segment; a plain one has only 8 bytes of proof.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Entry {
    first: U64,
    count: U32,
    zero: U32,
    proof: [u8; TAG_BYTES],
}

pub(super) const ENTRY_BYTES: usize = size_of::<Entry>();
pub(super) const PLAIN_ENTRY_BYTES: usize = ENTRY_BYTES - TAG_BYTES + size_of::<u64>();

impl Entry {
    /// A run of data, and what shows that the data is as it was written: an XXH3-64, or the tag of the seal.
    pub(super) fn data(run: Run, proof: [u8; TAG_BYTES]) -> Self {
        Self {
            first: U64::new(run.first.0),
            count: U32::new(u32::try_from(run.count.0).expect("runs are short")),
            zero: U32::ZERO,
            proof,
        }
    }

    pub(super) fn zeros(run: Run) -> Self {
        Self {
            zero: U32::new(1),
            ..Self::data(run, [0; TAG_BYTES])
        }
    }

    pub(super) fn run(&self) -> Run {
        Run::new(Gfn(self.first.get()), Pages(u64::from(self.count.get())))
    }

    /// What shows that its data is sound; none if there is none.
    pub(super) fn proof(&self) -> Option<&[u8; TAG_BYTES]> {
        (self.zero.get() == 0).then_some(&self.proof)
    }
}

/// The proof of plain data.
pub(super) fn plain_proof(bytes: &[u8]) -> [u8; TAG_BYTES] {
    let mut proof = [0; TAG_BYTES];
    proof[..8].copy_from_slice(&xxh3(bytes).to_le_bytes());
    proof
}

fn xxh3(bytes: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(bytes)
}

/// How a segment is protected.
pub(super) enum Form {
    /// By checksums, against accidents; the one of the index.
    Plain(u64),
    /// By a key.
    Sealed(Box<Opener>),
}

impl Form {
    fn entry_bytes(&self) -> usize {
        match self {
            Self::Plain(_) => PLAIN_ENTRY_BYTES,
            Self::Sealed(_) => ENTRY_BYTES,
        }
    }
}

/// An index's bytes without their padding.
pub(super) fn encode_index(entries: &[Entry], sealed: bool) -> Vec<u8> {
    if sealed {
        return entries.as_bytes().to_vec();
    }
    let plain = entries.iter().flat_map(|entry| &entry.as_bytes()[..PLAIN_ENTRY_BYTES]);
    plain.copied().collect()
}

impl Header {
    /// The first block of a plain segment with this index.
    pub(super) fn encode_plain(&self, index: &[u8]) -> [u8; BLOCK_BYTES] {
        // Eight regions of two numbers each and ten more: less than 400 bytes.
        FORMAT.encode(&(self, xxh3(index))).expect("a header fits its block")
    }

    /// What the first block says, if it belongs there.
    pub(super) fn decode(
        (path, block): (&Path, &[u8; BLOCK_BYTES]),
        directory: &SessionDirectory,
        (kind, sequence): (Kind, u32),
    ) -> Result<(Self, Form), StorageError> {
        let vm = directory.vm();
        let (header, form) = match directory.seal() {
            Some(key) => {
                let (opener, header) = unseal::<Self>(path, block, key, &kind.seal_name(vm, sequence), Place::Header)?;
                (header, Form::Sealed(Box::new(opener)))
            }
            None => {
                let (header, sum) = plain(path, block, FORMAT, "its header")?;
                (header, Form::Plain(sum))
            }
        };
        header.belongs(path, vm, (kind, sequence))?;
        let in_bounds = u64::from(header.data_pages) <= SEGMENT_PAGES_MAX && header.runs as usize <= RUNS_MAX;
        in_bounds
            .then_some((header, form))
            .ok_or_else(|| damaged(path, "the counts in its header"))
    }

    fn belongs(&self, path: &Path, vm: &Vm, (kind, sequence): (Kind, u32)) -> Result<(), StorageError> {
        let differs = [
            (self.vm.session == vm.session, "migration"),
            (self.vm.id == vm.id, "VM"),
            (self.vm.regions == vm.regions, "memory layout"),
            (self.kind == kind, "kind"),
            (self.sequence == sequence, "place in the order"),
        ];
        match differs.into_iter().find(|(same, _)| !same) {
            Some((_, of)) => Err(StorageError::Foreign { path: path.into(), of }),
            None => Ok(()),
        }
    }

    /// Where the index begins.
    pub(super) fn index_offset(&self) -> u64 {
        BLOCK_BYTES as u64 + u64::from(self.data_pages) * PAGE_SIZE
    }

    /// Bytes of the index with its padding.
    pub(super) fn index_bytes(&self, form: &Form) -> usize {
        (self.runs as usize * form.entry_bytes()).next_multiple_of(BLOCK_BYTES)
    }

    /// Bytes of the whole file.
    pub(super) fn file_bytes(&self, form: &Form) -> u64 {
        self.index_offset() + self.index_bytes(form) as u64
    }

    /// The entries of an index, if its bytes are those that were written, and what a writer could have meant.
    pub(super) fn entries(&self, path: &Path, form: &Form, index: &mut [u8]) -> Result<Vec<Entry>, StorageError> {
        let length = self.runs as usize * form.entry_bytes();
        let entries: Vec<Entry> = match form {
            Form::Plain(sum) => {
                let bytes = index.get(..length).ok_or_else(|| damaged(path, "its length"))?;
                if xxh3(bytes) != *sum {
                    return Err(damaged(path, "its index"));
                }
                bytes.chunks_exact(PLAIN_ENTRY_BYTES).map(plain_entry).collect()
            }
            Form::Sealed(opener) => {
                if !opener.index(index) {
                    return Err(StorageError::altered(path, Place::Index));
                }
                let bytes = index.get(..length).ok_or_else(|| damaged(path, "its length"))?;
                let entries = <[Entry]>::ref_from_bytes(bytes);
                entries
                    .expect("entries have no alignment and the length is a multiple")
                    .to_vec()
            }
        };
        self.check_entries(path, &entries)?;
        Ok(entries)
    }

    fn check_entries(&self, path: &Path, entries: &[Entry]) -> Result<(), StorageError> {
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
        Ok(())
    }
}

fn plain_entry(bytes: &[u8]) -> Entry {
    let mut whole = [0; ENTRY_BYTES];
    whole[..PLAIN_ENTRY_BYTES].copy_from_slice(bytes);
    zerocopy::transmute!(whole)
}

/// What a block says that is not sealed.
pub(super) fn plain<T: DeserializeOwned>(
    path: &Path,
    block: &[u8; BLOCK_BYTES],
    format: Format,
    what: &'static str,
) -> Result<T, StorageError> {
    match format.decode(block) {
        Block::Valid(value) => Ok(value),
        Block::Newer(found) => Err(StorageError::Newer {
            path: path.into(),
            found,
        }),
        Block::Invalid if block[..7] == format.magic && block[7] == SEALED => Err(StorageError::NoKey(path.into())),
        Block::Invalid => Err(damaged(path, what)),
    }
}

/// What a block says that is sealed under this name.
pub(super) fn unseal<T: DeserializeOwned>(
    path: &Path,
    block: &[u8; BLOCK_BYTES],
    key: &SealKey,
    name: &Name,
    place: Place,
) -> Result<(Opener, T), StorageError> {
    Opener::new(key, name, block).map_err(|refused| match refused {
        Refused::Foreign(of) => StorageError::Foreign { path: path.into(), of },
        Refused::Plain => StorageError::NotSealed(path.into()),
        Refused::Newer(found) => StorageError::Newer {
            path: path.into(),
            found,
        },
        Refused::Altered => StorageError::altered(path, place),
    })
}

pub(super) fn damaged(path: &Path, what: &'static str) -> StorageError {
    StorageError::Damaged {
        path: path.into(),
        what,
    }
}
