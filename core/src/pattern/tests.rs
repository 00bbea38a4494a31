//! Working-set curves against brute force: every window at every position, one by one.

#[cfg(feature = "workload")]
mod generators;

use super::*;
use crate::pageset::{PageSet, words_needed};
use crate::units::{Gfn, Nanos, Pages};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec;
use std::vec::Vec;

/// The distinct pages of every window of `window` inside 0 .. `span`, summed up by looking at each.
fn by_brute_force(writes: &[(u64, u64)], span: u64, window: u64) -> u128 {
    let starts = 0..=span - window;
    let distinct = starts.map(|start| {
        let inside = writes.iter().filter(|&&(_, at)| (start..start + window).contains(&at));
        inside.map(|&(gfn, _)| gfn).collect::<BTreeSet<_>>().len() as u128
    });
    distinct.sum()
}

/// All intervals of each page written, with the virtual writes before and after the trace.
fn all_intervals(writes: &[(u64, u64)], span: u64) -> (Vec<Nanos>, Pages) {
    let pages: BTreeSet<u64> = writes.iter().map(|&(gfn, _)| gfn).collect();
    let mut intervals = Vec::new();
    for &page in &pages {
        let mut times: Vec<i64> = writes
            .iter()
            .filter(|&&(gfn, _)| gfn == page)
            .map(|&(_, at)| at as i64)
            .collect();
        times.sort_unstable();
        times.insert(0, -1);
        times.push(span as i64);
        intervals.extend(times.windows(2).map(|pair| Nanos((pair[1] - pair[0]) as u64)));
    }
    (intervals, Pages(pages.len() as u64))
}

fn recorded(table: &mut [u64], start: u64, writes: &[(u64, u64)]) -> WorkingSets {
    let mut intervals = Intervals::new(table, Nanos(start));
    for &(gfn, at) in writes {
        intervals.on_write(Gfn(gfn), Nanos(start + at)).expect("in the table");
    }
    intervals.working_sets(Nanos(start))
}

/// Writes of up to 8 pages in order of time, and a span that holds them.
fn trace() -> impl Strategy<Value = (Vec<(u64, u64)>, u64)> {
    (vec((0..8u64, 0..90u64), 0..60), 0..20u64).prop_map(|(mut writes, rest)| {
        writes.sort_by_key(|&(_, at)| at);
        let span = writes.last().map_or(0, |&(_, at)| at) + 1 + rest;
        (writes, span)
    })
}

#[test]
fn a_trace_by_hand() {
    // Page 0 at 0 and 4, page 1 at 1, of 6 ns. Windows of 2: {0,1} {1} {} {0} {0}: 5 pages in 5 windows.
    let writes = [(0, 0), (1, 1), (0, 4)];
    let (intervals, pages) = all_intervals(&writes, 6);
    assert_eq!(intervals, [1, 4, 2, 2, 5].map(Nanos));
    assert_eq!(distinct_in_all_windows(intervals, pages, Nanos(2)), 5); // 1 + 2 + 2 + 2 + 2 − 2·2
    let mut table = [7; 2];
    let mut intervals = Intervals::new(&mut table, Nanos(100));
    let since = writes.map(|(gfn, at)| intervals.on_write(Gfn(gfn), Nanos(100 + at)));
    assert_eq!(since, [Ok(None), Ok(None), Ok(Some(Nanos(4)))]);
    let sets = intervals.working_sets(Nanos(106));
    assert_eq!(sets.total(Nanos(2)), Some(5..=5));
    assert_eq!(sets.mean(Nanos(2)), Some(Pages(1)));
    assert_eq!(sets.total(Nanos(6)), Some(2..=2));
    assert_eq!((sets.total(Nanos(0)), sets.total(Nanos(7))), (None, None));
    let points = [(1, 0), (2, 1), (4, 1), (6, 2)].map(|(window, pages)| (Nanos(window), Pages(pages)));
    assert_eq!(sets.curve().points(), points);
}

#[test]
fn what_does_not_fit_is_counted() {
    let mut table = [0; 2];
    let mut intervals = Intervals::new(&mut table, Nanos(10));
    let outside = OutsideTable {
        gfn: Gfn(2),
        capacity: Pages(2),
    };
    assert_eq!(intervals.on_write(Gfn(2), Nanos(11)), Err(outside));
    assert_eq!(
        intervals.on_write(Gfn(0), Nanos(9)),
        Ok(None),
        "before the start: at the start"
    );
    assert_eq!(intervals.on_write(Gfn(0), Nanos(15)), Ok(Some(Nanos(5))));
    assert_eq!(
        intervals.on_write(Gfn(0), Nanos(14)),
        Ok(Some(Nanos(0))),
        "out of order: at the same time"
    );
    assert_eq!(intervals.on_write(Gfn(0), Nanos(16)), Ok(Some(Nanos(1))));
    assert_eq!(
        (intervals.rejected(), intervals.disordered(), intervals.writes()),
        (1, 2, 4)
    );
    assert_eq!(
        intervals.working_sets(Nanos(0)).span(),
        Nanos(7),
        "an end before the last write is just after it"
    );
}

