//! A harvested bitmap as runs of pages.

use dunlin_core::units::{Gfn, Pages};

use crate::memory::Run;

/// The runs of pages whose bits are set, ascending, each as long as it can be.
pub fn runs(words: &[u64]) -> Runs<'_> {
    Runs { words, page: 0 }
}

/// See [`runs`].
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    words: &'a [u64],
    /// Where to look on.
    page: u64,
}

impl Runs<'_> {
    /// The first page from here on whose bit is `set`; the end if there is none.
    fn edge(&self, from: u64, set: bool) -> u64 {
        let flip = if set { 0 } else { u64::MAX };
        let Ok(first) = usize::try_from(from / 64) else {
            return from;
        };
        let mut visible = u64::MAX << (from % 64);
        for (index, word) in (first..).zip(self.words.iter().skip(first)) {
            let found = (word ^ flip) & visible;
            if found != 0 {
                return index as u64 * 64 + u64::from(found.trailing_zeros());
            }
            visible = u64::MAX;
        }
        self.words.len() as u64 * 64
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let first = self.edge(self.page, true);
        let end = self.edge(first, false);
        self.page = end;
        (first < end).then(|| Run::new(Gfn(first), Pages(end - first)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::pagemap::set_bits;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_are_the_bits(pages in prop::collection::btree_set(0u64..400, 0..300)) {
            let mut words = [0; 7];
            pages.iter().for_each(|page| set_bits(&mut words, *page, page + 1));
            let found: Vec<Run> = runs(&words).collect();
            let all: Vec<u64> = found.iter().flat_map(|run| run.first.0..run.end().0).collect();
            prop_assert_eq!(all, pages.into_iter().collect::<Vec<_>>());
            prop_assert!(found.windows(2).all(|pair| pair[0].end() < pair[1].first), "not as long as they can be");
        }
    }
}
