//! Writing a segment.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use dunlin_core::pageset::Run;
use dunlin_core::units::{Bytes, Gfn, PAGE_SIZE, Pages};
use twox_hash::XxHash3_64;
use zerocopy::IntoBytes as _;

use super::aligned::AlignedPages;
use super::format::{Entry, RUNS_MAX};
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
    /// [`StorageError::Full`], [`StorageError::ReadOnly`], [`StorageError::Io`].
    pub fn create(directory: &'a SessionDirectory, kind: Kind, sequence: u32) -> Result<Self, StorageError> {
        let (path, temporary) = (directory.segment(kind, sequence), directory.temporary(kind, sequence));
        let file = create(&temporary)?;
        Ok(Self {
            directory,
            file,
            temporary: Temporary(Some(temporary)),
            path,
            kind,
            sequence,
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
        // What is hashed must be what is written, so both see this copy.
        memory.copy_run(Run::new(run.first, count), &mut copy.bytes_mut()[..bytes])?;
        let added = self.add_copied(run.first, &copy.bytes()[..bytes]);
        self.copy = copy;
        added.map(|()| count)
    }

    fn add_copied(&mut self, first: Gfn, bytes: &[u8]) -> Result<(), StorageError> {
        let zero: Vec<bool> = bytes.chunks_exact(PAGE).map(|page| page == [0; PAGE]).collect();
        let mut at = 0;
        for group in zero.chunk_by(bool::eq) {
            let run = Run::new(Gfn(first.0 + at as u64), Pages(group.len() as u64));
            if group[0] {
                self.add_zeros(run);
            } else {
                self.add_data(run, &bytes[at * PAGE..(at + group.len()) * PAGE])?;
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
            .filter(|entry| entry.xxh3().is_none())
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

    fn add_data(&mut self, run: Run, bytes: &[u8]) -> Result<(), StorageError> {
        self.entries.push(Entry::data(run, XxHash3_64::oneshot(bytes)));
        let mut rest = bytes;
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
        let index = self.entries.as_bytes();
        let header = Header {
            vm: self.directory.vm().clone(),
            kind: self.kind,
            sequence: self.sequence,
            last,
            runs: u32::try_from(self.entries.len()).expect("bounded by RUNS_MAX"),
            data_pages: u32::try_from(self.data_pages).expect("bounded by SEGMENT_PAGES_MAX"),
            zero_pages: self.zero_pages,
            index_xxh3: XxHash3_64::oneshot(index),
        };
        let mut padded = AlignedPages::zeroed(header.index_bytes() / BLOCK_BYTES);
        padded.bytes_mut()[..index.len()].copy_from_slice(index);
        let mut block = AlignedPages::zeroed(1);
        block.bytes_mut().copy_from_slice(&header.encode());
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
            bytes: Bytes(header.file_bytes()),
            data: Pages(self.data_pages),
            zero: Pages(self.zero_pages),
        })
    }
}

/// A new file, past the page cache if the file system lets us: the pages are read by another host, not by this one.
fn create(path: &Path) -> Result<File, StorageError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let direct = options.clone().custom_flags(libc::O_DIRECT).open(path);
    let opened = match direct {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => options.open(path),
        other => other,
    };
    opened.map_err(|source| StorageError::io("create", path, source))
}
