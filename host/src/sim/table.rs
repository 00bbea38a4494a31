//! What a plan gave, for people.

use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, TableComponent, presets};

use super::plan::PointResult;
use crate::report::{MigrationReport, bytes, count, duration};

/// A row for every point: its place in the sweep, its arm, and the medians of its seeds.
pub fn plan_table(results: &[PointResult]) -> String {
    let axes = results.first().map_or(&[][..], |result| &result.point.axes);
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_style(TableComponent::HeaderLines, '─');
    let numbers = [
        "time",
        "downtime",
        "rounds",
        "network",
        "storage",
        "post-copy",
        "faults",
    ];
    let header = axes.iter().map(|(name, _)| *name).chain(["arm"]).chain(numbers);
    table.set_header(header);
    for result in results {
        let texts = result.point.axes.iter().map(|(_, value)| value.clone());
        let micros = |value: fn(&MigrationReport) -> u64| duration(Duration::from_micros(median(result, value)));
        let network = |report: &MigrationReport| report.bytes.total() - report.bytes.storage;
        let postcopy = |report: &MigrationReport| report.postcopy.as_ref().map_or(0, |part| part.duration_us);
        let faults = |report: &MigrationReport| report.postcopy.as_ref().map_or(0, |part| part.faults);
        let some = result.results.iter().any(|one| one.report.postcopy.is_some());
        let with_postcopy = |text: String| if some { text } else { "—".to_owned() };
        let cells = [
            micros(|report| report.total_time_us),
            micros(|report| report.downtime_us),
            count(median(result, |report| report.rounds.len() as u64)),
            bytes(median(result, network)),
            bytes(median(result, |report| report.bytes.storage)),
            with_postcopy(micros(postcopy)),
            with_postcopy(count(median(result, faults))),
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
