//! `cargo xtask experiment T5`: a figure or table of the papers, simulated at full scale from its plan in `tests/plans/`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context as _, ensure};
use comfy_table::{CellAlignment, Table, presets};
use dunlin::sim::plan::{Numbers, Plan, PlanCheck, PointResult};
use dunlin::sim::plan_table;
use serde_json::{Value, json};

use super::check::Check;
use super::statistics::{estimate, estimate_mean, estimate_ratio};
use crate::bench::figure::{Target, significant};

/// A plan and all that came of it.
pub(super) struct Simulated {
    id: String,
    plan: Plan,
    results: Vec<PointResult>,
}

/// The plans, by the names of their files.
pub(super) fn ids() -> anyhow::Result<Vec<String>> {
    let folder = folder();
    let entries = std::fs::read_dir(&folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    let mut ids = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        if let (Some("toml"), Some(name)) = (path.extension().and_then(|extension| extension.to_str()), name) {
            ids.push(name.to_owned());
        }
    }
    ids.sort_unstable();
    Ok(ids)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/plans")
}

/// Simulates the plans, prints what came of each, and keeps it as `<id>.json` and `<id>.csv` in `out`.
pub(super) fn run(ids: &[String], seeds: Option<u32>, as_json: bool, out: &Path) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(out).with_context(|| format!("{} cannot be made", out.display()))?;
    let mut met = Vec::new();
    for id in ids {
        let simulated = simulate(id, seeds)?;
        let document = simulated.to_json();
        std::fs::write(out.join(format!("{id}.json")), format!("{document:#}\n"))
            .context("the result cannot be kept")?;
        std::fs::write(out.join(format!("{id}.csv")), simulated.to_csv()).context("the result cannot be kept")?;
        if as_json {
            println!("{document}");
        } else {
            println!("{}", simulated.text());
        }
        let of_this = simulated.checks().into_iter();
        met.extend(of_this.filter_map(|(_, check)| Some((format!("{id}: {}", check.name), check.met()?))));
    }
    let missed: Vec<&str> = met
        .iter()
        .filter(|(_, met)| !met)
        .map(|(name, _)| name.as_str())
        .collect();
    eprintln!("{} checks, {} missed", met.len(), missed.len());
    for name in missed {
        eprintln!("missed: {name}");
    }
    eprintln!("results are kept in {}", out.display());
    Ok(ExitCode::SUCCESS)
}

fn simulate(id: &str, seeds: Option<u32>) -> anyhow::Result<Simulated> {
    let path = folder().join(format!("{id}.toml"));
    let mut plan = Plan::read(&path)?;
    plan.repetitions = seeds.unwrap_or(plan.repetitions);
    ensure!(plan.repetitions > 0, "no repetition measures nothing");
    let all = plan.points().len() as u64 * u64::from(plan.repetitions);
    let progress = Mutex::new(super::progress::Progress::new(all as f64));
    let done = || {
        if let Ok(mut progress) = progress.lock() {
            progress.end(1.0);
        }
    };
    eprintln!("{id}: {all} migrations are simulated");
    let results = plan.run(&path, &done)?;
    Ok(Simulated {
        id: id.to_owned(),
        plan,
        results,
    })
}

impl Simulated {
    fn checks(&self) -> Vec<(&PlanCheck, Check)> {
        let answer = |asked| (asked, answer(asked, &self.results));
        self.plan.check.iter().map(answer).collect()
    }

