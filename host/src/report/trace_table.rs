//! What a trace says, as text for people.

use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, TableComponent, presets};

use super::Paint;
use super::blocks::{ShadeMap, sparkline};
use super::chart::number;
use super::text::{bytes, count, duration, rate};
use super::trace::{OrderBasis, RateWindows, TraceReport};

/// So many vCPUs, hot pages are named.
const NAMED: usize = 8;
/// Characters and lines of pictures.
const PICTURE: [usize; 2] = [72, 16];

/// A trace for people: numbers with their units, and `pictures` of characters.
pub fn trace_table(report: &TraceReport, paint: Paint, pictures: bool) -> String {
    let mut text = headline(report, paint);
    for note in &report.notes {
        text += &format!("{}\n", paint.warn(&format!("! {note}")));
    }
    if report.events == 0 {
        return text;
    }
    text += "\n";
    text += &summary(report);
    if pictures {
        text += &drawn(report, paint);
    }
    text += &section("Working set by window", paint, &working_sets(report));
    if let Some(rate) = &report.rate {
        let all = rate.other_windows.iter().chain([&rate.windows]);
        text += &section("Dirty rate by window", paint, &rates(all));
    }
    if !report.vcpus.is_empty() {
        text += &section("vCPUs", paint, &vcpus(report));
    }
    text + &section("Hottest pages", paint, &hot(report))
}

fn headline(report: &TraceReport, paint: Paint) -> String {
    let guest = &report.guest;
    let name = if guest.name.is_empty() {
        report.trace.as_str()
    } else {
        guest.name.as_str()
    };
    let lost = match report.lost_events {
        Some(0) => paint.good("0 lost"),
        Some(lost) => paint.bad(&format!("{} lost", count(lost))),
        None => paint.bad("some lost"),
    };
    let tracing = match &report.overhead {
        None => "what tracing took is unknown".into(),
        Some(overhead) => format!(
            "tracing took {} of CPU time, {} of one CPU{}",
            micros(overhead.cpu_us),
            percent(overhead.of_one_cpu_milli),
            overhead
                .per_event_ns
                .map_or(String::new(), |nanos| format!(", {nanos} ns an event"))
        ),
    };
    format!(
        "{}: {}, {} · {}\nrecorded for {} by {} · {} events, {lost} · {tracing}\nwhat it cannot see: {}\n",
        paint.strong(name),
        bytes(guest.memory_bytes),
        many(guest.vcpus.into(), "vCPU"),
        report.trace,
        micros(report.duration_us),
        report.source,
        count(report.events),
        report.cannot_see,
    )
}

