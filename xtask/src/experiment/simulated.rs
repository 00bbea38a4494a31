//! `cargo xtask experiment T5`: a figure or table of the papers, simulated at full scale from its plan in `tests/plans/`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context as _, anyhow, ensure};
use comfy_table::{CellAlignment, Table, presets};
use dunlin::report::chart::{Chart, charts_to_svg};
use dunlin::sim::SimResult;
use dunlin::sim::plan::{Numbers, Plan, PlanCheck, PointResult, Shard, Statistic};
use dunlin::sim::plan_table;

use super::check::Check;
use super::document::{ArmEntry, CheckEntry, Document, KIND, SCHEMA, to_csv};
use super::progress::Progress;
use super::report;
use super::shards::{self, Origin};
use super::statistics::{Estimate, estimate, estimate_mean, estimate_mean_ratio, estimate_ratio};
use crate::bench::figure::{Target, significant};

/// What is simulated, and how it is told.
pub(super) struct Order<'a> {
    pub(super) ids: &'a [String],
    /// In place of the plans' own.
    pub(super) seeds: Option<u32>,
    pub(super) as_json: bool,
    /// Where results are kept.
    pub(super) out: &'a Path,
    /// Only this part, to be merged later.
    pub(super) shard: Option<Shard>,
}

/// A plan as it is carried out.
pub(super) struct Task {
    pub(super) id: String,
    path: PathBuf,
    pub(super) plan: Plan,
    pub(super) origin: Origin,
    /// What gives the same again.
    pub(super) command: String,
}

