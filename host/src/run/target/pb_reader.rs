//! What is missing, read from the shared directory once the network is gone.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use dunlin_core::migrate::TargetEvent;
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, Pages};

use super::postcopy::Latencies;
use super::{AbortOnPanic, SharedTarget, fatal};
use crate::memory::{Userfaultfd, UserfaultfdError};
use crate::storage::{Content, Kind, SegmentReader, SessionDirectory, StorageError};

/// How often a segment that is not there yet is looked for.
const LOOK: Duration = Duration::from_millis(5);
/// Pause before a segment that cannot be read is tried again.
const AGAIN: Duration = if cfg!(test) { LOOK } else { Duration::from_secs(1) };

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
                    segments: Vec::new(),
                    last: false,
                    said: false,
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
    /// Those that are there, in their order.
    segments: Vec<Segment>,
    /// The last of them is the last of all.
    last: bool,
    /// That something cannot be read was said.
    said: bool,
}

/// A segment that is there.
struct Segment {
    /// Where its pages lie; unknown if its header cannot be read.
    span: Option<Range<Gfn>>,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    /// Not all of it was looked at.
    Unread,
    /// All that is missing was taken from it.
    Read,
    /// Something of it was not what it should be at that time.
    Bad(Instant),
}

impl Work<'_, '_> {
    fn run(&mut self) {
        let mut next = 0;
        while !self.is_stopped() {
            if let Err(error) = self.discover().and_then(|()| self.serve_asked()) {
                self.trouble(error);
                self.sleep(AGAIN);
            } else if next < self.segments.len() {
                // One that is bad must not keep the others from being read.
                if let Err(error) = self.read(next) {
                    self.trouble(error);
                }
                next += 1;
            } else if self.last && self.segments.iter().all(|segment| matches!(segment.state, State::Read)) {
                return;
            } else {
                std::thread::sleep(LOOK);
                let due = self.segments.iter().position(|segment| segment.state.is_due());
                next = due.unwrap_or(next);
            }
        }
    }

    /// Says it once. What is missing is then asked for over the network as well.
    fn trouble(&mut self, error: ReadError) {
        let error = match error {
            // The guest waits for these pages and what is in its memory is no longer known.
            ReadError::Install(_) => fatal(&error),
            ReadError::Storage(error) => error,
        };
        self.reading.shared.unreadable.store(true, Ordering::Release);
        if !std::mem::replace(&mut self.said, true) {
            eprintln!(
                "dunlin: the pages that are missing cannot all be read from the storage directory, which is tried again every second, and the \
                 source is asked for them: {}",
                crate::run::chain(&error)
            );
        }
    }

    /// Installs what a segment has that is missing, and before each of its runs what vCPUs wait for, wherever it is. What is wrong with
    /// one of its runs is no reason to use those before it less.
    fn read(&mut self, sequence: usize) -> Result<(), ReadError> {
        if !matches!(self.segments[sequence].state, State::Unread) && !self.segments[sequence].state.is_due() {
            return Ok(());
        }
        let taken = self.take(sequence);
        self.segments[sequence].state = match taken {
            Ok(()) if self.is_stopped() => State::Unread,
            Ok(()) => State::Read,
            Err(_) => State::Bad(Instant::now()),
        };
        taken
    }

    fn take(&mut self, sequence: usize) -> Result<(), ReadError> {
        let Some(mut segment) = self.open(sequence)? else {
            // Whoever removed it may write it again.
            return Err(StorageError::Elsewhere(self.reading.directory.path().into()).into());
        };
        self.segments[sequence].span = Some(segment.span());
        self.last |= segment.header().last;
        segment.each_run(|run, content| {
            if self.is_stopped() {
                return Ok(());
            }
            self.serve_asked()?;
            self.put(run, content)
        })
    }

    /// Takes note of segments that have come.
    fn discover(&mut self) -> Result<(), ReadError> {
        while !self.last && !self.is_stopped() {
            let found = match self.open(self.segments.len()) {
                Ok(None) => return Ok(()),
                Ok(Some(segment)) => {
                    self.last = segment.header().last;
                    Segment {
                        span: Some(segment.span()),
                        state: State::Unread,
                    }
                }
                Err(error) if error.is_content() => {
                    self.trouble(error.into());
                    Segment {
                        span: None,
                        state: State::Bad(Instant::now()),
                    }
                }
                Err(error) => return Err(error.into()),
            };
            self.segments.push(found);
        }
        Ok(())
    }

    fn open(&self, sequence: usize) -> Result<Option<SegmentReader>, StorageError> {
        let sequence = u32::try_from(sequence).expect("fewer segments than pages");
        SegmentReader::open(&self.reading.directory, Kind::PbData, sequence)
    }

    /// Pages that vCPUs wait for come first, as far as their segments are there and can be read.
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
            let holds = |segment: &Segment| segment.span.as_ref().is_some_and(|span| span.contains(&gfn));
            let Some(at) = self.segments.iter().position(holds) else {
                continue;
            };
            if matches!(self.segments[at].state, State::Bad(_)) {
                continue;
            }
            let found = self.open(at).and_then(|segment| {
                let Some(mut segment) = segment else { return Ok(Ok(())) };
                let content = segment.page(gfn)?;
                Ok(content.map_or(Ok(()), |content| self.put(Run::new(gfn, Pages(1)), content)))
            });
            match found {
                Ok(put) => put?,
                // That is found out, and said, when the segment is read as a whole.
                Err(error) if error.is_content() => {}
                Err(error) => return Err(error.into()),
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
                    shared.keep_zero_hashes(part);
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

impl State {
    /// It was bad, and is looked at again.
    fn is_due(self) -> bool {
        matches!(self, Self::Bad(since) if since.elapsed() >= AGAIN)
    }
}

#[cfg(test)]
mod tests;
