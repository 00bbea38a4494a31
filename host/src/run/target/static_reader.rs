//! The static copy, read from the shared directory while the migration channel works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use dunlin_core::migrate::TargetEvent;

use super::SharedTarget;
use super::merge::Merge;
use crate::memory::GuestMemory;
use crate::storage::{Kind, SegmentReader, SessionDirectory, StorageError};

/// How often a segment that is not there yet is looked for.
const LOOK: Duration = Duration::from_millis(5);
/// Threads that read: while one waits for the disk the other writes into memory.
const READERS: u32 = 2;
/// The last segment is not known yet.
const UNKNOWN: u32 = u32::MAX;

/// Threads that put segments into memory, one segment each at a time.
pub(super) struct StaticReader<'s> {
    threads: Vec<ScopedJoinHandle<'s, ()>>,
    stop: Arc<AtomicBool>,
}

/// What the threads share.
struct Work<'e, 'w> {
    directory: SessionDirectory,
    memory: Arc<GuestMemory>,
    merge: Arc<Merge>,
    shared: &'e SharedTarget<'w>,
    stop: Arc<AtomicBool>,
    next: AtomicU32,
    last: AtomicU32,
    done: AtomicU32,
}

impl<'s> StaticReader<'s> {
    pub(super) fn none() -> Self {
        Self {
            threads: Vec::new(),
            stop: Arc::default(),
        }
    }

    pub(super) fn start<'e>(
        scope: &'s Scope<'s, 'e>,
        directory: SessionDirectory,
        memory: Arc<GuestMemory>,
        merge: Arc<Merge>,
        shared: &'e SharedTarget<'_>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let work = Arc::new(Work {
            directory,
            memory,
            merge,
            shared,
            stop: Arc::clone(&stop),
            next: AtomicU32::new(0),
            last: AtomicU32::new(UNKNOWN),
            done: AtomicU32::new(0),
        });
        let threads = (0..READERS)
            .map(|_| {
                let work = Arc::clone(&work);
                scope.spawn(move || work.run())
            })
            .collect();
        Self { threads, stop }
    }

    /// Ends the threads: nothing of the static copy is put into memory afterwards.
    pub(super) fn finish(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // A panic in there has been printed; the copy then never ends, and the source waits until it is cancelled.
            let _ = thread.join();
        }
    }
}

impl Work<'_, '_> {
    fn run(&self) {
        if let Err(error) = self.segments()
            && !self.stop.swap(true, Ordering::AcqRel)
        {
            eprintln!(
                "dunlin: the static copy is given up, its pages come over the network: {}",
                crate::run::chain(&error)
            );
            self.shared.feed(TargetEvent::StaticFailed);
        }
    }

    fn segments(&self) -> Result<(), StorageError> {
        loop {
            let sequence = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(mut segment) = self.wait_for(sequence)? else {
                return Ok(());
            };
            if segment.header().last {
                self.last.store(sequence, Ordering::Release);
            }
            segment.each_run(|run, content| {
                if self.stop.load(Ordering::Acquire) {
                    return Ok(());
                }
                self.merge.put_absent(&self.memory, self.shared, run, content)?;
                self.shared.feed(TargetEvent::StaticReceived(run));
                Ok::<(), StorageError>(())
            })?;
            let done = self.done.fetch_add(1, Ordering::AcqRel) + 1;
            if self.last.load(Ordering::Acquire).checked_add(1) == Some(done) && !self.stop.load(Ordering::Acquire) {
                self.shared.feed(TargetEvent::StaticEnded);
            }
        }
    }

    /// The segment, once it is there; none if it never will be, or nobody wants it any more.
    fn wait_for(&self, sequence: u32) -> Result<Option<SegmentReader>, StorageError> {
        loop {
            let wanted = !self.stop.load(Ordering::Acquire) && sequence <= self.last.load(Ordering::Acquire);
            if !wanted {
                return Ok(None);
            }
            if let Some(segment) = SegmentReader::open(&self.directory, Kind::Static, sequence)? {
                return Ok(Some(segment));
            }
            std::thread::sleep(LOOK);
        }
    }
}
