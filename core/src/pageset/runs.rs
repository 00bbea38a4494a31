//! Walking a set that stands still, run by run.

use super::{PageSet, Run, page_at};
use crate::units::{Gfn, Pages};

/// The runs of a set in ascending order, each as long as it can be; from [`PageSet::runs`].
///
/// It keeps the rest of the current bitmap word in a register, so that a run inside one word costs a few
/// instructions and the summaries are read only where a word is used up.
#[derive(Clone, Debug)]
pub struct Runs<'s> {
    set: &'s PageSet<'s>,
    /// The bitmap word under way.
    index: usize,
    /// What has not been returned of it.
    rest: u64,
}

impl<'s> Runs<'s> {
    pub(super) fn new(set: &'s PageSet<'_>) -> Self {
        Self {
            set,
            index: 0,
            rest: set.bits.first().copied().unwrap_or(0),
        }
    }

    /// Follows a run beyond the end of its word; the page after its last.
    #[cold]
    fn cross_words(&mut self) -> u64 {
        loop {
            self.index += 1;
            let Some(&word) = self.set.bits.get(self.index) else {
                return page_at(self.index, 0);
            };
            if word != u64::MAX {
                let count = word.trailing_ones();
                self.rest = word & (u64::MAX << count);
                return page_at(self.index, count);
            }
        }
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    #[inline]
    fn next(&mut self) -> Option<Run> {
        if self.rest == 0 {
            self.index = self.set.occupied_word(self.index + 1)?;
            self.rest = self.set.bits[self.index];
        }
        let first = page_at(self.index, self.rest.trailing_zeros());
        // Ones up to the end of the run, zeros above: adding one carries to the first absent page.
        let after = (self.rest | (self.rest - 1)).wrapping_add(1);
        self.rest &= after;
        let end = match after {
            0 => self.cross_words(),
            _ => page_at(self.index, after.trailing_zeros()),
        };
        Some(Run::new(Gfn(first), Pages(end - first)))
    }
}

impl core::iter::FusedIterator for Runs<'_> {}
