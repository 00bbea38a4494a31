//! Reading a sampling window, for all predictors alike.

use super::PredictError;
use crate::units::Pages;

/// Bitmap words of a guest of `pages`; `None` if they cannot be counted.
pub(super) const fn bitmap_words(pages: Pages) -> Option<usize> {
    let words = pages.0.div_ceil(64);
    if words > usize::MAX as u64 / 64 {
        return None;
    }
    Some(words as usize)
}

/// A window's words, cut to the guest: those beyond are not handed out but counted.
pub(super) struct Inside<'w> {
    words: &'w [u64],
    /// Index of the guest's last word, and its bits that stand for pages of the guest.
    last: (usize, u64),
    /// Pages written outside the guest.
    pub(super) outside: u64,
}

impl<'w> Inside<'w> {
    pub(super) fn of(written: &'w [u64], pages: u64) -> Self {
        let end = pages.div_ceil(64) as usize;
        let (words, beyond) = written.split_at(written.len().min(end));
        let last = match pages % 64 {
            0 => (end, 0),
            rest => (end - 1, (1 << rest) - 1),
        };
        let in_last = words.get(last.0).map_or(0, |word| word & !last.1);
        let outside = beyond
            .iter()
            .chain([&in_last])
            .map(|word| u64::from(word.count_ones()))
            .sum();
        Self { words, last, outside }
    }

    /// Every word of the guest that the window has, by index.
    pub(super) fn words(&self) -> impl Iterator<Item = (usize, u64)> {
        let (last, mask) = self.last;
        self.words
            .iter()
            .enumerate()
            .map(move |(index, &word)| (index, if index == last { word & mask } else { word }))
    }
}

/// The bits of a word, lowest first, each as its place.
pub(super) fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let bit = word.checked_ilog2().map(|_| word.trailing_zeros());
        word &= word.wrapping_sub(1);
        bit
    })
}

/// Counts what there was no room for, and names it.
pub(super) fn no_room(pages: u64, overlooked: &mut u64) -> Result<(), PredictError> {
    if pages == 0 {
        return Ok(());
    }
    *overlooked = overlooked.saturating_add(pages);
    Err(PredictError::NoRoom { pages: Pages(pages) })
}
