//! The working-set curve from harvested dirty bitmaps, which say in which window a page was written, not when.

use super::intervals::{Intervals, OutsideTable};
use super::{IntervalHistogram, WwsCurve};
use crate::pageset::PageSet;
use crate::units::{Gfn, Nanos, Pages};

/// Takes in the pages dirtied in one sampling window after the other: what live tracking gives.
///
/// With the window's number for a time, this is [`Intervals`] of a trace in which a page is written at most once per
/// unit: the mean distinct pages over 1, 2, 4, … neighbouring windows come out exactly, from one pass. Windows that do not start
/// at a harvest, and shorter ones, are not seen; the curve has a line from nothing to the first point, which is too low
/// for a concave curve. Memory as [`Intervals`].
#[derive(Debug)]
pub struct Samples<'a> {
    intervals: Intervals<'a>,
    windows: u64,
}

impl<'a> Samples<'a> {
    /// No window yet. `table` has a word for each page and is overwritten. O(pages).
    pub fn new(table: &'a mut [u64]) -> Self {
        Self {
            intervals: Intervals::new(table, Nanos::ZERO),
            windows: 0,
        }
    }

    /// The pages dirtied in the next window. O(pages in the set), one word of the table each.
    ///
    /// # Errors
    /// [`OutsideTable`] with the first page that the table has no word for; the window counts with the pages before it.
    pub fn on_window(&mut self, dirty: &PageSet<'_>) -> Result<(), OutsideTable> {
        let at = Nanos(self.windows);
        self.windows += 1;
        for run in dirty.runs() {
            for gfn in run.first.0..run.end().0 {
                self.intervals.on_write(Gfn(gfn), at)?;
            }
        }
        Ok(())
    }

    /// Windows taken in.
    pub const fn windows(&self) -> u64 {
        self.windows
    }

    /// Pages dirtied in at least one window.
    pub const fn distinct(&self) -> Pages {
        self.intervals.distinct()
    }

    /// In how many windows pages were dirty, summed over pages.
    pub const fn dirtied(&self) -> u64 {
        self.intervals.writes()
    }

    /// Intervals between two windows that dirtied the same page, in windows.
    pub const fn histogram(&self) -> &IntervalHistogram {
        self.intervals.histogram()
    }

    /// The curve over 1, 2, 4, … windows and all of them, which together took `span`: windows that were harvested a little
    /// early or late count with their mean length. Flat if there was no window or the span is shorter than one nanosecond
    /// per window. O(pages of the table).
    pub fn curve(&self, span: Nanos) -> WwsCurve {
        if self.windows == 0 || span.0 < self.windows {
            return WwsCurve::FLAT;
        }
        self.intervals.working_sets(Nanos(self.windows)).scaled_curve(span.0)
    }
}
