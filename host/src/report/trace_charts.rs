//! What a trace says, as charts, each with what its axes and its resolution mean.

use super::chart::{Axis, Chart, HeatChart, Kind, Mark, Series, number};
use super::text::{bytes, count};
use super::trace::{HeatReport, IntervalReport, RateReport, ResolutionName, TraceReport};
use super::trace_table::{many, micros};

/// Up to so many vCPUs have a bar each.
const BARS: usize = 24;

/// A chart, and what has to be said below it.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Short, as a file may be called.
    pub name: &'static str,
    /// What it shows, for those who do not see it.
    pub title: String,
    /// The chart.
    pub svg: String,
    /// What the axes count, and what the resolution is.
    pub caption: String,
}

impl Figure {
    pub(super) fn of(name: &'static str, chart: &Chart, caption: String) -> Self {
        Self {
            name,
            title: chart.title.clone(),
            svg: chart.to_svg(),
            caption,
        }
    }
}

/// All charts of a trace; those of which the source tells nothing are left out.
pub fn trace_charts(report: &TraceReport) -> Vec<Figure> {
    let figures = [
        report.rate.as_ref().map(|rate| course(report, rate)),
        working_sets(report),
        report.heat.as_ref().map(|heat| where_and_when(report, heat)),
        report.intervals.as_ref().map(|intervals| re_dirtied(report, intervals)),
        first_touches(report),
        shares(report),
        writers(report),
    ];
    figures.into_iter().flatten().collect()
}

fn mark(x: f64, y: f64) -> Mark {
    Mark { x, y, interval: None }
}

fn series(name: &str, points: Vec<Mark>) -> Series {
    Series {
        name: name.into(),
        points,
        published: Vec::new(),
    }
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn course(report: &TraceReport, rate: &RateReport) -> Figure {
    let value = |of: fn(&super::trace::RatePoint) -> f64| {
        let mut points: Vec<Mark> = rate
            .series
            .iter()
            .map(|point| mark(seconds(point.at_us), of(point)))
            .collect();
        // A step ends where its stretch does.
        if let (Some(last), Some(point)) = (points.last().copied(), rate.series.last()) {
            points.push(mark(seconds(point.at_us.saturating_add(point.duration_us)), last.y));
        }
        points
    };
    let windows = &rate.windows;
    let stretch = rate.series.first().map_or(0, |point| point.duration_us);
    let mut lines = vec![series("mean", value(|point| point.pages_per_s))];
    let is_together = stretch as f64 > 1.5 * windows.window_us;
    if is_together {
        lines.push(series("highest window", value(|point| point.peak_pages_per_s)));
    }
    let chart = Chart {
        title: "Dirty rate over time".into(),
        kind: Kind::Steps,
        x: Axis::of_numbers("time since the recording began", "s"),
        y: Axis::of_numbers("distinct pages dirtied", "pages/s"),
        series: lines,
        interval: String::new(),
    };
    let per_step = if is_together {
        format!(", several of which make a step of {}", micros(stretch))
    } else {
        String::new()
    };
    let caption = format!(
        "Across: time. Up: distinct pages dirtied in windows of {}{per_step}, per second; a page that is written again in its window counts \
         once. Mean {} pages/s ({}), standard deviation {} pages/s.{}",
        micros(windows.window_us as u64),
        number(windows.mean_pages_per_s),
        super::text::rate(windows.mean_bytes_per_s as u64),
        number(windows.stddev_pages_per_s),
        lower_bound(report),
    );
    Figure::of("rate", &chart, caption)
}

/// Said of numbers that losses make too low.
fn lower_bound(report: &TraceReport) -> &'static str {
    if report.lost_events == Some(0) {
        ""
    } else {
        " Events were lost: this is a lower bound."
    }
}