/// A plan and all that came of it.
pub(super) struct Simulated {
    task: Task,
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

/// Simulates the plans and prints what came of each. Keeps it as `<id>.json`, `<id>.csv` and `<id>.svg`, and as a page for all that is kept
/// there; of a part only what is to be merged.
pub(super) fn run(order: &Order<'_>) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(order.out).with_context(|| format!("{} cannot be made", order.out.display()))?;
    let tasks = order.ids.iter().map(|id| Task::read(&folder(), id, order.seeds));
    let tasks = tasks.collect::<anyhow::Result<Vec<_>>>()?;
    let shard = order.shard.unwrap_or(Shard::WHOLE);
    let pages: u64 = tasks.iter().map(|task| task.plan.pages(shard)).sum();
    let progress = Mutex::new(Progress::of_work(pages as f64));
    let mut documents = Vec::new();
    for task in tasks {
        let results = task.simulate(shard, &progress)?;
        if order.shard.is_some() {
            shards::save(order.out, &task, shard, results)?;
            continue;
        }
        let simulated = task.with(results.into_iter().map(|(_, result)| result).collect());
        documents.push(simulated.keep(order.out, order.as_json)?);
    }
    drop(progress);
    if order.shard.is_some() {
        eprintln!(
            "part {} of {} is kept in {out}; when all are there, `cargo xtask experiment merge --out {out}` joins them",
            shard.index,
            shard.of,
            out = order.out.display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    conclude(&documents, order.out)
}

/// Joins the parts that lie in `out`, as if one command had simulated all of them.
pub(super) fn merge(as_json: bool, out: &Path) -> anyhow::Result<ExitCode> {
    let found = shards::find(out)?;
    ensure!(
        !found.is_empty(),
        "there is no part of an experiment in {}: `cargo xtask experiment all --shard 1/2 --out {0}` makes one",
        out.display()
    );
    let known = ids()?;
    let mut documents = Vec::new();
    for (id, parts) in found {
        ensure!(
            known.contains(&id),
            "{} is a part of {id}, which is no experiment; there are {}",
            parts[0].display(),
            known.join(", ")
        );
        documents.push(join(&folder(), &id, &parts)?.keep(out, as_json)?);
    }
    conclude(&documents, out)
}

fn join(folder: &Path, id: &str, parts: &[PathBuf]) -> anyhow::Result<Simulated> {
    let (seeds, parts) = shards::read(parts)?;
    let task = Task::read(folder, id, Some(seeds))?;
    let results = shards::join(&task, parts)?;
    Ok(task.with(results))
}

fn conclude(documents: &[Document], out: &Path) -> anyhow::Result<ExitCode> {
    let page = report::write(out, &ids()?)?;
    let missed: Vec<_> = documents.iter().map(Document::missed).collect();
    let asked: usize = missed.iter().map(|(asked, _)| asked).sum();
    let names: Vec<&String> = missed.iter().flat_map(|(_, names)| names).collect();
    eprintln!("{asked} checks, {} missed", names.len());
    for name in names {
        eprintln!("missed: {name}");
    }
    eprintln!(
        "results are kept in {}; the report is {}",
        out.display(),
        page.display()
    );
    Ok(ExitCode::SUCCESS)
}

impl Task {
    fn read(folder: &Path, id: &str, seeds: Option<u32>) -> anyhow::Result<Self> {
        let path = folder.join(format!("{id}.toml"));
        let text = std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let mut plan = Plan::parse(&text, &path)?;
        let mut command = format!("cargo xtask experiment {id}");
        if let Some(seeds) = seeds.filter(|seeds| *seeds != plan.repetitions) {
            let _ = write!(command, " --repetitions {seeds}");
            plan.repetitions = seeds;
        }
        ensure!(plan.repetitions > 0, "no repetition measures nothing");
        Ok(Self {
            id: id.to_owned(),
            path,
            origin: Origin::of(&text, plan.repetitions),
            plan,
            command,
        })
    }

    fn simulate(&self, shard: Shard, progress: &Mutex<Progress>) -> anyhow::Result<Vec<(usize, SimResult)>> {
        let migrations = (0..self.plan.migrations()).filter(|&number| shard.has(number)).count();
        if let Ok(mut progress) = progress.lock() {
            progress.begin(&format!("{}: {migrations} migrations are simulated", self.id));
        }
        let done = |pages: u64| {
            if let Ok(mut progress) = progress.lock() {
                progress.end(pages as f64);
            }
        };
        Ok(self.plan.run_shard(shard, &self.path, &done)?)
    }

    fn with(self, results: Vec<SimResult>) -> Simulated {
        let results = self.plan.gather(results);
        Simulated { task: self, results }
    }
}

impl Simulated {
    fn checks(&self) -> Vec<(&PlanCheck, Check)> {
        let answer = |asked| (asked, answer(asked, &self.results));
        self.task.plan.check.iter().map(answer).collect()
    }

    /// Prints it, and keeps all of it.
    fn keep(&self, out: &Path, as_json: bool) -> anyhow::Result<Document> {
        let document = self.document()?;
        let keep = |kind: &str, text: String| {
            let path = out.join(format!("{}.{kind}", self.task.id));
            std::fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))
        };
        keep("json", document.to_text()?)?;
        keep("csv", to_csv(&self.results))?;
        if !document.figures.is_empty() {
            keep("svg", charts_to_svg(&document.figures))?;
        }
        if as_json {
            println!("{}", serde_json::to_string(&document)?);
        } else {
            println!("{}", self.text());
        }
        Ok(document)
    }

    fn text(&self) -> String {
        let plan = &self.task.plan;
        let source = plan.source.as_deref().unwrap_or("no published numbers");
        let mut text = format!(
            "{} {} ({source}), {}\n\n{}\n",
            self.task.id,
            plan.title,
            match plan.repetitions {
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
            if let Some(why) = &asked.why {
                let _ = writeln!(text, "{}: {why}", check.name);
            }
        }
        text
    }

    fn document(&self) -> anyhow::Result<Document> {
        let plan = &self.task.plan;
        let check = |(asked, check): (&PlanCheck, Check)| CheckEntry {
            met: check.met(),
            value: check.estimate.map(|estimate| estimate.value),
            interval: check.estimate.map(|estimate| estimate.interval),
            target: check.target.map(Target::text),
            name: check.name,
            paper: asked.paper,
            why: asked.why.clone(),
        };
        let axes = self.results.first().map_or(&[][..], |result| &result.point.axes);
        Ok(Document {
            schema: SCHEMA.into(),
            kind: KIND.into(),
            id: self.task.id.clone(),
            title: plan.title.clone(),
            source: plan.source.clone(),
            calibration: plan.calibration.clone(),
            repetitions: plan.repetitions,
            command: self.task.command.clone(),
            setup: plan.words(),
            sweep: axes.iter().map(|(name, _)| (*name).to_owned()).collect(),
            arms: self.results.iter().map(ArmEntry::of).collect(),
            checks: self.checks().into_iter().map(check).collect(),
            figures: self.figures()?,
        })
    }

    fn figures(&self) -> anyhow::Result<Vec<Chart>> {
        let figures = self.task.plan.figure.iter();
        let charts = figures.map(|figure| figure.chart(&self.results, &of_repetitions));
        charts
            .collect::<Result<_, _>>()
            .map_err(|error| anyhow!("{}: {error}", self.task.id))
    }
}

/// A number of a figure.
fn of_repetitions(statistic: Statistic, numbers: &[f64]) -> Option<(f64, [f64; 2])> {
    let first = *numbers.first()?;
    // Drawing anew from what is all the same would change nothing, ten thousand times.
    if numbers.iter().all(|number| *number == first) {
        return Some((first, [first; 2]));
    }
    let Estimate { value, interval } = match statistic {
        Statistic::Median => estimate(numbers),
        Statistic::Mean => estimate_mean(numbers),
    }?;
    Some((value, interval))
}

fn answer(asked: &PlanCheck, results: &[PointResult]) -> Check {
    let estimate = match asked.numbers(results) {
        Numbers::Ratios(pairs) => estimate_ratio(&pairs),
        Numbers::ShareRatios(pairs) => estimate_mean_ratio(&pairs),
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
pub(super) mod tests;
