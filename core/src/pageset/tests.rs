//! Every operation against `BTreeSet`, and the exactness of the summaries after each.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec;
use std::vec::Vec;

/// One change to a set, with pages that may lie outside it.
#[derive(Clone, Debug)]
enum Change {
    Insert(u64),
    Remove(u64),
    InsertRun(Run),
    RemoveRun(Run),
    UnionWords(usize, Vec<u64>),
    Union(Vec<u64>),
    Subtract(Vec<u64>),
    Intersect(Vec<u64>),
    Clear,
    Fill,
}

/// Capacities around the sizes where a level gains a word.
fn capacity() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..200u64,
        4000..4200u64,
        Just(4096),
        Just(64 * 64 * 64),
        262_100..262_500u64
    ]
}

fn page(capacity: u64) -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..capacity.max(1), 1 => capacity..capacity + 130, 1 => Just(u64::MAX)]
}

fn run(capacity: u64) -> impl Strategy<Value = Run> {
    let count = prop_oneof![4 => 0..200u64, 2 => 0..=capacity, 1 => Just(u64::MAX)];
    (page(capacity), count).prop_map(|(first, count)| Run::new(Gfn(first), Pages(count)))
}

fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(u64::MAX),
        any::<u64>(),
        (0..64u32).prop_map(|bit| 1 << bit)
    ]
}

fn change(capacity: u64) -> impl Strategy<Value = Change> {
    let words = capacity.div_ceil(64) as usize;
    let pages = move || vec(page(capacity), 0..40);
    prop_oneof![
        6 => page(capacity).prop_map(Change::Insert),
        4 => page(capacity).prop_map(Change::Remove),
        6 => run(capacity).prop_map(Change::InsertRun),
        6 => run(capacity).prop_map(Change::RemoveRun),
        4 => (0..words + 2, vec(word(), 0..70)).prop_map(|(first, words)| Change::UnionWords(first, words)),
        1 => Just(Change::UnionWords(usize::MAX, [0, 1].into())),
        3 => pages().prop_map(Change::Union),
        3 => pages().prop_map(Change::Subtract),
        2 => pages().prop_map(Change::Intersect),
        1 => Just(Change::Clear),
        1 => Just(Change::Fill),
    ]
}

fn changes() -> impl Strategy<Value = (u64, Vec<Change>)> {
    capacity().prop_flat_map(|capacity| (Just(capacity), vec(change(capacity), 1..12)))
}

/// Pages of a run without overflow.
fn pages_of(run: Run) -> core::ops::Range<u64> {
    run.first.0..run.first.0.saturating_add(run.count.0)
}

fn refused(gfn: u64, capacity: u64) -> PageSetError {
    PageSetError::OutOfRange {
        gfn: Gfn(gfn),
        capacity: Pages(capacity),
    }
}

/// What the page numbers a change puts in do to a set and to its model, and what either reports.
fn put_in(model: &mut BTreeSet<u64>, capacity: u64, pages: impl Iterator<Item = u64>) -> Result<Pages, PageSetError> {
    let before = model.len();
    let mut after = model.clone();
    for page in pages {
        if page >= capacity {
            return Err(refused(page, capacity));
        }
        after.insert(page);
    }
    *model = after;
    Ok(Pages((model.len() - before) as u64))
}

fn keep(model: &mut BTreeSet<u64>, keep: impl Fn(u64) -> bool) -> Pages {
    let before = model.len();
    model.retain(|&page| keep(page));
    Pages((before - model.len()) as u64)
}

/// Applies a change to both and compares what they report.
fn apply(set: &mut PageSet<'_>, model: &mut BTreeSet<u64>, change: &Change) -> Result<(), TestCaseError> {
    let capacity = set.capacity().0;
    match change {
        Change::Insert(page) => {
            let expected = put_in(model, capacity, [*page].into_iter()).map(|added| added == Pages(1));
            prop_assert_eq!(set.insert(Gfn(*page)), expected);
        }
        Change::Remove(page) => prop_assert_eq!(set.remove(Gfn(*page)), model.remove(page)),
        Change::InsertRun(run) => {
            prop_assert_eq!(set.insert_run(*run), insert_run_in_model(model, capacity, *run));
        }
        Change::RemoveRun(run) => {
            let expected = keep(model, |page| !pages_of(*run).contains(&page));
            prop_assert_eq!(set.remove_run(*run), expected);
        }
        Change::UnionWords(first, words) => {
            let pages = words.iter().enumerate().flat_map(|(offset, &word)| {
                let start = ((first.saturating_add(offset)) as u64).saturating_mul(64);
                (0..64)
                    .filter(move |bit| word >> bit & 1 == 1)
                    .map(move |bit| start.saturating_add(bit))
            });
            prop_assert_eq!(set.union_words(*first, words), put_in(model, capacity, pages));
        }
        Change::Union(pages) => {
            let (mut storage, other_model) = other(pages);
            let expected = put_in(model, capacity, other_model.iter().copied());
            prop_assert_eq!(set.union(&set_of(&mut storage, &other_model)), expected);
        }
        Change::Subtract(pages) => {
            let (mut storage, other_model) = other(pages);
            let apart = other_model.is_disjoint(model);
            prop_assert_eq!(set.is_disjoint(&set_of(&mut storage, &other_model)), apart);
            let expected = keep(model, |page| !other_model.contains(&page));
            prop_assert_eq!(set.subtract(&set_of(&mut storage, &other_model)), expected);
        }
        Change::Intersect(pages) => {
            let (mut storage, other_model) = other(pages);
            let expected = keep(model, |page| other_model.contains(&page));
            prop_assert_eq!(set.intersect(&set_of(&mut storage, &other_model)), expected);
        }
        Change::Clear => {
            set.clear();
            model.clear();
        }
        Change::Fill => {
            set.fill();
            *model = (0..capacity).collect();
        }
    }
    Ok(())
}

