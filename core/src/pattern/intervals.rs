//! The working set in windows of every length, from one pass over a trace of writes.

use core::fmt;
use core::ops::RangeInclusive;

use super::{IntervalHistogram, POINTS_MAX, WwsCurve};
use crate::units::{Gfn, Nanos, Pages};

/// Why a write was not counted. [`Intervals::rejected`] counts how often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct OutsideTable {
    /// The page written.
    pub gfn: Gfn,
    /// The pages the table has room for.
    pub capacity: Pages,
}

impl fmt::Display for OutsideTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "page {} is outside the table of {} pages: size the table by the guest's highest frame",
            self.gfn, self.capacity
        )
    }
}

impl core::error::Error for OutsideTable {}

/// The total number of distinct pages in all windows of one length, from the intervals between writes alone.
///
/// Take a trace from time 0 to L − 1 in whole nanoseconds and the L − T + 1 windows of length T, 1 ≤ T ≤ L, that lie inside
/// it. Give each page that is written at all two writes more, one at −1 and one at L, and let x be its intervals between
/// neighbouring writes, these two included; they sum up to L + 1. A window misses the page if it lies strictly between two
/// neighbours, and x − T windows do (none if x < T). So it is in L − T + 1 − Σ max(0, x − T) = Σ min(x, T) − T of them, and
///
/// > Σ over windows of their distinct pages = Σ over all intervals of all pages of min(x, T) − T · pages written.
///
/// Denning & Schwartz, "Properties of the working-set model" (CACM 15(3), 1972), show this in the limit of an endless trace,
/// where the mean working set is Σ min(x, T) / L; the virtual writes are what makes it exact for a finite one. Divided by
/// L − T + 1 it is the mean, which never falls with T: each page's share of windows missed, Σ max(0, x − T) / (L + 1 − T),
/// falls term by term, as x ≤ L + 1.
///
/// `intervals` are all of them, those to the virtual writes included, of `pages` pages. O(intervals), no memory.
pub fn distinct_in_all_windows(intervals: impl IntoIterator<Item = Nanos>, pages: Pages, window: Nanos) -> u128 {
    let covered: u128 = intervals.into_iter().map(|x| u128::from(x.0.min(window.0))).sum();
    covered.saturating_sub(u128::from(window.0) * u128::from(pages.0))
}

/// Takes a trace of writes in, one at a time, and keeps how long each page was left alone.
///
/// Memory: 12 KiB, and the caller's table of one word per page (2 MiB per GiB of guest).
#[derive(Debug)]
pub struct Intervals<'a> {
    /// For each page the time of its last write counted from `start`, plus one; 0 if there was none.
    last: &'a mut [u64],
    start: u64,
    /// The latest write counted from `start`, plus one.
    latest: u64,
    again: IntervalHistogram,
    /// From the virtual write before the trace to each page's first.
    first: IntervalHistogram,
    pages: u64,
    writes: u64,
    disordered: u64,
    rejected: u64,
}

impl<'a> Intervals<'a> {
    /// A trace that starts at `start`. `table` has a word for each page and is overwritten. O(pages).
    pub fn new(table: &'a mut [u64], start: Nanos) -> Self {
        table.fill(0);
        Self {
            last: table,
            start: start.0,
            latest: 0,
            again: IntervalHistogram::new(),
            first: IntervalHistogram::new(),
            pages: 0,
            writes: 0,
            disordered: 0,
            rejected: 0,
        }
    }

    /// A write of page `gfn` at `at`; how long ago its last one was, `None` if this is its first. O(1), one word of the
    /// table touched.
    ///
    /// Writes of one page are to come in order. One that is earlier than the page's last, or than the start, as rings of
    /// several vCPUs merged loosely deliver it, is read as simultaneous with it and counted as
    /// [`disordered`](Self::disordered).
    ///
    /// # Errors
    /// [`OutsideTable`] if the table has no word for the page.
    #[inline]
    pub fn on_write(&mut self, gfn: Gfn, at: Nanos) -> Result<Option<Nanos>, OutsideTable> {
        let capacity = self.last.len();
        let Some(last) = usize::try_from(gfn.0).ok().and_then(|index| self.last.get_mut(index)) else {
            self.rejected += 1;
            return Err(OutsideTable {
                gfn,
                capacity: Pages(capacity as u64),
            });
        };
        // The largest time is one less than the largest number, so that every time has an end.
        let mut time = at.0.saturating_sub(self.start).min(u64::MAX - 2) + 1;
        let before = *last;
        if at.0 < self.start || time < before {
            self.disordered += 1;
            time = time.max(before);
        }
        *last = time;
        self.writes += 1;
        self.latest = self.latest.max(time);
        if before == 0 {
            self.pages += 1;
            self.first.record(Nanos(time));
            return Ok(None);
        }
        let interval = Nanos(time - before);
        self.again.record(interval);
        Ok(Some(interval))
    }

