//! The section of a page about what migrations would cost.

use maud::{Markup, html};

use super::captioned;
use crate::report::prediction::{LinkPrediction, PredictionReport};
use crate::report::prediction_table::{HEADER, cells, prediction_chart};
use crate::report::trace_table::micros;
use crate::report::{count, milli, rate};

pub(super) fn prediction(index: usize, report: &PredictionReport) -> Markup {
    html! {
        section id=(format!("prediction-{index}")) {
            h2 { "What a migration would cost" }
            p.source { code { (report.trace) } }
            dl {
                dt { "goal" } dd { (report.goal) }
                dt { "numbers" } dd {
                    "of migrations simulated with the recorded writes from " (count(report.starts_us.len() as u64)) " points of the recording on: the median \
                     (the least to the most)"
                }
                dt { "recommendation" } dd { "what " code { "dunlin migrate --strategy auto" } " goes by: a forecast from the working-set curve alone" }
            }
            @if !report.notes.is_empty() {
                h3 { "To be known" }
                ul { @for note in &report.notes { li { (note) } } }
            }
            @for link in &report.links { (of_link(link)) }
            @for figure in prediction_chart(report).iter().flatten() { (captioned(figure)) }
        }
    }
}

fn of_link(link: &LinkPrediction) -> Markup {
    let recommendation = &link.recommendation;
    html! {
        h3 { "Over " (rate(link.bandwidth_bytes_per_s)) }
        p { strong { "Take " (recommendation.strategy) } ". " (recommendation.why) "." }
        @match &recommendation.objection {
            Some(objection) => p { span.missed { "But" } " " (objection) "." },
            None => p { span.met { "Simulation agrees." } },
        }
        p.source { "λ of the load: " (milli(i64::try_from(link.load_milli).unwrap_or(i64::MAX))) }
        div.scroll { table {
            thead { tr { @for name in &HEADER[1..] { th { (name) } } th { "forecast time" } } }
            tbody { @for strategy in &link.strategies {
                @let costs = cells(&strategy.simulated);
                tr {
                    td {
                        @if strategy.strategy == recommendation.strategy { strong { (strategy.strategy) } } @else { (strategy.strategy) }
                        @if !strategy.live { " (for comparison)" }
                    }
                    @for cell in &costs[..6] { td.number { (two_lines(cell)) } }
                    td { (costs[6]) }
                    td.number { (two_lines(&strategy.forecast.time_us.map_or_else(|| "for ever".into(), |time| {
                        format!("{} ({} to {})", micros(time.likely), micros(time.low), micros(time.high))
                    }))) }
                }
            } }
        } }
    }
}

/// The interval below its number, so that nine columns fit a page.
fn two_lines(cell: &str) -> Markup {
    match cell.split_once(" (") {
        Some((number, interval)) => html! { (number) br; span.source { "(" (interval) } },
        None => html! { (cell) },
    }
}