fn working_sets(report: &TraceReport) -> Option<Figure> {
    let low: Vec<Mark> = report
        .wws
        .iter()
        .map(|point| mark(seconds(point.window_us), point.pages as f64))
        .collect();
    let high = report
        .wws
        .iter()
        .map(|point| mark(seconds(point.window_us), point.pages_high as f64));
    if low.is_empty() || report.guest.written_pages == 0 {
        return None;
    }
    let is_wide = report
        .wws
        .iter()
        .any(|point| point.pages_high > point.pages + point.pages / 50 + 1);
    let lines = if is_wide {
        vec![series("at least", low), series("at most", high.collect())]
    } else {
        vec![series("pages", low)]
    };
    let chart = Chart {
        title: "Writable working set by window".into(),
        kind: Kind::Lines,
        x: Axis {
            log: true,
            ..Axis::of_numbers("length of the window", "s")
        },
        y: Axis {
            log: true,
            ..Axis::of_numbers("distinct pages written", "pages")
        },
        series: lines,
        interval: String::new(),
    };
    let resolution = match report.resolution {
        ResolutionName::EveryWrite => "all windows of each length that lie in the recording".to_owned(),
        ResolutionName::FirstWrites => {
            "all windows of each length that lie in the recording; a write that was not seen lies between the bounds"
                .to_owned()
        }
        ResolutionName::Windows => format!(
            "windows from harvest to harvest, the shortest of one, {}",
            report
                .harvest
                .map_or_else(|| "—".into(), |harvest| micros(harvest.mean_us))
        ),
    };
    let caption = format!(
        "Across: how long one looks, by factors. Up: distinct pages written in that time, by factors, in the mean over {resolution}. {} ({}) were \
         written in all.{}",
        many(report.guest.written_pages, "page"),
        bytes(report.guest.written_pages * 4096),
        lower_bound(report),
    );
    Some(Figure::of("working-set", &chart, caption))
}

fn heat_chart(heat: &HeatReport) -> HeatChart {
    let seconds_and_pages = seconds(heat.column_us) * heat.row_pages as f64;
    HeatChart {
        title: "Where and when it writes".into(),
        x: Axis::of_numbers("time since the recording began", "s"),
        column: seconds(heat.column_us),
        y: "guest-physical address".into(),
        rows: heat
            .row_addresses
            .iter()
            .map(|address| format!("{address:#x}"))
            .collect(),
        counts: "events per second and page".into(),
        each: if seconds_and_pages > 0.0 {
            1.0 / seconds_and_pages
        } else {
            0.0
        },
        cells: heat.columns.clone(),
    }
}

fn where_and_when(report: &TraceReport, heat: &HeatReport) -> Figure {
    let chart = heat_chart(&heat.evened(report.duration_us));
    let event = match report.resolution {
        ResolutionName::EveryWrite => "writes",
        ResolutionName::FirstWrites => "first writes after a harvest",
        ResolutionName::Windows => "windows in which a page was dirty",
    };
    Figure {
        name: "heat",
        title: chart.title.clone(),
        svg: chart.to_svg(),
        caption: format!(
            "Across: time, {} a column. Up: address, {} ({}) a row, RAM between the lowest and the highest page written. Colour: {event} per second and \
             page, by factors; where there is none there was none.",
            micros(heat.column_us),
            many(heat.row_pages, "page"),
            bytes(heat.row_pages * 4096),
        ),
    }
}

