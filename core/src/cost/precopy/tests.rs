//! By hand, at the edges, and against models that keep sets of pages.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec::Vec;

const fn pages_per_sec(pages: u64) -> BytesPerSec {
    BytesPerSec(pages * 4096)
}

const FREE: Overhead = Overhead {
    running: Nanos::ZERO,
    paused: Nanos::ZERO,
};

fn sent<D: Dirtying>(dirtying: &D, memory: u64, link: u64, count: usize) -> Vec<u64> {
    let rounds = rounds(dirtying, Pages(memory), pages_per_sec(link));
    rounds.take(count).map(|round| round.sent.0).collect()
}

/// AVG by hand: 10 000 pages at 1000 a second, 500 dirtied a second: halved in each round, until fewer than 50 are left.
#[test]
fn average_rate_by_hand() {
    assert_eq!(
        sent(&AverageRate(500), 10_000, 1000, 5),
        [10_000, 5000, 2500, 1250, 625]
    );
    let overhead = Overhead {
        running: Nanos::from_secs(2),
        paused: Nanos::from_millis(100),
    };
    let forecast = xen_forecast(&AverageRate(500), Pages(10_000), pages_per_sec(1000), overhead);
    // 10 000 + 5000 + 2500 + 1250 + 625 + 312 + 156 + 78 + 39.
    let expected = XenForecast {
        time: Nanos::from_millis(19_960 + 2100),
        downtime: Nanos::from_millis(39 + 100),
        sent: Pages(19_960),
        rounds: 8,
    };
    assert_eq!(forecast, expected);
}

/// HIST by hand: three intervals of a second, which dirty {0, 1}, {1, 2} and {3}.
#[test]
fn history_by_hand() {
    let sets = [0b0011, 0b0110, 0b1000];
    let history = History::new(Nanos::from_secs(1), 1, &sets).expect("a record");
    let dirtied = |from, until| history.dirtied(Nanos::from_millis(from), Nanos::from_millis(until)).0;
    assert_eq!(dirtied(0, 1000), 2);
    assert_eq!(dirtied(0, 2000), 3);
    assert_eq!(dirtied(500, 2500), 4);
    assert_eq!(dirtied(2000, 3000), 1);
    assert_eq!(dirtied(2000, 4000), 3, "it begins anew");
    assert_eq!(dirtied(1000, 9_000_000), 4);
    assert_eq!(dirtied(1000, 1000), 0);
    // 4 pages a second: the full copy sees interval 0, and so on.
    assert_eq!(sent(&history, 4, 4, 4), [4, 2, 2, 2]);
    for (interval, words, sets) in [(0, 1, &sets[..]), (1, 0, &sets), (1, 1, &[]), (1, 2, &sets)] {
        assert!(History::new(Nanos(interval), words, sets).is_none());
    }
}

/// The saturating model by hand: 100 pages in the first second, 150 in two, never more. The linear model diverges here.
#[test]
fn a_saturating_curve_reaches_a_plateau() {
    let curve =
        WwsCurve::new(&[(Nanos::from_secs(1), Pages(100)), (Nanos::from_secs(2), Pages(150))]).expect("a curve");
    assert_eq!(sent(&curve, 1000, 80, 6), [1000, 150, 143, 139, 136, 135]);
    assert_eq!(
        sent(&curve, 1000, 80, 60)[40..].iter().collect::<BTreeSet<_>>().len(),
        1
    );
    assert_eq!(sent(&AverageRate(100), 1000, 80, 6), [1000; 6]);
}

/// Every page is dirtied in every round: after three memories Xen gives up, with a fourth and a fifth sent.
#[test]
fn a_guest_that_dirties_all_comes_close_to_the_upper_bound() {
    let memory = Pages(1000);
    let forecast = xen_forecast(&AverageRate(u64::MAX), memory, pages_per_sec(10), FREE);
    assert_eq!((forecast.rounds, forecast.sent), (4, Pages(5000)));
    assert_eq!(
        forecast.downtime,
        xen_downtime_bounds(memory, pages_per_sec(10), FREE).most
    );
    // Exactly three memories do not pass the factor, so 5·M is a page more than the paper's bound.
    let bounds = xen_time_bounds(memory, pages_per_sec(10), FREE);
    assert_eq!(bounds.least, Nanos::from_secs(100));
    assert_eq!(bounds.most, Nanos::from_millis(499_900).saturating_add(Nanos(29)));
}

