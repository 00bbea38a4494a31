//! Writing a segment.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use dunlin_core::pageset::Run;
use dunlin_core::units::{Bytes, Gfn, PAGE_SIZE, Pages};
use rustix::fs::OFlags;

use super::aligned::AlignedPages;
use super::directory::gone;
use super::format::{Entry, RUNS_MAX, encode_index, plain_proof};
use super::seal::Sealer;
use super::{Header, Kind, RUN_PAGES_MAX, SEGMENT_PAGES_MAX, SessionDirectory, StorageError};
use crate::block::BLOCK_BYTES;
use crate::memory::GuestMemory;

const PAGE: usize = PAGE_SIZE as usize;
/// One piece of I/O.
const BUFFER_PAGES: usize = RUN_PAGES_MAX as usize;

/// A segment on its way: under a temporary name until it is finished, gone if it never is.
pub struct SegmentWriter<'a> {
    directory: &'a SessionDirectory,
    file: File,
    temporary: Temporary,
    path: PathBuf,
    kind: Kind,
    sequence: u32,
    /// None for a plain segment.
    sealer: Option<Sealer>,
    entries: Vec<Entry>,
    /// Data that has not been written, `buffered` pages of it.
    buffer: AlignedPages,
    buffered: usize,
    copy: AlignedPages,
    /// Pages of data in the file.
    data_pages: u64,
    zero_pages: u64,
}

/// What a finished segment is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// Its name.
    pub path: PathBuf,
    /// Its size.
    pub bytes: Bytes,
    /// Its pages with data.
    pub data: Pages,
    /// Its pages of zeros.
    pub zero: Pages,
}

/// Removed when dropped, unless it has got its name.
struct Temporary(Option<PathBuf>);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // What is left behind has a name that no reader opens, and goes with the folder.
            let _ = fs::remove_file(path);
        }
    }
}

impl<'a> SegmentWriter<'a> {
    /// A segment with nothing in it yet.
    ///
    /// # Errors
    /// [`StorageError::Full`], [`StorageError::ReadOnly`], [`StorageError::Random`], [`StorageError::Io`].
    pub fn create(directory: &'a SessionDirectory, kind: Kind, sequence: u32) -> Result<Self, StorageError> {
        let (path, temporary) = (directory.segment(kind, sequence), directory.temporary(kind, sequence));
        let sealer = match directory.seal() {
            Some(key) => Some(
                Sealer::new(key, kind.seal_name(directory.vm(), sequence))
                    .map_err(|_| StorageError::Random(path.clone()))?,
            ),
            None => None,
        };
        let file = create(&temporary)?;
        Ok(Self {
            directory,
            file,
            temporary: Temporary(Some(temporary)),
            path,
            kind,
            sequence,
            sealer,
            entries: Vec::new(),
            buffer: AlignedPages::zeroed(BUFFER_PAGES),
            buffered: 0,
            copy: AlignedPages::zeroed(BUFFER_PAGES),
            data_pages: 0,
            zero_pages: 0,
        })
    }

    /// Whether it takes no more: the next page begins another segment.
    pub fn is_full(&self) -> bool {
        self.data().0 + RUN_PAGES_MAX > SEGMENT_PAGES_MAX || self.entries.len() + BUFFER_PAGES > RUNS_MAX
    }

    /// Pages with data so far.
    pub fn data(&self) -> Pages {
        Pages(self.data_pages + self.buffered as u64)
    }

    /// Adds the first pages of a run, at most [`RUN_PAGES_MAX`], as they are now: none if it is full. Says how many. Runs
    /// must ascend. While the guest runs a page may be torn; its dirty bit tells.
    ///
    /// # Errors
    /// [`StorageError`]; the segment is then of no use.
    pub fn add(&mut self, memory: &GuestMemory, run: Run) -> Result<Pages, StorageError> {
        if self.is_full() {
            return Ok(Pages::ZERO);
        }
        let count = run.count.min(Pages(RUN_PAGES_MAX));
        let bytes = count.0 as usize * PAGE;
        let mut copy = std::mem::replace(&mut self.copy, AlignedPages::zeroed(0));
        // What is hashed or sealed must be what is written, so both see this copy.
        memory.copy_run(Run::new(run.first, count), &mut copy.bytes_mut()[..bytes])?;
        let added = self.add_copied(run.first, &mut copy.bytes_mut()[..bytes]);
        self.copy = copy;
        added.map(|()| count)
    }

    fn add_copied(&mut self, first: Gfn, bytes: &mut [u8]) -> Result<(), StorageError> {
        let zero: Vec<bool> = bytes.chunks_exact(PAGE).map(|page| page == [0; PAGE]).collect();
        let mut at = 0;
        for group in zero.chunk_by(bool::eq) {
            let run = Run::new(Gfn(first.0 + at as u64), Pages(group.len() as u64));
            if group[0] {
                self.add_zeros(run);
            } else {
                self.add_data(run, &mut bytes[at * PAGE..(at + group.len()) * PAGE])?;
            }
            at += group.len();
        }
        Ok(())
    }

