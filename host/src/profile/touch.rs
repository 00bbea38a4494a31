//! In which order pages were written for the first time, and how far two recordings agree about it.

use dunlin_core::units::{Gfn, Nanos};

use crate::report::{FirstTouchReport, TouchPoint};

/// Most points of the course.
const POINTS: usize = 256;

/// The pages of a recording by their first write. 4 bytes a page written, and as much again for a source of windows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirstTouch {
    /// Frame numbers: tables end at 2^32.
    order: Vec<u32>,
    /// Whether pages of one window came in no known order, and where in the order each window with new pages after the first begins.
    by_window: bool,
    groups: Vec<u32>,
    /// Every 2^shift-th page of the order, and when it came.
    course: Vec<Nanos>,
    shift: u32,
}

impl FirstTouch {
    /// No page yet; by a source that tells which came first, or only in which window.
    pub(super) fn new(by_window: bool) -> Self {
        Self {
            by_window,
            ..Self::default()
        }
    }

    /// A page comes for the first time. O(1).
    #[inline]
    pub(super) fn on_first(&mut self, gfn: Gfn, at: Nanos) {
        if self.order.len().is_multiple_of(1 << self.shift) {
            self.mark(at);
        }
        // A table of 2^32 pages is refused before.
        self.order.push(gfn.0 as u32);
    }

    #[cold]
    fn mark(&mut self, at: Nanos) {
        if self.course.len() == POINTS {
            self.shift += 1;
            self.course = self.course.iter().copied().step_by(2).collect();
            if !self.order.len().is_multiple_of(1 << self.shift) {
                return;
            }
        }
        self.course.push(at);
    }

    /// What comes from now on came later than all before; said after each window by a source of windows.
    pub(super) fn end_window(&mut self) {
        let next = self.order.len() as u32;
        if self.groups.last() != Some(&next) {
            self.groups.push(next);
        }
    }

    /// The pages, first to last.
    pub fn pages(&self) -> impl ExactSizeIterator<Item = Gfn> + '_ {
        self.order.iter().map(|&gfn| Gfn(gfn.into()))
    }

    /// Whether pages of one window came in no known order.
    pub const fn is_by_window(&self) -> bool {
        self.by_window
    }

    /// When the page at this place of the order had come, at the latest.
    fn known_by(&self, place: usize, end: Nanos) -> Nanos {
        let mark = place.div_ceil(1 << self.shift);
        self.course.get(mark).copied().unwrap_or(end)
    }

    /// As reported, at `end`.
    pub(super) fn report(&self, end: Nanos) -> FirstTouchReport {
        let pages = self.order.len();
        let when = |place: Option<usize>| place.map(|place| self.known_by(place, end).as_micros());
        let mut course: Vec<TouchPoint> = self
            .course
            .iter()
            .enumerate()
            .map(|(index, at)| TouchPoint {
                at_us: at.as_micros(),
                pages: ((index as u64) << self.shift) + 1,
            })
            .collect();
        if pages > 0 {
            course.push(TouchPoint {
                at_us: end.as_micros(),
                pages: pages as u64,
            });
        }
        FirstTouchReport {
            pages: pages as u64,
            half_us: when(pages.div_ceil(2).checked_sub(1)),
            nine_tenths_us: when((pages * 9).div_ceil(10).checked_sub(1)),
            course,
        }
    }

    /// The rank of each place: its own, or that of its window.
    fn ranks(&self) -> Vec<u32> {
        if !self.by_window {
            return (0..self.order.len() as u32).collect();
        }
        let mut ranks = vec![0; self.order.len()];
        let (mut rank, mut groups) = (0, self.groups.iter().peekable());
        for (place, of) in ranks.iter_mut().enumerate() {
            while groups.next_if(|start| **start as usize <= place).is_some() {
                rank += 1;
            }
            *of = rank;
        }
        ranks
    }
}

