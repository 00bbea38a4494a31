//! What is missing at the target, written to the shared directory while it is also sent.

use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use dunlin_core::migrate::SourceEvent;
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, Pages};

use super::folder::Folder;
use super::link::SharedSource;
use super::segments::{Job, write};
use crate::channel::TokenBucket;
use crate::memory::GuestMemory;
use crate::storage::{Kind, StorageError};

/// Pages of data in a segment, 8 MiB: the target can use nothing of it before it has all.
const SEGMENT_PAGES: Pages = Pages(2048);
/// Pages whose zeros are looked for at a time.
const LOOK_PAGES: u64 = 4096;
/// Pause before a directory that takes nothing is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The thread that writes.
pub(super) struct PbWriter<'s> {
    thread: Option<ScopedJoinHandle<'s, ()>>,
    job: Arc<Job>,
}

impl<'s> PbWriter<'s> {
    pub(super) fn none() -> Self {
        Self {
            thread: None,
            job: Arc::default(),
        }
    }

    /// Bytes written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.job.bytes()
    }

    /// Starts the thread. Memory must not change any more. What cannot be written is tried again, from the start, as long as
    /// nobody stops it: the files are the same then.
    pub(super) fn start<'e>(
        &mut self,
        scope: &'s Scope<'s, 'e>,
        folder: &'e Folder,
        (memory, runs): (&Arc<GuestMemory>, Vec<Run>),
        bucket: TokenBucket,
        shared: &'e SharedSource<'_>,
    ) {
        let (memory, job) = (Arc::clone(memory), Arc::clone(&self.job));
        let attempt = move |job: &Job| -> Result<(), StorageError> {
            let directory = folder.directory()?;
            let mut pieces = runs.iter().flat_map(|run| pieces_of(*run));
            let pages = (&*memory, || pieces.next());
            write(&directory, (Kind::PbData, SEGMENT_PAGES), pages, &bucket, job)
        };
        self.thread = Some(scope.spawn(move || {
            let mut said = false;
            while let Err(error) = attempt(&job) {
                if !std::mem::replace(&mut said, true) {
                    shared.warn(format!(
                        "what the target lacks cannot be written, it depends on the network for now: {}",
                        crate::run::chain(&error)
                    ));
                }
                shared.feed(SourceEvent::PbDataFailed);
                job.sleep(AGAIN);
                if job.is_stopped() {
                    return;
                }
            }
            if said && !job.is_stopped() {
                shared.warn("what the target lacks is written now".into());
            }
        }));
    }

    /// Ends the thread.
    pub(super) fn stop(&mut self) {
        self.job.stop();
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed; the target then depends on the network.
            let _ = thread.join();
        }
    }
}

fn pieces_of(run: Run) -> impl Iterator<Item = Run> {
    let starts = (run.first.0..run.end().0).step_by(LOOK_PAGES as usize);
    starts.map(move |first| Run::new(Gfn(first), Pages(LOOK_PAGES.min(run.end().0 - first))))
}