/// `put_in` for a run, which may have far more pages than a model can list.
fn insert_run_in_model(model: &mut BTreeSet<u64>, capacity: u64, run: Run) -> Result<Pages, PageSetError> {
    let pages = pages_of(run);
    if run.count == Pages::ZERO {
        return Ok(Pages::ZERO);
    }
    if pages.start >= capacity || pages.end > capacity {
        return Err(refused(pages.start.max(capacity), capacity));
    }
    put_in(model, capacity, pages)
}

/// Storage for, and model of, a second set just large enough for its pages, so that capacities differ.
fn other(pages: &[u64]) -> (Vec<u64>, BTreeSet<u64>) {
    let model: BTreeSet<u64> = pages.iter().copied().filter(|&page| page < 1 << 20).collect();
    let capacity = model.last().map_or(0, |&last| last + 1);
    (vec![0; words_needed(Pages(capacity))], model)
}

fn set_of<'a>(storage: &'a mut [u64], model: &BTreeSet<u64>) -> PageSet<'a> {
    let mut set = PageSet::new(storage, Pages(model.last().map_or(0, |&last| last + 1))).expect("storage fits");
    for &page in model {
        set.insert(Gfn(page)).expect("in range");
    }
    set
}

/// The runs of a model, each as long as it can be.
fn runs_of(model: &BTreeSet<u64>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &page in model {
        match runs.last_mut() {
            Some(run) if run.end() == Gfn(page) => run.count.0 += 1,
            _ => runs.push(Run::new(Gfn(page), Pages(1))),
        }
    }
    runs
}

fn check_summaries(set: &PageSet<'_>) {
    for (below, above) in [(&*set.bits, &*set.low), (&*set.low, &*set.high)] {
        for (index, &word) in below.iter().enumerate() {
            assert_eq!(
                above[index / 64] >> (index % 64) & 1 == 1,
                word != 0,
                "summary of word {index}"
            );
        }
        let spare = above.len() * 64 - below.len();
        assert!(
            above.last().is_none_or(|&last| last.leading_zeros() as usize >= spare),
            "summary bit of no word"
        );
    }
}

proptest! {
    #[test]
    fn behaves_like_a_tree_set((capacity, changes) in changes()) {
        let mut storage = vec![u64::MAX; words_needed(Pages(capacity))];
        let mut set = PageSet::new(&mut storage, Pages(capacity)).expect("storage fits");
        let mut model = BTreeSet::new();
        for change in &changes {
            apply(&mut set, &mut model, change)?;
            check_summaries(&set);
            prop_assert_eq!(set.len(), Pages(model.len() as u64));
            prop_assert_eq!(set.is_empty(), model.is_empty());
            prop_assert_eq!(set.runs().collect::<Vec<_>>(), runs_of(&model));
        }
    }

    #[test]
    fn answers_like_a_tree_set(
        (capacity, changes) in changes(),
        questions in vec((0..300_000u64, 0..500u64), 20),
        edges in vec(prop_oneof![Just(u64::MAX), Just(0u64), 0..300_000u64], 4),
    ) {
        let mut storage = vec![0; words_needed(Pages(capacity)) + 3];
        let mut set = PageSet::new(&mut storage, Pages(capacity)).expect("storage fits");
        let mut model = BTreeSet::new();
        for change in &changes {
            apply(&mut set, &mut model, change)?;
        }
        let questions = questions.into_iter().map(|(from, max)| (from % (capacity + 3), max));
        for (from, max) in questions.chain(edges.into_iter().map(|edge| (edge, u64::MAX))) {
            let run = Run::new(Gfn(from), Pages(max));
            prop_assert_eq!(set.contains(Gfn(from)), model.contains(&from));
            prop_assert_eq!(set.count_run(run), Pages(model.range(pages_of(run)).count() as u64));
            let first = model.range(from..).next().copied().filter(|_| max > 0);
            let expected = first.map(|first| {
                let longest = (first..).take_while(|page| model.contains(page)).count() as u64;
                Run::new(Gfn(first), Pages(longest.min(max)))
            });
            prop_assert_eq!(set.next_run(Gfn(from), Pages(max)), expected);
        }
        let from_words: BTreeSet<u64> = set.words().iter().enumerate()
            .flat_map(|(index, &word)| (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index as u64 * 64 + bit))
            .collect();
        prop_assert_eq!(from_words, model);
    }
}

#[test]
fn too_little_storage_is_named() {
    let needed = words_needed(Pages(5000));
    assert_eq!(needed, 79 + 2 + 1);
    let mut storage = vec![0; needed - 1];
    let error = PageSet::new(&mut storage, Pages(5000)).expect_err("one word short");
    assert_eq!(
        error,
        PageSetError::StorageTooSmall {
            needed,
            given: needed - 1
        }
    );
    let error = PageSet::new(&mut storage, Pages(u64::MAX)).expect_err("far too large");
    assert!(matches!(error, PageSetError::StorageTooSmall { .. }), "{error}");
}

#[test]
fn no_pages_need_no_words() {
    assert_eq!(words_needed(Pages(0)), 0);
    let mut set = PageSet::new(&mut [], Pages(0)).expect("nothing to store");
    set.fill();
    set.clear();
    assert_eq!(set.runs().next(), None);
    assert_eq!(set.insert(Gfn(0)), Err(refused(0, 0)));
}

#[test]
fn storage_stays_below_a_thousandth_of_guest_memory() {
    let guest = Pages(64 << 18);
    assert!(words_needed(guest) as u64 * 8 * 1000 < guest.bytes().0);
}