/// How far two recordings agree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreement {
    /// Pages that both have, one or the other has.
    pub common: u64,
    /// Pages that at least one of them has.
    pub either: u64,
    /// Pairs of common pages that come in the same order in both; pairs that came together in one of them count for nothing.
    pub concordant: u64,
    /// Pairs in opposite orders.
    pub discordant: u64,
}

impl Agreement {
    /// Of two orders. O(n log n) in time and 12 bytes a page of memory.
    ///
    /// The pairs are counted as in Knight, "A computer method for calculating Kendall's tau with ungrouped data" (JASA 61, 1966).
    pub fn between(one: &FirstTouch, other: &FirstTouch) -> Self {
        let (ranks, others) = (one.ranks(), other.ranks());
        let highest = other.order.iter().max().map_or(0, |&gfn| gfn as usize + 1);
        // The rank plus one; 0 for a page that is not there.
        let mut place = vec![0u32; highest];
        for (gfn, rank) in other.order.iter().zip(&others) {
            place[*gfn as usize] = rank + 1;
        }
        let found = one.order.iter().zip(&ranks).filter_map(|(gfn, rank)| {
            let there = place.get(*gfn as usize).copied().unwrap_or(0);
            Some((*rank, there.checked_sub(1)?))
        });
        let mut pairs: Vec<(u32, u32)> = found.collect();
        drop(place);
        pairs.sort_unstable();
        let common = pairs.len() as u64;
        let tied_in_one = ties(pairs.iter().map(|pair| pair.0));
        let tied_in_both = ties(pairs.iter().copied());
        let mut seconds: Vec<u32> = pairs.into_iter().map(|pair| pair.1).collect();
        let discordant = inversions(&mut seconds);
        let tied_in_other = ties(seconds.iter().copied());
        let all = pairs_of(common);
        Self {
            common,
            either: (one.order.len() + other.order.len()) as u64 - common,
            concordant: all + tied_in_both - tied_in_one - tied_in_other - discordant,
            discordant,
        }
    }

    /// Jaccard's index of the two sets of pages in thousandths; `None` for two empty ones.
    pub fn jaccard_milli(&self) -> Option<u64> {
        milli(self.common, self.either)
    }

    /// Of the pairs that both put in an order, those that they put in the same: 1000 is the same order, 500 chance, 0 the reverse;
    /// Kendall's τ is 2 · this − 1. `None` without a pair.
    pub fn order_milli(&self) -> Option<u64> {
        milli(self.concordant, self.concordant + self.discordant)
    }
}

fn milli(part: u64, whole: u64) -> Option<u64> {
    let milli = (u128::from(part) * 1000).checked_div(u128::from(whole))?;
    // At most 1000.
    Some(milli as u64)
}

const fn pairs_of(count: u64) -> u64 {
    count * count.saturating_sub(1) / 2
}

/// Pairs of equal values among sorted ones.
fn ties<T: PartialEq>(sorted: impl Iterator<Item = T>) -> u64 {
    let (mut ties, mut run, mut before) = (0, 0, None);
    for value in sorted {
        run = if before.as_ref() == Some(&value) { run + 1 } else { 0 };
        ties += run;
        before = Some(value);
    }
    ties
}

/// Sorts, and counts the pairs that were in the wrong order. O(n log n).
fn inversions(values: &mut [u32]) -> u64 {
    let mut space = values.to_vec();
    let mut count = 0;
    let mut width = 1;
    while width < values.len() {
        for (from, to) in values.chunks(2 * width).zip(space.chunks_mut(2 * width)) {
            let (left, right) = from.split_at(width.min(from.len()));
            count += merge(left, right, to);
        }
        values.copy_from_slice(&space);
        width *= 2;
    }
    count
}

