//! How unevenly writes fall on pages, from a bounded sample of the pages.

/// One sampled page and how often it was written. 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HeatSlot {
    /// The page's number plus one; 0 in an empty slot.
    page: u64,
    writes: u64,
}

/// The most bits of a hash that can be asked to be zero.
const BITS_MAX: u32 = u64::BITS - 1;

/// Counts the writes of each page in a sample of the pages, as large as the caller's slots allow.
///
/// A page is in the sample if the lowest k bits of its hash are zero. k starts at 0, so a small guest is counted
/// completely; when three quarters of the slots are taken k grows by one and half of the pages go. A page that stays has
/// been counted from its first write, so the counts are exact, and the distribution over the sample stands for
/// that over all pages: spatial hashed sampling, as SHARDS does for miss-ratio curves (Waldspurger et al., FAST 2015).
/// The fewer pages make up most writes, the more chance decides whether the sample has them: with a sample of n pages the
/// share of the hottest tenth rests on n/10 pages.
#[derive(Debug)]
pub(super) struct Heat<'a> {
    slots: &'a mut [HeatSlot],
    /// Slots taken.
    pages: usize,
    /// Writes of the pages in the sample.
    writes: u64,
    /// k.
    bits: u32,
}

impl<'a> Heat<'a> {
    /// Nothing counted. The slots are overwritten.
    pub(super) fn new(slots: &'a mut [HeatSlot]) -> Self {
        slots.fill(HeatSlot::default());
        Self {
            slots,
            pages: 0,
            writes: 0,
            bits: 0,
        }
    }

    /// Counts a write. O(1) on average, a few neighbouring slots; O(slots) when the sample is halved, at most 63 times.
    pub(super) fn on_write(&mut self, gfn: u64) {
        let Some(page) = gfn.checked_add(1) else {
            return;
        };
        if !self.is_sampled(page) || self.slots.is_empty() {
            return;
        }
        let index = self.find(page);
        if self.slots[index].page == 0 {
            if (self.pages + 1) * 4 > self.slots.len() * 3 {
                if self.bits == BITS_MAX {
                    return;
                }
                self.halve();
                return self.on_write(gfn);
            }
            self.pages += 1;
            self.slots[index].page = page;
        }
        self.slots[index].writes += 1;
        self.writes += 1;
    }

    /// Pages in the sample.
    pub(super) const fn pages(&self) -> usize {
        self.pages
    }

    /// The share of the sample's writes that fall on its hottest tenth, as tenths of writes: (10 · hot, 10 · all). If a tenth
    /// is no whole number of pages, the next hottest page counts with the rest of it. O(64 · slots).
    pub(super) fn hottest_tenth(&self) -> (u128, u128) {
        let (whole, tenths) = (self.pages / 10, (self.pages % 10) as u128);
        // The hottest `whole` + 1 pages are those of more than `edge` writes, and some of exactly as many.
        let edge = self.nth_hottest(whole);
        let above = self.written().filter(|&writes| writes > edge);
        let (count, sum) = above.fold((0, 0), |(count, sum), writes| (count + 1, sum + u128::from(writes)));
        let edge = u128::from(edge);
        let hot = 10 * (sum + (whole - count) as u128 * edge) + tenths * edge;
        (hot, 10 * u128::from(self.writes))
    }

