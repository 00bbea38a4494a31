//! What is wanted soonest, by a forecast.

use super::sequential::Sequential;
use crate::pageset::{PageSet, Run};
use crate::units::{Gfn, Pages};

/// A page with the score that a forecast gives it. 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Scored {
    /// The page.
    pub gfn: Gfn,
    /// How much sooner than others it is wanted; only the ranking matters.
    pub score: u32,
}

/// `forecast`: the pages with the highest scores first, ties by address, after them the others from page 0 upwards ("A novel
/// hybrid-copy algorithm for live migration", 2017: most likely accessed first).
///
/// The scores are those at the switch and do not change; a fault, which is news, comes before them: the run that starts
/// right behind a page asked for is pushed next, once per fault, only the latest fault counting (so does QEMU's spatial-locality
/// hint of 2025). The paper's forecast is one of writes, faults are by reads as well.
///
/// Memory: the caller's ranking, 16 bytes per page with a score. Neighbours in the ranking that are also neighbours in memory go
/// as one run.
#[derive(Debug)]
pub struct Forecast<'a> {
    ranking: &'a [Scored],
    /// The first of the ranking that was not looked at.
    next: usize,
    hint: Option<Gfn>,
    rest: Sequential,
    left_out: u64,
}

impl<'a> Forecast<'a> {
    /// Ranks the missing pages by `score`; those with score 0 are not ranked and go last. If the buffer is too small, the
    /// pages of higher addresses are left out of the ranking, counted, and go last as well.
    /// O(missing + n·log n) with n pages ranked.
    pub fn new(missing: &PageSet<'_>, mut score: impl FnMut(Gfn) -> u32, buffer: &'a mut [Scored]) -> Self {
        let (mut ranked, mut left_out) = (0, 0);
        for run in missing.runs() {
            for gfn in (run.first.0..run.end().0).map(Gfn) {
                let score = score(gfn);
                if score == 0 {
                    continue;
                }
                match buffer.get_mut(ranked) {
                    Some(place) => {
                        *place = Scored { gfn, score };
                        ranked += 1;
                    }
                    None => left_out += 1,
                }
            }
        }
        Self {
            left_out,
            ..Self::of(&mut buffer[..ranked])
        }
    }

    /// Ranks these pages. Pages that are not missing when their turn comes are passed over. O(n·log n).
    pub fn of(ranking: &'a mut [Scored]) -> Self {
        ranking.sort_unstable_by(|a, b| b.score.cmp(&a.score).then(a.gfn.cmp(&b.gfn)));
        Self {
            ranking,
            next: 0,
            hint: None,
            rest: Sequential::new(),
            left_out: 0,
        }
    }

    /// Pages with a score that found no room in the buffer.
    pub const fn left_out(&self) -> Pages {
        Pages(self.left_out)
    }

    /// The next run, at most `max` pages. O(1) amortised: all calls together pass over the ranking once.
    pub fn next_run(&mut self, missing: &PageSet<'_>, max: Pages) -> Option<Run> {
        if max == Pages::ZERO {
            return None;
        }
        if let Some(hint) = self.hint.take().filter(|&hint| missing.contains(hint)) {
            return missing.next_run(hint, max);
        }
        while let Some(&Scored { gfn, .. }) = self.ranking.get(self.next) {
            self.next += 1;
            if missing.contains(gfn) {
                let mut run = Run::new(gfn, Pages(1));
                let is_next =
                    |run: Run, page: &&Scored| page.gfn == run.end() && run.count < max && missing.contains(page.gfn);
                while self.ranking.get(self.next).filter(|page| is_next(run, page)).is_some() {
                    run.count.0 += 1;
                    self.next += 1;
                }
                return Some(run);
            }
        }
        self.rest.next_run(missing, max)
    }

    /// At the highest score again, as if nothing had been asked for.
    pub const fn start_again(&mut self) {
        (self.next, self.hint, self.rest) = (0, None, Sequential::new());
    }

    /// The target waited for this page. O(1).
    pub const fn on_fault(&mut self, gfn: Gfn) {
        self.hint = Some(Gfn(gfn.0.saturating_add(1)));
    }
}