fn merge(left: &[u32], right: &[u32], to: &mut [u32]) -> u64 {
    let (mut i, mut j, mut count) = (0, 0, 0);
    for place in to {
        if j == right.len() || (i < left.len() && left[i] <= right[j]) {
            *place = left[i];
            i += 1;
        } else {
            *place = right[j];
            j += 1;
            count += (left.len() - i) as u64;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::btree_map::Entry;
    use std::collections::{BTreeMap, BTreeSet};

    /// Distinct pages in their order, with ends of windows where asked for.
    fn touched(pages: &[u32], ends: &BTreeSet<usize>) -> (FirstTouch, BTreeMap<u32, usize>) {
        let (mut touch, mut ranks, mut window) = (FirstTouch::new(!ends.is_empty()), BTreeMap::new(), 0);
        for (place, &page) in pages.iter().enumerate() {
            if ends.contains(&place) {
                touch.end_window();
                window += 1;
            }
            if let Entry::Vacant(rank) = ranks.entry(page) {
                rank.insert(if ends.is_empty() { place } else { window });
                touch.on_first(Gfn(page.into()), Nanos(place as u64));
            }
        }
        (touch, ranks)
    }

    fn ends() -> impl Strategy<Value = BTreeSet<usize>> {
        prop_oneof![
            Just(BTreeSet::new()),
            vec(0..40usize, 1..9).prop_map(|ends| ends.into_iter().collect())
        ]
    }

    proptest! {
        #[test]
        fn agreement_is_that_of_all_pairs(
            one in vec(0..30u32, 0..40), other in vec(0..30u32, 0..40), ends_of_one in ends(), ends_of_other in ends(),
        ) {
            let (one, one_ranks) = touched(&one, &ends_of_one);
            let (other, other_ranks) = touched(&other, &ends_of_other);
            let common: Vec<u32> = one_ranks.keys().copied().filter(|page| other_ranks.contains_key(page)).collect();
            let (mut concordant, mut discordant) = (0, 0);
            for (index, a) in common.iter().enumerate() {
                for b in &common[..index] {
                    match (one_ranks[a].cmp(&one_ranks[b]) as i8) * (other_ranks[a].cmp(&other_ranks[b]) as i8) {
                        1 => concordant += 1,
                        -1 => discordant += 1,
                        _ => {}
                    }
                }
            }
            let either: BTreeSet<_> = one_ranks.keys().chain(other_ranks.keys()).collect();
            let expected = Agreement {
                common: common.len() as u64, either: either.len() as u64, concordant, discordant,
            };
            prop_assert_eq!(Agreement::between(&one, &other), expected);
        }

        #[test]
        fn the_course_is_bounded_and_true(count in 1..3_000u64) {
            let mut touch = FirstTouch::default();
            for page in 0..count {
                touch.on_first(Gfn(page), Nanos::from_micros(page));
            }
            let report = touch.report(Nanos::from_micros(count));
            prop_assert!(report.course.len() <= POINTS + 1);
            prop_assert!(report.course.iter().all(|point| point.pages == (point.at_us + 1).min(count)));
            let (half, error) = (count.div_ceil(2) - 1, 1 << touch.shift);
            prop_assert!((half..half + error).contains(&report.half_us.unwrap()), "{:?} {half}", report.half_us);
        }
    }

    #[test]
    fn the_same_the_reverse_and_nothing() {
        let order = |pages: &[u32]| touched(pages, &BTreeSet::new()).0;
        let (up, down) = (order(&[1, 2, 3, 9]), order(&[9, 3, 2, 1]));
        assert_eq!(Agreement::between(&up, &up).order_milli(), Some(1000));
        assert_eq!(Agreement::between(&up, &down).order_milli(), Some(0));
        let apart = Agreement::between(&up, &order(&[4, 3]));
        assert_eq!((apart.jaccard_milli(), apart.order_milli()), (Some(200), None));
        let none = Agreement::between(&order(&[]), &order(&[]));
        assert_eq!((none.jaccard_milli(), none.order_milli()), (None, None));
        assert_eq!(order(&[]).report(Nanos(5)).half_us, None);
    }
}
