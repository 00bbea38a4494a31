//! Walking a set that stands still, run by run.

use super::{PageSet, Run, end_in_word, page_at};
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

impl Iterator for Runs<'_> {
    type Item = Run;

    #[inline]
    fn next(&mut self) -> Option<Run> {
        if self.rest == 0 {
            self.index = self.set.occupied_word(self.index + 1)?;
            self.rest = self.set.bits[self.index];
        }
        let first = page_at(self.index, self.rest.trailing_zeros());
        let end = match end_in_word(self.rest) {
            Some(bit) => {
                self.rest &= u64::MAX << bit;
                page_at(self.index, bit)
            }
            None => {
                let (index, bit) = cross_words(self.set.bits, self.index);
                self.index = index;
                self.rest = self.set.bits.get(index).map_or(0, |word| word & (u64::MAX << bit));
                page_at(index, bit)
            }
        };
        Some(Run::new(Gfn(first), Pages(end - first)))
    }
}

impl core::iter::FusedIterator for Runs<'_> {}
