//! The storage channel: a static copy that is written and read page by page while everything else goes on.

use super::*;

/// The directory both hosts mount, and who is at work in it.
#[derive(Default)]
pub(super) struct Storage {
    /// The pages of the copy so far, and what they hold.
    written: Vec<(u64, u64)>,
    writes: bool,
    /// The last of them is there.
    ended: bool,
    /// Pages of it that the target has looked at.
    read: usize,
    reads: bool,
    /// Pages that came on the migration channel.
    newer: Vec<bool>,
    merged: bool,
    given_up: bool,
    /// Nothing is written, or read, before these times.
    stuck_until: [Nanos; 2],
    /// The final dirty set as it was handed over, and how many of its pages were written, and read.
    final_set: Vec<u64>,
    pb_written: usize,
    pb_writes: bool,
    pb_read: usize,
    pb_reads: bool,
    /// What either side wrote down last.
    source_file: Option<bool>,
    target_file: Option<TargetStanding>,
}

impl World {
    pub(super) fn is_parallel(&self) -> bool {
        self.config.strategy.first == First::Parallel
    }

    pub(super) fn start_static(&mut self) {
        self.storage.written.clear();
        self.storage.writes = true;
        (self.storage.ended, self.storage.merged, self.storage.given_up) = (false, false, false);
    }

    pub(super) fn stop_static(&mut self) {
        self.storage.writes = false;
        self.give_up_static();
    }

    /// Whether or not its writer could be stopped.
    pub(super) fn give_up_static(&mut self) {
        self.storage.given_up = true;
    }

    pub(super) fn start_reading(&mut self) {
        self.storage.newer = vec![false; self.truth.len()];
        self.storage.read = 0;
        self.storage.reads = self.is_parallel();
    }

    /// Before pages are made missing, or the guest can run.
    pub(super) fn stop_reading(&mut self) {
        self.storage.reads = false;
    }

    pub(super) fn came_on_migration_channel(&mut self, page: usize) {
        self.storage.newer[page] = true;
    }

    pub(super) fn told_merged(&mut self) {
        self.storage.merged = true;
    }

    /// Whether rounds sent a part of a copy that is merged.
    pub(crate) fn static_was_split(&self) -> bool {
        let all: u64 = self.shape.iter().map(|&(_, pages)| pages).sum();
        self.storage.merged && (self.storage.written.len() as u64) < all
    }

    /// Nothing is decided before the copy is merged, or given up.
    pub(super) fn assert_static_is_over(&self) {
        let over = !self.is_parallel() || self.storage.merged || self.storage.given_up;
        assert!(over, "{self}: the guest is paused while the static copy goes on");
    }

    /// The source's writer takes some more pages as they are now.
    pub(super) fn write_static(&mut self) -> bool {
        if !self.storage.writes || self.source.is_none() || self.now < self.storage.stuck_until[0] {
            return false;
        }
        if self.strikes(Fault::StorageSlow) {
            self.storage.stuck_until[0] = self.later();
            return true;
        }
        if self.strikes(Fault::StorageFull) {
            self.storage.writes = false;
            self.storage.given_up = true;
            self.tell_source(SourceEvent::StaticFailed);
            return true;
        }
        let strategy = self.config.strategy;
        if (strategy.holds_back() || strategy.splits()) && self.below(20) > 0 {
            // Slow enough that rounds go on beside it, and pages are held back or taken in them.
            return false;
        }
        let (now, count) = (self.now, Pages(1 + self.below(12)));
        let next = self.source.as_mut().and_then(|source| source.next_static(now, count));
        let Some(run) = next else {
            (self.storage.writes, self.storage.ended) = (false, true);
            self.tell_source(SourceEvent::StaticWritten);
            return true;
        };
        let pages = run.first.0..run.end().0;
        let written = pages.map(|page| (page, self.source_memory[page as usize]));
        self.storage.written.extend(written);
        true
    }

    /// Before the patience with the rest of a copy is over, or after.
    fn later(&mut self) -> Nanos {
        let late = self.below(6000);
        self.now.saturating_add(Nanos::from_millis(late))
    }

