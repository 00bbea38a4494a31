//! The demo's table.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

use super::{Load, Run};

const HEADER: [&str; 8] = [
    "strategy",
    "total time",
    "downtime",
    "longest gap",
    "sent",
    "faults",
    "slow-down",
    "verified",
];

/// One table per load, in Markdown, as README shows them.
pub(super) fn render(loads: &[Load], runs: &[Run]) -> String {
    let mut text = String::new();
    for (index, load) in loads.iter().enumerate() {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN).set_header(HEADER);
        for run in runs.iter().filter(|run| run.load == index) {
            table.add_row(row(load, &run.report));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let _ = write!(text, "\n{}: `{}`\n\n{table}\n", load.name, load.workload);
    }
    text
}

fn row(load: &Load, report: &Value) -> [String; 8] {
    let postcopy = &report["postcopy"];
    let slowdown = match report["guest"]["slowdown_milli"].as_i64() {
        Some(milli) if load.is_steady => format!("{:.1} %", milli as f64 / 10.0),
        // Its speed before says nothing about its speed during the migration.
        _ => "n/a".into(),
    };
    let verified = match report["verified"]["mismatches"].as_u64() {
        Some(0) => format!("{} pages", report["verified"]["pages"]),
        Some(mismatches) => format!("{mismatches} DIFFER"),
        None => "NO".into(),
    };
    [
        report["strategy"].as_str().unwrap_or_default().into(),
        milliseconds(&report["total_time_us"]),
        milliseconds(&report["downtime_us"]),
        milliseconds(&report["guest_gap_us"]),
        format!("{:.1} MB", sent_bytes(report) as f64 / 1e6),
        postcopy["faults"]
            .as_u64()
            .map_or_else(|| "-".into(), |faults| faults.to_string()),
        slowdown,
        verified,
    ]
}

fn sent_bytes(report: &Value) -> u64 {
    report["bytes"]
        .as_object()
        .map_or(0, |channels| channels.values().filter_map(Value::as_u64).sum())
}

fn milliseconds(microseconds: &Value) -> String {
    match microseconds.as_u64() {
        Some(time) if time < 10_000 => format!("{:.2} ms", time as f64 / 1e3),
        Some(time) => format!("{:.0} ms", time as f64 / 1e3),
        None => "unknown".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_shows_what_the_report_says() {
        let load = Load {
            name: "steady",
            workload: "uniform".into(),
            vcpus: 1,
            is_steady: true,
        };
        let report = json!({
            "strategy": "hybrid:1", "total_time_us": 1_234_567, "downtime_us": 2345, "guest_gap_us": 20_400,
            "bytes": { "migration": 60_000_000, "storage": 0, "fault": 4_000_000, "control": 500_000 },
            "postcopy": { "faults": 17 }, "guest": { "slowdown_milli": 34 },
            "verified": { "pages": 16_384, "mismatches": 0 },
        });
        let expected = [
            "hybrid:1",
            "1235 ms",
            "2.35 ms",
            "20 ms",
            "64.5 MB",
            "17",
            "3.4 %",
            "16384 pages",
        ];
        assert_eq!(row(&load, &report), expected);
    }

    #[test]
    fn what_was_not_verified_stands_out() {
        let load = Load {
            name: "growing",
            workload: "seq".into(),
            vcpus: 1,
            is_steady: false,
        };
        let row_of = |verified| row(&load, &json!({ "strategy": "precopy", "verified": verified }))[7].clone();
        assert_eq!(row_of(Value::Null), "NO");
        assert_eq!(row_of(json!({ "pages": 5, "mismatches": 2 })), "2 DIFFER");
    }
}
