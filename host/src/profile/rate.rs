//! Distinct pages dirtied per second, over windows of one length, as a course of bounded length and its statistics.

use dunlin_core::units::{Nanos, PAGE_SIZE};

use crate::report::{RatePoint, RateWindows};

/// Most stretches of a course. When it grows longer, neighbours become one.
const STRETCHES: usize = 512;

/// Neighbouring windows.
#[derive(Clone, Copy, Debug, Default)]
struct Stretch {
    /// Distinct pages of each window, summed up.
    pages: u64,
    nanos: u64,
    /// The most pages per second of a window.
    peak: f64,
}

/// Counts the distinct pages of one window after the other.
///
/// A page is new in a window if its last write before was earlier than the window, which a table of last writes tells: no
/// memory for the windows themselves. Ticks are whatever that table counts in. Windows without a write cost nothing, however many. 12 KiB.
#[derive(Clone, Debug)]
pub(super) struct Rate {
    /// The length that windows have, or reach.
    window: Nanos,
    /// When the window under way began, in time and in ticks.
    began: Nanos,
    first_tick: u64,
    /// Its distinct pages.
    pages: u64,
    windows: u64,
    /// A stretch has 2^shift windows.
    shift: u32,
    stretches: Vec<Stretch>,
    /// Over all whole windows: their length, their pages, the mean rate and Σ length · (rate − mean)², and the extremes of the rate.
    nanos: u64,
    all_pages: u64,
    mean: f64,
    squares: f64,
    extremes: [f64; 2],
}

impl Rate {
    /// Windows of this length, at least a nanosecond, from time and tick 0 on.
    pub(super) fn over(window: Nanos) -> Self {
        Self {
            window: window.max(Nanos(1)),
            began: Nanos::ZERO,
            first_tick: 0,
            pages: 0,
            windows: 0,
            shift: 0,
            stretches: Vec::new(),
            nanos: 0,
            all_pages: 0,
            mean: 0.0,
            squares: 0.0,
            extremes: [f64::INFINITY, 0.0],
        }
    }

    /// A single window over the whole of a trace.
    pub(super) fn whole(pages: u64, span: Nanos) -> Self {
        let mut rate = Self::over(span);
        if span > Nanos::ZERO {
            rate.close(pages, span.0);
        }
        rate
    }

    /// The length that windows have, or reach.
    pub(super) const fn window(&self) -> Nanos {
        self.window
    }

    /// A page is dirtied that was dirtied last at this tick, or never. O(1).
    #[inline]
    pub(super) fn on_page(&mut self, last_tick: Option<u64>) {
        self.pages += u64::from(last_tick.is_none_or(|last| last < self.first_tick));
    }

    /// Time goes on, and all windows that are over by then are closed; ticks are nanoseconds.
    #[inline]
    pub(super) fn advance_to(&mut self, at: Nanos) {
        if at.0.saturating_sub(self.began.0) >= self.window.0 {
            self.close_until(at);
        }
    }

    #[cold]
    fn close_until(&mut self, at: Nanos) {
        let over = at.0.saturating_sub(self.began.0) / self.window.0;
        let pages = std::mem::take(&mut self.pages);
        self.close(pages, self.window.0);
        self.skip(over - 1);
        self.began = Nanos(self.began.0 + over * self.window.0);
        self.first_tick = self.began.0;
    }

    /// A harvest ends a window if it is long enough by then; the next begins with this tick.
    pub(super) fn on_harvest(&mut self, at: Nanos, next_tick: u64) {
        let nanos = at.0.saturating_sub(self.began.0);
        if nanos > 0 && nanos >= self.window.0 {
            let pages = std::mem::take(&mut self.pages);
            self.close(pages, nanos);
            (self.began, self.first_tick) = (at, next_tick);
        }
    }

    fn close(&mut self, pages: u64, nanos: u64) {
        let rate = per_second(pages, nanos);
        let stretch = self.stretch_of(self.windows);
        stretch.pages += pages;
        stretch.nanos = stretch.nanos.saturating_add(nanos);
        stretch.peak = stretch.peak.max(rate);
        self.windows += 1;
        self.weigh(rate, nanos);
        self.all_pages += pages;
        self.extremes = [self.extremes[0].min(rate), self.extremes[1].max(rate)];
    }

    /// Adds windows of one rate to mean and squares, as in Chan, Golub and LeVeque, "Updating formulae" (1979): what squares of large
    /// rates would cancel out stays.
    fn weigh(&mut self, rate: f64, nanos: u64) {
        let (before, more) = (self.nanos as f64, nanos as f64);
        let (all, distance) = (before + more, rate - self.mean);
        if all > 0.0 {
            self.mean += distance * more / all;
            self.squares += distance * distance * before * more / all;
        }
        self.nanos = self.nanos.saturating_add(nanos);
    }

