//! A static copy that both channels carry, so much each that they end together.
//!
//! Li & Cao 2023 leave the static copy to the storage channel, and the migration channel idle for as long as the guest writes
//! nothing. With `split=speed` the host writes the copy from the first page upwards, and a round whose dirty pages do not fill
//! it takes pages of the copy from the last downwards, until the two meet: no page goes both ways unless it is written. A round takes
//!
//! * no more than makes it as long as a shortest round, so that dirty pages do not wait for static ones, and
//! * no more of what is left than its channel's part by the speeds measured so far, so that neither waits for the other.
//!
//! A page that a round has taken is one of its pages like any other: S counts it, and so does V(i−1), which it was added to.
//!
//! A storage channel that is less than a sixteenth as fast as the migration channel after a second is of no use: what it has
//! brought is sent again in less time than the rest of it would take.

use super::Source;
use super::speed::Speed;
use super::static_copy::StaticCopy;
use crate::pageset::Run;
use crate::units::{Nanos, Pages};

/// What a round takes as long as the speed of its channel is not known, and at least after that.
const TAKEN_MIN: Pages = Pages(64);
/// A storage channel so many times slower than the other is of no use,
const USELESS_TIMES: u64 = 16;
/// but not before it had this long to begin.
const USELESS_AFTER: Nanos = Nanos::from_secs(1);

impl Source<'_> {
    /// As a round begins: pages of the static copy that it sends besides.
    pub(super) fn take_from_static(&mut self, now: Nanos) {
        if !self.config.strategy.splits() || self.static_copy != StaticCopy::Running {
            return;
        }
        let rest = self.static_rest();
        let room = self.channel_speed.pages_in(self.config.min_round).max(TAKEN_MIN);
        let part = match self.channel_speed.is_known() {
            true => self.channel_speed.part_beside(self.storage_speed(now), rest),
            false => rest,
        };
        let mut left = part.min(room.saturating_sub(self.pending.len()));
        self.previous_dirty = self.previous_dirty.saturating_add(left);
        for index in (0..self.config.regions.len()).rev() {
            let region = self.config.regions[index];
            let region = self.untaken_of(Run::new(region.first, region.pages));
            let count = left.min(region.count);
            if count == Pages::ZERO {
                continue;
            }
            self.static_end.0 = region.end().0 - count.0;
            left = left.saturating_sub(count);
            // The regions fit the set: they were all in it at first.
            let _ = self.pending.insert_run(Run::new(self.static_end, count));
        }
        let hinted = self.keep_hints();
        self.previous_dirty = self.previous_dirty.saturating_sub(hinted);
    }

    /// The copy is given up if its channel is of no use.
    pub(super) fn check_speed(&mut self, now: Nanos) {
        let began = now.saturating_sub(self.static_began) >= USELESS_AFTER;
        let between = self.between_rounds() && self.static_copy == StaticCopy::Running;
        if between && began && self.config.strategy.splits() {
            self.static_too_slow = self
                .storage_speed(now)
                .is_slower_than(self.channel_speed, USELESS_TIMES);
            if self.static_too_slow {
                self.static_failed();
            }
        }
    }

    /// True if the static copy was given up because the storage channel is too slow to be of use.
    pub const fn static_too_slow(&self) -> bool {
        self.static_too_slow
    }

    /// How fast the host takes pages of the copy.
    pub(super) fn storage_speed(&self, now: Nanos) -> Speed {
        Speed::new(self.static_taken, now.saturating_sub(self.static_began))
    }

    /// Pages of the copy that neither channel has begun.
    pub(super) fn static_rest(&self) -> Pages {
        let regions = self.config.regions.iter();
        regions.fold(Pages::ZERO, |sum, region| {
            sum.saturating_add(self.untaken_of(Run::new(region.first, region.pages)).count)
        })
    }

    /// Pages that neither channel has begun of a static copy that goes on. O(regions).
    pub fn static_remaining(&self) -> Pages {
        match self.static_copy {
            StaticCopy::Running => self.static_rest(),
            _ => Pages::ZERO,
        }
    }

    /// What of a region neither channel has begun.
    pub(super) fn untaken_of(&self, region: Run) -> Run {
        let first = region.first.max(self.static_next);
        let end = region.end().min(self.static_end).max(first);
        Run::new(first, Pages(end.0 - first.0))
    }
}
