//! What a plan gave, for people.

use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, TableComponent, presets};
use serde::{Deserialize, Serialize};

use super::plan::PointResult;
use crate::report::{MigrationReport, bytes, count, duration};

/// The middle ones of all seeds of a point, the lower of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Medians {
    /// Total time in microseconds.
    pub time_us: u64,
    /// Downtime in microseconds.
    pub downtime_us: u64,
    /// Rounds of pre-copy.
    pub rounds: u64,
    /// Bytes on the network.
    pub network_bytes: u64,
    /// Bytes in the storage directory.
    pub storage_bytes: u64,
    /// Post-copy in microseconds; `None` if no seed had any.
    pub postcopy_us: Option<u64>,
    /// Pages that the guest waited for; `None` without post-copy.
    pub faults: Option<u64>,
}

impl Medians {
    /// What [`cells`](Self::cells) has, in its order.
    pub const HEADER: [&str; 7] = [
        "time",
        "downtime",
        "rounds",
        "network",
        "storage",
        "post-copy",
        "faults",
    ];

    /// Of one point.
    pub fn of(result: &PointResult) -> Self {
        let network = |report: &MigrationReport| report.bytes.total() - report.bytes.storage;
        let postcopy = |report: &MigrationReport| report.postcopy.as_ref().map_or(0, |part| part.duration_us);
        let faults = |report: &MigrationReport| report.postcopy.as_ref().map_or(0, |part| part.faults);
        let some = result.results.iter().any(|one| one.report.postcopy.is_some());
        Self {
            time_us: median(result, |report| report.total_time_us),
            downtime_us: median(result, |report| report.downtime_us),
            rounds: median(result, |report| report.rounds.len() as u64),
            network_bytes: median(result, network),
            storage_bytes: median(result, |report| report.bytes.storage),
            postcopy_us: some.then(|| median(result, postcopy)),
            faults: some.then(|| median(result, faults)),
        }
    }

    /// With their units.
    pub fn cells(&self) -> [String; 7] {
        let time = |micros| duration(Duration::from_micros(micros));
        [
            time(self.time_us),
            time(self.downtime_us),
            count(self.rounds),
            bytes(self.network_bytes),
            bytes(self.storage_bytes),
            self.postcopy_us.map_or_else(|| "—".into(), time),
            self.faults.map_or_else(|| "—".into(), count),
        ]
    }
}

/// A row for every point: its place in the sweep, its arm, and the medians of its seeds.
pub fn plan_table(results: &[PointResult]) -> String {
    let axes = results.first().map_or(&[][..], |result| &result.point.axes);
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_style(TableComponent::HeaderLines, '─');
    let header = axes.iter().map(|(name, _)| *name).chain(["arm"]).chain(Medians::HEADER);
    table.set_header(header);
    for result in results {
        let texts = result.point.axes.iter().map(|(_, value)| value.clone());
        let words = texts.chain([result.point.arm.clone()]).map(Cell::new);
        let numbers = Medians::of(result)
            .cells()
            .into_iter()
            .map(|cell| Cell::new(cell).set_alignment(CellAlignment::Right));
        table.add_row(words.chain(numbers));
    }
    table.trim_fmt()
}

fn median(result: &PointResult, value: impl Fn(&MigrationReport) -> u64) -> u64 {
    let mut values: Vec<u64> = result.results.iter().map(|one| value(&one.report)).collect();
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0)
}
