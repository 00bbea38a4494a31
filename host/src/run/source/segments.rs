//! Guest pages on their way into segments, one after the other, no faster than the limit allows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, Pages};

use crate::channel::{Cancel, TokenBucket, Wait};
use crate::memory::{GuestMemory, RunClass};
use crate::storage::{Kind, SegmentWriter, SessionDirectory, StorageError, Written};

/// Nothing waits for the rate limit this long: it ends with the writing.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// A thread that waits looks so often whether it is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// What a thread that writes shares with the one that started it.
#[derive(Default)]
pub(super) struct Job {
    stop: AtomicBool,
    cancel: Cancel,
    bytes: AtomicU64,
}

impl Job {
    /// Makes the thread end soon, also where it waits for the rate limit.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.cancel.raise();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Waits so long, or until the job is stopped.
    pub(super) fn sleep(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while !self.is_stopped() && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
    }

    /// Bytes of finished segments.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn count(&self, written: &Written) {
        self.bytes.fetch_add(written.bytes.0, Ordering::Relaxed);
    }
}

/// What `next` gives, in ascending order, in segments of at most so many pages of data, the last of which says that it is. What is left is left out
/// if the job is stopped.
///
/// # Errors
/// [`StorageError`].
pub(super) fn write(
    directory: &SessionDirectory,
    (kind, pages_max): (Kind, Pages),
    (memory, mut next): (&GuestMemory, impl FnMut() -> Option<Run>),
    bucket: &TokenBucket,
    job: &Job,
) -> Result<(), StorageError> {
    let mut segments = Segments::begin(directory, kind, pages_max)?;
    let mut pieces = Vec::new();
    while let Some(run) = next() {
        pieces.clear();
        memory.classify_runs(run, |piece, class| pieces.push((piece, class)))?;
        for &(piece, class) in &pieces {
            match class {
                // What never came into being need not be looked at, and a page that is written now is dirty.
                RunClass::Zero => segments.add_zeros(piece, job)?,
                RunClass::Data => segments.add(memory, piece, bucket, job)?,
            }
            if job.is_stopped() {
                return Ok(());
            }
        }
    }
    segments.finish(job)
}

/// One segment after the other, each of at most so many pages of data.
struct Segments<'a> {
    directory: &'a SessionDirectory,
    kind: Kind,
    pages_max: Pages,
    current: SegmentWriter<'a>,
    sequence: u32,
}

impl<'a> Segments<'a> {
    fn begin(directory: &'a SessionDirectory, kind: Kind, pages_max: Pages) -> Result<Self, StorageError> {
        Ok(Self {
            directory,
            kind,
            pages_max,
            current: SegmentWriter::create(directory, kind, 0)?,
            sequence: 0,
        })
    }

    /// Goes on with the next segment if this one has enough.
    fn make_room(&mut self, job: &Job) -> Result<(), StorageError> {
        if self.current.is_full() || self.current.data() >= self.pages_max {
            let next = SegmentWriter::create(self.directory, self.kind, self.sequence + 1)?;
            let full = std::mem::replace(&mut self.current, next);
            self.sequence += 1;
            job.count(&full.finish(false)?);
        }
        Ok(())
    }

    /// Takes note of pages that are zero.
    fn add_zeros(&mut self, run: Run, job: &Job) -> Result<(), StorageError> {
        self.make_room(job)?;
        self.current.add_zeros(run);
        Ok(())
    }

    /// Writes a run, or a part of it if the job is stopped.
    fn add(&mut self, memory: &GuestMemory, run: Run, bucket: &TokenBucket, job: &Job) -> Result<(), StorageError> {
        let mut rest = run;
        while rest.count > Pages::ZERO {
            self.make_room(job)?;
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

    /// Ends the last segment, which says that it is.
    fn finish(self, job: &Job) -> Result<(), StorageError> {
        job.count(&self.current.finish(true)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use dunlin_core::message::{SessionId, VmId};

    use super::*;
    use crate::memory::tests::{memory, run};
    use crate::storage::{SegmentReader, Vm};

    /// A guest that has zeroed every other page: more runs than one segment may have.
    #[test]
    fn any_number_of_runs_can_be_read_again() {
        const RUNS: u64 = 70_000;
        let memory = memory((2 * RUNS) << 12);
        let root = tempfile::tempdir().unwrap();
        let vm = Vm {
            session: SessionId(1),
            id: VmId(9),
            regions: crate::run::vm::regions(memory.layout()),
        };
        let directory = SessionDirectory::create(root.path(), vm, None).unwrap();
        let mut runs = (0..RUNS).map(|index| run(2 * index, 1));
        let (bucket, job) = (TokenBucket::new(None), Job::default());
        let pages = (&memory, || runs.next());
        write(&directory, (Kind::PbData, Pages(2048)), pages, &bucket, &job).unwrap();
        let mut read = 0;
        for sequence in 0.. {
            let segment = SegmentReader::open(&directory, Kind::PbData, sequence).unwrap();
            let segment = segment.expect("the last says that it is");
            read += segment.pages().1.0;
            if segment.header().last {
                break;
            }
        }
        assert_eq!(read, RUNS);
    }
}
