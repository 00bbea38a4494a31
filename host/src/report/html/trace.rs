//! The page of recorded traces and of migrations.

use maud::{Markup, html};

use super::prediction::prediction;
use super::{captioned, page};
use crate::report::migration::MigrationReport;
use crate::report::trace::TraceReport;
use crate::report::trace_charts::trace_charts;
use crate::report::trace_table::{micros, percent};
use crate::report::{Paint, PredictionReport, SimilarityReport, bytes, chart::number, count, migration_table, rate};

/// What a page is about.
#[derive(Clone, Copy, Debug, Default)]
pub struct PageParts<'a> {
    /// Traces, in the order given.
    pub traces: &'a [TraceReport],
    /// How far they agree; `None` for fewer than two.
    pub similarity: Option<&'a SimilarityReport>,
    /// What migrations would cost.
    pub predictions: &'a [PredictionReport],
    /// Migrations with the names of their files.
    pub migrations: &'a [(String, MigrationReport)],
}

/// One self-contained page.
pub fn trace_page(parts: PageParts<'_>) -> String {
    let body = html! {
        header {
            h1 { "What a guest writes" }
            p { "Made by " code { "dunlin report" } ". Pages have 4096 bytes; times, unless they say otherwise, are since the recording began." }
            nav {
                @for (index, trace) in parts.traces.iter().enumerate() { a href=(format!("#trace-{index}")) { (trace.trace) } " " }
                @for index in 0..parts.predictions.len() { a href=(format!("#prediction-{index}")) { "prediction" } " " }
                @if parts.similarity.is_some() { a href="#similarity" { "between runs" } " " }
                @for (index, (name, _)) in parts.migrations.iter().enumerate() { a href=(format!("#migration-{index}")) { (name) } " " }
            }
        }
        main {
            @for (index, report) in parts.traces.iter().enumerate() { (trace(index, report)) }
            @for (index, report) in parts.predictions.iter().enumerate() { (prediction(index, report)) }
            @if let Some(similarity) = parts.similarity { (agreement(similarity)) }
            @for (index, (name, report)) in parts.migrations.iter().enumerate() { (migration(index, name, report)) }
        }
    };
    page("Dunlin: what a guest writes", "", &body)
}

fn trace(index: usize, report: &TraceReport) -> Markup {
    html! {
        section id=(format!("trace-{index}")) {
            h2 { (if report.guest.name.is_empty() { &report.trace } else { &report.guest.name }) }
            p.source { code { (report.trace) } }
            dl { @for (what, text) in facts(report) { dt { (what) } dd { (text) } } }
            @if !report.notes.is_empty() {
                h3 { "To be known" }
                ul.notes { @for note in &report.notes { li { (note) } } }
            }
            h3 { "In short" }
            dl { @for (what, text) in findings(report) { dt { (what) } dd { (text) } } }
            @for figure in &trace_charts(report) { (captioned(figure)) }
            (tables(report))
        }
    }
}

fn facts(report: &TraceReport) -> Vec<(&'static str, String)> {
    let guest = &report.guest;
    let mut facts = vec![
        (
            "guest",
            format!(
                "{} of RAM, {} of them used; {} vCPUs",
                bytes(guest.memory_bytes),
                bytes(guest.used_bytes),
                guest.vcpus
            ),
        ),
        (
            "recorded",
            format!(
                "{}{}",
                micros(report.duration_us),
                if report.complete { "" } else { ", then cut off" }
            ),
        ),
        ("source", report.source.clone()),
        ("cannot see", report.cannot_see.clone()),
        (
            "events",
            format!(
                "{}; lost: {}",
                count(report.events),
                match report.lost_events {
                    Some(lost) => count(lost),
                    None => "some, nobody knows how many".into(),
                }
            ),
        ),
        (
            "tracing took",
            match &report.overhead {
                None => "unknown".into(),
                Some(overhead) => format!(
                    "{} of CPU time: {} of one CPU{}",
                    micros(overhead.cpu_us),
                    percent(overhead.of_one_cpu_milli),
                    overhead
                        .per_event_ns
                        .map_or(String::new(), |nanos| format!(", {nanos} ns an event"))
                ),
            },
        ),
    ];
    if let Some(harvest) = &report.harvest {
        facts.push((
            "harvested",
            format!(
                "{} times, every {} in the mean, {} at most",
                count(harvest.windows),
                micros(harvest.mean_us),
                micros(harvest.longest_us)
            ),
        ));
    }
    if let Some(steps) = &report.steps {
        facts.push((
            "guest's own count",
            format!("{} steps in {}", count(steps.steps), micros(steps.over_us)),
        ));
    }
    facts
}

