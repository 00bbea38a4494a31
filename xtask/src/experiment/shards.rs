//! Parts of experiments, `<id>.shard-I-of-N.json`, computed apart and joined later.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use dunlin::sim::SimResult;
use dunlin::sim::plan::Shard;
use serde::{Deserialize, Serialize};

use super::simulated::Task;

const SCHEMA: &str = "dunlin.experiment-shard.v1";

/// What a part is a part of: what differs in this cannot be joined.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Origin {
    /// Hash of the plan's text.
    plan: String,
    repetitions: u32,
    version: String,
}

impl Origin {
    pub(super) fn of(text: &str, repetitions: u32) -> Self {
        Self {
            plan: blake3::hash(text.as_bytes()).to_hex().to_string(),
            repetitions,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// What differs.
    fn differs(&self, other: &Self) -> Option<String> {
        if self.version != other.version {
            return Some(format!(
                "version {} of the program, not {}",
                other.version, self.version
            ));
        }
        if self.plan != other.plan {
            return Some("another plan: its text has changed since".into());
        }
        (self.repetitions != other.repetitions)
            .then(|| format!("{} repetitions, not {}", other.repetitions, self.repetitions))
    }
}

/// A part, as it is kept.
#[derive(Serialize, Deserialize)]
pub(super) struct Part {
    schema: String,
    id: String,
    origin: Origin,
    index: u32,
    of: u32,
    results: Vec<One>,
}

#[derive(Serialize, Deserialize)]
struct One {
    number: usize,
    result: SimResult,
}

/// Keeps a part.
pub(super) fn save(out: &Path, task: &Task, shard: Shard, results: Vec<(usize, SimResult)>) -> anyhow::Result<()> {
    let part = Part {
        schema: SCHEMA.into(),
        id: task.id.clone(),
        origin: task.origin.clone(),
        index: shard.index,
        of: shard.of,
        results: results
            .into_iter()
            .map(|(number, result)| One { number, result })
            .collect(),
    };
    let path = out.join(format!("{}.shard-{}-of-{}.json", task.id, shard.index, shard.of));
    let write = || -> anyhow::Result<()> {
        let mut file = BufWriter::new(File::create(&path)?);
        serde_json::to_writer(&mut file, &part)?;
        Ok(file.flush()?)
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}

/// The parts in a folder, by experiment.
pub(super) fn find(out: &Path) -> anyhow::Result<BTreeMap<String, Vec<PathBuf>>> {
    let mut found: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let entries = fs::read_dir(out).with_context(|| format!("{} cannot be read", out.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some((id, _)) = name.and_then(|name| name.strip_suffix(".json")?.split_once(".shard-")) {
            found.entry(id.to_owned()).or_default().push(path);
        }
    }
    found.values_mut().for_each(|paths| paths.sort());
    Ok(found)
}

/// Reads parts; all have as many repetitions.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<(u32, Vec<(PathBuf, Part)>)> {
    let mut parts: Vec<(PathBuf, Part)> = Vec::new();
    for path in paths {
        let read = || -> anyhow::Result<Part> { Ok(serde_json::from_reader(BufReader::new(File::open(path)?))?) };
        let part = read().with_context(|| format!("{} is no part of an experiment", path.display()))?;
        ensure!(
            part.schema == SCHEMA,
            "{} has schema {}, not {SCHEMA}",
            path.display(),
            part.schema
        );
        if let Some((first_path, first)) = parts.first() {
            if let Some(what) = first.origin.differs(&part.origin) {
                bail!(
                    "{} is of {what} as {} is: simulate it again, or take it away",
                    path.display(),
                    first_path.display()
                );
            }
            ensure!(
                first.of == part.of,
                "{} is one of {} parts, but {} one of {}: take away those that do not belong there",
                path.display(),
                part.of,
                first_path.display(),
                first.of
            );
        }
        if let Some((other, _)) = parts.iter().find(|(_, other)| other.index == part.index) {
            bail!(
                "part {} is there twice, as {} and as {}: take one away",
                part.index,
                other.display(),
                path.display()
            );
        }
        parts.push((path.clone(), part));
    }
    let repetitions = parts.first().map(|(_, part)| part.origin.repetitions);
    Ok((repetitions.context("there are no parts")?, parts))
}

/// All results of the task, in their order.
pub(super) fn join(task: &Task, parts: Vec<(PathBuf, Part)>) -> anyhow::Result<Vec<SimResult>> {
    let (path, first) = parts.first().context("there are no parts")?;
    let (folder, of) = (path.parent().unwrap_or(Path::new(".")), first.of);
    for index in 1..=of {
        if !parts.iter().any(|(_, part)| part.index == index) {
            bail!(
                "{id}.shard-{index}-of-{of}.json is missing: `{command} --shard {index}/{of} --out {folder}` makes it",
                id = task.id,
                command = task.command,
                folder = folder.display()
            );
        }
    }
    let mut results: BTreeMap<usize, SimResult> = BTreeMap::new();
    for (path, part) in parts {
        if let Some(what) = task.origin.differs(&part.origin) {
            bail!("{} is of {what}: simulate it again", path.display());
        }
        let shard = Shard {
            index: part.index,
            of: part.of,
        };
        let expected = (0..task.plan.migrations()).filter(|&number| shard.has(number));
        ensure!(
            part.id == task.id && part.results.iter().map(|one| one.number).eq(expected),
            "{} does not have the migrations of its part of {}: simulate it again",
            path.display(),
            task.id
        );
        results.extend(part.results.into_iter().map(|one| (one.number, one.result)));
    }
    Ok(results.into_values().collect())
}
