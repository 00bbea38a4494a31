//! Prediction by partial matching over each page's dirty bits.

use super::fixed::{ONE_Q32, mul_q32, pow_q32};
use super::window::{Inside, bitmap_words, no_room};
use super::{PredictError, Predictor, Score};
use crate::units::{Gfn, Nanos, Pages};

/// Bitmaps: the span under way, the last span, the one before, and pages seen at all.
const BITMAPS: usize = 4;
/// Bits of a page's history: the last span, and twice the one before.
const CONTEXTS: usize = 4;
/// With each span old counts lose 1 / 2^this.
const AGEING_SHIFT: u32 = 3;

/// Prediction by partial matching of order 2 (Yong et al. 2013, "context based prediction"), over a page's history of
/// spans: written or not. The context is whether the page was written in each of the last two spans; what followed it
/// is counted over all pages that were ever written, and older counts fade by an eighth with each span (in 256ths,
/// rounded up: an outcome that was seen once stays possible).
///
/// A context seen seldom leaves its prediction to the next shorter one, by escape method C (Moffat 1990): with n
/// observations of d different outcomes, the shorter context weighs d/(n + d). A horizon of h spans is followed through
/// the contexts a page passes while it is not written, which is one path: P = 1 − Π(1 − p). A part of a span counts
/// in proportion.
///
/// Half a byte per page. A window costs O(words), four times that when a span ends. A page's score takes one of four
/// values: it tells pages apart only by their last two spans.
#[derive(Debug)]
pub struct Ppm<'a> {
    current: &'a mut [u64],
    newer: &'a mut [u64],
    older: &'a mut [u64],
    seen: &'a mut [u64],
    /// For each context, how often a span without and with a write followed, in 1/256.
    counts: [[u64; 2]; CONTEXTS],
    /// What each context scores, from the last [`aim`](Predictor::aim).
    scores: [Score; CONTEXTS],
    span: Nanos,
    /// When the current span began; `None` before the first window.
    began: Option<Nanos>,
    pages: u64,
    overlooked: u64,
}

impl<'a> Ppm<'a> {
    /// Words of storage for a guest of `pages`; `usize::MAX` if they cannot be counted.
    pub const fn words_needed(pages: Pages) -> usize {
        match bitmap_words(pages) {
            Some(words) => words * BITMAPS,
            None => usize::MAX,
        }
    }

    /// Nothing known yet, of a guest of `pages`; a bit of history stands for `span`, each window counting for the span in
    /// which it ends.
    ///
    /// # Errors
    /// [`PredictError::StorageTooSmall`].
    pub fn new(storage: &'a mut [u64], pages: Pages, span: Nanos) -> Result<Self, PredictError> {
        let (needed, given) = (Self::words_needed(pages), storage.len());
        let too_small = PredictError::StorageTooSmall { needed, given };
        let storage = storage.get_mut(..needed).ok_or(too_small)?;
        storage.fill(0);
        let words = needed / BITMAPS;
        let (current, rest) = storage.split_at_mut(words);
        let (newer, rest) = rest.split_at_mut(words);
        let (older, seen) = rest.split_at_mut(words);
        Ok(Self {
            current,
            newer,
            older,
            seen,
            counts: [[0; 2]; CONTEXTS],
            scores: [Score::NONE; CONTEXTS],
            span: Nanos(span.0.max(1)),
            began: None,
            pages: pages.0,
            overlooked: 0,
        })
    }

    /// Counts what followed each page's context, and moves on by one bit.
    fn end_span(&mut self) {
        for [without, with] in &mut self.counts {
            *without -= *without >> AGEING_SHIFT;
            *with -= *with >> AGEING_SHIFT;
        }
        let histories = self.older.iter_mut().zip(self.newer.iter_mut());
        for ((older, newer), (current, seen)) in histories.zip(self.current.iter_mut().zip(self.seen.iter_mut())) {
            for (context, counts) in self.counts.iter_mut().enumerate() {
                let pages = *seen & select(*newer, context & 1) & select(*older, context >> 1);
                counts[0] += u64::from((pages & !*current).count_ones()) << 8;
                counts[1] += u64::from((pages & *current).count_ones()) << 8;
            }
            *seen |= *current;
            *older = *newer;
            *newer = *current;
            *current = 0;
        }
    }