fn findings(report: &TraceReport) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    if let Some(rates) = &report.rate {
        let windows = &rates.windows;
        found.push((
            "dirty rate",
            format!(
                "{} pages/s ({}) over windows of {}; standard deviation {} pages/s, from {} to {}",
                number(windows.mean_pages_per_s),
                rate(windows.mean_bytes_per_s as u64),
                micros(windows.window_us as u64),
                number(windows.stddev_pages_per_s),
                number(windows.min_pages_per_s),
                number(windows.max_pages_per_s)
            ),
        ));
    }
    found.push((
        "working set",
        format!(
            "{} pages ({}), {} of RAM",
            count(report.guest.written_pages),
            bytes(report.guest.written_pages * 4096),
            percent(report.workload.working_set_milli)
        ),
    ));
    let in_order = report.order.in_order_milli.map_or(String::new(), |milli| {
        format!(", {} of the steps go on as before", percent(milli))
    });
    found.push(("order of writes", format!("{}{in_order}", report.order.class)));
    found.push((
        "load",
        format!(
            "{}, {}; CPU and network are not in a trace",
            if report.workload.memory_intensive {
                "memory-intensive"
            } else {
                "not memory-intensive"
            },
            match report.workload.write_intensive_up_to_bytes_per_s {
                Some(most) => format!("write-intensive over links of up to {}", rate(most)),
                None => "read-intensive over any link".into(),
            }
        ),
    ));
    if let (Some(tenth), Some(half)) = (report.hot.hottest_tenth_milli, report.hot.pages_with_half) {
        found.push((
            "hot pages",
            format!(
                "{} of the events on the hottest tenth of the pages written; half of them on {} pages",
                percent(tenth),
                count(half)
            ),
        ));
    }
    if let Some(sharing) = &report.sharing {
        found.push((
            "shared",
            format!(
                "{} of the pages are written by several vCPUs",
                percent(sharing.shared_pages_milli)
            ),
        ));
    }
    found
}

fn tables(report: &TraceReport) -> Markup {
    html! {
        details {
            summary { "Working set by window" }
            div.scroll { table {
                thead { tr { th.number { "window" } th.number { "pages, at least" } th.number { "at most" } th.number { "bytes" } } }
                tbody { @for point in &report.wws { tr {
                    td.number { (micros(point.window_us)) }
                    td.number { (count(point.pages)) }
                    td.number { (count(point.pages_high)) }
                    td.number { (bytes(point.pages * 4096)) }
                } } }
            } }
        }
        @if let Some(rates) = &report.rate {
            details {
                summary { "Dirty rate by window" }
                div.scroll { table {
                    thead { tr {
                        th.number { "window" } th.number { "windows" } th.number { "pages/s" } th.number { "bytes/s" }
                        th.number { "variance (pages/s)²" } th.number { "least pages/s" } th.number { "most pages/s" }
                    } }
                    tbody { @for windows in std::iter::once(&rates.windows).chain(&rates.other_windows) { tr {
                        td.number { (micros(windows.window_us as u64)) }
                        td.number { (count(windows.windows)) }
                        td.number { (number(windows.mean_pages_per_s)) }
                        td.number { (rate(windows.mean_bytes_per_s as u64)) }
                        td.number { (number(windows.variance)) }
                        td.number { (number(windows.min_pages_per_s)) }
                        td.number { (number(windows.max_pages_per_s)) }
                    } } }
                } }
            }
        }
        details {
            summary { "Hottest pages" }
            div.scroll { table {
                thead { tr { th.number { "page" } th.number { "address" } th.number { "events" } } }
                tbody { @for hot in &report.hot.pages { tr {
                    td.number { (hot.gfn) }
                    td.number { (format!("{:#x}", hot.address)) }
                    td.number { (count(hot.events)) }
                } } }
            } }
        }
    }
}

fn agreement(similarity: &SimilarityReport) -> Markup {
    html! {
        section id="similarity" {
            h2 { "Between runs" }
            p {
                "Which pages were written, and in which order for the first time. Jaccard: pages of both over pages of either. Order: of the pairs of \
                 common pages, those that came in the same order; 50 % is chance."
            }
            div.scroll { table {
                thead { tr { th { "trace" } th { "and" } th.number { "common pages" } th.number { "Jaccard" } th.number { "order" } } }
                tbody { @for pair in &similarity.pairs { tr {
                    td { (pair.one) }
                    td { (pair.other) }
                    td.number { (count(pair.common_pages)) }
                    td.number { (pair.jaccard_milli.map_or_else(|| "—".into(), percent)) }
                    td.number { (pair.order_milli.map_or_else(|| "—".into(), percent)) }
                } } }
            } }
        }
    }
}

fn migration(index: usize, name: &str, report: &MigrationReport) -> Markup {
    html! {
        section id=(format!("migration-{index}")) {
            h2 { "Migration by " (report.strategy) }
            p.source { code { (name) } }
            div.scroll { pre { (migration_table(report, Paint::Plain)) } }
        }
    }
}
