//! What a guest's program writes beside the pages of its workload.
//!
//! A real guest has a stack, a progress page and notes of its own. They are few, but as dirty at the end of every round as the
//! workload's hottest page, so that short rounds are made of them. They are derived from what the workload wrote whenever
//! dirty bits are harvested, and cost the guest's steps nothing.

use dunlin_core::units::{Gfn, Pages};

/// Pages before those of the workload: the guest's own, and behind them a ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bookkeeping {
    /// Dirty whenever the guest has done a step.
    pub own: Pages,
    /// Of the ledger, of which one is touched with every page of the workload, and written if that is.
    pub ledger: Pages,
    /// Pages of the workload for which one of the ledger has entries: 64 or more, if there is a ledger.
    pub entries: u64,
}

impl Bookkeeping {
    /// With a ledger for so many pages of the workload.
    pub const fn new(own: Pages, workload: Pages, entries: u64) -> Self {
        Self {
            own,
            ledger: Pages(workload.0.div_ceil(entries)),
            entries,
        }
    }

    /// All of it: the workload's pages come next.
    pub const fn pages(self) -> Pages {
        Pages(self.own.0 + self.ledger.0)
    }

    /// Where the entry of a page of the workload is.
    pub(super) const fn entry_of(self, page: u64) -> Option<Gfn> {
        match (page - self.pages().0).checked_div(self.entries) {
            Some(entry) if entry < self.ledger.0 => Some(Gfn(self.own.0 + entry)),
            _ => None,
        }
    }
}

/// The dirty bits of it.
#[derive(Debug)]
pub(super) struct Books {
    kept: Bookkeeping,
    /// Steps of the guest when the bits were cleared.
    steps: u64,
}

impl Books {
    pub(super) const fn new(kept: Bookkeeping) -> Self {
        Self { kept, steps: 0 }
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
        if self.kept.ledger > Pages::ZERO {
            for word in 0..dirty.len() {
                let bits = self.of_workload(word, dirty[word]);
                if bits != 0 {
                    // The entries of a word's pages lie in one page of the ledger, or in two.
                    for bit in [bits.trailing_zeros(), bits.ilog2()] {
                        if let Some(entry) = self.kept.entry_of(word as u64 * 64 + u64::from(bit)) {
                            set(dirty, entry.0);
                        }
                    }
                }
            }
        }
        for page in 0..self.kept.own.0 {
            set(dirty, page);
        }
    }

    /// What of a word's bits is no bookkeeping.
    const fn of_workload(&self, word: usize, bits: u64) -> u64 {
        match self.kept.pages().0.saturating_sub(word as u64 * 64) {
            before @ 0..64 => bits & (u64::MAX << before),
            _ => 0,
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
        let mut books = Books::new(Bookkeeping {
            own: Pages(3),
            ..Bookkeeping::default()
        });
        books.begin(7);
        let mut dirty = [0; 2];
        books.add_to(&mut dirty, 7);
        assert_eq!(dirty, [0; 2]);
        books.add_to(&mut dirty, 8);
        assert_eq!(pages(&dirty), [0, 1, 2]);
        dirty = [0; 2];
        books.add_to(&mut dirty, 8);
        assert_eq!(dirty, [0; 2], "nothing since the last time");
    }

    #[test]
    fn a_page_that_is_written_is_noted_in_the_ledger() {
        let kept = Bookkeeping::new(Pages(1), Pages(250), 100);
        assert_eq!((kept.ledger, kept.pages()), (Pages(3), Pages(4)));
        let mut books = Books::new(kept);
        let mut dirty = [0; 4];
        set(&mut dirty, 103);
        books.add_to(&mut dirty, 1);
        assert_eq!(pages(&dirty), [0, 1, 103]);
        dirty = [0; 4];
        for page in [64, 127, 204] {
            set(&mut dirty, page);
        }
        books.add_to(&mut dirty, 2);
        assert_eq!(pages(&dirty), [0, 1, 2, 3, 64, 127, 204]);
    }
}
