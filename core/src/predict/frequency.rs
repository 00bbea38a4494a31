//! Pages that were dirty in most of the last rounds.

use super::window::{Inside, bitmap_words, no_room};
use super::{PredictError, Predictor, Score};
use crate::units::{Gfn, Nanos, Pages};

/// Syncs that are remembered: m.
const REMEMBERED: usize = 3;
/// Syncs of these in which a page must have been written: k.
const NEEDED: u32 = 2;

/// The bitmap of frequently updated pages of Ma et al. 2010: a page written in at least 2 of the last 3 syncs is expected
/// to be written again, certainly; others are not. To have an order also among those, one written in one sync of the
/// last three scores a quarter, below what any filter holds back by itself.
///
/// The paper's sync is a pre-copy round. Here it is a fixed span of time, several sampling windows merged, so that it
/// can learn before the first round. What the current span has seen so far does not count. The horizon is not used,
/// as in the paper.
///
/// Half a byte per page. A window costs O(words), twice that when a span ends.
#[derive(Debug)]
pub struct Frequency<'a> {
    /// The bitmap of the span under way, then those of the last [`REMEMBERED`] syncs in turn.
    current: &'a mut [u64],
    syncs: [&'a mut [u64]; REMEMBERED],
    /// The one that is replaced next.
    oldest: usize,
    span: Nanos,
    /// When the current span began; `None` before the first window.
    began: Option<Nanos>,
    pages: u64,
    overlooked: u64,
}

impl<'a> Frequency<'a> {
    /// Words of storage for a guest of `pages`; `usize::MAX` if they cannot be counted.
    pub const fn words_needed(pages: Pages) -> usize {
        match bitmap_words(pages) {
            Some(words) => words * (REMEMBERED + 1),
            None => usize::MAX,
        }
    }

    /// Nothing known yet, of a guest of `pages`; syncs last `span`, each window counting for the span in which it ends.
    ///
    /// # Errors
    /// [`PredictError::StorageTooSmall`].
    pub fn new(storage: &'a mut [u64], pages: Pages, span: Nanos) -> Result<Self, PredictError> {
        let (needed, given) = (Self::words_needed(pages), storage.len());
        let too_small = PredictError::StorageTooSmall { needed, given };
        let storage = storage.get_mut(..needed).ok_or(too_small)?;
        storage.fill(0);
        let words = needed / (REMEMBERED + 1);
        let (current, rest) = storage.split_at_mut(words);
        let (first, rest) = rest.split_at_mut(words);
        let (second, third) = rest.split_at_mut(words);
        Ok(Self {
            current,
            syncs: [first, second, third],
            oldest: 0,
            span: Nanos(span.0.max(1)),
            began: None,
            pages: pages.0,
            overlooked: 0,
        })
    }

    fn end_span(&mut self) {
        self.syncs[self.oldest].copy_from_slice(self.current);
        self.current.fill(0);
        self.oldest = (self.oldest + 1) % REMEMBERED;
    }
}

impl Predictor for Frequency<'_> {
    fn on_window(&mut self, written: &[u64], end: Nanos) -> Result<(), PredictError> {
        let began = *self.began.get_or_insert(end);
        let passed = end.saturating_sub(began).0 / self.span.0;
        // After a silence longer than all that is remembered, every sync was empty.
        for _ in 0..passed.min(REMEMBERED as u64 + 1) {
            self.end_span();
        }
        self.began = Some(Nanos(began.0 + passed * self.span.0));
        let inside = Inside::of(written, self.pages);
        for (index, word) in inside.words() {
            self.current[index] |= word;
        }
        no_room(inside.outside, &mut self.overlooked)
    }

    fn aim(&mut self, _now: Nanos, _horizon: Nanos) {}

    fn score(&self, gfn: Gfn) -> Score {
        if gfn.0 >= self.pages {
            return Score::NONE;
        }
        let (index, bit) = ((gfn.0 / 64) as usize, gfn.0 % 64);
        let written = self.syncs.iter().filter(|sync| sync[index] >> bit & 1 == 1).count() as u32;
        match written {
            0 => Score::NONE,
            NEEDED.. => Score::CERTAIN,
            _ => Score(Score::CERTAIN.0 / 4),
        }
    }

    fn overlooked(&self) -> Pages {
        Pages(self.overlooked)
    }
}
