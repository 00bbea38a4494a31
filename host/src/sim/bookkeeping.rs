//! What a guest's program writes beside the pages of its workload.
//!
//! A real guest has a stack, a progress page and notes of its own. They are few, but as dirty at the end of every round as the
//! workload's hottest page, so that short rounds are made of them. They are derived from what the workload wrote whenever
//! dirty bits are harvested, and cost the guest's steps nothing.

use std::ops::Range;

use dunlin_core::units::Pages;

/// Pages at the end of memory, which no workload may reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bookkeeping {
    /// Dirty whenever the guest has done a step; the last of memory.
    pub own: Pages,
    /// How many pages one page of a ledger has entries for, which are written with the page; 0 if there is no ledger. It lies
    /// before the others.
    pub entries: u64,
}

impl Bookkeeping {
    /// What it needs of a memory in which the workload has so many pages.
    pub const fn pages(self, workload: Pages) -> Pages {
        match workload.0.checked_div(self.entries) {
            None => self.own,
            Some(_) => Pages(self.own.0 + workload.0.div_ceil(self.entries)),
        }
    }
}

/// The dirty bits of it.
#[derive(Debug)]
pub(super) struct Books {
    /// Pages of the workload, before it.
    workload: u64,
    entries: u64,
    /// The guest's own pages: from one up to the end of memory.
    own: Range<u64>,
    /// Steps of the guest when the bits were cleared.
    steps: u64,
}

impl Books {
    pub(super) const fn new(kept: Bookkeeping, memory: Pages) -> Self {
        let room = memory.0.saturating_sub(kept.own.0);
        let workload = match kept.entries {
            0 => room,
            // So many that they fill it together with their entries.
            entries => room * entries / (entries + 1),
        };
        Self {
            workload,
            entries: kept.entries,
            own: room..memory.0,
            steps: 0,
        }
    }

    /// Tracking begins.
    pub(super) const fn begin(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// Adds to the bits that were harvested after so many steps.
    pub(super) fn add_to(&mut self, dirty: &mut [u64], steps: u64) {
        if std::mem::replace(&mut self.steps, steps) == steps {
            return;
        }
        if self.entries > 0 {
            for first in (0..self.workload).step_by(64) {
                let bits =
                    dirty[(first / 64) as usize] & (u64::MAX >> 64_u64.saturating_sub(self.workload - first).min(63));
                if bits != 0 {
                    // Their entries lie in one page of the ledger, or in two.
                    for bit in [bits.trailing_zeros(), bits.ilog2()] {
                        set(dirty, self.workload + (first + u64::from(bit)) / self.entries);
                    }
                }
            }
        }
        for page in self.own.clone() {
            set(dirty, page);
        }
    }
}

fn set(dirty: &mut [u64], page: u64) {
    if let Some(word) = dirty.get_mut((page / 64) as usize) {
        *word |= 1 << (page % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(dirty: &[u64]) -> Vec<u64> {
        let set = |page: &u64| dirty[(page / 64) as usize] >> (page % 64) & 1 == 1;
        (0..dirty.len() as u64 * 64).filter(set).collect()
    }

    #[test]
    fn own_pages_are_dirty_when_something_was_done() {
        let kept = Bookkeeping {
            own: Pages(3),
            entries: 0,
        };
        assert_eq!(kept.pages(Pages(1000)), Pages(3));
        let mut books = Books::new(kept, Pages(128));
        books.begin(7);
        let mut dirty = [0; 2];
        books.add_to(&mut dirty, 7);
        assert_eq!(dirty, [0; 2]);
        books.add_to(&mut dirty, 8);
        assert_eq!(pages(&dirty), [125, 126, 127]);
        dirty = [0; 2];
        books.add_to(&mut dirty, 8);
        assert_eq!(dirty, [0; 2], "nothing since the last time");
    }

    #[test]
    fn a_page_that_is_written_is_noted_in_the_ledger() {
        let kept = Bookkeeping {
            own: Pages(1),
            entries: 100,
        };
        assert_eq!(kept.pages(Pages(250)), Pages(4));
        // 3 pages of ledger for 256 of memory, and one more: 252 to 254, and 255.
        let mut books = Books::new(kept, Pages(256));
        let mut dirty = [0; 4];
        set(&mut dirty, 99);
        books.add_to(&mut dirty, 1);
        assert_eq!(pages(&dirty), [99, 252, 255]);
        dirty = [0; 4];
        for page in [64, 127, 201] {
            set(&mut dirty, page);
        }
        books.add_to(&mut dirty, 2);
        assert_eq!(pages(&dirty), [64, 127, 201, 252, 253, 254, 255]);
    }
}
