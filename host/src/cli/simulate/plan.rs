//! `dunlin simulate --plan`: a sweep.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, TableComponent, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::super::{CliError, output};
use crate::report::{MigrationReport, bytes, chain, count, duration};
use crate::sim::plan::{Plan, PointResult};

/// Simulates a plan: a row for every point, the medians of its seeds; as JSON a line for every migration.
pub(super) fn run(path: &Path, as_json: bool) -> Result<ExitCode, CliError> {
    let usage = |error| CliError::Usage(chain(&error));
    let plan = Plan::read(path).map_err(usage)?;
    let migrations = plan.points().len() as u64 * u64::from(plan.repetitions);
    let bar = match io::stderr().is_terminal() {
        true => ProgressBar::new(migrations),
        false => ProgressBar::hidden(),
    };
    let style = ProgressStyle::with_template("{bar:24} {pos} of {len} migrations · {elapsed} · ETA {eta}");
    bar.set_style(style.expect("a valid template").progress_chars("█▌░"));
    let results = plan.run(path, &|| bar.inc(1)).map_err(usage)?;
    bar.finish_and_clear();
    if as_json {
        for result in &results {
            for (seed, one) in (1..).zip(&result.results) {
                let line = json!({
                    "schema": "dunlin.simulation.v1",
                    "point": result.point.axes.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into())).collect::<serde_json::Map<_, _>>(),
                    "arm": result.point.arm,
                    "seed": seed,
                    "steps": one.steps,
                    "stall_us": one.stall.as_micros(),
                    "migration": one.report,
                });
                if !output::offer_json(&line)? {
                    return Ok(ExitCode::SUCCESS);
                }
            }
        }
    } else {
        let seeds = match plan.repetitions {
            1 => "one seed".to_owned(),
            seeds => format!("medians of {seeds} seeds"),
        };
        output::result(&format!("{}, {seeds}\n\n{}\n", plan.title, table(&results)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(results: &[PointResult]) -> String {
    let axes = results.first().map_or(&[][..], |result| &result.point.axes);
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_style(TableComponent::HeaderLines, '─');
    let numbers = ["time", "downtime", "rounds", "network", "storage", "post-copy", "faults"];
    let header = axes.iter().map(|(name, _)| *name).chain(["arm"]).chain(numbers);
    table.set_header(header);
    for result in results {
        let texts = result.point.axes.iter().map(|(_, value)| value.clone());
        let micros = |value: fn(&MigrationReport) -> u64| duration(Duration::from_micros(median(result, value)));
        let network = |report: &MigrationReport| report.bytes.total() - report.bytes.storage;
        let postcopy = |report: &MigrationReport| report.postcopy.as_ref().map_or(0, |part| part.duration_us);
        let faults = |report: &MigrationReport| report.postcopy.as_ref().map_or(0, |part| part.faults);
        let cells = [
            micros(|report| report.total_time_us),
            micros(|report| report.downtime_us),
            count(median(result, |report| report.rounds.len() as u64)),
            bytes(median(result, network)),
            bytes(median(result, |report| report.bytes.storage)),
            micros(postcopy),
            count(median(result, faults)),
        ];
        let words = texts.chain([result.point.arm.clone()]).map(Cell::new);
        let numbers = cells
            .into_iter()
            .map(|cell| Cell::new(cell).set_alignment(CellAlignment::Right));
        table.add_row(words.chain(numbers));
    }
    table.trim_fmt()
}

/// The middle one of all seeds, the lower of two.
fn median(result: &PointResult, value: impl Fn(&MigrationReport) -> u64) -> u64 {
    let mut values: Vec<u64> = result.results.iter().map(|one| value(&one.report)).collect();
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0)
}
