//! The static copy, written to the shared directory beside the rounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use dunlin_core::migrate::SourceEvent;
use dunlin_core::pageset::Run;
use dunlin_core::units::Pages;

use super::link::SharedSource;
use super::segments::{Job, Segments};
use crate::channel::TokenBucket;
use crate::memory::{GuestMemory, RunClass};
use crate::storage::{Kind, SEGMENT_PAGES_MAX, SessionDirectory, StorageError};

/// Pages whose zeros are looked for at a time.
const LOOK_PAGES: Pages = Pages(4096);

/// The thread that writes.
pub(super) struct StaticWriter<'s> {
    thread: Option<ScopedJoinHandle<'s, ()>>,
    job: Arc<Job>,
    failed: Arc<AtomicBool>,
}

impl<'s> StaticWriter<'s> {
    pub(super) fn none() -> Self {
        Self {
            thread: None,
            job: Arc::default(),
            failed: Arc::default(),
        }
    }

    /// Bytes written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.job.bytes()
    }

    /// Starts the thread.
    pub(super) fn start<'e>(
        &mut self,
        scope: &'s Scope<'s, 'e>,
        directory: SessionDirectory,
        memory: &Arc<GuestMemory>,
        bucket: TokenBucket,
        shared: &'e SharedSource<'_>,
    ) {
        let (memory, job, failed) = (Arc::clone(memory), Arc::clone(&self.job), Arc::clone(&self.failed));
        self.thread = Some(scope.spawn(move || {
            let next = || shared.lock().next_static(shared.clock.now(), LOOK_PAGES);
            let written = write(&directory, &memory, &bucket, &job, next);
            if job.is_stopped() {
                return;
            }
            if let Err(error) = written {
                eprintln!(
                    "dunlin: the static copy is given up, its pages go over the network: {}",
                    crate::run::chain(&error)
                );
                failed.store(true, Ordering::Release);
                shared.feed(SourceEvent::StaticFailed);
            } else {
                shared.feed(SourceEvent::StaticWritten);
            }
        }));
    }

    /// Ends the thread of a copy that the machine has given up, and says so, unless that was said.
    pub(super) fn give_up(&mut self) {
        if !self.failed.load(Ordering::Acquire) {
            eprintln!(
                "dunlin: the target did not merge the static copy, all pages go over the network: see what it says, and whether both hosts mount the same directory"
            );
        }
        self.stop();
    }

    /// Ends the thread.
    pub(super) fn stop(&mut self) {
        self.job.stop();
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed; what it had written is of no use.
            let _ = thread.join();
        }
    }
}

/// All pages that there are, in segments, the last of which says so.
fn write(
    directory: &SessionDirectory,
    memory: &GuestMemory,
    bucket: &TokenBucket,
    job: &Job,
    next: impl Fn() -> Option<Run>,
) -> Result<(), StorageError> {
    let mut segments = Segments::begin(directory, Kind::Static, Pages(SEGMENT_PAGES_MAX))?;
    let mut pieces = Vec::new();
    while let Some(run) = next() {
        pieces.clear();
        memory.classify_runs(run, |piece, class| pieces.push((piece, class)))?;
        for &(piece, class) in &pieces {
            match class {
                // What never came into being need not be looked at, and a page that is written now is dirty.
                RunClass::Zero => segments.add_zeros(piece),
                RunClass::Data => segments.add(memory, piece, bucket, job)?,
            }
            if job.is_stopped() {
                return Ok(());
            }
        }
    }
    segments.finish(job)
}
