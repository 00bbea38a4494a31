//! The storage channel: segments that are written, and merged when they are whole.

use dunlin_core::migrate::{SourceEvent, TargetEvent};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Nanos, PAGE_SIZE, Pages};

use super::SimSetup;
use super::wire::Wire;
use super::world::{Happening, World};
use crate::storage::SEGMENT_PAGES_MAX;

/// Most pages that are read from the guest at a time.
const LOOK_PAGES: Pages = Pages(4096);
/// Pages in a segment of the final dirty set: the target waits for as few as possible.
pub(super) const PB_SEGMENT_PAGES: u64 = 2048;

/// What is written, and what of it can be read.
#[derive(Debug)]
pub(super) struct Storage {
    writes: Wire,
    merges: Wire,
    /// Of the static copy: the segment that is being written, with contents.
    segment: Vec<(Run, Vec<u32>)>,
    segment_pages: u64,
    stopped: bool,
    /// What the target lacks at the hand-over.
    pub(super) final_set: Vec<Run>,
    written_of_set: usize,
    /// Of the final dirty set: what is whole, and what was handed to the reader.
    whole: Vec<Run>,
    unfinished: Vec<Run>,
    unfinished_pages: u64,
    read: usize,
    reads: bool,
    /// Bytes written.
    pub(super) bytes: u64,
}

impl Storage {
    pub(super) fn new(setup: &SimSetup) -> Self {
        let wire = |rate| Wire::new(Some(rate), Nanos::ZERO, Nanos::ZERO, 0, setup.seed);
        Self {
            writes: wire(setup.storage_bandwidth).limiter(setup.limiter),
            merges: wire(setup.merge_bandwidth),
            segment: Vec::new(),
            segment_pages: 0,
            stopped: false,
            final_set: Vec::new(),
            written_of_set: 0,
            whole: Vec::new(),
            unfinished: Vec::new(),
            unfinished_pages: 0,
            read: 0,
            reads: false,
            bytes: 0,
        }
    }

    /// Nothing more of the static copy is written, or merged.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
        self.segment.clear();
    }
}

impl World<'_, '_> {
    pub(super) fn start_static(&mut self) {
        self.write_static();
    }

    fn write_static(&mut self) {
        if self.storage.stopped {
            return;
        }
        let now = self.now;
        match self.source.next_static(now, LOOK_PAGES) {
            Some(run) => {
                self.guest.run_if_read(now);
                let data = run.count.0 - self.guest.zero_pages(run.first, run.count.0);
                let left = self.write(data * PAGE_SIZE);
                let contents = self.contents(run);
                self.storage.segment.push((run, contents));
                self.storage.segment_pages += data;
                self.at(left, Happening::Wrote);
            }
            None => {
                let ended = self.close_segment();
                self.at(ended, Happening::StaticEnded);
                self.tell_source(SourceEvent::StaticWritten);
            }
        }
    }

    fn write(&mut self, bytes: u64) -> Nanos {
        self.storage.bytes += bytes;
        self.storage.writes.occupy(bytes, self.now)
    }

    /// What was written can be read from now on. Returns when all of it is merged.
    fn close_segment(&mut self) -> Nanos {
        self.storage.segment_pages = 0;
        let mut merged = self.now;
        for (run, contents) in std::mem::take(&mut self.storage.segment) {
            merged = self.storage.merges.occupy(run.count.bytes().0, self.now);
            self.at(merged, Happening::Merged(run, contents));
        }
        merged
    }

    pub(super) fn start_pb_data(&mut self) {
        self.write_pb_data();
    }

    fn write_pb_data(&mut self) {
        let next = self.storage.final_set.get(self.storage.written_of_set).copied();
        match next {
            Some(run) => {
                self.storage.written_of_set += 1;
                let left = self.write(run.count.bytes().0);
                self.at(left, Happening::PbWrote(run));
            }
            None => self.close_pb_segment(),
        }
    }

    fn close_pb_segment(&mut self) {
        self.storage.unfinished_pages = 0;
        let unfinished = std::mem::take(&mut self.storage.unfinished);
        self.storage.whole.extend(unfinished);
        self.merge_pb_data();
    }

    pub(super) fn read_pb_data(&mut self) {
        self.storage.reads = true;
        self.merge_pb_data();
    }

    fn merge_pb_data(&mut self) {
        if !self.storage.reads {
            return;
        }
        while let Some(run) = self.storage.whole.get(self.storage.read).copied() {
            self.storage.read += 1;
            let merged = self.storage.merges.occupy(run.count.bytes().0, self.now);
            self.at(merged, Happening::PbMerged(run));
        }
    }

    pub(super) fn in_storage(&mut self, happening: Happening) {
        match happening {
            Happening::Wrote if !self.storage.stopped => {
                if self.storage.segment_pages >= SEGMENT_PAGES_MAX {
                    self.close_segment();
                }
                self.write_static();
            }
            Happening::Merged(run, contents) if !self.storage.stopped => {
                let Some(target) = &mut self.target else { return };
                for (page, copy) in (run.first.0..).zip(contents) {
                    // What came on the network is newer.
                    if !target.received().contains(dunlin_core::units::Gfn(page)) {
                        self.copies[page as usize] = copy;
                    }
                }
                target.on(self.now, TargetEvent::StaticReceived(run));
            }
            Happening::StaticEnded if !self.storage.stopped => self.tell_target(TargetEvent::StaticEnded),
            Happening::PbWrote(run) => {
                self.storage.unfinished.push(run);
                self.storage.unfinished_pages += run.count.0;
                if self.storage.unfinished_pages >= PB_SEGMENT_PAGES {
                    self.close_pb_segment();
                }
                self.write_pb_data();
            }
            Happening::PbMerged(run) => {
                self.tell_target(TargetEvent::InstalledFromStorage(run));
                self.guest.wake(run.first, run.count.0, self.now);
                let missing = self.target.as_ref().map(dunlin_core::migrate::Target::missing);
                self.measured.post_copy_went_on(missing, self.now);
            }
            _ => {}
        }
    }
}