    /// Whether the page's last write was at `at`.
    #[inline]
    pub(super) fn was_written_at(&self, gfn: Gfn, at: Nanos) -> bool {
        let last = usize::try_from(gfn.0).ok().and_then(|index| self.last.get(index));
        last.is_some_and(|&last| last > 0 && last - 1 == at.0.saturating_sub(self.start))
    }

    /// Intervals between two writes of the same page.
    pub const fn histogram(&self) -> &IntervalHistogram {
        &self.again
    }

    /// Pages written at least once.
    pub const fn distinct(&self) -> Pages {
        Pages(self.pages)
    }

    /// Writes taken in.
    pub const fn writes(&self) -> u64 {
        self.writes
    }

    /// Writes that were earlier than the last one of their page, or than the start.
    pub const fn disordered(&self) -> u64 {
        self.disordered
    }

    /// Writes refused.
    pub const fn rejected(&self) -> u64 {
        self.rejected
    }

    /// The working sets of the trace up to, not including, `end`; an end before the last write is read as just after
    /// it. The trace may go on. O(pages of the table).
    pub fn working_sets(&self, end: Nanos) -> WorkingSets {
        let span = end.0.saturating_sub(self.start).max(self.latest);
        let mut all = self.again.clone();
        all.add(&self.first);
        for &last in self.last.iter().filter(|&&last| last > 0) {
            // To the virtual write at `span`, from one at `last` − 1.
            all.record(Nanos(span - last + 1));
        }
        WorkingSets {
            all,
            pages: self.pages,
            span,
        }
    }
}

/// A trace's working sets in windows of all lengths. 6 KiB.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkingSets {
    /// All intervals, those to the virtual writes before and after the trace included.
    all: IntervalHistogram,
    pages: u64,
    /// L.
    span: u64,
}

impl WorkingSets {
    /// The length of the trace.
    pub const fn span(&self) -> Nanos {
        Nanos(self.span)
    }

    /// Bounds of the sum of distinct pages over all windows of this length inside the trace, as
    /// [`distinct_in_all_windows`]; exact, low = high, for windows of which [`IntervalHistogram::is_exact`] and for the whole
    /// trace. `None` for windows of no length or longer than the trace. O(1): 252 buckets.
    ///
    /// In between, the error is at most a sixteenth of Σ min(x, T) over the intervals in T's own bucket.
    pub fn total(&self, window: Nanos) -> Option<RangeInclusive<u128>> {
        if window == Nanos::ZERO || window.0 > self.span {
            return None;
        }
        if window.0 == self.span {
            let pages = u128::from(self.pages);
            return Some(pages..=pages);
        }
        let (low, high) = self.all.min_sum(window).into_inner();
        let corners = u128::from(window.0) * u128::from(self.pages);
        Some(low.saturating_sub(corners)..=high.saturating_sub(corners))
    }

    /// The mean number of distinct pages over all windows of this length inside the trace, rounded down, from the lower
    /// bound of [`total`](Self::total). `None` as there.
    pub fn mean(&self, window: Nanos) -> Option<Pages> {
        let total = *self.total(window)?.start();
        let windows = u128::from(self.span - window.0) + 1;
        // At most all pages.
        Some(Pages((total / windows) as u64))
    }

    /// The curve: windows of powers of two up to the trace's length, the 31 longest of them, and the whole trace. Every point is
    /// exact up to rounding down to whole pages. O(points · buckets).
    pub fn curve(&self) -> WwsCurve {
        self.scaled_curve(self.span)
    }

    /// As [`curve`](Self::curve) where the trace's L units are `nanos` long in truth.
    pub(super) fn scaled_curve(&self, nanos: u64) -> WwsCurve {
        let mut points = heapless::Vec::<_, POINTS_MAX>::new();
        let longest = self.span.checked_ilog2().map_or(0, |log| log + 1);
        let powers = (0..longest).map(|log| 1 << log).filter(|&window| window < self.span);
        let skipped = powers.clone().count().saturating_sub(POINTS_MAX - 1);
        let mut before = (0, 0);
        for window in powers.skip(skipped).chain([self.span]) {
            let Some(pages) = self.mean(Nanos(window)) else {
                continue;
            };
            let length = (u128::from(window) * u128::from(nanos) / u128::from(self.span)) as u64;
            // Two windows of one length after scaling: the shorter says enough.
            if length > before.0 {
                before = (length, pages.0.max(before.1));
                let _ = points.push((Nanos(before.0), Pages(before.1)));
            }
        }
        WwsCurve::new(&points).unwrap_or(WwsCurve::FLAT)
    }
}
