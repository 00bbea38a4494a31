//! The runs of an experiment, kept in files while it goes on, so that an interrupted one can be resumed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// One migration: numbers by their names, units last.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) arm: String,
    /// Counted from 0.
    pub(super) repetition: usize,
    pub(super) values: BTreeMap<String, f64>,
}

/// All of an experiment.
#[derive(Clone, Default, PartialEq, Debug)]
pub(super) struct Runs(pub(super) Vec<Run>);

impl Runs {
    pub(super) fn find(&self, arm: &str, repetition: usize) -> Option<&Run> {
        self.0.iter().find(|run| run.arm == arm && run.repetition == repetition)
    }

    pub(super) fn has(&self, arm: &str, repetition: usize) -> bool {
        self.find(arm, repetition).is_some()
    }

    /// How often the arms ran.
    pub(super) fn repetitions(&self) -> usize {
        self.0.iter().map(|run| run.repetition + 1).max().unwrap_or(0)
    }

    /// A value of an arm in each repetition that has it.
    pub(super) fn values(&self, arm: &str, value: &str) -> Vec<f64> {
        let of_arm = self.0.iter().filter(|run| run.arm == arm);
        of_arm.filter_map(|run| run.values.get(value).copied()).collect()
    }

    /// A value of two arms in each repetition that has both.
    pub(super) fn pairs(&self, value: &str, arm: &str, base: &str) -> Vec<(f64, f64)> {
        let of_arm = self.0.iter().filter(|run| run.arm == arm);
        let pair = |run: &Run| {
            let other = self.find(base, run.repetition)?;
            Some((*run.values.get(value)?, *other.values.get(value)?))
        };
        of_arm.filter_map(pair).collect()
    }

    /// A line for each run and a column for each value that any of them has.
    fn to_csv(&self) -> String {
        let mut names: Vec<&str> = self
            .0
            .iter()
            .flat_map(|run| run.values.keys().map(String::as_str))
            .collect();
        names.sort_unstable();
        names.dedup();
        let mut text = format!("repetition,arm,{}\n", names.join(","));
        for run in &self.0 {
            let values = names.iter().map(|&name| match run.values.get(name) {
                Some(value) => value.to_string(),
                None => String::new(),
            });
            let values = values.collect::<Vec<_>>().join(",");
            // A strategy has commas.
            text += &format!("{},\"{}\",{values}\n", run.repetition, run.arm);
        }
        text
    }
}

/// Where the runs of one experiment are kept: `<id>.json` and `<id>.csv` in a folder.
pub(super) struct Record {
    json: PathBuf,
    csv: PathBuf,
    /// Runs are worth keeping only for the same of everything that is in here.
    conditions: Value,
}

impl Record {
    pub(super) fn new(folder: &Path, id: &str, conditions: Value) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self {
            json: folder.join(format!("{id}.json")),
            csv: folder.join(format!("{id}.csv")),
            conditions,
        })
    }

    /// The runs that are kept already; none if they were made under other conditions.
    pub(super) fn load(&self) -> Runs {
        // No file, one cut short, or one of something else: all the same, it must be measured.
        let kept = fs::read_to_string(&self.json).ok().and_then(|text| {
            let mut document: Value = serde_json::from_str(&text).ok()?;
            let same = document["conditions"] == self.conditions;
            same.then(|| serde_json::from_value(document["runs"].take()).ok())?
        });
        Runs(kept.unwrap_or_default())
    }

    /// Writes both files anew; `document` is completed by the conditions and the runs.
    pub(super) fn save(&self, mut document: Value, runs: &Runs) -> anyhow::Result<()> {
        document["conditions"] = self.conditions.clone();
        document["runs"] = json!(runs.0);
        replace(&self.json, &format!("{document:#}\n"))?;
        replace(&self.csv, &runs.to_csv())
    }
}

/// Never leaves half a file.
pub(super) fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().context("a file lies in a folder")?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn run(arm: &str, repetition: usize, values: &[(&str, f64)]) -> Run {
        Run {
            arm: arm.into(),
            repetition,
            values: values.iter().map(|&(name, value)| (name.to_owned(), value)).collect(),
        }
    }

    #[test]
    fn runs_pair_up_by_repetition() {
        let runs = Runs(vec![
            run("a", 0, &[("x", 1.0)]),
            run("b", 1, &[("x", 20.0)]),
            run("a", 1, &[("x", 2.0)]),
            run("a", 2, &[("x", 3.0)]),
            run("b", 2, &[("y", 30.0)]),
        ]);
        assert_eq!(runs.values("a", "x"), [1.0, 2.0, 3.0]);
        assert_eq!(runs.pairs("x", "a", "b"), [(2.0, 20.0)]);
        assert!(runs.has("b", 2) && !runs.has("b", 0));
    }

    #[test]
    fn a_table_has_a_column_for_every_value() {
        let runs = Runs(vec![
            run("a,b=c", 0, &[("x", 1.5)]),
            run("d", 0, &[("x", 2.0), ("y", 3.0)]),
        ]);
        assert_eq!(runs.to_csv(), "repetition,arm,x,y\n0,\"a,b=c\",1.5,\n0,\"d\",2,3\n");
    }

    #[test]
    fn what_is_kept_is_found_again_under_the_same_conditions_only() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let open = |memory: u64| Record::new(&folder.path().join("new"), "R9", json!({ "memory": memory }));
        let record = open(1)?;
        assert_eq!(record.load(), Runs::default());
        let runs = Runs(vec![run("a", 0, &[("x", 0.25)])]);
        record.save(json!({ "schema": "dunlin.experiment.v1" }), &runs)?;
        assert_eq!(open(1)?.load(), runs);
        assert_eq!(open(2)?.load(), Runs::default());
        let text = fs::read_to_string(&record.json)?;
        assert!(text.contains("dunlin.experiment.v1"));
        assert!(fs::read_to_string(&record.csv)?.starts_with("repetition,arm,x\n0,"));
        fs::write(&record.json, &text[..text.len() / 2])?;
        assert_eq!(record.load(), Runs::default());
        Ok(())
    }
}