    /// So many windows without a page.
    fn skip(&mut self, windows: u64) {
        if windows == 0 {
            return;
        }
        let after = self.windows + windows;
        let _ = self.stretch_of(after - 1);
        let mut at = self.windows;
        while at < after {
            let index = at >> self.shift;
            let next = u128::from(index + 1) << self.shift;
            // At most `after`.
            let until = next.min(u128::from(after)) as u64;
            let nanos = (until - at).saturating_mul(self.window.0);
            let stretch = &mut self.stretches[index as usize];
            stretch.nanos = stretch.nanos.saturating_add(nanos);
            at = until;
        }
        self.windows = after;
        self.weigh(0.0, windows.saturating_mul(self.window.0));
        self.extremes[0] = 0.0;
    }

    /// The stretch of a window, after making room for it.
    fn stretch_of(&mut self, window: u64) -> &mut Stretch {
        while window >> self.shift >= STRETCHES as u64 {
            self.shift += 1;
            self.stretches = self.stretches.chunks(2).map(together).collect();
        }
        let index = (window >> self.shift) as usize;
        if self.stretches.len() <= index {
            self.stretches.resize(index + 1, Stretch::default());
        }
        &mut self.stretches[index]
    }

    /// Windows that are over.
    pub(super) const fn windows(&self) -> u64 {
        self.windows
    }

    /// The windows as they are when the trace ends at `end`. Of one that is under way nothing counts, unless it is the only one.
    pub(super) fn ended(&self, end: Nanos, by_harvest: bool) -> Self {
        let mut ended = self.clone();
        if !by_harvest {
            ended.advance_to(end);
        }
        let rest = end.0.saturating_sub(ended.began.0);
        if ended.windows == 0 && rest > 0 {
            let pages = std::mem::take(&mut ended.pages);
            ended.close(pages, rest);
        }
        ended
    }

    /// Statistics over the windows; `None` without any.
    pub(super) fn summary(&self) -> Option<RateWindows> {
        if self.windows == 0 || self.nanos == 0 {
            return None;
        }
        let mean = per_second(self.all_pages, self.nanos);
        let variance = self.squares / self.nanos as f64;
        Some(RateWindows {
            window_us: self.nanos as f64 / self.windows as f64 / 1e3,
            windows: self.windows,
            mean_pages_per_s: mean,
            mean_bytes_per_s: mean * PAGE_SIZE as f64,
            variance,
            stddev_pages_per_s: variance.sqrt(),
            min_pages_per_s: self.extremes[0],
            max_pages_per_s: self.extremes[1],
        })
    }

    /// The course.
    pub(super) fn course(&self) -> Vec<RatePoint> {
        let mut at = 0u64;
        let stretches = self.stretches.iter().map(|stretch| {
            let point = RatePoint {
                at_us: at / 1_000,
                duration_us: stretch.nanos / 1_000,
                pages_per_s: per_second(stretch.pages, stretch.nanos),
                peak_pages_per_s: stretch.peak,
            };
            at = at.saturating_add(stretch.nanos);
            point
        });
        stretches.collect()
    }
}

fn together(stretches: &[Stretch]) -> Stretch {
    stretches.iter().fold(Stretch::default(), |all, one| Stretch {
        pages: all.pages + one.pages,
        nanos: all.nanos.saturating_add(one.nanos),
        peak: all.peak.max(one.peak),
    })
}

