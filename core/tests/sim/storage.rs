//! The storage channel: a static copy that is written and read page by page while everything else goes on.

use super::*;

/// The directory both hosts mount, and who is at work in it.
#[derive(Default)]
pub(super) struct Storage {
    /// The pages of the copy so far, in the order of RAM.
    written: Vec<u64>,
    writes: bool,
    /// Pages of it that the target has looked at.
    read: usize,
    reads: bool,
    /// Pages that came on the migration channel.
    newer: Vec<bool>,
    merged: bool,
    given_up: bool,
    /// Nothing is written, or read, before these times.
    stuck_until: [Nanos; 2],
}

impl World {
    pub(super) fn is_parallel(&self) -> bool {
        self.config.strategy.first == First::Parallel
    }

    pub(super) fn start_static(&mut self) {
        self.storage.written.clear();
        self.storage.writes = true;
        (self.storage.merged, self.storage.given_up) = (false, false);
    }

    pub(super) fn stop_static(&mut self) {
        self.storage.writes = false;
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

    /// Nothing is decided before the copy is merged, or given up.
    pub(super) fn assert_static_is_over(&self) {
        let over = !self.is_parallel() || self.storage.merged || self.storage.given_up;
        assert!(over, "{self}: the guest is paused while the static copy goes on");
    }

    fn ram(&self) -> Vec<u64> {
        self.shape
            .iter()
            .flat_map(|&(first, pages)| first..first + pages)
            .collect()
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
        let (ram, count) = (self.ram(), 1 + self.below(12) as usize);
        let from = self.storage.written.len();
        let values = ram
            .iter()
            .skip(from)
            .take(count)
            .map(|&page| self.source_memory[page as usize]);
        self.storage.written.extend(values);
        self.storage.writes = self.storage.written.len() < ram.len();
        if !self.storage.writes {
            self.tell_source(SourceEvent::StaticWritten);
        }
        true
    }

    /// Before the patience with the rest of a copy is over, or after.
    fn later(&mut self) -> Nanos {
        let late = self.below(6000);
        self.now.saturating_add(Nanos::from_millis(late))
    }

    /// The target's reader puts some more in, unless something newer is there.
    pub(super) fn read_static(&mut self) -> bool {
        let ram = self.ram();
        let ready = self.storage.written.len();
        let stuck = self.now < self.storage.stuck_until[1];
        if !self.storage.reads || self.target.is_none() || self.storage.read >= ready || stuck {
            return false;
        }
        if self.strikes(Fault::StorageLate) {
            self.storage.stuck_until[1] = self.later();
            return true;
        }
        if self.strikes(Fault::StorageVanishes) {
            self.storage.written.clear();
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
        let page = ram[self.storage.read];
        if !self.storage.newer[page as usize] {
            let value = self.storage.written[self.storage.read];
            self.target_memory[page as usize] = Some(value);
            self.installed_hash[page as usize] = hash(value);
        }
        self.storage.read += 1;
        self.tell_target(TargetEvent::StaticReceived(Run::new(Gfn(page), Pages(1))));
        if self.storage.read == ram.len() {
            self.storage.reads = false;
            self.tell_target(TargetEvent::StaticEnded);
        }
        true
    }
}
