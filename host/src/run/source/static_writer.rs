//! The static copy, written to the shared directory beside the rounds.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use dunlin_core::migrate::SourceEvent;
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};

use super::link::SharedSource;
use crate::channel::{Cancel, TokenBucket, Wait};
use crate::memory::GuestMemory;
use crate::storage::{Kind, SegmentWriter, SessionDirectory, StorageError, Vm, leftovers};

/// A folder in which nothing was written for this long belongs to no migration that goes on.
const ABANDONED: Duration = Duration::from_secs(3600);
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
            if let Err(error) = write(&directory, &memory, &bucket, &job)
                && !job.stop.load(Ordering::Acquire)
            {
                eprintln!(
                    "dunlin: the static copy is given up, its pages go over the network: {}",
                    crate::run::chain(&error)
                );
                shared.feed(SourceEvent::StaticFailed);
            }
        }));
        Ok(())
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
    let mut sequence = 0;
    let mut segment = SegmentWriter::create(directory, Kind::Static, sequence)?;
    for region in memory.layout().regions() {
        let mut next = region.first;
        while next < region.end() {
            if job.stop.load(Ordering::Acquire) {
                return Ok(());
            }
            let rest = Run::new(next, Pages(region.end().0 - next.0));
            let taken = segment.add(memory, rest)?;
            if taken == Pages::ZERO {
                let written = segment.finish(false)?;
                job.bytes.fetch_add(written.bytes.0, Ordering::Relaxed);
                sequence += 1;
                segment = SegmentWriter::create(directory, Kind::Static, sequence)?;
                continue;
            }
            next = Gfn(next.0 + taken.0);
            if bucket
                .wait_for(taken.0 * PAGE_SIZE, Wait::within(PATIENCE, &job.cancel))
                .is_err()
            {
                return Ok(());
            }
        }
    }
    let written = segment.finish(true)?;
    job.bytes.fetch_add(written.bytes.0, Ordering::Relaxed);
    Ok(())
}