fn summary(report: &TraceReport) -> String {
    let mut table = bare();
    let mut row = |name: &str, value: String, note: String| {
        table.add_row([
            Cell::new(name),
            Cell::new(value).set_alignment(CellAlignment::Right),
            Cell::new(note),
        ]);
    };
    if let Some(rates) = &report.rate {
        let RateWindows {
            window_us,
            windows,
            stddev_pages_per_s,
            min_pages_per_s,
            max_pages_per_s,
            ..
        } = rates.windows;
        row(
            "dirty rate",
            pages_per_second(rates.windows.mean_pages_per_s),
            format!(
                "{}; mean of {} of {}, σ {}, {} to {} pages/s",
                rate(rates.windows.mean_bytes_per_s as u64),
                many(windows, "window"),
                micros(window_us as u64),
                number(stddev_pages_per_s),
                number(min_pages_per_s),
                number(max_pages_per_s),
            ),
        );
    }
    let guest = &report.guest;
    row(
        "working set",
        pages(guest.written_pages),
        format!(
            "{}, {} of RAM; written in all",
            bytes(guest.written_pages * 4096),
            percent(report.workload.working_set_milli)
        ),
    );
    row("order", report.order.class.clone(), order_note(report));
    let intensity = if report.workload.memory_intensive {
        "memory-intensive"
    } else {
        "not memory-intensive"
    };
    row(
        "load",
        intensity.into(),
        match report.workload.write_intensive_up_to_bytes_per_s {
            Some(most) => format!(
                "write-intensive over links of up to {}; CPU and network are not in a trace",
                rate(most)
            ),
            None => "read-intensive over any link; CPU and network are not in a trace".into(),
        },
    );
    match &report.intervals {
        Some(intervals) => row(
            "re-dirty interval",
            nanos(intervals.median_ns),
            format!(
                "median; p90 {}, p99 {}{}",
                nanos(intervals.p90_ns),
                nanos(intervals.p99_ns),
                match intervals.resolved_from_ns {
                    0 => String::new(),
                    from => format!("; none below {} is seen", nanos(from)),
                }
            ),
        ),
        None => row("re-dirty interval", "—".into(), "no page was seen twice".into()),
    }
    if let (Some(tenth), Some(hundredth), Some(half)) = (
        report.hot.hottest_tenth_milli,
        report.hot.hottest_hundredth_milli,
        report.hot.pages_with_half,
    ) {
        row(
            "hot pages",
            percent(tenth),
            format!(
                "of the events on the hottest tenth of the pages, {} on the hottest hundredth; half on {}",
                percent(hundredth),
                pages(half)
            ),
        );
    }
    if let Some(sharing) = &report.sharing {
        row(
            "shared",
            percent(sharing.shared_pages_milli),
            format!(
                "of the pages are written by several vCPUs; {} of the events follow another vCPU's",
                percent(sharing.crossing_events_milli)
            ),
        );
    }
    if let (Some(half), Some(most)) = (report.first_touch.half_us, report.first_touch.nine_tenths_us) {
        row(
            "first writes",
            micros(half),
            format!(
                "until half of these pages had been written, {} until nine tenths",
                micros(most)
            ),
        );
    }
    if let Some(harvest) = &report.harvest {
        row(
            "harvested",
            count(harvest.windows),
            format!(
                "times, every {} in the mean, {} at most",
                micros(harvest.mean_us),
                micros(harvest.longest_us)
            ),
        );
    }
    if let Some(steps) = &report.steps {
        let per_second = u128::from(steps.steps) * 1_000_000 / u128::from(steps.over_us.max(1));
        row(
            "guest",
            count(steps.steps),
            format!("steps by its own count, {} steps/s", count(per_second as u64)),
        );
    }
    table.trim_fmt() + "\n"
}

fn order_note(report: &TraceReport) -> String {
    let share = report
        .order
        .in_order_milli
        .map(|milli| format!("{} of the steps go on as before", percent(milli)));
    match (report.order.by, share) {
        (OrderBasis::Nothing, _) => "this source has no order".into(),
        (OrderBasis::Writes, share) => share.unwrap_or_default(),
        (OrderBasis::FirstWrites, share) => {
            format!("by first writes after each harvest; {}", share.unwrap_or_default())
        }
    }
}

/// Pictures with their legends.
fn drawn(report: &TraceReport, paint: Paint) -> String {
    let mut text = String::new();
    if let Some(rate) = &report.rate {
        let course: Vec<f64> = rate.series.iter().map(|point| point.pages_per_s).collect();
        let most = course.iter().copied().fold(0.0, f64::max);
        let line = sparkline(&course, PICTURE[0]);
        let each = report.duration_us / (line.chars().count().max(1) as u64);
        text += &section(
            "Dirty rate over time",
            paint,
            &format!(
                "{line}\nfrom left to right 0 to {}, {} a character; from nothing to {} pages/s\n",
                micros(report.duration_us),
                micros(each),
                number(most)
            ),
        );
    }
    if let Some(heat) = &report.heat {
        let map = ShadeMap::of(&heat.evened(report.duration_us), PICTURE[0], PICTURE[1]);
        let lines = map
            .lines
            .iter()
            .map(|(address, line)| format!("{address:>14x} {line}\n"));
        let lines: String = lines.collect();
        text += &section(
            "Where and when it writes",
            paint,
            &format!(
                "{lines}from left to right 0 to {}, {} a character; address in hexadecimal, {} a line\nevents per second and page: {}\n",
                micros(report.duration_us),
                micros(map.column_us),
                bytes(map.line_pages * 4096),
                map.legend()
            ),
        );
    }
    text
}

