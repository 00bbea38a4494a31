//! Guest pages on their way into segments, one after the other, no faster than the limit allows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, Pages};

use crate::channel::{Cancel, TokenBucket, Wait};
use crate::memory::GuestMemory;
use crate::storage::{Kind, SegmentWriter, SessionDirectory, StorageError, Written};

/// Nothing waits for the rate limit this long: it ends with the writing.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

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

    /// Bytes of finished segments.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn count(&self, written: &Written) {
        self.bytes.fetch_add(written.bytes.0, Ordering::Relaxed);
    }
}

/// One segment after the other, each of at most so many pages of data.
pub(super) struct Segments<'a> {
    directory: &'a SessionDirectory,
    kind: Kind,
    pages_max: Pages,
    current: SegmentWriter<'a>,
    sequence: u32,
}

impl<'a> Segments<'a> {
    pub(super) fn begin(directory: &'a SessionDirectory, kind: Kind, pages_max: Pages) -> Result<Self, StorageError> {
        Ok(Self {
            directory,
            kind,
            pages_max,
            current: SegmentWriter::create(directory, kind, 0)?,
            sequence: 0,
        })
    }

    /// Takes note of pages that are zero.
    pub(super) fn add_zeros(&mut self, run: Run) {
        self.current.add_zeros(run);
    }

    /// Writes a run, or a part of it if the job is stopped.
    pub(super) fn add(
        &mut self,
        memory: &GuestMemory,
        run: Run,
        bucket: &TokenBucket,
        job: &Job,
    ) -> Result<(), StorageError> {
        let mut rest = run;
        while rest.count > Pages::ZERO {
            if self.current.is_full() || self.current.data() >= self.pages_max {
                let next = SegmentWriter::create(self.directory, self.kind, self.sequence + 1)?;
                let full = std::mem::replace(&mut self.current, next);
                self.sequence += 1;
                job.count(&full.finish(false)?);
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

    /// Ends the last segment, which says that it is.
    pub(super) fn finish(self, job: &Job) -> Result<(), StorageError> {
        job.count(&self.current.finish(true)?);
        Ok(())
    }
}
