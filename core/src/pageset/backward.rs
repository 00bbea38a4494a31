//! Looking for pages downwards.

use super::{PageSet, WORD_BITS, page_at, word_of};
use crate::pageset::Run;
use crate::units::{Gfn, Pages};

impl PageSet<'_> {
    /// The last run of pages below `end`, cut to at most `max` pages, the upper ones of it. `None` if there is none, or
    /// `max` is 0. What of the run is at or above `end` does not count.
    ///
    /// O(1) beside the length of the run, and one read per 262 144 empty pages skipped.
    pub fn previous_run(&self, end: Gfn, max: Pages) -> Option<Run> {
        if max == Pages::ZERO {
            return None;
        }
        let last = self.last_before(end.0)?;
        let count = self.ones_down_from(last, max.0).min(max.0);
        Some(Run::new(Gfn(last + 1 - count), Pages(count)))
    }

    /// The last page of the set below `end`.
    fn last_before(&self, end: u64) -> Option<u64> {
        let last = end.min(self.capacity).checked_sub(1)?;
        let index = word_of(last);
        let here = self.bits[index] & up_to(last);
        if here != 0 {
            return Some(page_at(index, here.ilog2()));
        }
        let index = self.occupied_before(index)?;
        Some(page_at(index, self.bits[index].ilog2()))
    }

    /// The last bitmap word before `index` that is not zero.
    fn occupied_before(&self, index: usize) -> Option<usize> {
        let last = index.checked_sub(1)?;
        let here = self.low[last / WORD_BITS] & up_to(last as u64);
        if here != 0 {
            return Some(last / WORD_BITS * WORD_BITS + here.ilog2() as usize);
        }
        let low_index = last_occupied(self.high, last / WORD_BITS)?;
        Some(low_index * WORD_BITS + self.low[low_index].ilog2() as usize)
    }

    /// How many pages of the set there are from `last`, which is one, downwards without a gap; not counted much beyond
    /// `limit`.
    fn ones_down_from(&self, last: u64, limit: u64) -> u64 {
        let mut index = word_of(last);
        let mut rest = self.bits[index] << (63 - last % 64);
        let mut room = last % 64 + 1;
        let mut count = 0;
        loop {
            let ones = u64::from(rest.leading_ones());
            count += ones;
            if ones < room || count >= limit || index == 0 {
                return count;
            }
            index -= 1;
            (rest, room) = (self.bits[index], 64);
        }
    }
}

/// The bits of a word up to that of page `last`.
const fn up_to(last: u64) -> u64 {
    u64::MAX >> (63 - last % 64)
}

/// The last set bit before `end` in a bit string.
fn last_occupied(bits: &[u64], end: usize) -> Option<usize> {
    let last = end.checked_sub(1)?;
    let here = bits[last / WORD_BITS] & up_to(last as u64);
    if here != 0 {
        return Some(last / WORD_BITS * WORD_BITS + here.ilog2() as usize);
    }
    let (index, word) = bits[..last / WORD_BITS]
        .iter()
        .enumerate()
        .rfind(|&(_, &word)| word != 0)?;
    Some(index * WORD_BITS + word.ilog2() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pageset::words_needed;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    /// The same, page by page.
    fn by_steps(set: &PageSet<'_>, end: u64, max: u64) -> Option<Run> {
        let last = (0..end.min(set.capacity().0))
            .rev()
            .find(|&gfn| set.contains(Gfn(gfn)))?;
        let count = (0..=last).rev().take_while(|&gfn| set.contains(Gfn(gfn))).count() as u64;
        let count = count.min(max);
        (count > 0).then(|| Run::new(Gfn(last + 1 - count), Pages(count)))
    }

    #[test]
    fn from_both_ends_of_a_large_set() {
        let pages = Pages(600_000);
        let mut storage = vec![0; words_needed(pages)];
        let mut set = PageSet::new(&mut storage, pages).expect("storage fits");
        assert_eq!(set.previous_run(Gfn(u64::MAX), Pages(9)), None);
        set.insert_run(Run::new(Gfn(3), Pages(200))).expect("inside");
        assert_eq!(
            set.previous_run(Gfn(u64::MAX), Pages(9)),
            Some(Run::new(Gfn(194), Pages(9)))
        );
        assert_eq!(
            set.previous_run(Gfn(u64::MAX), Pages(u64::MAX)),
            Some(Run::new(Gfn(3), Pages(200)))
        );
        assert_eq!(
            set.previous_run(Gfn(100), Pages(u64::MAX)),
            Some(Run::new(Gfn(3), Pages(97)))
        );
        assert_eq!(set.previous_run(Gfn(3), Pages(9)), None);
        assert_eq!(set.previous_run(Gfn(0), Pages(9)), None);
        assert_eq!(set.previous_run(Gfn(9), Pages(0)), None);
        set.fill();
        assert_eq!(
            set.previous_run(Gfn(u64::MAX), Pages(u64::MAX)),
            Some(Run::new(Gfn(0), pages))
        );
    }

    proptest! {
        #[test]
        fn it_is_what_going_page_by_page_finds(
            capacity in prop_oneof![0..200u64, 4000..4200u64, Just(262_144 + 77)],
            runs in vec((any::<u64>(), prop_oneof![1..4u64, 60..200u64]), 0..12),
            asked in vec((any::<u64>(), prop_oneof![0..5u64, 60..200u64, Just(u64::MAX)]), 1..8),
        ) {
            let mut storage = vec![0; words_needed(Pages(capacity))];
            let mut set = PageSet::new(&mut storage, Pages(capacity)).expect("storage fits");
            for &(first, count) in &runs {
                let first = first % (capacity + 1);
                let run = Run::new(Gfn(first), Pages(count.min(capacity - first)));
                set.insert_run(run).expect("inside");
            }
            let mut ends: Vec<_> = asked.iter().map(|&(end, max)| (end % (capacity + 9), max)).collect();
            ends.extend(runs.iter().map(|&(first, count)| (first % (capacity + 1) + count / 2, 70)));
            for (end, max) in ends {
                prop_assert_eq!(set.previous_run(Gfn(end), Pages(max)), by_steps(&set, end, max));
            }
        }
    }
}