fn per_second(pages: u64, nanos: u64) -> f64 {
    if nanos == 0 {
        0.0
    } else {
        pages as f64 * 1e9 / nanos as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn close_to(one: f64, other: f64) -> bool {
        (one - other).abs() <= 1e-6 * one.abs().max(other.abs()).max(1.0)
    }

    /// Mean, variance, least and most of the rates of windows, each with its length.
    fn statistics(windows: &[(u64, u64)]) -> [f64; 4] {
        let rates: Vec<f64> = windows.iter().map(|&(pages, nanos)| per_second(pages, nanos)).collect();
        let all: u64 = windows.iter().map(|window| window.1).sum();
        let weights = windows.iter().map(|window| window.1 as f64 / all as f64);
        let mean: f64 = rates
            .iter()
            .zip(weights.clone())
            .map(|(rate, weight)| rate * weight)
            .sum();
        let variance = rates
            .iter()
            .zip(weights)
            .map(|(rate, weight)| (rate - mean).powi(2) * weight)
            .sum();
        let ends = rates.iter().fold([f64::INFINITY, 0.0], |[low, high]: [f64; 2], &rate| {
            [low.min(rate), high.max(rate)]
        });
        [mean, variance, ends[0], ends[1]]
    }

    fn found(rate: &Rate) -> [f64; 4] {
        let summary = rate.summary().unwrap();
        [
            summary.mean_pages_per_s,
            summary.variance,
            summary.min_pages_per_s,
            summary.max_pages_per_s,
        ]
    }

    fn check(rate: &Rate, windows: &[(u64, u64)]) -> Result<(), TestCaseError> {
        prop_assert_eq!(rate.windows(), windows.len() as u64);
        let (ours, naive) = (found(rate), statistics(windows));
        prop_assert!(
            ours.iter().zip(naive).all(|(one, other)| close_to(*one, other)),
            "{ours:?} {naive:?}"
        );
        let course = rate.course();
        prop_assert!(course.len() <= STRETCHES);
        let pages: f64 = course
            .iter()
            .map(|point| point.pages_per_s * point.duration_us as f64 / 1e6)
            .sum();
        // Stretches are whole microseconds where windows are.
        if windows.iter().all(|window| window.1 % 1_000 == 0) {
            let all: u64 = windows.iter().map(|window| window.0).sum();
            prop_assert!(close_to(pages, all as f64), "{pages} {all}");
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn distinct_pages_are_those_of_sets(writes in vec((0..6u64, 0..3_000_000u64), 0..300), window in 1..400u64, rest in 0..200_000u64) {
            let window = window * 1_000;
            let mut writes = writes;
            writes.sort_by_key(|write| write.1);
            let end = writes.last().map_or(0, |write| write.1) + 1 + rest;
            let mut rate = Rate::over(Nanos(window));
            let mut last = BTreeMap::new();
            for &(page, at) in &writes {
                rate.advance_to(Nanos(at));
                rate.on_page(last.insert(page, at));
            }
            let sets = (0..end / window).map(|index| {
                let inside = writes.iter().filter(|write| write.1 / window == index);
                (inside.map(|write| write.0).collect::<BTreeSet<_>>().len() as u64, window)
            });
            let mut windows: Vec<_> = sets.collect();
            if windows.is_empty() {
                let pages: BTreeSet<_> = writes.iter().map(|write| write.0).collect();
                windows.push((pages.len() as u64, end));
            }
            check(&rate.ended(Nanos(end), false), &windows)?;
        }

        #[test]
        fn harvests_make_windows_of_their_own_lengths(harvests in vec((vec(0..9u64, 0..9), 1..90u64), 1..80), window in 1..120u64) {
            let mut rate = Rate::over(Nanos(window));
            let (mut last, mut at) = (BTreeMap::new(), 0);
            let (mut windows, mut pages, mut began) = (vec![], BTreeSet::new(), 0);
            for (tick, (dirty, nanos)) in (0..).zip(&harvests) {
                for page in dirty {
                    rate.on_page(last.insert(*page, tick));
                    pages.insert(*page);
                }
                at += nanos;
                rate.on_harvest(Nanos(at), tick + 1);
                if at - began >= window {
                    windows.push((std::mem::take(&mut pages).len() as u64, at - began));
                    began = at;
                }
            }
            if windows.is_empty() {
                windows.push((pages.len() as u64, at));
            }
            check(&rate.ended(Nanos(at), true), &windows)?;
        }
    }

    #[test]
    fn a_silence_of_centuries_costs_nothing() {
        let mut rate = Rate::over(Nanos::from_millis(1));
        rate.on_page(None);
        rate.advance_to(Nanos(u64::MAX));
        rate.on_page(Some(0));
        let rate = rate.ended(Nanos(u64::MAX), false);
        let summary = rate.summary().unwrap();
        assert_eq!(summary.windows, u64::MAX / 1_000_000);
        assert_eq!((summary.min_pages_per_s, summary.max_pages_per_s), (0.0, 1_000.0));
        assert!(rate.course().len() <= STRETCHES && rate.course().len() > STRETCHES / 2 - 1);
    }

    #[test]
    fn slow_guests_are_not_rounded_to_nothing() {
        let mut rate = Rate::over(Nanos::from_secs(1));
        rate.on_page(None);
        let summary = rate.ended(Nanos::from_secs(3), false).summary().unwrap();
        assert!(close_to(summary.mean_pages_per_s, 1.0 / 3.0), "{summary:?}");
        assert!(close_to(summary.mean_bytes_per_s, 4096.0 / 3.0), "{summary:?}");
    }
}
