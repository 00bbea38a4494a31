//! Unions, differences and intersections of whole sets, and of raw words.

use super::{PageSet, PageSetError, WORD_BITS, word_of};
use crate::units::{Gfn, Pages};

impl PageSet<'_> {
    /// Puts in every page whose bit is set in `words`, of which the first stands at bitmap word `first_word` (page
    /// 64 · `first_word`): a tracker's harvest. The number of pages that were not there before. O(words given).
    ///
    /// # Errors
    /// [`PageSetError::OutOfRange`] if a set bit is outside the range; zero bits may be.
    pub fn union_words(&mut self, first_word: usize, words: &[u64]) -> Result<Pages, PageSetError> {
        if let Some(gfn) = self.first_outside(first_word, words) {
            return Err(PageSetError::OutOfRange {
                gfn,
                capacity: self.capacity(),
            });
        }
        let before = self.len;
        // What lies beyond is zero, as just checked.
        let room = self.bits.len().saturating_sub(first_word);
        for (offset, &word) in words.iter().take(room).enumerate() {
            if word != 0 {
                self.add_to_word(first_word + offset, word);
            }
        }
        Ok(Pages(self.len - before))
    }

    /// Puts in every page of `other`; the number that were not there before. O(words that hold pages of `other`).
    ///
    /// # Errors
    /// [`PageSetError::OutOfRange`] if `other` holds a page outside this set's range. Different capacities alone are
    /// no error.
    pub fn union(&mut self, other: &PageSet<'_>) -> Result<Pages, PageSetError> {
        if let Some(gfn) = other.first_from(self.capacity) {
            return Err(PageSetError::OutOfRange {
                gfn: Gfn(gfn),
                capacity: self.capacity(),
            });
        }
        let before = self.len;
        let mut next = other.occupied_word(0);
        while let Some(index) = next {
            self.add_to_word(index, other.bits[index]);
            next = other.occupied_word(index + 1);
        }
        Ok(Pages(self.len - before))
    }

    /// Takes out every page of `other`; the number that were there. O(words that hold pages here).
    pub fn subtract(&mut self, other: &PageSet<'_>) -> Pages {
        self.take_out(|index| other.bits.get(index).copied().unwrap_or(0))
    }

    /// Takes out every page that is not in `other`; the number that went. O(words that hold pages here).
    pub fn intersect(&mut self, other: &PageSet<'_>) -> Pages {
        self.take_out(|index| !other.bits.get(index).copied().unwrap_or(0))
    }

    /// True if no page is in both. O(words that hold pages here).
    pub fn is_disjoint(&self, other: &PageSet<'_>) -> bool {
        let mut next = self.occupied_word(0);
        while let Some(index) = next {
            if self.bits[index] & other.bits.get(index).copied().unwrap_or(0) != 0 {
                return false;
            }
            next = self.occupied_word(index + 1);
        }
        true
    }

    /// Takes out the pages that `mask_of` gives for each bitmap word that holds any.
    fn take_out(&mut self, mask_of: impl Fn(usize) -> u64) -> Pages {
        let before = self.len;
        let mut next = self.occupied_word(0);
        while let Some(index) = next {
            self.take_from_word(index, mask_of(index));
            next = self.occupied_word(index + 1);
        }
        Pages(before - self.len)
    }

    /// The lowest page of raw words that is outside the range.
    fn first_outside(&self, first_word: usize, words: &[u64]) -> Option<Gfn> {
        let inside = word_of(self.capacity).saturating_sub(first_word).min(words.len());
        words[inside..].iter().enumerate().find_map(|(offset, &word)| {
            let index = first_word.saturating_add(inside).saturating_add(offset);
            let start = (index as u64).saturating_mul(WORD_BITS as u64);
            let outside = match self.capacity.saturating_sub(start) {
                0 => word,
                // At most 63 pages of this word are in the range: `inside` skipped all words that are wholly in it.
                pages_in_range => word & (u64::MAX << pages_in_range),
            };
            (outside != 0).then(|| Gfn(start.saturating_add(u64::from(outside.trailing_zeros()))))
        })
    }
}
