//! Which pages several vCPUs write.

use super::OutsideTable;
use crate::units::{Gfn, Pages, Ratio};

/// vCPUs told apart; those beyond share bits with the first.
const VCPUS: u32 = 48;
/// Bits of a table word that name the last writer.
const LAST_SHIFT: u32 = VCPUS;
const WRITERS: u64 = (1 << VCPUS) - 1;
/// The largest number that names a last writer.
const LAST_MAX: u64 = u64::MAX >> LAST_SHIFT;

/// Keeps for each page which vCPUs wrote it, and which was the last.
///
/// Memory: the caller's table of one word per page (2 MiB per GiB of guest), of which 48 bits are a mask of vCPUs and 16
/// name the last writer. With more than 48 vCPUs, those whose numbers are equal modulo 48 count as one in
/// [`pages_written_by`](Self::pages_written_by), which then is a lower bound.
#[derive(Debug)]
pub struct Sharing<'a> {
    table: &'a mut [u64],
    /// Pages with n + 1 writers.
    by_writers: [u64; VCPUS as usize],
    writes: u64,
    crossings: u64,
    rejected: u64,
}

impl<'a> Sharing<'a> {
    /// Nothing written. `table` has a word for each page and is overwritten. O(pages).
    pub fn new(table: &'a mut [u64]) -> Self {
        table.fill(0);
        Self {
            table,
            by_writers: [0; VCPUS as usize],
            writes: 0,
            crossings: 0,
            rejected: 0,
        }
    }

    /// A write of page `gfn` by vCPU `vcpu`, counted from 0. O(1), one word of the table touched.
    ///
    /// # Errors
    /// [`OutsideTable`] if the table has no word for the page.
    #[inline]
    pub fn on_write(&mut self, vcpu: u32, gfn: Gfn) -> Result<(), OutsideTable> {
        let capacity = self.table.len();
        let Some(word) = usize::try_from(gfn.0).ok().and_then(|index| self.table.get_mut(index)) else {
            self.rejected += 1;
            return Err(OutsideTable {
                gfn,
                capacity: Pages(capacity as u64),
            });
        };
        let (writers, last) = (*word & WRITERS, *word >> LAST_SHIFT);
        let now = writers | 1 << (vcpu % VCPUS);
        // Numbered from 1; beyond the largest number, which no host reaches, as that.
        let writer = (u64::from(vcpu) + 1).min(LAST_MAX);
        *word = now | writer << LAST_SHIFT;
        self.writes += 1;
        self.crossings += u64::from(last != 0 && last != writer);
        if now != writers {
            let count = now.count_ones() as usize;
            self.by_writers[count - 1] += 1;
            if count > 1 {
                self.by_writers[count - 2] -= 1;
            }
        }
        Ok(())
    }

    /// Pages written by exactly this many vCPUs, at least one.
    pub fn pages_written_by(&self, vcpus: u32) -> Pages {
        let index = (vcpus as usize).wrapping_sub(1);
        Pages(self.by_writers.get(index).copied().unwrap_or(0))
    }

    /// Of the pages written, the share that several vCPUs wrote; `None` if none was written.
    pub fn shared_pages(&self) -> Option<Ratio> {
        let written: u64 = self.by_writers.iter().sum();
        Ratio::new(written - self.by_writers[0], written)
    }

    /// Of the writes, the share that hit a page which another vCPU had written last; `None` if there was none.
    pub const fn crossing_writes(&self) -> Option<Ratio> {
        Ratio::new(self.crossings, self.writes)
    }

    /// Writes refused.
    pub const fn rejected(&self) -> u64 {
        self.rejected
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn a_trace_by_hand() {
        let mut table = [9; 4];
        let mut sharing = Sharing::new(&mut table);
        for (vcpu, gfn) in [(0, 0), (1, 0), (1, 0), (0, 0), (0, 1), (0, 1), (2, 3), (63, 3)] {
            sharing.on_write(vcpu, Gfn(gfn)).expect("in the table");
        }
        let pages = [0, 1, 2, 3, 49, u32::MAX].map(|vcpus| sharing.pages_written_by(vcpus).0);
        assert_eq!(pages, [0, 1, 2, 0, 0, 0]);
        assert_eq!(sharing.shared_pages(), Ratio::new(2, 3));
        assert_eq!(sharing.crossing_writes(), Ratio::new(3, 8));
        assert!(sharing.on_write(0, Gfn(4)).is_err());
        assert_eq!(sharing.rejected(), 1);
        let nothing = Sharing::new(&mut []);
        assert!(nothing.shared_pages().is_none() && nothing.crossing_writes().is_none());
    }

    #[test]
    fn vcpus_beyond_the_mask_still_cross() {
        let mut table = [0; 1];
        let mut sharing = Sharing::new(&mut table);
        for vcpu in [0, 48, u32::MAX] {
            sharing.on_write(vcpu, Gfn(0)).expect("in the table");
        }
        assert_eq!(sharing.crossing_writes(), Ratio::new(2, 3));
        assert_eq!(sharing.pages_written_by(2), Pages(1), "0 and 48 look like one");
    }

    proptest! {
        #[test]
        fn counts_are_those_of_a_map_of_sets(writes in vec((0..48u32, 0..20u64), 0..300)) {
            let mut table = [0; 20];
            let mut sharing = Sharing::new(&mut table);
            let mut writers = BTreeMap::<u64, BTreeSet<u32>>::new();
            let mut last = BTreeMap::new();
            let mut crossings = 0;
            for &(vcpu, gfn) in &writes {
                sharing.on_write(vcpu, Gfn(gfn)).expect("in the table");
                writers.entry(gfn).or_default().insert(vcpu);
                crossings += u64::from(last.insert(gfn, vcpu).is_some_and(|before| before != vcpu));
            }
            for count in 1..=48 {
                let pages = writers.values().filter(|set| set.len() == count as usize).count();
                prop_assert_eq!(sharing.pages_written_by(count), Pages(pages as u64));
            }
            prop_assert_eq!(sharing.crossing_writes(), Ratio::new(crossings, writes.len() as u64));
        }
    }
}
