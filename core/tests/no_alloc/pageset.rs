use crate::{Numbers, format};
use dunlin_core::pageset::{PageSet, Run, words_needed};
use dunlin_core::units::{Gfn, Pages};
use std::hint::black_box;

const PAGES: Pages = Pages(100_000);
const WORDS: usize = words_needed(PAGES);

pub(crate) fn drive(scratch: &mut [u64]) {
    let (dirty_words, missing_words) = scratch.split_at_mut(WORDS);
    let mut dirty = PageSet::new(dirty_words, PAGES).expect("storage fits");
    let mut missing = PageSet::new(missing_words, PAGES).expect("storage fits");
    let mut numbers = Numbers(1);
    for _ in 0..2000 {
        let page = Gfn(numbers.next() % PAGES.0);
        let run = Run::new(page, Pages(numbers.next() % 300));
        match numbers.next() % 8 {
            0 | 1 => drop(dirty.insert_run(run)),
            2 => drop(dirty.insert(page)),
            3 => drop(dirty.remove(page)),
            4 => drop(dirty.remove_run(run)),
            5 => drop(dirty.union_words((page.0 / 64) as usize, &[numbers.next(), 0, u64::MAX])),
            6 => drop(missing.insert_run(run)),
            _ => drop(black_box((
                dirty.contains(page),
                dirty.count_run(run),
                dirty.next_run(page, run.count),
            ))),
        }
    }
    let counted = dirty.runs().fold(0, |pages, run| pages + run.count.0);
    assert_eq!(Pages(counted), dirty.len());
    dirty.union(&missing).expect("same capacity");
    dirty.subtract(&missing);
    assert!(dirty.is_disjoint(&missing));
    missing.fill();
    missing.intersect(&dirty);
    assert_eq!(missing.words(), dirty.words());
    dirty.clear();
    assert!(dirty.is_empty());

    format(dirty.insert(Gfn(u64::MAX)).expect_err("outside"));
    format(PageSet::new(&mut [], PAGES).expect_err("no storage"));
}
