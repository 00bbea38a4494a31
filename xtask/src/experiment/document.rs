//! What an experiment gave, as it is kept: `<id>.json`, from which a report can be made later.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use dunlin::report::MigrationReport;
use dunlin::report::chart::Chart;
use dunlin::sim::Medians;
use dunlin::sim::plan::{PointResult, Words};
use serde::{Deserialize, Serialize};

/// The schema that live experiments have too.
pub(super) const SCHEMA: &str = "dunlin.experiment.v1";
/// What tells them from those.
pub(super) const KIND: &str = "simulated";

/// A simulated experiment.
#[derive(Serialize, Deserialize)]
pub(super) struct Document {
    pub(super) schema: String,
    pub(super) kind: String,
    pub(super) id: String,
    pub(super) title: String,
    pub(super) source: Option<String>,
    pub(super) calibration: Option<String>,
    /// Seeds, from 1, that every point has.
    pub(super) repetitions: u32,
    /// What gives the same again.
    pub(super) command: String,
    /// Guest, link, limits, sweep, strategies.
    pub(super) setup: Vec<Words>,
    /// The swept keys, in the order of the plan.
    pub(super) sweep: Vec<String>,
    pub(super) arms: Vec<ArmEntry>,
    pub(super) checks: Vec<CheckEntry>,
    pub(super) figures: Vec<Chart>,
}

/// One arm at one place of the sweep.
#[derive(Serialize, Deserialize)]
pub(super) struct ArmEntry {
    pub(super) name: String,
    pub(super) point: BTreeMap<String, String>,
    pub(super) medians: Medians,
    /// By seed. A report needs no more than the medians.
    #[serde(skip_deserializing)]
    values: Vec<MigrationReport>,
}

/// A question and its answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct CheckEntry {
    pub(super) name: String,
    pub(super) value: Option<f64>,
    pub(super) interval: Option<[f64; 2]>,
    pub(super) target: Option<String>,
    pub(super) met: Option<bool>,
    pub(super) paper: Option<f64>,
    pub(super) why: Option<String>,
}

impl ArmEntry {
    pub(super) fn of(result: &PointResult) -> Self {
        let axes = result.point.axes.iter();
        Self {
            name: result.point.arm.clone(),
            point: axes.map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
            medians: Medians::of(result),
            values: result.results.iter().map(|one| one.report.clone()).collect(),
        }
    }
}

impl Document {
    /// As it stands in its file.
    pub(super) fn to_text(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    /// Checks that have a target, and those of them that are not met.
    pub(super) fn missed(&self) -> (usize, Vec<String>) {
        let asked = self.checks.iter().filter_map(|check| Some((check, check.met?)));
        let missed = asked.clone().filter(|(_, met)| !met);
        let names = missed
            .map(|(check, _)| format!("{}: {}", self.id, check.name))
            .collect();
        (asked.count(), names)
    }
}

/// A line for every migration.
pub(super) fn to_csv(results: &[PointResult]) -> String {
    let axes = results.first().map_or(&[][..], |result| &result.point.axes);
    let keys: String = axes.iter().map(|(name, _)| format!("{name},")).collect();
    let mut text = format!(
        "{keys}arm,seed,time_us,downtime_us,rounds,migration_bytes,storage_bytes,fault_bytes,control_bytes,postcopy_us,faults\n"
    );
    for result in results {
        let values = result.point.axes.iter().map(|(_, value)| format!("\"{value}\","));
        let place: String = values.collect();
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