#[test]
fn the_edges() {
    let idle = xen_forecast(&WwsCurve::FLAT, Pages(1), pages_per_sec(1), FREE);
    assert_eq!(
        (idle.time, idle.rounds, idle.downtime),
        (Nanos::from_secs(1), 1, Nanos::ZERO)
    );
    let nothing = xen_forecast(&AverageRate(5), Pages(0), pages_per_sec(1), FREE);
    assert_eq!((nothing.sent, nothing.rounds), (Pages::ZERO, 1));
    let no_link = xen_forecast(&AverageRate(5), Pages(100), BytesPerSec(0), FREE);
    assert_eq!(no_link.time, Nanos(u64::MAX));
    let largest = xen_forecast(&AverageRate(u64::MAX), Pages(1 << 32), BytesPerSec(1), FREE);
    assert_eq!(largest.time, Nanos(u64::MAX));
    let day = WwsCurve::new(&[(Nanos::from_secs(86_400), Pages(1 << 32))]).expect("a curve");
    let even = sent(&day, 1 << 32, (1 << 32) / 86_400, 3);
    assert_eq!(even, [1 << 32; 3], "a link just too slow");
}

proptest! {
    #[test]
    fn every_forecast_keeps_the_bounds(memory in 1..1u64 << 32, rate in 0..1u64 << 34, link in 1..1u64 << 40) {
        let (memory, link) = (Pages(memory), BytesPerSec(link));
        let overhead = Overhead { running: Nanos::from_millis(300), paused: Nanos::from_millis(30) };
        let forecast = xen_forecast(&AverageRate(rate), memory, link, overhead);
        let time = xen_time_bounds(memory, link, overhead);
        let downtime = xen_downtime_bounds(memory, link, overhead);
        prop_assert!(time.least <= forecast.time);
        // One page beyond the paper's bound, where rounds end at exactly three memories.
        let page = link.time_to_send(Pages(1).bytes());
        prop_assert!(forecast.time <= time.most.saturating_add(page));
        prop_assert!(downtime.least <= forecast.downtime && forecast.downtime <= downtime.most);
    }

    #[test]
    fn history_counts_like_sets_of_pages(
        words in 1..4usize, intervals in vec(vec(any::<u64>(), 3), 1..6), interval in 1..50u64, from in 0..400u64, length in 0..400u64,
    ) {
        let sets: Vec<u64> = intervals.iter().flat_map(|set| set[..words].iter().copied()).collect();
        let history = History::new(Nanos(interval), words, &sets).expect("a record");
        let mut pages = BTreeSet::new();
        // Nanosecond by nanosecond.
        for now in from..from + length {
            let set = &intervals[(now / interval) as usize % intervals.len()];
            for page in 0..words * 64 {
                if set[page / 64] >> (page % 64) & 1 == 1 {
                    pages.insert(page);
                }
            }
        }
        prop_assert_eq!(history.dirtied(Nanos(from), Nanos(from + length)), Pages(pages.len() as u64));
    }

    /// The survey's equations are the special case of a constant rate that never reaches the whole memory.
    #[test]
    fn a_constant_rate_is_the_survey(memory in 1000..1u64 << 30, percent in 0..100u64) {
        use crate::cost::LinearDirtying;
        let link = 100_000;
        let linear = LinearDirtying {
            memory: Pages(memory).bytes(),
            dirtying: pages_per_sec(link * percent / 100),
            link: pages_per_sec(link),
        };
        for round in rounds(&AverageRate(link * percent / 100), Pages(memory), pages_per_sec(link)).take(6) {
            let bytes = linear.round_bytes(round.round - 1).0;
            // Each round rounds down to a page, and carries what was lost on.
            prop_assert!(round.sent.bytes().0.abs_diff(bytes) <= 4096 * 8, "{round:?} {bytes}");
        }
    }

    #[test]
    fn a_faster_link_never_costs_more(
        steps in vec((1..1u64 << 36, 0..1u64 << 20), 1..8), memory in 1..1u64 << 24, link in 1..1u64 << 32, more in 0..1u64 << 32,
    ) {
        let mut at = (0, 0);
        let points: Vec<_> = steps.iter().map(|&(time, pages)| {
            at = (at.0 + time, at.1 + pages);
            (Nanos(at.0), Pages(at.1))
        }).collect();
        let curve = WwsCurve::new(&points).expect("ascending");
        let both = [link, link + more].map(|link| rounds(&curve, Pages(memory), BytesPerSec(link)));
        let [slower, faster] = both;
        for (slower, faster) in slower.zip(faster).take(20) {
            prop_assert!(faster.sent <= slower.sent && faster.duration <= slower.duration && faster.dirty <= slower.dirty);
        }
    }
}
