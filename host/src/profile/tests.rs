//! Traces of generated writes, seen by every sort of source.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_core::message::{Region, Regions};
use dunlin_core::pageset::Run;
use dunlin_core::tracefile::{Head, Item, Source, VCPU_UNKNOWN};
use dunlin_core::units::{Gfn, Nanos, Pages};
use dunlin_core::workload::{Generator, Kind, Spec};

use super::*;
use crate::report::{OrderBasis, ResolutionName, TraceReport};

/// Frames before the working set, so that pages and numbers differ.
const BEFORE: u64 = 16;

pub(crate) fn head(source: Source, pages: u64, vcpus: u32) -> Head {
    let mut regions = Regions::new();
    let region = Region {
        first: Gfn(BEFORE),
        pages: Pages(pages),
    };
    regions.push(region).expect("there is room for one");
    Head {
        source,
        regions,
        used: Pages(pages),
        vcpus,
        window: Nanos::ZERO,
        started_unix_ns: 0,
        guest: "generated".try_into().expect("a short name"),
    }
}

/// The writes of `steps` steps of each vCPU, all of which take a step every `interval`.
pub(crate) fn writes(spec: &str, pages: u64, vcpus: u32, steps: u64, interval: Nanos) -> Vec<Item> {
    let spec: Spec = spec.parse().expect("a workload");
    let mut generators: Vec<_> = (0..vcpus)
        .map(|vcpu| Generator::new(&spec, Pages(pages), vcpus, vcpu, 1).expect("a workload that fits"))
        .collect();
    let mut items = Vec::new();
    for step in 0..steps {
        for (vcpu, generator) in (0..).zip(&mut generators) {
            let next = generator.next().expect("generators do not end");
            if next.kind == Kind::Write {
                items.push(Item::Write {
                    at: Nanos(step * interval.0),
                    vcpu,
                    gfn: Gfn(BEFORE + next.page),
                });
            }
        }
    }
    items.push(Item::End {
        at: Nanos(steps * interval.0),
        overhead: Nanos::from_millis(1),
    });
    items
}

/// The same as a bitmap shows it that is harvested so often.
pub(crate) fn as_windows(items: &[Item], period: Nanos) -> Vec<Item> {
    let mut seen = Vec::new();
    let (mut dirty, mut next) = (BTreeSet::new(), period);
    for item in items {
        let at = item.at().expect("writes and ends have times");
        while at >= next {
            let pages = std::mem::take(&mut dirty).into_iter();
            seen.extend(pages.map(|gfn| Item::Dirty {
                run: Run::new(gfn, Pages(1)),
            }));
            seen.push(Item::WindowEnd {
                at: next,
                vcpu: VCPU_UNKNOWN,
            });
            next = next.saturating_add(period);
        }
        match item {
            Item::Write { gfn, .. } => {
                dirty.insert(*gfn);
            }
            other => seen.push(*other),
        }
    }
    seen
}

/// The same as a tracer shows it that sees the first write after each harvest.
pub(crate) fn as_first_writes(items: &[Item], period: Nanos) -> Vec<Item> {
    let mut seen = Vec::new();
    let (mut dirty, mut next) = (BTreeSet::new(), period);
    for item in items {
        let at = item.at().expect("writes and ends have times");
        while at >= next {
            dirty.clear();
            seen.push(Item::WindowEnd {
                at: next,
                vcpu: VCPU_UNKNOWN,
            });
            next = next.saturating_add(period);
        }
        match item {
            Item::Write { gfn, .. } if !dirty.insert(*gfn) => {}
            other => seen.push(*other),
        }
    }
    seen
}

