//! Which dirty pages a pre-copy round sends, and which it holds back because they will soon be written again.
//!
//! A page that is sent and written again was sent for nothing. One that is held back and not written is sent a round later.
//! The 2017 paper's objective F = α·V1 + (1 − α)·V2 (eq. 2: invalid transfers V1, dirty pages V2) weighs the two. Sending a
//! page that will be written with probability p adds p to V1 and takes 1 − p from V2, so F falls if and only if
//! p < 1 − α: [`HoldBack::Above`] with a threshold of 1 − α, [`Score::EVEN`] where nothing else is known (α = ½, a byte
//! wasted is as bad as a page left over). [`HoldBack::Half`] is what the paper itself does, whatever the forecast says.

use core::fmt;

use crate::pageset::PageSet;
use crate::predict::{Predictor, Score};
use crate::units::Pages;

/// Which pages are held back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum HoldBack {
    /// Exactly ⌊n/2⌋ of n dirty pages, those with the highest scores; of pages with equal scores the lower page numbers.
    /// The 2017 paper, section 3.3: "only a half of dirty pages that are least likely to be modified" are sent. What it
    /// does with an odd number and with ties it leaves open.
    Half,
    /// Every page that scores higher than this; so never a page that scores [`Score::NONE`].
    Above(Score),
}

/// Why a choice could not be made. Nothing was chosen then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum FilterError {
    /// The scratch handed over is shorter than [`scratch_needed`].
    ScratchTooSmall {
        /// Entries that the choice needs.
        needed: usize,
        /// Entries that were given.
        given: usize,
    },
    /// The set that is to take the held pages is made for fewer pages than the dirty set.
    CapacityTooSmall {
        /// Pages the dirty set is made for.
        needed: Pages,
        /// Pages the other set is made for.
        given: Pages,
    },
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ScratchTooSmall { needed, given } => write!(
                f,
                "choosing among so many pages needs {needed} entries of scratch but was given {given}: size it with \
                 scratch_needed()"
            ),
            Self::CapacityTooSmall { needed, given } => write!(
                f,
                "the set for held pages is made for {given} pages, the dirty set for {needed}: make them alike"
            ),
        }
    }
}

impl core::error::Error for FilterError {}

/// Bits of a score that one pass looks at.
const DIGIT_BITS: u32 = 11;
/// Values of a digit.
const DIGITS: usize = 1 << DIGIT_BITS;
/// Histograms that take turns, so that counting many equal scores does not wait for itself.
const TURNS: usize = 4;

/// Entries of scratch that choosing among `dirty` pages needs: one for each, and 32 KiB. `usize::MAX` if that cannot be
/// counted.
pub const fn scratch_needed(dirty: Pages) -> usize {
    if dirty.0 > usize::MAX as u64 / 8 {
        return usize::MAX;
    }
    dirty.0 as usize + DIGITS * TURNS
}

/// Puts what a round should hold back of `dirty` into `held`, which is emptied first; what is not in it is to be sent.
/// Returns how many pages are held. The predictor must have been [aimed](Predictor::aim) at the time that the round will
/// take.
///
/// O(words that hold dirty pages + dirty pages): each page is scored once, then selected by its digits from the highest, at
/// most three passes over the scratch. `Above` needs no scratch.
///
/// # Errors
/// [`FilterError`].
pub fn hold_back<P: Predictor>(
    dirty: &PageSet<'_>,
    predictor: &P,
    rule: HoldBack,
    scratch: &mut [u32],
    held: &mut PageSet<'_>,
) -> Result<Pages, FilterError> {
    if held.capacity() < dirty.capacity() {
        return Err(FilterError::CapacityTooSmall {
            needed: dirty.capacity(),
            given: held.capacity(),
        });
    }
    match rule {
        HoldBack::Half => {
            let (needed, given) = (scratch_needed(dirty.len()), scratch.len());
            let scratch = scratch
                .get_mut(..needed)
                .ok_or(FilterError::ScratchTooSmall { needed, given })?;
            held.clear();
            hold_highest(dirty, predictor, dirty.len().0 / 2, scratch, held);
        }
        HoldBack::Above(threshold) => {
            held.clear();
            hold_above(dirty, predictor, threshold, held);
        }
    }
    Ok(held.len())
}

