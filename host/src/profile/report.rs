//! From what was taken in to what is reported.

use dunlin_core::pattern::{Access, Counters, IntervalHistogram, Profile, WorkingSets, WorkloadClass};
use dunlin_core::tracefile::{Resolution, Source};
use dunlin_core::units::{BytesPerSec, Nanos, PAGE_SIZE, Pages, Ratio};

use super::analysis::{Analysis, Writes};
use super::{hot, notes, rate::Rate};
use crate::report::{
    HeatReport, IntervalBucket, IntervalReport, OrderBasis, OrderReport, RateReport, ReportSchema, ResolutionName,
    SharingReport, TraceOverhead, TraceReport, TracedGuest, VcpuShare, WorkloadReport, WwsPoint,
};

/// A course of at least so many windows is worth a picture.
const WINDOWS_SHOWN: u64 = 60;
/// The shortest window of the curve.
const SHORTEST: u64 = 1_000_000;
/// The fastest link that is asked about.
const FASTEST: u64 = 1 << 40;

pub(super) fn report(analysis: &Analysis<'_>, trace: &str) -> TraceReport {
    let (head, span) = (&analysis.head, analysis.span());
    let profile = profile(analysis);
    let all_known: u64 = analysis.vcpus.iter().sum();
    TraceReport {
        schema: ReportSchema,
        source: head.source.name().into(),
        lost_events: analysis.lost,
        overhead: overhead(analysis, span),
        rate: rate(analysis, span),
        wws: wws(analysis, span),
        intervals: intervals(analysis),
        heat: heat(analysis, span),
        order: order(analysis),
        vcpus: if all_known > 0 {
            vcpus(&analysis.vcpus, all_known)
        } else {
            Vec::new()
        },
        events_of_unknown_vcpu: analysis.unknown,
        sharing: sharing(analysis),
        hot: hot::report(analysis.counts),
        workload: workload(&profile),
        first_touch: analysis.touch.report(span),
        steps: analysis.steps.report(),
        trace: trace.into(),
        guest: TracedGuest {
            name: head.guest.as_str().into(),
            memory_bytes: profile.total.bytes().0,
            used_bytes: profile.used.bytes().0,
            vcpus: head.vcpus,
            written_pages: distinct(analysis).0,
        },
        resolution: resolution(analysis.resolution()),
        cannot_see: cannot_see(analysis).into(),
        harvest: analysis.harvest.report(),
        started_unix_ns: Some(head.started_unix_ns).filter(|at| *at > 0),
        duration_us: span.as_micros(),
        complete: analysis.end.is_some(),
        events: analysis.events,
        losses: analysis.losses.clone(),
        notes: notes::of(analysis, span),
    }
}

pub(super) fn profile(analysis: &Analysis<'_>) -> Profile {
    let (head, span) = (&analysis.head, analysis.span());
    // What was written since is used, too.
    let used = head.used.max(distinct(analysis));
    let curve = match &analysis.writes {
        Writes::Times(intervals) => intervals.working_sets(span).curve(),
        Writes::Windows(samples) => samples.curve(span),
    };
    let every = analysis.resolution() == Resolution::EveryWrite;
    Profile {
        class: analysis.order.class(),
        writes: every.then_some(analysis.events),
        ..Profile::new(head.total(), used, curve, span, head.vcpus)
    }
}

pub(super) fn distinct(analysis: &Analysis<'_>) -> Pages {
    match &analysis.writes {
        Writes::Times(intervals) => intervals.distinct(),
        Writes::Windows(samples) => samples.distinct(),
    }
}