    /// Adds a run of pages that are known to be zero, however long: at most [`u32::MAX`] pages.
    ///
    /// # Panics
    /// If it is longer.
    pub fn add_zeros(&mut self, run: Run) {
        self.zero_pages += run.count.0;
        let before = self
            .entries
            .last()
            .filter(|entry| entry.proof().is_none())
            .map(Entry::run);
        let run = match before.filter(|before| before.end() == run.first) {
            Some(before) => {
                self.entries.pop();
                Run::new(before.first, Pages(before.count.0 + run.count.0))
            }
            None => run,
        };
        self.entries.push(Entry::zeros(run));
    }

    fn add_data(&mut self, run: Run, bytes: &mut [u8]) -> Result<(), StorageError> {
        let proof = match &mut self.sealer {
            Some(sealer) => sealer.run(run, bytes),
            None => plain_proof(bytes),
        };
        self.entries.push(Entry::data(run, proof));
        let mut rest = &*bytes;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min((BUFFER_PAGES - self.buffered) * PAGE));
            self.buffer.bytes_mut()[self.buffered * PAGE..][..piece.len()].copy_from_slice(piece);
            self.buffered += piece.len() / PAGE;
            if self.buffered == BUFFER_PAGES {
                self.flush()?;
            }
            rest = after;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        let offset = BLOCK_BYTES as u64 + self.data_pages * PAGE_SIZE;
        let bytes = &self.buffer.bytes()[..self.buffered * PAGE];
        self.file
            .write_all_at(bytes, offset)
            .map_err(|source| StorageError::io("write", &self.path, source))?;
        self.data_pages += self.buffered as u64;
        self.buffered = 0;
        Ok(())
    }

    /// Writes the rest, makes all of it durable and gives the segment its name.
    ///
    /// # Errors
    /// [`StorageError`]; there is then no such segment.
    pub fn finish(mut self, last: bool) -> Result<Written, StorageError> {
        self.flush()?;
        let header = Header {
            vm: self.directory.vm().clone(),
            kind: self.kind,
            sequence: self.sequence,
            last,
            runs: u32::try_from(self.entries.len()).expect("bounded by RUNS_MAX"),
            data_pages: u32::try_from(self.data_pages).expect("bounded by SEGMENT_PAGES_MAX"),
            zero_pages: self.zero_pages,
        };
        let index = encode_index(&self.entries, self.sealer.is_some());
        let mut padded = AlignedPages::zeroed(index.len().div_ceil(BLOCK_BYTES));
        padded.bytes_mut()[..index.len()].copy_from_slice(&index);
        let mut block = AlignedPages::zeroed(1);
        let first = match self.sealer.take() {
            Some(sealer) => sealer
                .finish(&header, padded.bytes_mut())
                .expect("a header fits its block"),
            None => header.encode_plain(&index),
        };
        block.bytes_mut().copy_from_slice(&first);
        let bytes = header.index_offset() + padded.bytes().len() as u64;
        let done = self
            .file
            .write_all_at(padded.bytes(), header.index_offset())
            .and_then(|()| self.file.write_all_at(block.bytes(), 0))
            .and_then(|()| self.file.sync_all())
            .map_err(|source| StorageError::io("write", &self.path, source));
        done?;
        let temporary = self.temporary.0.take().expect("finished once");
        let renamed = fs::rename(&temporary, &self.path);
        if let Err(source) = renamed {
            self.temporary.0 = Some(temporary);
            return Err(StorageError::io("rename to", &self.path, source));
        }
        self.directory.sync()?;
        Ok(Written {
            path: self.path,
            bytes: Bytes(bytes),
            data: Pages(self.data_pages),
            zero: Pages(self.zero_pages),
        })
    }
}

/// A new file, past the page cache if the file system lets us: the pages are read by another host, not by this one. Whatever had the
/// name is replaced, not written to: it may be a link to something else.
pub(super) fn create(path: &Path) -> Result<File, StorageError> {
    gone(fs::remove_file(path)).map_err(|source| StorageError::io("remove", path, source))?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let nofollow = OFlags::NOFOLLOW.bits() as i32;
    let direct = options.clone().custom_flags(libc::O_DIRECT | nofollow).open(path);
    let opened = match direct {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            gone(fs::remove_file(path)).map_err(|source| StorageError::io("remove", path, source))?;
            options.custom_flags(nofollow).open(path)
        }
        other => other,
    };
    opened.map_err(|source| StorageError::io("create", path, source))
}
