//! Upwards through memory.

use crate::pageset::{PageSet, Run};
use crate::units::{Gfn, Pages};

/// `sequential`: from the lowest page upwards, and from the lowest again after the last. Faults make no difference, as in
/// Cloud Hypervisor's background prefault. One word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sequential {
    cursor: Gfn,
}

impl Sequential {
    /// At page 0.
    pub const fn new() -> Self {
        Self { cursor: Gfn::ZERO }
    }

    /// The next run, at most `max` pages. O(1).
    pub fn next_run(&mut self, missing: &PageSet<'_>, max: Pages) -> Option<Run> {
        let run = missing
            .next_run(self.cursor, max)
            .or_else(|| missing.next_run(Gfn::ZERO, max))?;
        self.cursor = run.end();
        Some(run)
    }
}
