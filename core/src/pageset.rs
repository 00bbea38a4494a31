//! Sets of pages, over words the caller owns: which pages are dirty, missing, received.
//!
//! A [`PageSet`] is a bitmap with two summaries above it: one bit per bitmap word that is not zero, and one bit
//! per summary word that is not zero. A 64 GiB guest has 262 144 bitmap words under 4 096 and 64 summary words, so
//! finding the next page of a nearly clean set reads a handful of words, and an empty one is known from 64.
//! The summaries are exact, never merely conservative: the bit is set if and only if the word below is not zero.
//!
//! ```
//! use dunlin_core::pageset::{PageSet, Run, words_needed};
//! use dunlin_core::units::{Gfn, Pages};
//!
//! let mut storage = [0; words_needed(Pages(1000))];
//! let mut dirty = PageSet::new(&mut storage, Pages(1000))?;
//! dirty.insert_run(Run::new(Gfn(60), Pages(10)))?;
//! dirty.union_words(2, &[1 << 5])?; // a harvested word that stands for pages 128 to 191
//! assert_eq!(dirty.len(), Pages(11));
//! assert_eq!(dirty.next_run(Gfn(0), Pages(4)), Some(Run::new(Gfn(60), Pages(4))));
//! assert_eq!(dirty.runs().count(), 2);
//! # Ok::<(), dunlin_core::pageset::PageSetError>(())
//! ```

mod algebra;
mod backward;
mod run;
mod runs;
#[cfg(test)]
mod tests;

pub use run::Run;
pub use runs::Runs;

use crate::units::{Gfn, Pages};

/// Pages in one bitmap word, bitmap words under one summary word.
const WORD_BITS: usize = u64::BITS as usize;

/// Why a set could not be made or changed. The set is unchanged after an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum PageSetError {
    /// The words handed to [`PageSet::new`] are fewer than [`words_needed`].
    StorageTooSmall {
        /// Words that the set needs.
        needed: usize,
        /// Words that were given.
        given: usize,
    },
    /// A page at or beyond the end of the set was to be put into it.
    OutOfRange {
        /// The first such page.
        gfn: Gfn,
        /// The pages the set is made for.
        capacity: Pages,
    },
}

impl core::fmt::Display for PageSetError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::StorageTooSmall { needed, given } => {
                write!(
                    f,
                    "a page set of this size needs {needed} words of storage but was given {given}: size it with words_needed()"
                )
            }
            Self::OutOfRange { gfn, capacity } => {
                write!(
                    f,
                    "page {gfn} is outside the set of {capacity} pages: check the page against the guest's memory layout first"
                )
            }
        }
    }
}

impl core::error::Error for PageSetError {}

/// Words of storage that a [`PageSet`] over `pages` pages needs: bitmap and summaries, 1.016 bits per page.
///
/// `usize::MAX`, which no slice can have, if the number does not fit.
pub const fn words_needed(pages: Pages) -> usize {
    let Some((bits, low, high)) = level_sizes(pages) else {
        return usize::MAX;
    };
    // Each summary is at most 1/64 of the level below and `bits` is at most 2^58 words: no overflow.
    bits + low + high
}

/// Words of the bitmap, of its summary, and of the summary's summary.
const fn level_sizes(pages: Pages) -> Option<(usize, usize, usize)> {
    let bits = pages.0.div_ceil(u64::BITS as u64);
    if bits > (usize::MAX / 2) as u64 {
        return None;
    }
    let bits = bits as usize;
    let low = bits.div_ceil(WORD_BITS);
    Some((bits, low, low.div_ceil(WORD_BITS)))
}

/// A set of the pages 0 .. [`capacity`](Self::capacity) over borrowed words; see the [module](self) for its shape.
///
/// Putting in a page outside that range is an error ([`PageSetError::OutOfRange`]); asking for or removing one finds
/// it absent. "Words" in the complexities below are bitmap words, 64 pages each.
#[derive(Debug)]
pub struct PageSet<'a> {
    /// Bit g % 64 of word g / 64 is set if page g is in the set; bits beyond the capacity are zero.
    bits: &'a mut [u64],
    /// One bit per word of `bits`, set if that word is not zero.
    low: &'a mut [u64],
    /// One bit per word of `low`, set if that word is not zero.
    high: &'a mut [u64],
    capacity: u64,
    len: u64,
}

