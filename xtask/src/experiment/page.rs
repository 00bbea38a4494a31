//! The page of all experiments: HTML that needs nothing beside itself.

use std::collections::BTreeSet;

use dunlin::report::chart::{exact, number};
use dunlin::report::html::{figure, page as html_page};
use dunlin::sim::Medians;
use maud::{Markup, html};

use super::document::{CheckEntry, Document};
use super::live_section::{self, LiveDocument};

const STYLE: &str = include_str!("page.css");
/// Tables of more points than that are folded.
const POINTS_MAX: usize = 24;

/// The page; `known` are all experiments there are.
pub(super) fn page(documents: &[Document], live: &[LiveDocument], known: &[String]) -> String {
    let body = html! {
        (header(documents, known))
        main {
            (summary(documents))
            (live_section::section(live))
            @for document in documents { (experiment(document)) }
        }
    };
    html_page("Dunlin: simulated experiments", STYLE, &body)
}

fn header(documents: &[Document], known: &[String]) -> Markup {
    let all = known
        .iter()
        .all(|id| documents.iter().any(|document| document.id == *id));
    // Each as its plan has it, or all as often as one that was told how often.
    let own = |document: &Document| document.command.ends_with(&document.id);
    let often: BTreeSet<u32> = documents.iter().map(|document| document.repetitions).collect();
    let command = match often.first() {
        Some(_) if all && documents.iter().all(own) => Some("cargo xtask experiment all".to_owned()),
        Some(seeds) if all && often.len() == 1 => Some(format!("cargo xtask experiment all --repetitions {seeds}")),
        _ => None,
    };
    html! {
        header {
            h1 { "Simulated experiments" }
            p {
                "Figures and tables of two papers on live migration, and what goes beyond them, simulated with Dunlin's own state machines at \
                 the scale of the papers: Li & Cao, 2023, and “A novel hybrid-copy algorithm for live migration”, 2017. A number is the \
                 median of its seeds or a ratio of medians, its interval the 95 % bootstrap over whole seeds; a target is met if the whole \
                 interval meets it. One seed has one result on every machine."
            }
            @match command {
                Some(command) => p { "Made by " code { (command) } "." },
                None => p { "Each experiment has the command that made it." },
            }
            nav { @for document in documents { a href=(format!("#{}", document.id)) title=(document.title) { (document.id) } " " } }
        }
    }
}

