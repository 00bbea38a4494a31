//! What migrations of a recorded guest would cost, as text and as charts.

use comfy_table::{Cell, CellAlignment};

use super::Paint;
use super::chart::{Axis, Chart, Kind, Mark, Series};
use super::prediction::{Costs, EndCount, Keeping, Likely, LinkPrediction, PredictionReport, Recommendation};
use super::text::{bytes, count, milli, rate};
use super::trace_charts::Figure;
use super::trace_table::{headed, many, micros};

/// The columns of the table.
pub(super) const HEADER: [&str; 9] = [
    "", "strategy", "time", "downtime", "bytes", "rounds", "faults", "stall", "ends by",
];

/// A prediction for people: what to take over each link and why, and what each strategy would cost.
pub fn prediction_table(report: &PredictionReport, paint: Paint) -> String {
    let mut text = format!(
        "{}: {}, recorded by {}\nGoal: {}. Costs are those of migrations simulated with the recorded writes from {}: the median (from the least to the most).\n",
        paint.strong(&report.trace),
        micros(report.recorded_us),
        report.source,
        report.goal,
        many(report.starts_us.len() as u64, "point")
    );
    for note in &report.notes {
        text += &format!("{}\n", paint.warn(&format!("! {note}")));
    }
    for link in &report.links {
        text += &of_link(link, paint);
    }
    text
}

fn of_link(link: &LinkPrediction, paint: Paint) -> String {
    let mut table = headed(&HEADER);
    let recommended = &link.recommendation.strategy;
    for strategy in &link.strategies {
        let sign = if strategy.strategy == *recommended { "→" } else { "" };
        let name = if strategy.live {
            strategy.strategy.clone()
        } else {
            format!("({})", strategy.strategy)
        };
        let cells = cells(&strategy.simulated);
        let numbers = cells[..6]
            .iter()
            .map(|cell| Cell::new(cell).set_alignment(CellAlignment::Right));
        table.add_row(
            [Cell::new(sign), Cell::new(name)]
                .into_iter()
                .chain(numbers)
                .chain([Cell::new(&cells[6])]),
        );
    }
    let compared = link.strategies.iter().any(|strategy| !strategy.live);
    let legend = if compared {
        "(in brackets): for comparison, not carried out by Dunlin\n"
    } else {
        ""
    };
    format!(
        "\n{}, λ of the load {}\n{}\n\n{}\n{legend}",
        paint.strong(&format!("Over {}", rate(link.bandwidth_bytes_per_s))),
        milli(i64::try_from(link.load_milli).unwrap_or(i64::MAX)),
        advice(&link.recommendation, paint),
        table.trim_fmt()
    )
}

/// One sentence.
fn advice(recommendation: &Recommendation, paint: Paint) -> String {
    let take = format!("Take {}", recommendation.why);
    let painted = match recommendation.keeps {
        Keeping::Surely => paint.good(&take),
        Keeping::Likely => take,
        Keeping::Not | Keeping::NeverEnds => paint.warn(&take),
    };
    match &recommendation.objection {
        None => format!("{painted}. Simulation agrees."),
        Some(objection) => format!("{painted}.\n{}", paint.warn(&format!("But {objection}."))),
    }
}

/// Time, downtime, bytes, rounds, faults, stall, ends.
pub(super) fn cells(costs: &Costs) -> [String; 7] {
    let known = |value: Option<Likely>, text: fn(u64) -> String| {
        value.map_or_else(|| "for ever".into(), |value| range(value, text))
    };
    [
        known(costs.time_us, micros),
        range(costs.downtime_us, micros),
        known(costs.bytes, bytes),
        range(costs.rounds, count),
        range(costs.faults, count),
        range(costs.stall_us, micros),
        ends(&costs.ends),
    ]
}

/// `38.0 s (33.5–43.7)`, with units where they differ, or `2` where there is nothing between.
fn range(value: Likely, text: fn(u64) -> String) -> String {
    let texts = [value.low, value.likely, value.high].map(text);
    let [low, likely, high] = &texts;
    let unit = |text: &String| text.split_once(' ').map(|(_, unit)| unit.to_owned());
    if low == high {
        return likely.clone();
    }
    if let Some(unit) = unit(likely)
        && texts
            .iter()
            .all(|text| text.ends_with(&format!(" {unit}")) && text.matches(' ').count() == 1)
    {
        let number = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
        return format!("{likely} ({}–{})", number(low), number(high));
    }
    format!("{likely} ({low}–{high})")
}

/// `stop`, or `stop 5, post-copy 3` where it depends.
pub(super) fn ends(ends: &[EndCount]) -> String {
    match ends {
        [one] => one.by.name().into(),
        several => {
            let texts: Vec<String> = several
                .iter()
                .map(|end| format!("{} {}", end.by.name(), end.times))
                .collect();
            texts.join(", ")
        }
    }
}

/// Times and downtimes over the bandwidth, a line for each strategy; `None` for a single bandwidth.
pub fn prediction_chart(report: &PredictionReport) -> Option<[Figure; 2]> {
    if report.links.len() < 2 {
        return None;
    }
    let caption = format!(
        "Across: bandwidth of the link, by factors. Up: seconds, by factors; the median of migrations simulated with the recorded \
         writes from {}, whiskers from the least to the most. Strategies that never end are left out there.",
        many(report.starts_us.len() as u64, "point")
    );
    let of = |name, title: &str, value: fn(&Costs) -> Option<Likely>| {
        Figure::of(name, &chart(report, title, value), caption.clone())
    };
    Some([
        of("predicted-time", "Total time", |costs| costs.time_us),
        of("predicted-downtime", "Downtime", |costs| {
            Some(costs.downtime_us).filter(|_| costs.time_us.is_some())
        }),
    ])
}

fn chart(report: &PredictionReport, title: &str, value: fn(&Costs) -> Option<Likely>) -> Chart {
    let strategies = report.links.first().map_or(&[][..], |link| &link.strategies);
    let series = strategies.iter().enumerate().map(|(index, strategy)| {
        let points = report.links.iter().filter_map(|link| {
            let Likely { low, likely, high } = value(&link.strategies.get(index)?.simulated)?;
            let seconds = |micros: u64| micros as f64 / 1e6;
            Some(Mark {
                x: link.bandwidth_bytes_per_s as f64 / 1e6,
                y: seconds(likely),
                interval: Some([seconds(low), seconds(high)]),
            })
        });
        let mut points: Vec<Mark> = points.collect();
        points.sort_by(|one, other| one.x.total_cmp(&other.x));
        Series {
            name: strategy.strategy.clone(),
            points,
            published: Vec::new(),
        }
    });
    Chart {
        title: format!("{title} by strategy and bandwidth"),
        kind: Kind::Lines,
        x: Axis {
            log: true,
            ..Axis::of_numbers("bandwidth", "MB/s")
        },
        y: Axis {
            log: true,
            ..Axis::of_numbers(title.to_lowercase(), "s")
        },
        series: series.collect(),
        interval: "least to most".into(),
    }
}