impl<'a> PageSet<'a> {
    /// An empty set for pages 0 .. `pages`. Overwrites the first [`words_needed`] words of `storage`, keeps the rest
    /// out of use.
    ///
    /// # Errors
    /// [`PageSetError::StorageTooSmall`] if `storage` is shorter than that.
    pub fn new(storage: &'a mut [u64], pages: Pages) -> Result<Self, PageSetError> {
        let too_small = PageSetError::StorageTooSmall {
            needed: words_needed(pages),
            given: storage.len(),
        };
        let (bit_words, low_words, high_words) = level_sizes(pages).ok_or(too_small)?;
        let storage = storage.get_mut(..bit_words + low_words + high_words).ok_or(too_small)?;
        storage.fill(0);
        let (bits, summaries) = storage.split_at_mut(bit_words);
        let (low, high) = summaries.split_at_mut(low_words);
        Ok(Self {
            bits,
            low,
            high,
            capacity: pages.0,
            len: 0,
        })
    }

    /// The pages the set is made for: it can hold 0 .. capacity. O(1).
    pub const fn capacity(&self) -> Pages {
        Pages(self.capacity)
    }

    /// The pages in the set. O(1).
    pub const fn len(&self) -> Pages {
        Pages(self.len)
    }

    /// True if no page is in the set. O(1).
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bitmap: bit g % 64 of word g / 64 stands for page g, bits beyond the capacity are zero.
    pub const fn words(&self) -> &[u64] {
        self.bits
    }

    /// True if the page is in the set; false for a page outside its range. O(1).
    pub fn contains(&self, gfn: Gfn) -> bool {
        gfn.0 < self.capacity && self.bits[word_of(gfn.0)] & bit_of(gfn.0) != 0
    }

    /// Puts a page in; true if it was not there before. O(1).
    ///
    /// # Errors
    /// [`PageSetError::OutOfRange`].
    pub fn insert(&mut self, gfn: Gfn) -> Result<bool, PageSetError> {
        self.check_end(gfn.0, gfn.0.saturating_add(1))?;
        Ok(self.add_to_word(word_of(gfn.0), bit_of(gfn.0)) == 1)
    }

    /// Takes a page out; true if it was there. A page outside the range never is. O(1).
    pub fn remove(&mut self, gfn: Gfn) -> bool {
        gfn.0 < self.capacity && self.take_from_word(word_of(gfn.0), bit_of(gfn.0)) == 1
    }

    /// Puts all pages of a run in; the number that were not there before. O(words of the run).
    ///
    /// # Errors
    /// [`PageSetError::OutOfRange`] if any page of it is outside the range.
    pub fn insert_run(&mut self, run: Run) -> Result<Pages, PageSetError> {
        if run.count == Pages::ZERO {
            return Ok(Pages::ZERO);
        }
        let end = run.first.0.saturating_add(run.count.0);
        self.check_end(run.first.0, end)?;
        let (first_word, last_word) = (word_of(run.first.0), word_of(end - 1));
        let mut added = 0;
        for index in first_word..=last_word {
            added += self.add_to_word(index, mask_in_word(index, run.first.0, end));
        }
        Ok(Pages(added))
    }

    /// Takes all pages of a run out; the number that were there. What lies outside the range is ignored.
    /// O(words of the run that hold pages).
    pub fn remove_run(&mut self, run: Run) -> Pages {
        let Some((first, end)) = self.clip(run) else {
            return Pages::ZERO;
        };
        let mut removed = 0;
        let mut next = self.occupied_word(word_of(first));
        while let Some(index) = next.filter(|&index| index <= word_of(end - 1)) {
            removed += self.take_from_word(index, mask_in_word(index, first, end));
            next = self.occupied_word(index + 1);
        }
        Pages(removed)
    }

