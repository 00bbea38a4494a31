use crate::{Numbers, format};
use dunlin_core::order::filter::{HoldBack, hold_back, scratch_needed};
use dunlin_core::pageset::{PageSet, words_needed};
use dunlin_core::predict::{Never, Predictor, Score};
use dunlin_core::units::{Gfn, Nanos, Pages};
use std::hint::black_box;

const PAGES: Pages = Pages(10_000);
const WORDS: usize = words_needed(PAGES);

/// Scores that differ and repeat.
struct Remainder;

impl Predictor for Remainder {
    fn aim(&mut self, _now: Nanos, _horizon: Nanos) {}

    fn score(&self, gfn: Gfn) -> Score {
        Score((gfn.0 * 7919 % 1000) as u32 * 10_000)
    }
}

pub(crate) fn drive(scratch: &mut [u64]) {
    let (dirty_words, held_words) = scratch.split_at_mut(WORDS);
    let mut dirty = PageSet::new(dirty_words, PAGES).expect("storage fits");
    let mut held = PageSet::new(held_words, PAGES).expect("storage fits");
    let mut keys = [0; scratch_needed(PAGES)];
    let mut numbers = Numbers(1);
    for round in 0..10 {
        for _ in 0..1000 * round {
            _ = black_box(dirty.insert(Gfn(numbers.next() % PAGES.0)));
        }
        let half = hold_back(&dirty, &Remainder, HoldBack::Half, &mut keys, &mut held);
        assert_eq!(half, Ok(Pages(dirty.len().0 / 2)));
        let above = hold_back(&dirty, &Remainder, HoldBack::Above(Score::EVEN), &mut [], &mut held);
        assert!(above.is_ok_and(|held| held < dirty.len() || dirty.is_empty()));
    }
    format(hold_back(&dirty, &Never, HoldBack::Half, &mut [], &mut held).expect_err("no scratch"));
}
