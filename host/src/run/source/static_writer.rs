//! The static copy, written to the shared directory beside the rounds.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use dunlin_core::migrate::SourceEvent;
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, Pages};

use super::link::SharedSource;
use crate::channel::{Cancel, TokenBucket, Wait};
use crate::memory::{GuestMemory, RunClass};
use crate::storage::{Kind, SegmentWriter, SessionDirectory, StorageError, Vm, Written, leftovers};

/// A folder in which nothing was written for this long belongs to no migration that goes on.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Pages whose zeros are looked for at a time.
const LOOK_PAGES: usize = 4096;
/// Nothing waits for the rate limit this long: it ends with the copy.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// The thread that writes, and the folder it writes to. The folder is removed in the end.
pub(super) struct StaticWriter<'s> {
    thread: Option<ScopedJoinHandle<'s, ()>>,
    folder: Option<SessionDirectory>,
    job: Arc<Job>,
}

#[derive(Default)]
struct Job {
    stop: AtomicBool,
    failed: AtomicBool,
    cancel: Cancel,
    bytes: AtomicU64,
}

impl<'s> StaticWriter<'s> {
    pub(super) fn none() -> Self {
        Self {
            thread: None,
            folder: None,
            job: Arc::default(),
        }
    }

    /// Bytes written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.job.bytes.load(Ordering::Relaxed)
    }

    /// Makes the folder and starts the thread. What abandoned migrations left in the directory is removed.
    ///
    /// # Errors
    /// [`StorageError`] if there is no place to write to.
    pub(super) fn start<'e>(
        &mut self,
        scope: &'s Scope<'s, 'e>,
        (storage, vm): (&Path, Vm),
        memory: &Arc<GuestMemory>,
        bucket: TokenBucket,
        shared: &'e SharedSource<'_>,
    ) -> Result<(), StorageError> {
        for leftover in leftovers(storage)? {
            if leftover.quiet >= ABANDONED && leftover.remove().is_ok() {
                eprintln!(
                    "dunlin: removed {}, left behind by a migration",
                    leftover.path.display()
                );
            }
        }
        self.folder = Some(SessionDirectory::create(storage, vm.clone())?);
        let (memory, job) = (Arc::clone(memory), Arc::clone(&self.job));
        let directory = SessionDirectory::open(storage, vm);
        self.thread = Some(scope.spawn(move || {
            let written = write(&directory, &memory, &bucket, &job);
            if job.stop.load(Ordering::Acquire) {
                return;
            }
            if let Err(error) = written {
                eprintln!(
                    "dunlin: the static copy is given up, its pages go over the network: {}",
                    crate::run::chain(&error)
                );
                job.failed.store(true, Ordering::Release);
                shared.feed(SourceEvent::StaticFailed);
            } else {
                shared.feed(SourceEvent::StaticWritten);
            }
        }));
        Ok(())
    }

    /// Ends the thread of a copy that the machine has given up, and says so, unless that was said.
    pub(super) fn give_up(&mut self) {
        if !self.job.failed.load(Ordering::Acquire) {
            eprintln!(
                "dunlin: the target did not merge the static copy, all pages go over the network: see what it says, and whether both hosts mount the same directory"
            );
        }
        self.stop();
    }

    /// Ends the thread.
    pub(super) fn stop(&mut self) {
        self.job.stop.store(true, Ordering::Release);
        self.job.cancel.raise();
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed; what it had written is of no use.
            let _ = thread.join();
        }
    }

    /// Ends the thread and removes what was written: nobody reads it any more.
    pub(super) fn finish(&mut self) {
        self.stop();
        if let Some(folder) = self.folder.take()
            && let Err(error) = folder.remove()
        {
            eprintln!("dunlin: {}", crate::run::chain(&error));
        }
    }
}

/// All RAM, in segments, the last of which says so.
fn write(
    directory: &SessionDirectory,
    memory: &GuestMemory,
    bucket: &TokenBucket,
    job: &Job,
) -> Result<(), StorageError> {
    let mut segments = Segments::begin(directory)?;
    let mut pieces = Vec::new();
    for region in memory.layout().regions() {
        for first in (region.first.0..region.end().0).step_by(LOOK_PAGES) {
            let count = (region.end().0 - first).min(LOOK_PAGES as u64);
            pieces.clear();
            memory.classify_runs(Run::new(Gfn(first), Pages(count)), |piece, class| {
                pieces.push((piece, class))
            })?;
            for &(piece, class) in &pieces {
                match class {
                    // What never came into being need not be looked at, and a page that is written now is dirty.
                    RunClass::Zero => segments.current.add_zeros(piece),
                    RunClass::Data => segments.add(memory, piece, bucket, job)?,
                }
                if job.stop.load(Ordering::Acquire) {
                    return Ok(());
                }
            }
        }
    }
    count(segments.current.finish(true)?, job);
    Ok(())
}

/// One segment after the other.
struct Segments<'a> {
    directory: &'a SessionDirectory,
    current: SegmentWriter<'a>,
    sequence: u32,
}

impl<'a> Segments<'a> {
    fn begin(directory: &'a SessionDirectory) -> Result<Self, StorageError> {
        Ok(Self {
            directory,
            current: SegmentWriter::create(directory, Kind::Static, 0)?,
            sequence: 0,
        })
    }

    /// Writes a run no faster than the limit allows, or a part of it if the copy is stopped.
    fn add(&mut self, memory: &GuestMemory, run: Run, bucket: &TokenBucket, job: &Job) -> Result<(), StorageError> {
        let mut rest = run;
        while rest.count > Pages::ZERO {
            if self.current.is_full() {
                let next = SegmentWriter::create(self.directory, Kind::Static, self.sequence + 1)?;
                let full = std::mem::replace(&mut self.current, next);
                self.sequence += 1;
                count(full.finish(false)?, job);
            }
            let before = self.current.data();
            let taken = self.current.add(memory, rest)?;
            rest = Run::new(Gfn(rest.first.0 + taken.0), Pages(rest.count.0 - taken.0));
            let written = Pages(self.current.data().0 - before.0).bytes();
            if bucket.wait_for(written.0, Wait::within(PATIENCE, &job.cancel)).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn count(written: Written, job: &Job) {
    job.bytes.fetch_add(written.bytes.0, Ordering::Relaxed);
}