#[test]
fn nothing_written_and_everything_written_once() {
    assert_eq!(recorded(&mut [], 0, &[]).curve(), WwsCurve::FLAT);
    assert_eq!(recorded(&mut [0; 4], 0, &[]).curve(), WwsCurve::FLAT);
    let mut table = [0; 1];
    let silent = Intervals::new(&mut table, Nanos::ZERO).working_sets(Nanos::from_secs(1));
    assert_eq!(silent.curve().saturation(), Pages::ZERO);
    let writes: Vec<_> = (0..1000).map(|page| (page, 0)).collect();
    let sets = recorded(&mut [0; 1000], 5, &writes);
    assert_eq!(
        sets.curve().points(),
        [(Nanos(1), Pages(1000))],
        "all pages in the only nanosecond"
    );
}

#[test]
fn a_day_and_the_end_of_time_do_not_overflow() {
    let mut table = [0; 2];
    let mut intervals = Intervals::new(&mut table, Nanos::ZERO);
    intervals.on_write(Gfn(0), Nanos(0)).expect("in the table");
    intervals.on_write(Gfn(0), Nanos(u64::MAX)).expect("in the table");
    intervals
        .on_write(Gfn(1), Nanos::from_secs(86_400))
        .expect("in the table");
    let curve = intervals.working_sets(Nanos(u64::MAX)).curve();
    assert_eq!(curve.saturation(), Pages(2));
    assert_eq!(curve.points().len(), POINTS_MAX);
}

#[test]
fn a_page_counts_once_in_a_window_however_often_it_comes() {
    let mut table = [0; 2];
    let mut samples = Samples::new(&mut table);
    let since = [0, 1, 0].map(|gfn| samples.on_page(Gfn(gfn)).expect("in the table"));
    assert_eq!(since, [None, None, Some(0)]);
    samples.end_window();
    samples.end_window();
    assert_eq!(samples.on_page(Gfn(0)), Ok(Some(2)));
    assert!(samples.on_page(Gfn(2)).is_err());
    samples.end_window();
    assert_eq!(
        (samples.windows(), samples.dirtied(), samples.distinct()),
        (3, 3, Pages(2))
    );
    let sets = samples.working_sets();
    assert_eq!(sets.span(), Nanos(3));
    assert_eq!(sets.total(Nanos(1)), Some(3..=3), "2 + 0 + 1");
    assert_eq!(sets.total(Nanos(2)), Some(3..=3), "{{0, 1}} and {{0}}");
}

proptest! {
    #[test]
    fn the_identity_is_exact_for_every_window((writes, span) in trace()) {
        let mut table = [0; 8];
        let mut online = Intervals::new(&mut table, Nanos(1 << 40));
        for &(gfn, at) in &writes {
            online.on_write(Gfn(gfn), Nanos((1 << 40) + at)).expect("in the table");
        }
        let sets = online.working_sets(Nanos((1 << 40) + span));
        let (intervals, pages) = all_intervals(&writes, span);
        for window in 1..=span {
            let truth = by_brute_force(&writes, span, window);
            prop_assert_eq!(distinct_in_all_windows(intervals.iter().copied(), pages, Nanos(window)), truth);
            let total = sets.total(Nanos(window)).expect("a window inside");
            prop_assert!(total.contains(&truth), "{window}: {total:?} without {truth}");
            if IntervalHistogram::is_exact(Nanos(window)) || window == span {
                prop_assert_eq!(total, truth..=truth);
            }
        }
        let curve = sets.curve();
        for &(window, pages) in curve.points() {
            let truth = by_brute_force(&writes, span, window.0) / u128::from(span - window.0 + 1);
            prop_assert_eq!(u128::from(pages.0), truth);
        }
        if span > 1 {
            prop_assert_eq!(curve.points().len() as u32, (span - 1).ilog2() + 2);
        }
    }

    #[test]
    fn sampled_windows_are_exact_over_powers_of_two(windows in vec(vec(0..200u64, 0..20), 1..40), period in 1..1_000_000_000u64) {
        let mut table = [0; 200];
        let mut samples = Samples::new(&mut table);
        let mut storage = vec![0; words_needed(Pages(200))];
        for window in &windows {
            let mut dirty = PageSet::new(&mut storage, Pages(200)).expect("storage fits");
            for &gfn in window {
 dirty.insert(Gfn(gfn)).expect("in the set");
}
            samples.on_window(&dirty).expect("in the table");
        }
        let count = windows.len() as u64;
        let mut asked = 0;
        for &(length, pages) in samples.curve(Nanos(count * period)).points() {
            let width = length.0 / period;
            prop_assert_eq!(length.0 % period, 0);
            prop_assert!(width.is_power_of_two() || width == count);
            let distinct = windows.windows(width as usize).map(|few| few.concat().into_iter().collect::<BTreeSet<_>>().len());
            prop_assert_eq!(pages.0 as usize, distinct.sum::<usize>() / (count - width + 1) as usize);
            asked += 1;
        }
        prop_assert!(asked > 0);
    }
}
