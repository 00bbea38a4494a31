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
const DIGIT_BITS: u32 = 12;
/// Values of a digit.
const DIGITS: usize = 1 << DIGIT_BITS;
/// Histograms that take turns, so that counting many equal scores does not wait for itself.
const TURNS: usize = 2;

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
        let mut rest = pages;
        let mut higher = 0;
        for score in &scores[..pages.count_ones() as usize] {
            let bit = rest & rest.wrapping_neg();
            rest ^= bit;
            higher |= bit * u64::from(*score > threshold.0);
        }
        put(held, index, higher);
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
            // Without branches, half of which would go the other way.
            let equal = u64::from(key == threshold) & u64::from(equals_held > 0);
            equals_held -= equal;
            chosen |= bit * (u64::from(key > threshold) | equal);
        }
        put(held, index, chosen);
    }
}

/// Writes the scores of the dirty pages in ascending order of their numbers; the highest of them.
fn collect<P: Predictor>(dirty: &PageSet<'_>, predictor: &P, keys: &mut [u32]) -> u32 {
    let (mut keys, mut highest) = (keys, 0);
    for (index, pages) in occupied_words(dirty) {
        let (here, rest) = keys.split_at_mut(pages.count_ones() as usize);
        keys = rest;
        predictor.score_word(index, pages, here);
        highest = here.iter().fold(highest, |highest, &key| key.max(highest));
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
    let (pairs, rest) = keys.as_chunks::<TURNS>();
    for pair in pairs {
        for (turn, &key) in pair.iter().enumerate() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pageset::words_needed;
    use crate::units::{Gfn, Nanos};
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    /// Scores by page number; pages beyond score nothing.
    struct Given(Vec<u32>);

    impl Predictor for Given {
        fn aim(&mut self, _now: Nanos, _horizon: Nanos) {}

        fn score(&self, gfn: Gfn) -> Score {
            Score(self.0.get(gfn.0 as usize).copied().unwrap_or(0))
        }
    }

    /// What is held of these dirty pages, by the function under test.
    fn held(dirty: &[u64], scores: &[u32], rule: HoldBack) -> Vec<u64> {
        let pages = Pages(300);
        let mut words = [vec![0; words_needed(pages)], vec![0; words_needed(pages)]];
        let [of_dirty, of_held] = &mut words;
        let mut set = PageSet::new(of_dirty, pages).expect("storage fits");
        for &page in dirty {
            set.insert(Gfn(page)).expect("in range");
        }
        let mut held = PageSet::new(of_held, pages).expect("storage fits");
        // What was in it must not matter.
        held.fill();
        let mut scratch = vec![u32::MAX; scratch_needed(set.len())];
        let count = hold_back(&set, &Given(scores.to_vec()), rule, &mut scratch, &mut held).expect("sized for the set");
        assert_eq!(count, held.len());
        held.runs().flat_map(|run| run.first.0..run.end().0).collect()
    }

    #[test]
    fn half_is_held_and_lower_pages_first_among_equals() {
        let scores = [5, 9, 5, 0, 5, 1];
        assert_eq!(held(&[0, 1, 2, 3, 4, 5], &scores, HoldBack::Half), [0, 1, 2]);
        // Of an odd number the smaller half.
        assert_eq!(held(&[0, 2, 3, 4, 5], &scores, HoldBack::Half), [0, 2]);
        assert_eq!(held(&[3, 5], &scores, HoldBack::Half), [5]);
        // Half is half, also of pages that nothing is expected of.
        assert_eq!(held(&[100, 101, 102, 103], &scores, HoldBack::Half), [100, 101]);
        assert_eq!(held(&[4], &scores, HoldBack::Half), [0; 0]);
        assert_eq!(held(&[], &scores, HoldBack::Half), [0; 0]);
    }

    #[test]
    fn what_is_probable_is_held_and_never_what_is_not_expected() {
        let even = Score::EVEN.0;
        let scores = [even, even + 1, 0, Score::CERTAIN.0, u32::MAX];
        let dirty = [0, 1, 2, 3, 4, 200];
        assert_eq!(held(&dirty, &scores, HoldBack::Above(Score::EVEN)), [1, 3, 4]);
        assert_eq!(held(&dirty, &scores, HoldBack::Above(Score::NONE)), [0, 1, 3, 4]);
        assert_eq!(held(&dirty, &scores, HoldBack::Above(Score(u32::MAX))), [0; 0]);
    }

    #[test]
    fn what_is_too_small_is_named() {
        let mut words = [vec![0; 100], vec![0; 100]];
        let [of_dirty, of_held] = &mut words;
        let mut dirty = PageSet::new(of_dirty, Pages(100)).expect("storage fits");
        dirty.fill();
        let mut held = PageSet::new(of_held, Pages(99)).expect("storage fits");
        let never = crate::predict::Never;
        let small = hold_back(&dirty, &never, HoldBack::Half, &mut [], &mut held);
        assert_eq!(
            small,
            Err(FilterError::CapacityTooSmall {
                needed: Pages(100),
                given: Pages(99)
            })
        );
        let mut held = PageSet::new(of_held, Pages(100)).expect("storage fits");
        let needed = scratch_needed(Pages(100));
        let small = hold_back(&dirty, &never, HoldBack::Half, &mut vec![0; needed - 1], &mut held);
        assert_eq!(
            small,
            Err(FilterError::ScratchTooSmall {
                needed,
                given: needed - 1
            })
        );
        let none = hold_back(&dirty, &never, HoldBack::Above(Score::EVEN), &mut [], &mut held);
        assert_eq!(none, Ok(Pages::ZERO), "a threshold needs no scratch");
        assert_eq!(scratch_needed(Pages(1 << 32)) as u64 >> 13, (1 << 19) + 1);
        assert_eq!(scratch_needed(Pages(u64::MAX)), usize::MAX);
    }

    proptest! {
        #[test]
        fn chooses_like_sorting(
            dirty in prop::collection::btree_set(0..300u64, 0..300),
            scores in prop::collection::vec(prop_oneof![0..4_u32, (1_u32 << 20)..(1_u32 << 25), any::<u32>()], 300),
            threshold in prop_oneof![0..4_u32, any::<u32>()],
        ) {
            let dirty: Vec<u64> = dirty.into_iter().collect();
            let mut sorted = dirty.clone();
            sorted.sort_by_key(|&page| (std::cmp::Reverse(scores[page as usize]), page));
            sorted.truncate(dirty.len() / 2);
            sorted.sort_unstable();
            prop_assert_eq!(held(&dirty, &scores, HoldBack::Half), sorted);
            let mut above = dirty.clone();
            above.retain(|&page| scores[page as usize] > threshold);
            prop_assert_eq!(held(&dirty, &scores, HoldBack::Above(Score(threshold))), above);
        }
    }
}