    /// The writes of the page that `rank` pages are hotter than or as hot as, found by bisection.
    fn nth_hottest(&self, rank: usize) -> u64 {
        // More than `rank` pages have at least `low` writes, and not so many at least `high`.
        let (mut low, mut high) = (0, self.writes + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.written().filter(|&writes| writes >= middle).count() > rank {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }

    fn written(&self) -> impl Iterator<Item = u64> + '_ {
        self.slots.iter().filter(|slot| slot.page != 0).map(|slot| slot.writes)
    }

    fn is_sampled(&self, page: u64) -> bool {
        hash(page) & ((1 << self.bits) - 1) == 0
    }

    /// The slot of a page, or the one it would take. There is always an empty one.
    fn find(&self, page: u64) -> usize {
        let mut index = self.home(page);
        while self.slots[index].page != 0 && self.slots[index].page != page {
            index = self.after(index);
        }
        index
    }

    fn home(&self, page: u64) -> usize {
        // Below the number of slots; takes the hash's upper bits, the sample its lower ones.
        ((u128::from(hash(page)) * self.slots.len() as u128) >> 64) as usize
    }

    const fn after(&self, index: usize) -> usize {
        if index + 1 == self.slots.len() { 0 } else { index + 1 }
    }

    #[cold]
    fn halve(&mut self) {
        self.bits += 1;
        for index in 0..self.slots.len() {
            while self.slots[index].page != 0 && !self.is_sampled(self.slots[index].page) {
                self.remove(index);
            }
        }
    }

    /// Empties a slot and closes the gap, so that every page is still found from its home.
    fn remove(&mut self, mut gap: usize) {
        self.pages -= 1;
        self.writes -= self.slots[gap].writes;
        let mut index = self.after(gap);
        while self.slots[index].page != 0 {
            let home = self.home(self.slots[index].page);
            // The page may move into the gap if its home is not between the two, counted around the end.
            let (reach, distance) = (self.distance(home, index), self.distance(gap, index));
            if reach >= distance {
                self.slots[gap] = self.slots[index];
                gap = index;
            }
            index = self.after(index);
        }
        self.slots[gap] = HeatSlot::default();
    }

    const fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from {
            to - from
        } else {
            to + self.slots.len() - from
        }
    }
}

/// SplitMix64's output function (Steele, Lea and Flood 2014).
const fn hash(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn the_hottest_tenth_by_hand() {
        // 15 pages: one with 40 writes, one with 20, thirteen with 5. Hottest 1.5 pages: 40 + 10 of 125.
        let mut slots = [HeatSlot::default(); 32];
        let mut heat = Heat::new(&mut slots);
        let pages = [40, 20].into_iter().chain([5; 13]).zip(0u64..);
        pages.for_each(|(writes, gfn)| (0..writes).for_each(|_| heat.on_write(gfn)));
        assert_eq!(heat.hottest_tenth(), (500, 1250));
    }

    #[test]
    fn nothing_is_written_or_counted() {
        assert_eq!(Heat::new(&mut []).hottest_tenth(), (0, 0));
        let mut none = Heat::new(&mut []);
        none.on_write(1);
        assert_eq!((none.hottest_tenth(), none.pages()), ((0, 0), 0));
        let mut slots = [HeatSlot::default(); 1];
        let mut one = Heat::new(&mut slots);
        one.on_write(1);
        one.on_write(u64::MAX);
        assert_eq!(one.pages(), 0, "a single slot has no room beside an empty one");
    }

    proptest! {
        #[test]
        fn counts_are_those_of_a_map(writes in vec(prop_oneof![0..30u64, 0..3000u64], 0..2000), slots in 2..80usize) {
            let mut slots = vec![HeatSlot::default(); slots];
            let mut heat = Heat::new(&mut slots);
            let mut model = BTreeMap::new();
            for &gfn in &writes {
                heat.on_write(gfn);
                *model.entry(gfn).or_insert(0u64) += 1;
            }
            model.retain(|&gfn, _| heat.is_sampled(gfn + 1));
            let mut counted: Vec<_> = heat.slots.iter().filter(|slot| slot.page > 0).map(|slot| (slot.page - 1, slot.writes)).collect();
            counted.sort_unstable();
            prop_assert_eq!(&counted, &model.iter().map(|(&gfn, &writes)| (gfn, writes)).collect::<Vec<_>>());
            prop_assert!(counted.iter().all(|&(gfn, _)| heat.slots[heat.find(gfn + 1)].page == gfn + 1));
            prop_assert_eq!(heat.pages, counted.len());
            let mut hottest: Vec<u128> = model.values().map(|&writes| u128::from(writes)).collect();
            hottest.sort_unstable_by(|a, b| b.cmp(a));
            let (whole, tenths) = (hottest.len() / 10, hottest.len() % 10);
            let edge = hottest.get(whole).copied().unwrap_or(0);
            let hot = 10 * hottest[..whole].iter().sum::<u128>() + tenths as u128 * edge;
            prop_assert_eq!(heat.hottest_tenth(), (hot, 10 * hottest.iter().sum::<u128>()));
        }
    }
}
