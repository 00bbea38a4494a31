//! The static copy, written to the shared directory beside the rounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use dunlin_core::migrate::SourceEvent;
use dunlin_core::units::Pages;

use super::link::SharedSource;
use super::segments::{Job, write};
use crate::channel::TokenBucket;
use crate::memory::GuestMemory;
use crate::storage::{Kind, SEGMENT_PAGES_MAX, SessionDirectory};

/// Pages whose zeros are looked for at a time.
const LOOK_PAGES: Pages = Pages(4096);
/// Pages of data in a segment.
const SEGMENT_PAGES: Pages = Pages(SEGMENT_PAGES_MAX);

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
            let written = write(
                &directory,
                (Kind::Static, SEGMENT_PAGES),
                (&memory, next),
                &bucket,
                &job,
            );
            if job.is_stopped() {
                return;
            }
            if let Err(error) = written {
                shared.warn(format!(
                    "the static copy is given up, its pages go over the network: {}",
                    crate::run::chain(&error)
                ));
                failed.store(true, Ordering::Release);
                shared.feed(SourceEvent::StaticFailed);
            } else {
                shared.feed(SourceEvent::StaticWritten);
            }
        }));
    }

    /// Ends the thread of a copy that the machine has given up, and says so, unless that was said.
    pub(super) fn give_up(&mut self, too_slow: bool, shared: &SharedSource<'_>) {
        if too_slow {
            shared.warn("the storage directory is too slow to be of use, all pages go over the network".into());
        } else if !self.failed.load(Ordering::Acquire) {
            shared.warn(
                "the target did not merge the static copy, all pages go over the network: see what it says, and whether both hosts mount the same directory".into(),
            );
        }
        self.stop();
    }

    /// There is no directory to write to; whoever knows why says so.
    pub(super) fn cannot_start(&self) {
        self.failed.store(true, Ordering::Release);
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