    /// The number of pages of a run that are in the set. What lies outside the range counts as absent.
    /// O(words of the run that hold pages).
    pub fn count_run(&self, run: Run) -> Pages {
        let Some((first, end)) = self.clip(run) else {
            return Pages::ZERO;
        };
        let mut count = 0;
        let mut next = self.occupied_word(word_of(first));
        while let Some(index) = next.filter(|&index| index <= word_of(end - 1)) {
            count += u64::from((self.bits[index] & mask_in_word(index, first, end)).count_ones());
            next = self.occupied_word(index + 1);
        }
        Pages(count)
    }

    /// Takes every page out. O(words that hold pages).
    pub fn clear(&mut self) {
        let mut next = self.occupied_word(0);
        while let Some(index) = next {
            self.bits[index] = 0;
            next = self.occupied_word(index + 1);
        }
        self.low.fill(0);
        self.high.fill(0);
        self.len = 0;
    }

    /// Puts every page of the range in. O(words).
    pub fn fill(&mut self) {
        fill_bits(self.bits, self.capacity);
        fill_bits(self.low, self.bits.len() as u64);
        fill_bits(self.high, self.low.len() as u64);
        self.len = self.capacity;
    }

    /// The first run of pages at or after `from`, cut to at most `max` pages. `None` if there is none, or `max` is 0.
    ///
    /// To walk a set that changes on the way, continue at the run's [`end`](Run::end); [`runs`](Self::runs) is faster
    /// on one that does not. O(1) beside the length of the run, and one read per 262 144 empty pages skipped.
    #[inline]
    pub fn next_run(&self, from: Gfn, max: Pages) -> Option<Run> {
        if max == Pages::ZERO {
            return None;
        }
        let (index, rest) = self.occupied_from(from.0)?;
        let first = page_at(index, rest.trailing_zeros());
        let end = match after_run(rest) {
            0 => self.end_of_run(index + 1, first.saturating_add(max.0)),
            after => page_at(index, after.trailing_zeros()),
        };
        Some(Run::new(Gfn(first), Pages((end - first).min(max.0))))
    }

