//! Walking a set that stands still, run by run.

use super::{PageSet, Run, after_run, page_at};
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
}

/// Follows a run beyond the end of a word: the word it ends in, and its first bit there that is not the run's. The
/// word is one too far if the run goes to the end of the bitmap.
#[cold]
fn cross_words(bits: &[u64], mut index: usize) -> (usize, u32) {
    loop {
        index += 1;
        match bits.get(index) {
            Some(&u64::MAX) => {}
            Some(word) => return (index, word.trailing_ones()),
            None => return (index, 0),
        }
    }
}

impl Runs<'_> {
    /// Takes the next run from the current word, which is not used up.
    #[inline]
    fn take_run(&mut self) -> Run {
        let first = page_at(self.index, self.rest.trailing_zeros());
        let end = match after_run(self.rest) {
            0 => {
                let (index, bit) = cross_words(self.set.bits, self.index);
                self.index = index;
                self.rest = self.set.bits.get(index).map_or(0, |word| word & (u64::MAX << bit));
                page_at(index, bit)
            }
            after => {
                self.rest &= after;
                page_at(self.index, after.trailing_zeros())
            }
        };
        Run::new(Gfn(first), Pages(end - first))
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    #[inline]
    fn next(&mut self) -> Option<Run> {
        if self.rest == 0 {
            self.index = self.set.occupied_after(self.index)?;
            self.rest = self.set.bits[self.index];
        }
        Some(self.take_run())
    }
}

impl core::iter::FusedIterator for Runs<'_> {}
