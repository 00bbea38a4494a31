//! What was measured live, on the page of what was simulated: every claim of the papers with both numbers.

use std::fs;
use std::path::Path;

use dunlin::report::chart::number;
use maud::{Markup, html};
use serde::Deserialize;

use super::document::SCHEMA;

/// The folder of simulated experiments, in that of the live ones.
pub(super) const SIMULATED: &str = "simulated";

/// A live experiment, as far as the page needs it.
#[derive(Deserialize)]
pub(super) struct LiveDocument {
    schema: String,
    id: String,
    title: String,
    checks: Vec<LiveCheck>,
}

#[derive(Deserialize)]
struct LiveCheck {
    name: String,
    value: Option<f64>,
    interval: Option<[f64; 2]>,
    target: Option<String>,
    met: Option<bool>,
    /// The same of the simulated twins.
    #[serde(default)]
    simulated: Option<f64>,
}

/// The live experiments that lie beside a folder of simulated ones, by their names; none if that lies elsewhere.
pub(super) fn beside(folder: &Path) -> Vec<LiveDocument> {
    let (Some(name), Some(parent)) = (folder.file_name(), folder.parent()) else {
        return Vec::new();
    };
    if name != SIMULATED {
        return Vec::new();
    }
    let files = fs::read_dir(parent).into_iter().flatten().flatten();
    let paths = files.map(|file| file.path());
    let json = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    // What is something else has no place here, and what is of another version will be measured again.
    let documents = json.filter_map(|path| serde_json::from_str::<LiveDocument>(&fs::read_to_string(path).ok()?).ok());
    let mut documents: Vec<LiveDocument> = documents.filter(|document| document.schema == SCHEMA).collect();
    documents.sort_by(|one, other| one.id.cmp(&other.id));
    documents
}

/// The section; nothing if nothing was measured.
pub(super) fn section(documents: &[LiveDocument]) -> Markup {
    let optional = |value: Option<f64>| value.map_or_else(|| "—".to_owned(), number);
    html! {
        @if !documents.is_empty() {
            section id="live" {
                h2 { "Simulated and live" }
                p {
                    "Guests that were moved for real, on a scale of one machine, by " code { "cargo xtask experiment live" }
                    ", and beside each number that of the same guests, links and limits simulated. Targets are those of the papers' claims."
                }
                div.scroll {
                    table {
                        thead { tr {
                            th { "live experiment" } th { "check" } th.number { "target" } th.number { "simulated" } th.number { "live" }
                            th.number { "95 % interval" } th { "met" }
                        } }
                        tbody {
                            @for document in documents {
                                @for check in &document.checks {
                                    tr {
                                        td title=(document.title) { (document.id) }
                                        td { (check.name) }
                                        td.number { (check.target.as_deref().unwrap_or("—")) }
                                        td.number { (optional(check.simulated)) }
                                        td.number { (optional(check.value)) }
                                        td.number {
                                            @if let Some([low, high]) = check.interval { (number(low)) " to " (number(high)) }
                                        }
                                        td {
                                            @match check.met {
                                                Some(true) => span.met { "yes" },
                                                Some(false) => span.missed { "NO" },
                                                None => "—",
                                            }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVE: &str = r#"{"schema": "dunlin.experiment.v1", "id": "R9", "title": "PA beside others", "checks": [
        {"name": "R9 time", "value": 0.738, "interval": [0.737, 0.739], "target": "<= 0.77", "met": true, "simulated": 0.731},
        {"name": "simulated ÷ live, time", "value": 0.2, "interval": null, "target": "<= 0.1", "met": false}]}"#;

    #[test]
    fn live_numbers_stand_beside_simulated_ones() {
        let folder = tempfile::tempdir().expect("a folder");
        let simulated = folder.path().join(SIMULATED);
        fs::create_dir(&simulated).expect("made");
        fs::write(folder.path().join("R9.json"), LIVE).expect("written");
        fs::write(folder.path().join("calibration.json"), "{}").expect("written");
        fs::write(folder.path().join("half.json"), &LIVE[..90]).expect("written");
        let found = beside(&simulated);
        assert_eq!(found.len(), 1);
        let text = section(&found).into_string();
        for words in ["0.731", "0.738", "0.737 to 0.739", "&lt;= 0.77", "yes", "NO"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(beside(folder.path()).is_empty(), "another folder");
        assert!(section(&[]).into_string().is_empty());
    }
}