fn cannot_see(analysis: &Analysis<'_>) -> &'static str {
    let source = analysis.head.source;
    match analysis.resolution() {
        // Of itself it sees first writes only.
        Resolution::EveryWrite if source.resolution() != Resolution::EveryWrite => {
            "a vCPU's further writes to the page that it wrote last; KVM emulates here, so that all others are seen"
        }
        _ => source.cannot_see(),
    }
}

const fn resolution(resolution: Resolution) -> ResolutionName {
    match resolution {
        Resolution::EveryWrite => ResolutionName::EveryWrite,
        Resolution::FirstWrites => ResolutionName::FirstWrites,
        Resolution::Windows => ResolutionName::Windows,
    }
}

/// For how long a page may be written again without being seen, in the mean; the whole trace if it was never harvested.
pub(super) fn unresolved(analysis: &Analysis<'_>, span: Nanos) -> Nanos {
    match analysis.resolution() {
        Resolution::EveryWrite => Nanos::ZERO,
        Resolution::FirstWrites | Resolution::Windows => analysis.harvest.mean().unwrap_or(span),
    }
}

fn overhead(analysis: &Analysis<'_>, span: Nanos) -> Option<TraceOverhead> {
    let (_, cpu) = analysis.end?;
    // Nobody knows what it took there.
    if analysis.head.source == Source::Imported && cpu == Nanos::ZERO {
        return None;
    }
    let of_one = (u128::from(cpu.0) * 1000).checked_div(u128::from(span.0)).unwrap_or(0);
    Some(TraceOverhead {
        cpu_us: cpu.as_micros(),
        of_one_cpu_milli: u64::try_from(of_one).unwrap_or(u64::MAX),
        per_event_ns: cpu.0.checked_div(analysis.events),
    })
}

fn rate(analysis: &Analysis<'_>, span: Nanos) -> Option<RateReport> {
    let by_harvest = matches!(analysis.writes, Writes::Windows(_));
    let unresolved = unresolved(analysis, span);
    let mut rates: Vec<Rate> = Vec::new();
    for rate in &analysis.rates {
        // Windows of times are compared with what they cannot resolve; those of harvests are made of it.
        if !by_harvest && rate.window() < unresolved {
            continue;
        }
        let rate = rate.ended(span, by_harvest);
        if rates.last().is_none_or(|last| last.windows() > rate.windows()) {
            rates.push(rate);
        }
    }
    if rates.is_empty() {
        rates.push(Rate::whole(distinct(analysis).0, span));
    }
    let shown = rates
        .iter()
        .rposition(|rate| rate.windows() >= WINDOWS_SHOWN)
        .unwrap_or(0);
    let shown_rate = rates.remove(shown);
    Some(RateReport {
        windows: shown_rate.summary()?,
        series: shown_rate.course(),
        other_windows: rates.iter().filter_map(Rate::summary).collect(),
        events_per_s: analysis.events as f64 * 1e9 / span.0.max(1) as f64,
    })
}

/// 1, 2, 5, 10, … times `unit` below `end`, and `end`.
fn lengths(unit: u64, end: u64) -> Vec<u64> {
    let decades = std::iter::successors(Some(unit), |one| one.checked_mul(10));
    let all = decades.flat_map(|one| [1, 2, 5].map(|factor| one.saturating_mul(factor)));
    // One that is nearly the whole is left to that.
    let below = all.take_while(|&length| length.saturating_add(length / 50) < end);
    below.chain([end]).filter(|&length| length > 0).collect()
}

fn wws(analysis: &Analysis<'_>, span: Nanos) -> Vec<WwsPoint> {
    let unseen = match analysis.resolution() {
        Resolution::FirstWrites => analysis.harvest.longest(span),
        _ => Nanos::ZERO,
    };
    match &analysis.writes {
        Writes::Times(intervals) => curve(&intervals.working_sets(span), SHORTEST, unseen.0, 1.0),
        Writes::Windows(samples) => {
            let sets = samples.working_sets();
            let mean = span.0 as f64 / sets.span().0.max(1) as f64;
            curve(&sets, 1, 0, mean)
        }
    }
}

/// The curve in units of `nanos`, from windows of `unit` on. Writes up to `unseen` after one that was seen were not.
fn curve(sets: &WorkingSets, unit: u64, unseen: u64, nanos: f64) -> Vec<WwsPoint> {
    let span = sets.span().0;
    let all = sets.total(Nanos(span)).map_or(0, |total| *total.end());
    let windows = |window: u64| u128::from(span - window) + 1;
    let mean = |window: u64| {
        let total = sets.total(Nanos(window))?;
        Some(((total.start() + windows(window) / 2) / windows(window)) as u64)
    };
    // A window has at most what was seen in it and in the time before in which writes went unseen. Where less than that time lies before it,
    // nothing is known but that there are no more pages than all.
    let most = |window: u64, reach: u64| {
        let total = sets.total(Nanos(reach))?.end() + u128::from(reach - window) * all;
        Some(total.div_ceil(windows(window)).min(all) as u64)
    };
    let mut points: Vec<WwsPoint> = Vec::new();
    for window in lengths(unit.min(span), span) {
        let reach = window.saturating_add(unseen).min(span);
        let (Some(pages), Some(high)) = (mean(window), most(window, reach)) else {
            continue;
        };
        let before = points.last().map_or((0, 0), |last| (last.pages, last.pages_high));
        let pages = pages.max(before.0);
        points.push(WwsPoint {
            window_us: (window as f64 * nanos / 1e3) as u64,
            pages,
            pages_high: high.max(pages).max(before.1),
        });
    }
    points
}

fn intervals(analysis: &Analysis<'_>) -> Option<IntervalReport> {
    let span = analysis.span();
    let (histogram, nanos): (&IntervalHistogram, u64) = match &analysis.writes {
        Writes::Times(intervals) => (intervals.histogram(), 1),
        Writes::Windows(samples) => (samples.histogram(), analysis.harvest.mean()?.0),
    };
    let scaled = |interval: Nanos| interval.0.saturating_mul(nanos);
    let quantile = |milli| histogram.quantile(milli).map(|range| scaled(*range.end()));
    let buckets = histogram.buckets().map(|(range, count)| IntervalBucket {
        from_ns: scaled(*range.start()),
        to_ns: scaled(*range.end()),
        count,
    });
    Some(IntervalReport {
        count: histogram.count(),
        median_ns: quantile(500)?,
        p90_ns: quantile(900)?,
        p99_ns: quantile(990)?,
        resolved_from_ns: unresolved(analysis, span).0,
        buckets: buckets.collect(),
    })
}

fn heat(analysis: &Analysis<'_>, span: Nanos) -> Option<HeatReport> {
    if analysis.events == 0 {
        return None;
    }
    let mut heat = analysis.heat.clone();
    let (last, tick) = match &analysis.writes {
        Writes::Times(_) => (span.0.saturating_sub(1), 1.0),
        Writes::Windows(samples) => {
            let windows = samples.working_sets().span().0;
            (windows.saturating_sub(1), span.0 as f64 / windows.max(1) as f64)
        }
    };
    heat.extend_to(last);
    if matches!(analysis.writes, Writes::Times(_)) {
        // Where first writes come in bursts after each harvest, columns hold whole ones.
        heat = heat.at_least(unresolved(analysis, span).0.saturating_mul(2));
    }
    let rows: Vec<u64> = heat.rows().collect();
    let end = rows
        .last()
        .map_or(0, |row| (row + heat.row_pages()).min(analysis.frames.pages()));
    Some(HeatReport {
        column_us: (heat.column_ticks() as f64 * tick / 1e3) as u64,
        row_pages: heat.row_pages(),
        row_addresses: rows.iter().map(|row| analysis.frames.address(*row)).collect(),
        end_address: analysis.frames.address(end.saturating_sub(1)) + PAGE_SIZE,
        columns: heat.cells(),
    })
}

pub(super) fn basis(analysis: &Analysis<'_>) -> OrderBasis {
    match analysis.resolution() {
        _ if analysis.order.writes() == 0 => OrderBasis::Nothing,
        Resolution::EveryWrite => OrderBasis::Writes,
        Resolution::FirstWrites | Resolution::Windows => OrderBasis::FirstWrites,
    }
}

fn order(analysis: &Analysis<'_>) -> OrderReport {
    OrderReport {
        class: analysis.order.class().to_string(),
        in_order_milli: analysis.order.in_order().map(share_milli),
        by: basis(analysis),
    }
}

fn vcpus(events: &[u64], all: u64) -> Vec<VcpuShare> {
    let mut shares: Vec<VcpuShare> = (0u32..)
        .zip(events)
        .map(|(vcpu, &events)| VcpuShare {
            vcpu,
            events,
            share_milli: (u128::from(events) * 1000 / u128::from(all)) as u64,
        })
        .collect();
    shares.sort_by_key(|share| (std::cmp::Reverse(share.events), share.vcpu));
    shares
}

fn sharing(analysis: &Analysis<'_>) -> Option<SharingReport> {
    let sharing = analysis.sharing.as_ref()?;
    let (shared, crossing) = (sharing.shared_pages()?, sharing.crossing_writes()?);
    let mut pages: Vec<u64> = (1..=48).map(|writers| sharing.pages_written_by(writers).0).collect();
    while pages.last() == Some(&0) {
        pages.pop();
    }
    Some(SharingReport {
        pages_by_writers: pages,
        shared_pages_milli: share_milli(shared),
        crossing_events_milli: share_milli(crossing),
    })
}

/// Shares are from 0 to 1.
fn share_milli(share: Ratio) -> u64 {
    share.milli().unsigned_abs()
}

fn workload(profile: &Profile) -> WorkloadReport {
    let is_write_intensive = |link: u64| {
        WorkloadClass::of(profile, &Counters::default(), BytesPerSec(link)).access == Access::WriteIntensive
    };
    let (set, total) = (profile.working_set().0, profile.total.0);
    WorkloadReport {
        working_set_milli: (u128::from(set) * 1000 / u128::from(total.max(1))) as u64,
        memory_intensive: u128::from(set) * 10 >= u128::from(total) && set > 0,
        write_intensive_up_to_bytes_per_s: last_true(is_write_intensive, FASTEST),
        cpu_intensive: None,
        network_intensive: None,
    }
}

/// The largest number up to `most` for which it holds, where it holds up to some number and not beyond; `None` if not for 1.
fn last_true(holds: impl Fn(u64) -> bool, most: u64) -> Option<u64> {
    if !holds(1) {
        return None;
    }
    let (mut low, mut high) = (1, most + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    Some(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_core::pattern::Intervals;
    use dunlin_core::units::Gfn;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Every window at every position, one by one.
        #[test]
        fn first_writes_bound_the_curve(
            mut writes in vec((0..6u64, 0..90u64), 1..60),
            harvests in vec(0..100u64, 0..9),
            rest in 1..20u64,
        ) {
            writes.sort_by_key(|write| write.1);
            let span = writes.last().unwrap().1 + rest;
            let mut harvests: Vec<u64> = harvests.into_iter().chain([0, span]).filter(|at| *at <= span).collect();
            harvests.sort_unstable();
            let longest = harvests.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
            let mut table = [0; 6];
            let mut intervals = Intervals::new(&mut table, Nanos::ZERO);
            let mut seen = BTreeSet::new();
            for &(page, at) in &writes {
                let window = harvests.partition_point(|harvest| *harvest <= at);
                if seen.insert((page, window)) {
                    intervals.on_write(Gfn(page), Nanos(at)).unwrap();
                }
            }
            for point in curve(&intervals.working_sets(Nanos(span)), 1, longest, 1e3) {
                let window = point.window_us;
                let distinct = (0..=span - window).map(|start| {
                    let inside = writes.iter().filter(|write| (start..start + window).contains(&write.1));
                    inside.map(|write| write.0).collect::<BTreeSet<_>>().len() as u64
                });
                let (truth, windows) = (distinct.sum::<u64>(), span - window + 1);
                prop_assert!(point.pages * windows <= truth + windows / 2 && truth <= point.pages_high * windows, "{point:?} {truth} / {windows}");
            }
        }
    }

    #[test]
    fn windows_are_round_numbers_up_to_the_whole() {
        assert_eq!(lengths(10, 25), [10, 20, 25]);
        assert_eq!(lengths(1, 7), [1, 2, 5, 7]);
        assert_eq!(lengths(5, 5), [5]);
        assert_eq!(lengths(0, 0), [0u64; 0]);
        assert_eq!(*lengths(1_000_000, u64::MAX).last().unwrap(), u64::MAX);
    }

    #[test]
    fn the_last_number_is_found() {
        for last in [1, 2, 999, 1000] {
            assert_eq!(last_true(|number| number <= last, 1000), Some(last));
        }
        assert_eq!(last_true(|_| false, 1000), None);
    }
}