fn summary(documents: &[Document]) -> Markup {
    let checks = || documents.iter().flat_map(|document| &document.checks);
    let count = |wanted: Option<bool>| checks().filter(|check| check.met == wanted).count();
    let (met, missed, free) = (count(Some(true)), count(Some(false)), count(None));
    html! {
        section id="summary" {
            h2 { "All checks" }
            p.counts {
                span.met { (met) " met" } " "
                span.missed { (missed) " missed" }
                @if free > 0 { " " span.free { (free) " without a target" } }
            }
            div.scroll {
                table {
                    thead { tr {
                        th { "experiment" } th { "check" } th.number { "paper" } th.number { "ours" } th.number { "95 % interval" }
                        th.number { "target" } th { "met" }
                    } }
                    tbody {
                        @for document in documents {
                            @for check in &document.checks {
                                tr {
                                    td { a href=(format!("#{}", document.id)) { (document.id) } }
                                    td { (check.name) }
                                    td.number { (optional(check.paper, exact)) }
                                    td.number { (optional(check.value, number)) }
                                    td.number { (interval(check)) }
                                    td.number { (target(check)) }
                                    td { (met_cell(check)) }
                                }
                            }
                            @if document.checks.is_empty() {
                                tr { td { a href=(format!("#{}", document.id)) { (document.id) } } td colspan="6" { (document.title) " (nothing is asked)" } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn experiment(document: &Document) -> Markup {
    let whys: Vec<(&str, &str)> = document
        .checks
        .iter()
        .filter_map(|check| Some((check.name.as_str(), check.why.as_deref()?)))
        .collect();
    let seeds = match document.repetitions {
        1 => "one seed".to_owned(),
        seeds => format!("medians of {seeds} seeds"),
    };
    html! {
        section.experiment id=(document.id) {
            h2 { a.self href=(format!("#{}", document.id)) { (document.id) } " " (document.title) }
            p.source { (document.source.as_deref().unwrap_or("No published numbers")) ". " code { (document.command) } }
            dl {
                @for words in &document.setup { dt { (words.what) } dd { (words.text) } }
            }
            @if let Some(calibration) = &document.calibration {
                h3 { "How it was set up" }
                @for paragraph in calibration.trim().split("\n\n") { p { (paragraph) } }
            }
            @for chart in &document.figures { (figure(chart)) }
            @if !document.checks.is_empty() { (checks(&document.checks)) }
            @if !whys.is_empty() {
                h3 { "Why it differs" }
                ul { @for (name, why) in whys { li { strong { (name) } ": " (why) } } }
            }
            details open[document.arms.len() <= POINTS_MAX] {
                summary { "All points, " (seeds) }
                (points(document))
            }
        }
    }
}

fn checks(checks: &[CheckEntry]) -> Markup {
    html! {
        h3 { "Paper and simulation" }
        div.scroll {
            table {
                thead { tr {
                    th { "check" } th.number { "paper" } th.number { "ours" } th.number { "95 % interval" } th.number { "differs by" }
                    th.number { "target" } th { "met" }
                } }
                tbody {
                    @for check in checks {
                        tr {
                            td { (check.name) }
                            td.number { (optional(check.paper, exact)) }
                            td.number { (optional(check.value, number)) }
                            td.number { (interval(check)) }
                            td.number { (difference(check)) }
                            td.number { (target(check)) }
                            td { (met_cell(check)) }
                        }
                    }
                }
            }
        }
    }
}

fn points(document: &Document) -> Markup {
    html! {
        div.scroll {
            table {
                thead { tr {
                    @for key in &document.sweep { th { (key.replace('_', " ")) } }
                    th { "strategy" }
                    @for name in Medians::HEADER { th.number { (name) } }
                } }
                tbody {
                    @for arm in &document.arms {
                        tr {
                            @for key in &document.sweep { td { (arm.point.get(key).map_or("", String::as_str)) } }
                            td { (arm.name) }
                            @for cell in arm.medians.cells() { td.number { (cell) } }
                        }
                    }
                }
            }
        }
    }
}

fn optional(value: Option<f64>, text: fn(f64) -> String) -> String {
    value.map_or_else(|| "—".into(), text)
}

fn interval(check: &CheckEntry) -> String {
    match check.interval {
        Some([low, high]) => format!("{} to {}", number(low), number(high)),
        None => "not measured".into(),
    }
}

fn target(check: &CheckEntry) -> String {
    let target = check.target.as_deref().unwrap_or("—");
    target.replace(">=", "≥").replace("<=", "≤")
}

/// Of what was published, or from it where that is nothing.
fn difference(check: &CheckEntry) -> String {
    let signed = |text: String| text.replace('-', "−");
    match (check.paper, check.value) {
        (Some(0.0), Some(value)) => signed(format!("{value:+.3}")),
        (Some(paper), Some(value)) => signed(format!("{:+.1} %", 100.0 * (value / paper - 1.0))),
        _ => "—".into(),
    }
}

fn met_cell(check: &CheckEntry) -> Markup {
    match check.met {
        Some(true) => html! { span.met { "yes" } },
        Some(false) => html! { span.missed { "NO" } },
        None => html! { "—" },
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulated::tests::document;
    use super::*;

    #[test]
    fn a_page_has_everything_and_needs_nothing() {
        let mut document = document();
        document.checks.push(CheckEntry {
            name: "missed <by far>".into(),
            value: Some(30.0),
            interval: Some([20.0, 40.0]),
            target: Some("<= 1".into()),
            met: Some(false),
            paper: Some(20.0),
            why: None,
        });
        let known = ["tiny".to_owned()];
        let text = page(&[document], &[], &known);
        for part in [
            "cargo xtask experiment all</code>",
            "href=\"#tiny\"",
            "id=\"tiny\"",
            "A tiny guest",
            "Fitted to nothing.",
            "pre takes longer",
            "It need not.",
            "missed &lt;by far&gt;",
            "+50.0 %",
            "≤ 1",
            "1 met",
            "1 missed",
            "uniform,rate=2000",
            "1-hybrid: hybrid:1",
            "memory (MiB)",
            "medians of 2 seeds",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(text.matches("<svg").count(), 2);
        for outside in ["http:", "https:", "src=", "url(", "@import", "<script", "<link", "NaN"] {
            assert!(!text.contains(outside), "{outside}: {text}");
        }
    }

    #[test]
    fn a_command_that_holds_for_some_is_not_told_for_all() {
        let of = |repetitions: u32, command: &str| Document {
            repetitions,
            command: command.into(),
            ..document()
        };
        let own = "cargo xtask experiment tiny";
        let told = "cargo xtask experiment tiny --repetitions 1";
        let known = ["tiny".to_owned()];
        let more = ["tiny".to_owned(), "T5".to_owned()];
        assert!(!page(&[of(2, own)], &[], &more).contains("experiment all"));
        assert!(page(&[of(2, own), of(1, own)], &[], &known).contains("experiment all</code>"));
        assert!(page(&[of(1, own), of(1, told)], &[], &known).contains("experiment all --repetitions 1</code>"));
        assert!(!page(&[of(2, own), of(1, told)], &[], &known).contains("experiment all"));
    }
}
