//! What is missing, read from the shared directory once the network is gone.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use dunlin_core::migrate::TargetEvent;
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};

use super::postcopy::Latencies;
use super::{AbortOnPanic, SharedTarget, fatal};
use crate::memory::{Userfaultfd, UserfaultfdError};
use crate::storage::{Content, Kind, SegmentReader, SessionDirectory, StorageError};

/// How often a segment that is not there yet is looked for.
const LOOK: Duration = Duration::from_millis(5);
/// Pause before a segment that cannot be read is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Pages that vCPUs wait for, since when.
pub(super) type Asked = Mutex<HashMap<Gfn, Instant>>;

/// The thread that reads.
pub(super) struct PbReader<'s> {
    thread: Option<ScopedJoinHandle<'s, ()>>,
    stop: Arc<AtomicBool>,
}

/// What it needs, and what it knows of the segments.
pub(super) struct Reading<'e, 'w> {
    pub(super) directory: SessionDirectory,
    pub(super) shared: &'e SharedTarget<'w>,
    pub(super) uffd: Arc<Userfaultfd>,
    pub(super) asked: &'e Asked,
    pub(super) latencies: &'e Latencies,
}

/// Why pages could not be put in.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("pages from the storage directory cannot be put into the guest's memory")]
    Install(#[from] UserfaultfdError),
}

impl<'s> PbReader<'s> {
    pub(super) fn none() -> Self {
        Self {
            thread: None,
            stop: Arc::default(),
        }
    }

    pub(super) fn start<'e>(scope: &'s Scope<'s, 'e>, reading: Reading<'e, '_>) -> Self
    where
        'e: 's,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let stop = Arc::clone(&stop);
            scope.spawn(move || {
                let _abort = AbortOnPanic;
                let mut work = Work {
                    reading,
                    stop,
                    spans: Vec::new(),
                    last: false,
                };
                work.run();
            })
        };
        Self {
            thread: Some(thread),
            stop,
        }
    }

    /// Ends the thread: nothing is put into memory from there afterwards.
    pub(super) fn finish(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic in there has ended the process.
            let _ = thread.join();
        }
    }
}

struct Work<'e, 'w> {
    reading: Reading<'e, 'w>,
    stop: Arc<AtomicBool>,
    /// Where the pages of each segment lie that is there, in their order.
    spans: Vec<Range<Gfn>>,
    /// The last of them is the last of all.
    last: bool,
}

impl Work<'_, '_> {
    fn run(&mut self) {
        let mut said = false;
        let mut next = 0;
        while !self.is_stopped() {
            match self.read(next) {
                Ok(true) => next += 1,
                Ok(false) if self.last && next == self.spans.len() => return,
                Ok(false) => std::thread::sleep(LOOK),
                // The guest waits for these pages and what is in its memory is no longer known.
                Err(error @ ReadError::Install(_)) => fatal(&error),
                Err(ReadError::Storage(error)) => {
                    if !std::mem::replace(&mut said, true) {
                        eprintln!(
                            "dunlin: the pages that are missing cannot be read from the storage directory, they are tried again every second: {}",
                            crate::run::chain(&error)
                        );
                    }
                    self.sleep(AGAIN);
                }
            }
        }
    }

    /// Installs what a segment has that is missing, and before each of its runs what vCPUs wait for, wherever it is. False if the
    /// segment is not there.
    fn read(&mut self, sequence: usize) -> Result<bool, ReadError> {
        self.discover()?;
        self.serve_asked()?;
        if sequence >= self.spans.len() {
            return Ok(false);
        }
        let Some(mut segment) = self.open(sequence)? else {
            return Ok(false);
        };
        segment.each_run(|run, content| {
            if self.is_stopped() {
                return Ok(());
            }
            self.serve_asked()?;
            self.put(run, content)
        })?;
        Ok(true)
    }

    /// Takes note of segments that have come.
    fn discover(&mut self) -> Result<(), StorageError> {
        while !self.last && !self.is_stopped() {
            let Some(segment) = self.open(self.spans.len())? else {
                return Ok(());
            };
            self.spans.push(segment.span());
            self.last = segment.header().last;
        }
        Ok(())
    }

    fn open(&self, sequence: usize) -> Result<Option<SegmentReader>, StorageError> {
        let sequence = u32::try_from(sequence).expect("fewer segments than pages");
        SegmentReader::open(&self.reading.directory, Kind::PbData, sequence)
    }

    /// Pages that vCPUs wait for come first, as far as their segments are there.
    fn serve_asked(&self) -> Result<(), ReadError> {
        let asked: Vec<Gfn> = {
            let asked = self.reading.asked.lock().unwrap_or_else(PoisonError::into_inner);
            let target = self.reading.shared.lock();
            asked
                .keys()
                .copied()
                .filter(|gfn| target.missing().contains(*gfn))
                .collect()
        };
        for gfn in asked {
            // The segments ascend: only one can have it.
            let at = self.spans.partition_point(|span| span.end <= gfn);
            if !self.spans.get(at).is_some_and(|span| span.contains(&gfn)) {
                continue;
            }
            if let Some(mut segment) = self.open(at)?
                && let Some(content) = segment.page(gfn)?
            {
                self.put(Run::new(gfn, Pages(1)), content)?;
            }
        }
        Ok(())
    }

    /// Puts those pages of a run in that are missing.
    fn put(&self, run: Run, content: Content<'_>) -> Result<(), ReadError> {
        let (shared, uffd) = (self.reading.shared, &self.reading.uffd);
        let mut from = run.first;
        loop {
            let part = {
                let target = shared.lock();
                let found = target.missing().next_run(from, run.count);
                found.filter(|found| found.first < run.end())
            };
            let Some(mut part) = part else { return Ok(()) };
            part.count = part.count.min(Pages(run.end().0 - part.first.0));
            match content {
                Content::Zero => {
                    for gfn in part.first.0..part.end().0 {
                        shared.keep_hash(Gfn(gfn), &[0; PAGE_SIZE as usize]);
                    }
                    uffd.zero(part)?;
                }
                Content::Data(bytes) => {
                    let at = Pages(part.first.0 - run.first.0).bytes().0 as usize;
                    let bytes = &bytes[at..at + part.count.bytes().0 as usize];
                    shared.keep_hashes(part.first, bytes);
                    uffd.copy(part.first, bytes)?;
                }
            }
            shared.feed(TargetEvent::InstalledFromStorage(part));
            self.answered(part);
            from = part.end();
        }
    }

    /// Nobody waits for these pages any more.
    fn answered(&self, run: Run) {
        let mut asked = self.reading.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|gfn, since| {
            let waits = !(run.first..run.end()).contains(gfn);
            if !waits {
                self.reading.latencies.record(since.elapsed());
            }
            waits
        });
    }

    fn sleep(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while !self.is_stopped() && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
