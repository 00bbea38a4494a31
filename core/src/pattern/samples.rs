//! The working-set curve from harvested dirty bitmaps, which say in which window a page was written, not when.

use super::intervals::{Intervals, OutsideTable, WorkingSets};
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
        let mut pages = dirty.runs().flat_map(|run| run.first.0..run.end().0);
        let taken = pages.try_for_each(|gfn| self.on_page(Gfn(gfn)).map(drop));
        self.end_window();
        taken
    }

    /// A page dirtied in the window under way, for a source that gives page after page; so many windows ago it was dirtied
    /// before, `None` if never. 0 if that was in this window, which then counts once all the same. O(1), one word of the table touched.
    ///
    /// # Errors
    /// [`OutsideTable`] if the table has no word for the page.
    #[inline]
    pub fn on_page(&mut self, gfn: Gfn) -> Result<Option<u64>, OutsideTable> {
        let at = Nanos(self.windows);
        if self.intervals.was_written_at(gfn, at) {
            return Ok(Some(0));
        }
        Ok(self.intervals.on_write(gfn, at)?.map(|windows| windows.0))
    }

    /// The window under way ends, and the next one begins.
    pub const fn end_window(&mut self) {
        self.windows += 1;
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

    /// The working sets over any number of neighbouring windows: its times are numbers of windows. One under way counts if a
    /// page was dirtied in it. O(pages of the table).
    pub fn working_sets(&self) -> WorkingSets {
        self.intervals.working_sets(Nanos(self.windows))
    }

    /// The curve over 1, 2, 4, … windows and all of them, which together took `span`: windows that were harvested a little
    /// early or late count with their mean length. Flat if there was no window or the span is shorter than one nanosecond
    /// per window. O(pages of the table).
    pub fn curve(&self, span: Nanos) -> WwsCurve {
        if self.windows == 0 || span.0 < self.windows {
            return WwsCurve::FLAT;
        }
        self.working_sets().scaled_curve(span.0)
    }
}