    /// All runs in ascending order, each as long as it can be. O(words that hold pages) in all.
    pub fn runs(&self) -> Runs<'_> {
        Runs::new(self)
    }

    /// The first page of the set at or after `from`.
    fn first_from(&self, from: u64) -> Option<u64> {
        let (index, rest) = self.occupied_from(from)?;
        Some(page_at(index, rest.trailing_zeros()))
    }

    /// The first bitmap word with a page at or after `from`, and its bits from there on.
    #[inline]
    fn occupied_from(&self, from: u64) -> Option<(usize, u64)> {
        if from >= self.capacity {
            return None;
        }
        let index = word_of(from);
        let rest = self.bits[index] & (u64::MAX << (from % 64));
        if rest != 0 {
            return Some((index, rest));
        }
        let index = self.occupied_after(index)?;
        Some((index, self.bits[index]))
    }

    /// The end of a run that goes on into word `index`; not looked for beyond `limit`.
    fn end_of_run(&self, mut index: usize, limit: u64) -> u64 {
        loop {
            match self.bits.get(index) {
                Some(&u64::MAX) if page_at(index, 0) < limit => index += 1,
                Some(word) => return page_at(index, word.trailing_ones()),
                None => return self.capacity,
            }
        }
    }

    /// The first bitmap word after `index` that is not zero.
    #[inline]
    fn occupied_after(&self, index: usize) -> Option<usize> {
        // In a set of many pages the next word has some, and looking costs less than asking the summaries.
        match self.bits.get(index + 1)? {
            0 => self.occupied_word(index + 2),
            _ => Some(index + 1),
        }
    }

    /// The first bitmap word at or after `from` that is not zero.
    fn occupied_word(&self, from: usize) -> Option<usize> {
        let low_index = from / WORD_BITS;
        let here = self.low.get(low_index)? & (u64::MAX << (from % WORD_BITS));
        if here != 0 {
            return Some(low_index * WORD_BITS + here.trailing_zeros() as usize);
        }
        let low_index = next_occupied(self.high, low_index + 1)?;
        Some(low_index * WORD_BITS + self.low[low_index].trailing_zeros() as usize)
    }

    /// Sets the bits of `mask` in bitmap word `index`; how many were clear.
    fn add_to_word(&mut self, index: usize, mask: u64) -> u64 {
        let word = &mut self.bits[index];
        let added = u64::from((mask & !*word).count_ones());
        *word |= mask;
        if added != 0 {
            self.low[index / WORD_BITS] |= 1 << (index % WORD_BITS);
            let low_index = index / WORD_BITS;
            self.high[low_index / WORD_BITS] |= 1 << (low_index % WORD_BITS);
            self.len += added;
        }
        added
    }

    /// Clears the bits of `mask` in bitmap word `index`; how many were set.
    fn take_from_word(&mut self, index: usize, mask: u64) -> u64 {
        let word = &mut self.bits[index];
        let removed = u64::from((mask & *word).count_ones());
        *word &= !mask;
        if removed != 0 && *word == 0 {
            let low_index = index / WORD_BITS;
            self.low[low_index] &= !(1 << (index % WORD_BITS));
            if self.low[low_index] == 0 {
                self.high[low_index / WORD_BITS] &= !(1 << (low_index % WORD_BITS));
            }
        }
        self.len -= removed;
        removed
    }

    /// The part of a run inside the range as first page and end, `None` if there is none.
    fn clip(&self, run: Run) -> Option<(u64, u64)> {
        let end = run.first.0.saturating_add(run.count.0).min(self.capacity);
        (run.first.0 < end).then_some((run.first.0, end))
    }

    /// Refuses pages `first` .. `end`, at least one, unless all are in the range.
    fn check_end(&self, first: u64, end: u64) -> Result<(), PageSetError> {
        // An end that saturated is refused too: no capacity in memory is that large.
        if end <= self.capacity {
            return Ok(());
        }
        Err(PageSetError::OutOfRange {
            gfn: Gfn(first.max(self.capacity)),
            capacity: self.capacity(),
        })
    }
}

/// The bitmap word that holds a page.
const fn word_of(gfn: u64) -> usize {
    // In range on every target: callers have checked the page against the capacity, whose words are in memory.
    (gfn / 64) as usize
}

/// A page's bit in its word.
const fn bit_of(gfn: u64) -> u64 {
    1 << (gfn % 64)
}

/// The page of a bit.
const fn page_at(index: usize, bit: u32) -> u64 {
    index as u64 * 64 + bit as u64
}

/// For a word that is not zero: its bits above the first run of ones, and the bit after that run. 0 if the run reaches
/// the word's end.
#[inline]
const fn after_run(word: u64) -> u64 {
    // Ones up to the end of the run: adding one carries to the bit after it.
    (word | (word - 1)).wrapping_add(1)
}

/// The bits of word `index` that stand for pages of `first` .. `end`, where the word holds at least one of them.
const fn mask_in_word(index: usize, first: u64, end: u64) -> u64 {
    let start = page_at(index, 0);
    let mut mask = u64::MAX;
    if first > start {
        mask <<= first - start;
    }
    if end - start < 64 {
        mask &= !(u64::MAX << (end - start));
    }
    mask
}

/// The first set bit at or after `from` in a bit string.
fn next_occupied(bits: &[u64], from: usize) -> Option<usize> {
    let mut index = from / WORD_BITS;
    let mut word = bits.get(index)? & (u64::MAX << (from % WORD_BITS));
    while word == 0 {
        index += 1;
        word = *bits.get(index)?;
    }
    Some(index * WORD_BITS + word.trailing_zeros() as usize)
}

/// Sets the first `count` bits, all that the words are there for.
fn fill_bits(words: &mut [u64], count: u64) {
    words.fill(u64::MAX);
    if let Some(last) = words.last_mut()
        && !count.is_multiple_of(64)
    {
        *last = !(u64::MAX << (count % 64));
    }
}
