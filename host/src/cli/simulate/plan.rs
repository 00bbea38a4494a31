//! `dunlin simulate --plan`: a sweep.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::super::{CliError, output};
use crate::report::chain;
use crate::sim::plan::Plan;
use crate::sim::plan_table;

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
        output::result(&format!("{}, {seeds}\n\n{}\n", plan.title, plan_table(&results)))?;
    }
    Ok(ExitCode::SUCCESS)
}