fn working_sets(report: &TraceReport) -> String {
    let mut table = headed(&["window", "pages", "bytes", "share of RAM", "at most"]);
    for point in &report.wws {
        let share = u128::from(point.pages) * 4096 * 1000 / u128::from(report.guest.memory_bytes.max(1));
        let at_most = if point.pages_high > point.pages {
            count(point.pages_high)
        } else {
            String::new()
        };
        table.add_row([
            micros(point.window_us),
            count(point.pages),
            bytes(point.pages * 4096),
            percent(share as u64),
            at_most,
        ]);
    }
    numbers(table)
}

fn rates<'a>(windows: impl Iterator<Item = &'a RateWindows>) -> String {
    let mut windows: Vec<_> = windows.collect();
    windows.sort_by(|one, other| one.window_us.total_cmp(&other.window_us));
    let mut table = headed(&["window", "windows", "pages/s", "bytes/s", "σ pages/s", "least", "most"]);
    for of in windows {
        table.add_row([
            micros(of.window_us as u64),
            count(of.windows),
            number(of.mean_pages_per_s),
            rate(of.mean_bytes_per_s as u64),
            number(of.stddev_pages_per_s),
            number(of.min_pages_per_s),
            number(of.max_pages_per_s),
        ]);
    }
    numbers(table)
}

fn vcpus(report: &TraceReport) -> String {
    let mut table = headed(&["vCPU", "events", "share"]);
    for share in report.vcpus.iter().take(NAMED) {
        table.add_row([share.vcpu.to_string(), count(share.events), percent(share.share_milli)]);
    }
    let mut text = numbers(table);
    if let Some(rest) = report.vcpus.len().checked_sub(NAMED).filter(|rest| *rest > 0) {
        text += &format!("and {rest} more\n");
    }
    if report.events_of_unknown_vcpu > 0 {
        text += &format!("{} events of unknown vCPUs\n", count(report.events_of_unknown_vcpu));
    }
    text
}

fn hot(report: &TraceReport) -> String {
    let mut table = headed(&["page", "address", "events", "share"]);
    for page in report.hot.pages.iter().take(NAMED) {
        let share = u128::from(page.events) * 1000 / u128::from(report.events.max(1));
        table.add_row([
            page.gfn.to_string(),
            format!("{:#x}", page.address),
            count(page.events),
            percent(share as u64),
        ]);
    }
    numbers(table)
}

fn section(title: &str, paint: Paint, text: &str) -> String {
    format!("\n{}\n{text}", paint.strong(title))
}

pub(super) fn bare() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
}

pub(super) fn headed(names: &[&str]) -> Table {
    let mut table = bare();
    table.set_style(TableComponent::HeaderLines, '─');
    table.set_header(names);
    table
}

/// With all columns to the right.
pub(super) fn numbers(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt() + "\n"
}

pub(super) fn micros(micros: u64) -> String {
    duration(Duration::from_micros(micros))
}

fn nanos(nanos: u64) -> String {
    duration(Duration::from_nanos(nanos))
}

/// Thousandths as `12.3 %`.
pub(super) fn percent(milli: u64) -> String {
    format!("{}.{} %", milli / 10, milli % 10)
}

pub(super) fn many(number: u64, one: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        number => format!("{} {one}s", count(number)),
    }
}

fn pages(number: u64) -> String {
    many(number, "page")
}

fn pages_per_second(rate: f64) -> String {
    format!("{} pages/s", number(rate))
}