fn re_dirtied(report: &TraceReport, intervals: &IntervalReport) -> Figure {
    let share = |events: u64| 100.0 * events as f64 / intervals.count.max(1) as f64;
    let start = |nanos: u64| nanos.max(1) as f64 / 1e9;
    let mut points = Vec::new();
    let mut end = None;
    for bucket in &intervals.buckets {
        // Between buckets that hold something there is nothing.
        if let Some(end) = end.filter(|end| *end < bucket.from_ns) {
            points.push(mark(start(end), 0.0));
        }
        points.push(mark(start(bucket.from_ns), share(bucket.count)));
        end = Some(bucket.to_ns.saturating_add(1));
    }
    points.extend(end.map(|end| mark(start(end), 0.0)));
    let chart = Chart {
        title: "How long pages are left alone between two writes".into(),
        kind: Kind::Steps,
        x: Axis {
            log: true,
            ..Axis::of_numbers("re-dirty interval", "s")
        },
        y: Axis::of_numbers("share of the intervals", "%"),
        series: vec![series("intervals", points)],
        interval: String::new(),
    };
    let resolution = match (report.resolution, intervals.resolved_from_ns) {
        (ResolutionName::Windows, nanos) => format!(" They are whole windows of {}.", micros(nanos / 1_000)),
        (_, 0) => String::new(),
        (_, nanos) => format!(
            " None shorter than a harvest, {} in the mean, is seen.",
            micros(nanos / 1_000)
        ),
    };
    let caption = format!(
        "Across: time from one event of a page to its next, by factors, in buckets a quarter of their length wide or less. Up: share of all {} intervals \
         that fall into a bucket.{resolution}",
        count(intervals.count)
    );
    Figure::of("intervals", &chart, caption)
}

fn first_touches(report: &TraceReport) -> Option<Figure> {
    let course = &report.first_touch.course;
    if course.len() < 2 {
        return None;
    }
    let points = course
        .iter()
        .map(|point| mark(seconds(point.at_us), point.pages as f64));
    let chart = Chart {
        title: "Pages written for the first time".into(),
        kind: Kind::Steps,
        x: Axis::of_numbers("time since the recording began", "s"),
        y: Axis::of_numbers("distinct pages written so far", "pages"),
        series: vec![series("pages", points.collect())],
        interval: String::new(),
    };
    let caption = format!(
        "Across: time. Up: distinct pages that had been written by then, at {} places of the order of first writes.",
        count(course.len() as u64)
    );
    Some(Figure::of("first-writes", &chart, caption))
}

fn bars(title: &str, x: &str, words: Vec<String>, y: Axis, values: impl Iterator<Item = f64>) -> Chart {
    let points = values.enumerate().map(|(index, value)| mark(index as f64, value));
    Chart {
        title: title.into(),
        kind: Kind::Bars,
        x: Axis::of_words(x, words),
        y,
        series: vec![series("", points.collect())],
        interval: String::new(),
    }
}

fn shares(report: &TraceReport) -> Option<Figure> {
    let mut vcpus: Vec<_> = report.vcpus.iter().take(BARS).collect();
    if report.vcpus.len() < 2 {
        return None;
    }
    vcpus.sort_by_key(|share| share.vcpu);
    let words = vcpus.iter().map(|share| share.vcpu.to_string()).collect();
    let values = vcpus.iter().map(|share| share.share_milli as f64 / 10.0);
    let chart = bars(
        "Who writes",
        "vCPU",
        words,
        Axis::of_numbers("share of the events", "%"),
        values,
    );
    let all = match report.vcpus.len() {
        shown if shown <= BARS => String::new(),
        more => format!(" The {BARS} busiest of {more}."),
    };
    Some(Figure::of(
        "vcpus",
        &chart,
        format!("Across: vCPUs. Up: share of the events whose vCPU is known, in tenths of a percent.{all}"),
    ))
}

fn writers(report: &TraceReport) -> Option<Figure> {
    let sharing = report.sharing.as_ref()?;
    let words = (1..=sharing.pages_by_writers.len())
        .map(|writers| writers.to_string())
        .collect();
    let values = sharing.pages_by_writers.iter().map(|pages| *pages as f64);
    let chart = bars(
        "How many vCPUs write a page",
        "vCPUs that wrote the page",
        words,
        Axis::of_numbers("pages", ""),
        values,
    );
    let caption = format!(
        "Across: how many vCPUs wrote a page in the recording. Up: pages. {}.{} % of the events follow one of another vCPU on the same page.",
        sharing.crossing_events_milli / 10,
        sharing.crossing_events_milli % 10
    );
    Some(Figure::of("sharing", &chart, caption))
}