    fn text(&self) -> String {
        let source = self.plan.source.as_deref().unwrap_or("no published numbers");
        let mut text = format!(
            "{} {} ({source}), {}\n\n{}\n",
            self.id,
            self.plan.title,
            match self.plan.repetitions {
                1 => "one seed".to_owned(),
                seeds => format!("medians of {seeds} seeds"),
            },
            plan_table(&self.results)
        );
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["check", "paper", "simulated", "95 % interval", "target", "met"]);
        let checks = self.checks();
        for (asked, check) in &checks {
            let number = |number: Option<f64>| number.map_or_else(|| "-".into(), significant);
            let interval = check.estimate.map_or_else(String::new, |estimate| {
                let [low, high] = estimate.interval.map(significant);
                format!("{low} to {high}")
            });
            table.add_row([
                check.name.clone(),
                number(asked.paper),
                number(check.estimate.map(|estimate| estimate.value)),
                interval,
                check.target.map_or_else(String::new, Target::text),
                check.met().map_or("", |met| if met { "yes" } else { "NO" }).to_owned(),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        if !checks.is_empty() {
            let _ = writeln!(text, "\n{table}");
        }
        for (asked, check) in &checks {
            if let (Some(false), Some(why)) = (check.met(), &asked.why) {
                let _ = writeln!(text, "{}: {why}", check.name);
            }
        }
        text
    }

    fn to_json(&self) -> Value {
        let arm = |result: &PointResult| {
            let axes: serde_json::Map<String, Value> = result
                .point
                .axes
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone().into()))
                .collect();
            let values: Vec<_> = result.results.iter().map(|one| &one.report).collect();
            json!({"name": result.point.arm, "point": axes, "values": values})
        };
        let checks: Vec<Value> = self
            .checks()
            .into_iter()
            .map(|(asked, check)| {
                let mut check = check.to_json();
                check["paper"] = asked.paper.into();
                check["why"] = asked.why.clone().into();
                check
            })
            .collect();
        json!({
            "schema": "dunlin.experiment.v1",
            "id": self.id,
            "title": self.plan.title,
            "source": self.plan.source,
            "arms": self.results.iter().map(arm).collect::<Vec<_>>(),
            "checks": checks,
        })
    }

    /// A line for every migration.
    fn to_csv(&self) -> String {
        let axes = self.results.first().map_or(&[][..], |result| &result.point.axes);
        let keys: String = axes.iter().map(|(name, _)| format!("{name},")).collect();
        let mut text = format!(
            "{keys}arm,seed,time_us,downtime_us,rounds,migration_bytes,storage_bytes,fault_bytes,control_bytes,postcopy_us,faults\n"
        );
        for result in &self.results {
            let place: String = result
                .point
                .axes
                .iter()
                .map(|(_, value)| format!("\"{value}\","))
                .collect();
            for (seed, one) in (1..).zip(&result.results) {
                let report = &one.report;
                let postcopy = report.postcopy.clone().unwrap_or_default();
                let _ = writeln!(
                    text,
                    "{place}\"{}\",{seed},{},{},{},{},{},{},{},{},{}",
                    result.point.arm,
                    report.total_time_us,
                    report.downtime_us,
                    report.rounds.len(),
                    report.bytes.migration,
                    report.bytes.storage,
                    report.bytes.fault,
                    report.bytes.control,
                    postcopy.duration_us,
                    postcopy.faults,
                );
            }
        }
        text
    }
}

fn answer(asked: &PlanCheck, results: &[PointResult]) -> Check {
    let estimate = match asked.numbers(results) {
        Numbers::Ratios(pairs) => estimate_ratio(&pairs),
        Numbers::Shares(shares) => estimate_mean(&shares),
        Numbers::Values(values) => estimate(&values),
    };
    let target = match (asked.at_least, asked.at_most) {
        (Some(least), Some(most)) => Some(Target::Within(least, most)),
        (Some(least), None) => Some(Target::AtLeast(least)),
        (None, Some(most)) => Some(Target::AtMost(most)),
        (None, None) => None,
    };
    Check::of(asked.name.clone(), estimate, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plan_can_be_read() {
        for id in ids().expect("there are plans") {
            Plan::read(&folder().join(format!("{id}.toml"))).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    #[test]
    fn the_comprehensive_comparison_comes_out_as_published() {
        let simulated = simulate("T5", None).expect("it can be simulated");
        let checks = simulated.checks();
        let times: Vec<_> = checks
            .iter()
            .filter(|(_, check)| check.name.starts_with("R9"))
            .collect();
        assert_eq!(times.len(), 3);
        for (asked, check) in times {
            assert_eq!(check.met(), Some(true), "{}", asked.name);
        }
        let text = simulated.text();
        assert!(
            text.contains("R9 time, PA by 1-hybrid") && text.contains("0.768"),
            "{text}"
        );
        assert_eq!(simulated.to_json()["checks"][0]["met"], true);
        assert_eq!(simulated.to_csv().lines().count(), 9);
    }
}