pub(crate) fn analysed<T>(head: &Head, items: &[Item], look: impl FnOnce(&Analysis<'_>) -> T) -> T {
    let mut tables = Tables::for_guest(head).expect("a small guest");
    let mut analysis = Analysis::new(head, &mut tables);
    for item in items {
        analysis.take(item);
    }
    look(&analysis)
}

pub(crate) fn reported(head: &Head, items: &[Item]) -> TraceReport {
    analysed(head, items, |analysis| analysis.report("generated.dtrace"))
}

const PAGES: u64 = 8192;
const MICRO: Nanos = Nanos::from_micros(1);

#[test]
fn every_workload_is_recognised() {
    for (spec, class) in [
        ("idle", "unknown"),
        ("seq", "loop"),
        ("lmbench", "loop"),
        ("uniform", "random"),
        ("zipf:0.3", "random"),
        ("zipf:0.99", "hot-cold"),
        ("hotset:0.1", "hot-cold"),
        ("memcached", "hot-cold"),
        ("kernel", "loop"),
        ("shared:0.5", "random"),
    ] {
        let items = writes(spec, PAGES, 2, 40_960, MICRO);
        let report = reported(&head(Source::Generator, PAGES, 2), &items);
        assert_eq!(report.order.class, class, "{spec}");
        let distinct = items.iter().filter_map(|item| match item {
            Item::Write { gfn, .. } => Some(gfn),
            _ => None,
        });
        let distinct = distinct.collect::<BTreeSet<_>>().len() as u64;
        assert_eq!(report.guest.written_pages, distinct, "{spec}");
        assert_eq!(report.wws.last().map(|point| point.pages), Some(distinct), "{spec}");
        assert_eq!(report.first_touch.pages, distinct, "{spec}");
        assert_eq!(report.events, items.len() as u64 - 1, "{spec}");
        assert_eq!(
            report.heat.map_or(0, |heat| heat.columns.iter().flatten().sum()),
            report.events,
            "{spec}"
        );
        if spec != "idle" {
            assert_eq!(
                report.vcpus.iter().map(|share| share.events).sum::<u64>(),
                report.events,
                "{spec}"
            );
            let shares: Vec<u64> = report.vcpus.iter().map(|share| share.share_milli).collect();
            assert!(
                shares.iter().all(|share| (450..=550).contains(share)),
                "{spec}: {shares:?}"
            );
            let shared = report.sharing.unwrap().shared_pages_milli;
            let expected = if spec == "shared:0.5" { 490..=500 } else { 0..=0 };
            assert!(expected.contains(&shared), "{spec}: {shared}");
        }
    }
}

#[test]
fn a_steady_guest_has_the_rate_it_was_given() {
    // 20 000 pages in a circle at 10 000 a second for 12 s: no page twice in a second.
    let items = writes("seq", 20_000, 1, 120_000, Nanos::from_micros(100));
    let report = reported(&head(Source::Generator, 20_000, 1), &items);
    let rate = report.rate.unwrap();
    assert_eq!(rate.windows.windows, 120);
    assert!(
        (rate.windows.mean_pages_per_s - 10_000.0).abs() < 1e-6,
        "{:?}",
        rate.windows
    );
    assert!(rate.windows.stddev_pages_per_s < 1e-3, "{:?}", rate.windows);
    // In 10 s every page is written five times.
    let longest = rate.other_windows.last().unwrap();
    assert_eq!((longest.windows, longest.mean_pages_per_s), (1, 2_000.0));
    assert_eq!(report.sharing, None);
    let at = |window_us: u64| report.wws.iter().find(|point| point.window_us == window_us).unwrap();
    // Between windows of powers of two the curve is a bound.
    for (window_us, pages) in [(1_000, 10), (1_000_000, 10_000), (5_000_000, 20_000)] {
        let point = at(window_us);
        assert!(
            point.pages <= pages && pages <= point.pages_high && point.pages >= pages - pages / 1000,
            "{point:?}"
        );
    }
    assert_eq!(report.intervals.unwrap().count, 100_000);
    let overhead = report.overhead.unwrap();
    assert_eq!((overhead.cpu_us, overhead.per_event_ns), (1_000, Some(8)));
    assert!(report.complete && report.notes.is_empty(), "{:?}", report.notes);
}

/// Where KVM emulates, each write is pushed into a ring; on a processor the first since the harvest.
#[test]
fn a_ring_that_has_every_write_is_taken_for_what_it_is() {
    let all = writes("seq", 64, 1, 6_400, Nanos::from_micros(10));
    let harvested = |every: u64| {
        let mut items = Vec::new();
        for (item, index) in all.iter().zip(0..) {
            items.push(*item);
            if index % every == every - 1 {
                let at = item.at().unwrap();
                items.push(Item::WindowEnd { at, vcpu: 0 });
            }
        }
        reported(&head(Source::RingPush, 64, 1), &items)
    };
    let first = harvested(64);
    assert_eq!(first.resolution, ResolutionName::FirstWrites);
    assert!(first.intervals.unwrap().resolved_from_ns > 0);
    let every = harvested(640);
    assert_eq!(every.resolution, ResolutionName::EveryWrite);
    assert!(every.cannot_see.contains("KVM emulates"), "{}", every.cannot_see);
    assert_eq!(every.intervals.unwrap().resolved_from_ns, 0);
    assert_eq!(every.order.by, OrderBasis::Writes);
}

/// A recording that is ended is harvested once more, perhaps right after the last harvest.
#[test]
fn a_short_last_window_is_no_peak() {
    let period = Nanos::from_millis(10);
    let mut items = as_windows(&writes("seq", PAGES, 1, 1_000, Nanos::from_micros(100)), period);
    let end = items.iter().rposition(|item| matches!(item, Item::End { .. })).unwrap();
    let at = Nanos(items[end].at().unwrap().0 + 1_000);
    let run = Run::new(Gfn(BEFORE), Pages(50));
    items.truncate(end);
    items.extend([Item::Dirty { run }, Item::WindowEnd { at, vcpu: VCPU_UNKNOWN }]);
    let head = Head {
        window: period,
        ..head(Source::Bitmap, PAGES, 1)
    };
    let rate = reported(&head, &items).rate.unwrap().windows;
    assert_eq!((rate.windows, rate.max_pages_per_s), (10, 10_000.0));
}

#[test]
fn windows_tell_what_they_can_and_no_more() {
    let items = writes("hotset:0.1", PAGES, 2, 40_000, Nanos::from_micros(25));
    let period = Nanos::from_millis(10);
    let report = reported(&head(Source::Bitmap, PAGES, 2), &as_windows(&items, period));
    assert_eq!(report.resolution, ResolutionName::Windows);
    assert_eq!(
        (report.order.class.as_str(), report.order.by),
        ("unknown", OrderBasis::Nothing)
    );
    assert_eq!((report.vcpus.len(), report.sharing), (0, None));
    let harvest = report.harvest.unwrap();
    assert_eq!(
        (harvest.windows, harvest.mean_us, harvest.longest_us),
        (100, 10_000, 10_000)
    );
    // By sets, for windows of one and of ten harvests.
    let mut sets: Vec<BTreeSet<Gfn>> = vec![BTreeSet::new(); 100];
    for item in &items {
        if let Item::Write { at, gfn, .. } = item {
            sets[(at.0 / period.0) as usize].insert(*gfn);
        }
    }
    let rate = report.rate.unwrap();
    let all: usize = sets.iter().map(BTreeSet::len).sum();
    assert!(
        (rate.windows.mean_pages_per_s - all as f64).abs() < 1e-6,
        "{:?}",
        rate.windows
    );
    let ten: usize = sets
        .chunks(10)
        .map(|sets| sets.iter().flatten().collect::<BTreeSet<_>>().len())
        .sum();
    let of_ten = rate.other_windows.iter().find(|windows| windows.windows == 10).unwrap();
    assert!((of_ten.mean_pages_per_s - ten as f64).abs() < 1e-6, "{of_ten:?}");
    let neighbours: usize = sets
        .windows(10)
        .map(|sets| sets.iter().flatten().collect::<BTreeSet<_>>().len())
        .sum();
    let point = report.wws.iter().find(|point| point.window_us == 100_000).unwrap();
    assert_eq!(point.pages, neighbours as u64 / 91);
    assert!(
        report.notes.iter().any(|note| note.contains("neither the order")),
        "{:?}",
        report.notes
    );
}

#[test]
fn first_writes_bound_what_was_written() {
    let items = writes("zipf:0.99", PAGES, 2, 50_000, Nanos::from_micros(20));
    let truth = reported(&head(Source::Generator, PAGES, 2), &items);
    let seen = as_first_writes(&items, Nanos::from_millis(50));
    let report = reported(&head(Source::RingPush, PAGES, 2), &seen);
    assert_eq!(report.wws.len(), truth.wws.len());
    for (bound, point) in report.wws.iter().zip(&truth.wws) {
        assert!(
            bound.pages <= point.pages && point.pages <= bound.pages_high,
            "{bound:?} {point:?}"
        );
    }
    let rate = report.rate.unwrap();
    let of_windows = |rate: &crate::report::RateReport| -> BTreeMap<u64, f64> {
        let all = rate.other_windows.iter().chain([&rate.windows]);
        all.map(|windows| (windows.window_us as u64, windows.mean_pages_per_s))
            .collect()
    };
    let (ours, true_ones) = (of_windows(&rate), of_windows(truth.rate.as_ref().unwrap()));
    assert!(
        !ours.contains_key(&10_000) && true_ones.contains_key(&10_000),
        "{ours:?}"
    );
    // A window of two whole harvests has all the pages of both.
    assert_eq!(ours[&100_000], true_ones[&100_000]);
    assert_eq!(report.order.by, OrderBasis::FirstWrites);
    assert_eq!(report.intervals.unwrap().resolved_from_ns, 50_000_000);
}

#[test]
fn what_was_never_harvested_is_seen_once() {
    let items = writes("uniform", 100, 1, 5_000, Nanos::from_millis(1));
    let once = as_first_writes(&items, Nanos(u64::MAX));
    let report = reported(&head(Source::WriteProtectFault, 100, 1), &once);
    let rate = report.rate.unwrap();
    assert_eq!((rate.windows.windows, rate.windows.mean_pages_per_s), (1, 20.0));
    assert_eq!((report.intervals, report.harvest), (None, None));
    assert!(report.wws.iter().all(|point| point.pages_high == 100));
    assert!(
        report.notes.iter().any(|note| note.contains("never harvested")),
        "{:?}",
        report.notes
    );
}

#[test]
fn losses_and_cuts_are_said() {
    let head = head(Source::Generator, 100, 1);
    let mut items = writes("uniform", 100, 1, 1_000, MICRO);
    items.pop();
    let lost = |events| Item::Lost {
        at: Nanos::from_millis(1),
        events,
    };
    items.extend([lost(5), lost(7)]);
    let report = reported(&head, &items);
    assert_eq!(
        (report.lost_events, report.losses.len(), report.complete),
        (Some(12), 2, false)
    );
    assert_eq!((report.overhead, report.duration_us), (None, 1_000));
    assert!(report.notes[0].starts_with("cut off after 1.00 ms") && report.notes[1].starts_with("12 events were lost"));
    items.push(lost(u64::MAX));
    let outside = |gfn| Item::Write {
        at: Nanos::from_millis(2),
        vcpu: 0,
        gfn: Gfn(gfn),
    };
    items.extend([
        outside(0),
        outside(BEFORE + 100),
        Item::Dirty {
            run: Run::new(Gfn(50), Pages(u64::MAX)),
        },
    ]);
    let report = reported(&head, &items);
    assert_eq!((report.lost_events, report.losses[2].events), (None, None));
    assert!(report.notes[1].contains("nobody knows how many"), "{:?}", report.notes);
    assert_eq!(report.events, 1_000 + BEFORE + 50);
    assert!(
        report.notes[2].contains("outside the guest's RAM"),
        "{:?}",
        report.notes
    );
}

#[test]
fn nothing_at_all_is_a_report_too() {
    for source in Source::ALL {
        let empty = reported(&head(source, 100, 2), &[]);
        assert_eq!(
            (empty.events, empty.rate.is_none(), empty.heat.is_none()),
            (0, true, true),
            "{source}"
        );
        assert_eq!((empty.wws.len(), empty.guest.written_pages), (0, 0), "{source}");
        let silent = reported(
            &head(source, 100, 2),
            &[Item::End {
                at: Nanos::from_secs(3),
                overhead: Nanos::ZERO,
            }],
        );
        assert_eq!((silent.duration_us, silent.hot.pages.len()), (3_000_000, 0), "{source}");
        assert_eq!(silent.workload.write_intensive_up_to_bytes_per_s, None, "{source}");
    }
}

#[test]
fn guests_that_nobody_has_are_refused() {
    let mut large = head(Source::Generator, 1 << 40, 1);
    assert!(matches!(Tables::for_guest(&large), Err(ProfileError::Span(_))));
    large = head(Source::Generator, (1 << 32) - BEFORE, 1);
    let error = Tables::for_guest(&large).unwrap_err().to_string();
    assert!(error.contains("16.0 TiB needs 96.0 GiB"), "{error}");
    assert!(matches!(
        Tables::for_guest(&head(Source::Generator, 1, 0)),
        Err(ProfileError::Vcpus(0))
    ));
    assert!(matches!(
        Tables::for_guest(&head(Source::Generator, 1, 9_999)),
        Err(ProfileError::Vcpus(9_999))
    ));
}
