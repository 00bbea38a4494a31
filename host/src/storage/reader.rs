//! Reading a segment: nothing of it is handed on before it was checked.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};
use rustix::fs::OFlags;

use super::aligned::AlignedPages;
use super::error::Place;
use super::format::{Entry, Form, damaged, plain_proof};
use super::seal::TAG_BYTES;
use super::{Header, Kind, RUN_PAGES_MAX, SessionDirectory, StorageError};
use crate::block::BLOCK_BYTES;

/// A complete segment whose header and index are sound and of the right migration.
pub struct SegmentReader {
    path: PathBuf,
    file: File,
    header: Header,
    form: Form,
    entries: Vec<Entry>,
    buffer: AlignedPages,
}

/// What a run holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content<'a> {
    /// Nothing but zeros.
    Zero,
    /// These bytes.
    Data(&'a [u8]),
}

impl SegmentReader {
    /// Opens the segment of this kind and place; `None` if it is not there, which may mean not yet.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn open(directory: &SessionDirectory, kind: Kind, sequence: u32) -> Result<Option<Self>, StorageError> {
        let path = directory.segment(kind, sequence);
        let Some(file) = open(&path)? else {
            return Ok(None);
        };
        let mut block = AlignedPages::zeroed(1);
        read(&path, &file, block.bytes_mut(), 0)?;
        let bytes = block.bytes().try_into().expect("one block");
        let (header, form) = Header::decode((&path, bytes), directory, (kind, sequence))?;
        let length = file
            .metadata()
            .map_err(|source| StorageError::io("read", &path, source))?
            .len();
        if length != header.file_bytes(&form) {
            return Err(damaged(&path, "its length"));
        }
        let mut index = AlignedPages::zeroed(header.index_bytes(&form) / BLOCK_BYTES);
        read(&path, &file, index.bytes_mut(), header.index_offset())?;
        let entries = header.entries(&path, &form, index.bytes_mut())?;
        Ok(Some(Self {
            path,
            file,
            header,
            form,
            entries,
            buffer: AlignedPages::zeroed(RUN_PAGES_MAX as usize),
        }))
    }

    /// What the segment says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads, checks and hands on every run, in order. Data is read once, in pieces of at most [`RUN_PAGES_MAX`] pages.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] or [`StorageError::Altered`] at the first run that is not as it was written, the runs before it having
    /// been handed on; what `each` returns.
    pub fn each_run<E: From<StorageError>>(
        &mut self,
        mut each: impl FnMut(Run, Content<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut offset = BLOCK_BYTES as u64;
        for entry in &self.entries {
            let run = entry.run();
            let Some(proof) = entry.proof() else {
                each(run, Content::Zero)?;
                continue;
            };
            let bytes = checked(
                (&self.path, &self.file),
                &self.form,
                &mut self.buffer,
                (offset, run, proof),
            )?;
            each(run, Content::Data(bytes))?;
            offset += run.count.bytes().0;
        }
        Ok(())
    }

    /// The one run that has this page, checked like any other, and the bytes of the page; `None` if the segment does not have
    /// it. O(runs) and one read of at most 1 MiB.
    ///
    /// # Errors
    /// [`StorageError::Damaged`], [`StorageError::Altered`], [`StorageError::Io`].
    pub fn page(&mut self, gfn: Gfn) -> Result<Option<Content<'_>>, StorageError> {
        let mut offset = BLOCK_BYTES as u64;
        for entry in &self.entries {
            let run = entry.run();
            let holds = (run.first..run.end()).contains(&gfn);
            match entry.proof() {
                None if holds => return Ok(Some(Content::Zero)),
                None => {}
                Some(proof) if holds => {
                    let file = (&*self.path, &self.file);
                    let bytes = checked(file, &self.form, &mut self.buffer, (offset, run, proof))?;
                    let at = (gfn.0 - run.first.0) as usize * BLOCK_BYTES;
                    return Ok(Some(Content::Data(&bytes[at..at + BLOCK_BYTES])));
                }
                Some(_) => offset += run.count.bytes().0,
            }
        }
        Ok(None)
    }

    /// From its first page up to the one behind its last; it need not have all that lie between.
    pub fn span(&self) -> Range<Gfn> {
        let first = self.entries.first().map_or(Gfn::ZERO, |entry| entry.run().first);
        let end = self.entries.last().map_or(Gfn::ZERO, |entry| entry.run().end());
        first..end
    }

    /// Pages with data, and pages of zeros.
    pub fn pages(&self) -> (Pages, Pages) {
        (Pages(u64::from(self.header.data_pages)), Pages(self.header.zero_pages))
    }
}

fn checked<'b>(
    (path, file): (&Path, &File),
    form: &Form,
    buffer: &'b mut AlignedPages,
    (offset, run, proof): (u64, Run, &[u8; TAG_BYTES]),
) -> Result<&'b [u8], StorageError> {
    let bytes = &mut buffer.bytes_mut()[..(run.count.0 * PAGE_SIZE) as usize];
    read(path, file, bytes, offset)?;
    match form {
        Form::Plain(_) if plain_proof(bytes) == *proof => Ok(bytes),
        Form::Plain(_) => Err(damaged(path, "its data")),
        Form::Sealed(opener) => {
            let at = (offset - BLOCK_BYTES as u64) / PAGE_SIZE;
            if opener.run(run, at, proof, bytes) {
                Ok(bytes)
            } else {
                Err(StorageError::altered(path, Place::Pages(run)))
            }
        }
    }
}

/// A file that nobody else has put there as something else: a link would lead out of the folder, and a pipe would never answer.
pub(super) fn open(path: &Path) -> Result<Option<File>, StorageError> {
    let mut options = OpenOptions::new();
    options.read(true);
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let opened = match options.clone().custom_flags(flags | libc::O_DIRECT).open(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => options.custom_flags(flags).open(path),
        other => other,
    };
    match opened {
        Ok(file) if file.metadata().is_ok_and(|about| about.is_file()) => Ok(Some(file)),
        Ok(_) => Err(StorageError::NoFile(path.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(_) if fs::symlink_metadata(path).is_ok_and(|about| !about.is_file()) => {
            Err(StorageError::NoFile(path.into()))
        }
        Err(source) => Err(StorageError::io("read", path, source)),
    }
}

fn read(path: &Path, file: &File, into: &mut [u8], offset: u64) -> Result<(), StorageError> {
    file.read_exact_at(into, offset).map_err(|source| {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            damaged(path, "its length")
        } else {
            StorageError::io("read", path, source)
        }
    })
}