    /// The target's reader puts some more in, unless something newer is there.
    pub(super) fn read_static(&mut self) -> bool {
        let next = self.storage.written.get(self.storage.read).copied();
        let stuck = self.now < self.storage.stuck_until[1];
        let nothing = next.is_none() && !self.storage.ended;
        if !self.storage.reads || self.target.is_none() || nothing || stuck {
            return false;
        }
        if self.strikes(Fault::StorageLate) {
            self.storage.stuck_until[1] = self.later();
            return true;
        }
        if self.strikes(Fault::StorageVanishes) {
            self.storage.written.clear();
            self.storage.ended = false;
            if core::mem::take(&mut self.storage.writes) {
                self.storage.given_up = true;
                self.tell_source(SourceEvent::StaticFailed);
            }
            if self.below(2) == 0 {
                self.storage.reads = false;
                self.storage.given_up = true;
                self.tell_target(TargetEvent::StaticFailed);
            }
            return true;
        }
        if self.strikes(Fault::StorageElsewhere) {
            // The target looks into another directory. When the source gives up it says so, as the other does here.
            self.storage.reads = false;
            return true;
        }
        if self.strikes(Fault::StorageDamaged) {
            self.storage.reads = false;
            self.storage.given_up = true;
            self.tell_target(TargetEvent::StaticFailed);
            return true;
        }
        let Some((page, value)) = next else {
            self.storage.reads = false;
            self.tell_target(TargetEvent::StaticEnded);
            return true;
        };
        if !self.storage.newer[page as usize] {
            self.target_memory[page as usize] = Some(value);
            self.installed_hash[page as usize] = hash(value);
        }
        self.storage.read += 1;
        self.tell_target(TargetEvent::StaticReceived(Run::new(Gfn(page), Pages(1))));
        true
    }

    pub(super) fn has_pb_data(&self) -> bool {
        matches!(self.config.strategy.cut, Cut::Pbdata | Cut::Both)
    }

    pub(super) fn keep_final_set(&mut self) {
        let pending = self.source.as_ref().expect("it acts").pending();
        self.storage.final_set = pending.runs().flat_map(|run| run.first.0..run.end().0).collect();
    }

    pub(super) fn start_pb_data(&mut self) {
        assert_ne!(self.owner, Owner::Source, "{self}: the final dirty set is not final");
        self.storage.pb_writes = true;
    }

    pub(super) fn write_pb_data(&mut self) -> bool {
        let done = self.storage.pb_written >= self.storage.final_set.len();
        if !self.storage.pb_writes || done || self.source.is_none() {
            return false;
        }
        if self.strikes(Fault::StorageFull) {
            // It goes on when there is room again.
            self.tell_source(SourceEvent::PbDataFailed);
            return true;
        }
        self.storage.pb_written += 1;
        true
    }

    /// No source is needed any more, and no network.
    pub(super) fn pb_data_is_complete(&self) -> bool {
        self.storage.pb_writes && self.storage.pb_written >= self.storage.final_set.len()
    }

    /// Its process is gone.
    pub(super) fn stop_reading_pb_data(&mut self) {
        self.storage.pb_reads = false;
    }

    pub(super) fn start_reading_pb_data(&mut self) {
        self.storage.pb_reads = true;
    }

    pub(super) fn read_pb_data(&mut self) -> bool {
        let some = self.storage.pb_read < self.storage.pb_written;
        if !self.storage.pb_reads || !some || self.target.is_none() {
            return false;
        }
        let page = self.storage.final_set[self.storage.pb_read];
        self.storage.pb_read += 1;
        self.put_in(page, &[self.source_memory[page as usize]]);
        self.tell_target(TargetEvent::InstalledFromStorage(Run::new(Gfn(page), Pages(1))));
        true
    }

    /// Either side writes down where it stands, now and then, and reads what the other wrote, then or earlier.
    pub(super) fn exchange_states(&mut self) {
        match self.below(4) {
            0 => self.write_source_file(),
            1 => self.write_target_file(),
            2 => {
                if let Some(standing) = self.storage.target_file {
                    let report = self.report;
                    self.tell_source(SourceEvent::TargetState { standing, report });
                }
            }
            _ => {
                if self.source_outcome == Some(SourceOutcome::Completed) {
                    // It has removed everything.
                    self.tell_target(TargetEvent::SourceEnded);
                } else if let Some(given_up) = self.storage.source_file {
                    self.tell_target(TargetEvent::SourceState { given_up });
                }
            }
        }
    }

    fn write_source_file(&mut self) {
        let Some(source) = &self.source else { return };
        self.storage.source_file = source.stored_given_up().or(self.storage.source_file);
    }

    fn write_target_file(&mut self) {
        let Some(target) = &self.target else { return };
        self.storage.target_file = target.stored_standing().or(self.storage.target_file);
    }
}