    /// The probability of a write in the span after this context, in 2⁻³²: order 2, escaping to 1, to 0, to one half.
    fn probability(&self, context: usize) -> u64 {
        let [a, b, c, d] = self.counts;
        let sum = |x: [u64; 2], y: [u64; 2]| [x[0] + y[0], x[1] + y[1]];
        // Contexts by (older, newer): 0 and 2 end in a span without a write.
        let shorter = if context & 1 == 0 { sum(a, c) } else { sum(b, d) };
        let order_0 = blend(ONE_Q32 / 2, sum(sum(a, b), sum(c, d)));
        blend(blend(order_0, shorter), self.counts[context])
    }
}

/// The pages of a word whose bit is `bit`.
const fn select(word: u64, bit: usize) -> u64 {
    if bit == 1 { word } else { !word }
}

/// Escape method C: (with + d·shorter) / (n + d), d the number of different outcomes seen.
fn blend(shorter: u64, [without, with]: [u64; 2]) -> u64 {
    let different = u128::from(without > 0) + u128::from(with > 0);
    let total = u128::from(without) + u128::from(with) + (different << 8);
    match total {
        0 => shorter,
        // At most 2^32 as both terms above are at most 2^32 times their part below.
        _ => (((u128::from(with) << 32) + (different << 8) * u128::from(shorter)) / total) as u64,
    }
}

impl Predictor for Ppm<'_> {
    fn on_window(&mut self, written: &[u64], end: Nanos) -> Result<(), PredictError> {
        let began = *self.began.get_or_insert(end);
        let passed = end.saturating_sub(began).0 / self.span.0;
        // After three empty spans all histories and most counts are those of a guest that does nothing.
        for _ in 0..passed.min(4) {
            self.end_span();
        }
        self.began = Some(Nanos(began.0 + passed * self.span.0));
        let inside = Inside::of(written, self.pages);
        for (index, word) in inside.words() {
            self.current[index] |= word;
        }
        no_room(inside.outside, &mut self.overlooked)
    }

    fn aim(&mut self, _now: Nanos, horizon: Nanos) {
        let (spans, part) = (horizon.0 / self.span.0, horizon.0 % self.span.0);
        let part_q32 = ((u128::from(part) << 32) / u128::from(self.span.0)) as u64;
        let none_in = |context: usize| ONE_Q32 - self.probability(context);
        // The share of a span that is left over counts as that share of the span's probability.
        let none_in_part = |context: usize| ONE_Q32 - mul_q32(self.probability(context), part_q32);
        let mut scores = [Score::NONE; CONTEXTS];
        for (context, score) in scores.iter_mut().enumerate() {
            let path = [context, (context & 1) << 1, 0];
            let whole = (0..spans.min(2) as usize).fold(ONE_Q32, |none, step| mul_q32(none, none_in(path[step])));
            let rest = pow_q32(none_in(0), spans.saturating_sub(2));
            let none = mul_q32(mul_q32(whole, rest), none_in_part(path[spans.min(2) as usize]));
            *score = Score(((ONE_Q32 - none) >> 8) as u32);
        }
        self.scores = scores;
    }

    fn score(&self, gfn: Gfn) -> Score {
        if gfn.0 >= self.pages {
            return Score::NONE;
        }
        let (index, bit) = ((gfn.0 / 64) as usize, gfn.0 % 64);
        if self.seen[index] >> bit & 1 == 0 {
            return Score::NONE;
        }
        let context = (self.older[index] >> bit & 1) << 1 | (self.newer[index] >> bit & 1);
        self.scores[context as usize]
    }

    fn overlooked(&self) -> Pages {
        Pages(self.overlooked)
    }
}