/// Holds every page that scores higher than `threshold`.
fn hold_above<P: Predictor>(dirty: &PageSet<'_>, predictor: &P, threshold: Score, held: &mut PageSet<'_>) {
    let mut scores = [0; 64];
    for (index, pages) in occupied_words(dirty) {
        predictor.score_word(index, pages, &mut scores);
        let higher = scores
            .iter()
            .enumerate()
            .fold(0, |word, (bit, &score)| word | u64::from(score > threshold.0) << bit);
        put(held, index, pages & higher);
    }
}

/// Holds the `count` pages with the highest scores, at equal scores those with lower numbers.
fn hold_highest<P: Predictor>(
    dirty: &PageSet<'_>,
    predictor: &P,
    count: u64,
    scratch: &mut [u32],
    held: &mut PageSet<'_>,
) {
    if count == 0 {
        return;
    }
    let (histograms, keys) = scratch.split_at_mut(DIGITS * TURNS);
    let highest = collect(dirty, predictor, keys);
    let (threshold, mut equals_held) = threshold(keys, highest, count, histograms);
    let mut keys = &keys[..];
    for (index, pages) in occupied_words(dirty) {
        let (here, rest) = keys.split_at(pages.count_ones() as usize);
        keys = rest;
        let mut chosen = 0;
        let mut left = pages;
        for &key in here {
            let bit = left & left.wrapping_neg();
            left ^= bit;
            let equal = key == threshold && equals_held > 0;
            equals_held -= u64::from(equal);
            chosen |= if key > threshold || equal { bit } else { 0 };
        }
        put(held, index, chosen);
    }
}

/// Writes the scores of the dirty pages in ascending order of their numbers; the highest of them.
fn collect<P: Predictor>(dirty: &PageSet<'_>, predictor: &P, keys: &mut [u32]) -> u32 {
    let mut scores = [0; 64];
    let (mut at, mut highest) = (0, 0);
    for (index, pages) in occupied_words(dirty) {
        predictor.score_word(index, pages, &mut scores);
        let mut left = pages;
        while left != 0 {
            let score = scores[left.trailing_zeros() as usize & 63];
            keys[at] = score;
            highest = highest.max(score);
            at += 1;
            left &= left - 1;
        }
    }
    highest
}

/// The `count`-th highest key, and how many keys equal to it are among the `count` highest. `count` is from 1 to the number
/// of keys.
fn threshold(keys: &[u32], highest: u32, count: u64, histograms: &mut [u32]) -> (u32, u64) {
    // What is known of the threshold: its bits from `shift` on. At first those above the highest key: zeros.
    let mut shift = u32::BITS - highest.leading_zeros();
    let mut known = 0_u64;
    let mut wanted = count;
    while shift > 0 {
        let next_shift = shift.saturating_sub(DIGIT_BITS);
        let mask = (1 << (shift - next_shift)) - 1;
        count_digits(keys, known, shift, next_shift, mask, histograms);
        let mut digit = mask as usize;
        loop {
            let here = (0..TURNS)
                .map(|turn| u64::from(histograms[turn * DIGITS + digit]))
                .sum::<u64>();
            if here >= wanted {
                break;
            }
            wanted -= here;
            digit -= 1;
        }
        known = known << (shift - next_shift) | digit as u64;
        shift = next_shift;
    }
    (known as u32, wanted)
}

/// Counts, of the keys that begin as known, how often each next digit comes.
fn count_digits(keys: &[u32], known: u64, shift: u32, next_shift: u32, mask: u32, histograms: &mut [u32]) {
    histograms.fill(0);
    let (quads, rest) = keys.as_chunks::<TURNS>();
    for quad in quads {
        for (turn, &key) in quad.iter().enumerate() {
            let counts = u32::from(u64::from(key) >> shift == known);
            histograms[turn * DIGITS + (key >> next_shift & mask) as usize] += counts;
        }
    }
    for &key in rest {
        histograms[(key >> next_shift & mask) as usize] += u32::from(u64::from(key) >> shift == known);
    }
}

/// The bitmap words of a set that hold pages, by index.
fn occupied_words<'s>(set: &'s PageSet<'_>) -> impl Iterator<Item = (usize, u64)> + 's {
    set.words()
        .iter()
        .enumerate()
        .filter(|(_, word)| **word != 0)
        .map(|(index, &word)| (index, word))
}

/// Puts pages of a dirty set into one that is large enough.
fn put(held: &mut PageSet<'_>, index: usize, pages: u64) {
    if pages != 0 {
        let done = held.union_words(index, &[pages]);
        debug_assert!(done.is_ok(), "the capacity was compared before");
    }
}
