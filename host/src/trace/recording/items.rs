//! Putting items into a trace.

use dunlin_core::tracefile::{Item, VCPU_UNKNOWN};
use dunlin_core::units::{Gfn, Nanos};

use super::{RecordingError, Sink, Tally};
use crate::memory::Run;

/// A trace that is being recorded. Times are those of CLOCK_MONOTONIC in nanoseconds; one that lies before the last becomes the last.
pub struct Items<'s> {
    sink: &'s mut dyn Sink,
    started_ns: u64,
    last: Nanos,
    tally: Tally,
}

impl<'s> Items<'s> {
    /// Of a trace that begins at this time.
    pub fn new(sink: &'s mut dyn Sink, started_ns: u64) -> Self {
        Self {
            sink,
            started_ns,
            last: Nanos::ZERO,
            tally: Tally::default(),
        }
    }

    /// What there is so far.
    pub const fn tally(&self) -> Tally {
        self.tally
    }

    /// When the trace began.
    pub const fn started_ns(&self) -> u64 {
        self.started_ns
    }

    fn time(&mut self, at_ns: u64) -> Nanos {
        self.last = self.last.max(Nanos(at_ns.saturating_sub(self.started_ns)));
        self.last
    }

    fn push(&mut self, item: Item) -> Result<(), RecordingError> {
        Ok(self.sink.push(&item)?)
    }

    /// A page was written; by whom, if that is known.
    ///
    /// # Errors
    /// [`RecordingError::Trace`].
    pub fn write(&mut self, at_ns: u64, vcpu: Option<u32>, gfn: Gfn) -> Result<(), RecordingError> {
        let at = self.time(at_ns);
        self.tally.writes += 1;
        self.push(Item::Write {
            at,
            vcpu: vcpu.unwrap_or(VCPU_UNKNOWN),
            gfn,
        })
    }

    /// Pages were written in this window. Runs of a window ascend.
    ///
    /// # Errors
    /// [`RecordingError::Trace`].
    pub fn dirty(&mut self, run: Run) -> Result<(), RecordingError> {
        self.tally.dirty_pages += run.count.0;
        self.push(Item::Dirty { run })
    }

    /// The window has ended: for one vCPU, or for all.
    ///
    /// # Errors
    /// [`RecordingError::Trace`].
    pub fn window_end(&mut self, at_ns: u64, vcpu: Option<u32>) -> Result<(), RecordingError> {
        let at = self.time(at_ns);
        self.tally.duration = at;
        self.push(Item::WindowEnd {
            at,
            vcpu: vcpu.unwrap_or(VCPU_UNKNOWN),
        })
    }

    /// Writes are missing; how many, if that is known.
    ///
    /// # Errors
    /// [`RecordingError::Trace`].
    pub fn lost(&mut self, at_ns: u64, events: Option<u64>) -> Result<(), RecordingError> {
        let (at, events) = (self.time(at_ns), events.unwrap_or(u64::MAX));
        self.tally.lost = self.tally.lost.saturating_add(events);
        self.push(Item::Lost { at, events })
    }

    /// Time has passed, with or without writes.
    pub(in crate::trace) fn pass(&mut self, at_ns: u64) {
        self.tally.duration = self.time(at_ns);
    }

    pub(super) fn steps(&mut self, at_ns: u64, vcpu: u32, steps: u64) -> Result<(), RecordingError> {
        let at = self.time(at_ns);
        self.push(Item::Steps { at, vcpu, steps })
    }

    pub(in crate::trace) fn count_window(&mut self, overruns: u64) {
        self.tally.windows += 1;
        self.tally.overruns += overruns;
    }

    pub(in crate::trace) fn end(&mut self, at_ns: u64, overhead: Nanos) -> Result<(), RecordingError> {
        let at = self.time(at_ns);
        self.tally.duration = at;
        self.push(Item::End { at, overhead })
    }
}
