//! As pages were first touched before.

use super::sequential::Sequential;
use crate::pageset::{PageSet, Run};
use crate::units::{Gfn, Pages};

/// Entries of the recording in which a page asked for is looked for.
const LOOKAHEAD: usize = 1024;

/// `recorded`: in the order in which an earlier run of the guest first touched its pages, after them the others from page 0
/// upwards. The idea is that of REAP (Ustiugov et al., ASPLOS 2021), which prefetches a recorded working set on the next start.
///
/// A fault says how far the guest is: if the page is among the next 1024 of the recording, the push goes on behind it, and what was
/// passed over goes when the recording has come to its end. Any other fault changes nothing. Memory: the caller's
/// recording, in which pages may repeat or be of another guest; neighbours go as one run.
#[derive(Clone, Debug)]
pub struct Recorded<'a> {
    order: &'a [Gfn],
    next: usize,
    /// From the second pass over the recording on, the push no longer jumps.
    passes: u8,
    rest: Sequential,
}

impl<'a> Recorded<'a> {
    /// In this order.
    pub const fn new(order: &'a [Gfn]) -> Self {
        Self {
            order,
            next: 0,
            passes: 0,
            rest: Sequential::new(),
        }
    }

    /// From its beginning: what it has gone past may be missing once more.
    pub const fn start_again(&mut self) {
        *self = Self::new(self.order);
    }

    /// The next run, at most `max` pages. O(1) amortised: all calls together pass over the recording twice.
    pub fn next_run(&mut self, missing: &PageSet<'_>, max: Pages) -> Option<Run> {
        if max == Pages::ZERO {
            return None;
        }
        while self.passes < 2 {
            while let Some(&gfn) = self.order.get(self.next) {
                self.next += 1;
                if missing.contains(gfn) {
                    return Some(self.run_from(gfn, missing, max));
                }
            }
            self.passes += 1;
            self.next = 0;
        }
        self.rest.next_run(missing, max)
    }

    /// The target waited for this page. O(1024).
    pub fn on_fault(&mut self, gfn: Gfn) {
        let ahead = self.order.iter().skip(self.next).take(LOOKAHEAD);
        if self.passes == 0
            && let Some(distance) = ahead.clone().position(|&page| page == gfn)
        {
            self.next += distance + 1;
        }
    }

    fn run_from(&mut self, gfn: Gfn, missing: &PageSet<'_>, max: Pages) -> Run {
        let mut run = Run::new(gfn, Pages(1));
        while run.count < max
            && let Some(&page) = self.order.get(self.next)
            && page == run.end()
            && missing.contains(page)
        {
            run.count.0 += 1;
            self.next += 1;
        }
        run
    }
}
