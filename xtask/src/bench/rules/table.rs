//! All medians, for the reader to judge.

use serde_json::{Value, json};

use super::super::figure::{Table, significant};
use super::arms::{Arm, BANDWIDTH, DOWNTIME, LIMIT, MEMORY};
use super::judge::{Comparison, Summary};
use super::trial::Trial;

/// One row for each guest and rule; for `--json`, all migrations with it.
pub(super) fn table(results: &[Comparison], trials: impl Fn(&str, &str) -> Vec<Trial>, arms: &[Arm]) -> Table {
    let rows = || {
        let rows = results.iter();
        rows.flat_map(|result| result.arms.iter().map(|summary| (result.guest, summary)))
    };
    let strategies: Vec<String> = arms
        .iter()
        .map(|arm| format!("{} is `{}`", arm.name, arm.strategy))
        .collect();
    Table {
        name: "rules",
        about: format!(
            "Linux guests of {} MiB with one processor, moved from QEMU to QEMU (emulated) at {} MB/s by `dunlin qemu migrate`, pauses up to {} ms; \
             medians of the migrations that completed within {} s, or of all if none did. Gap: longest time without a beat (five a second \
             are due). Loss: by how much slower the guest worked during the migration and 5 s after it than in the 5 s before. \
             Strategies: {}.",
            MEMORY.0 >> 20,
            BANDWIDTH.0 / 1_000_000,
            DOWNTIME.as_millis(),
            LIMIT.as_secs(),
            strategies.join(", "),
        ),
        header: [
            "guest",
            "rule",
            "completed",
            "total, s",
            "post-copy, s",
            "downtime, ms",
            "gap, ms",
            "MB",
            "rounds",
            "loss, per mille",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows: rows().map(|(guest, summary)| cells(guest, summary)).collect(),
        data: rows()
            .map(|(guest, summary)| data(guest, summary, &trials(guest, summary.arm)))
            .collect(),
    }
}

fn cells(guest: &str, summary: &Summary) -> Vec<String> {
    let total = match summary.completed {
        0 => format!("not within {}", LIMIT.as_secs()),
        _ => significant(summary.total_s),
    };
    vec![
        guest.to_owned(),
        summary.arm.to_owned(),
        format!("{} of {}", summary.completed, summary.migrations),
        total,
        match summary.postcopy_s {
            0.0 => "-".to_owned(),
            postcopy => significant(postcopy),
        },
        summary.downtime_ms.map_or("-".to_owned(), significant),
        significant(summary.gap_ms),
        summary.bytes.map_or("-".to_owned(), |bytes| significant(bytes / 1e6)),
        format!("{:.0}", summary.rounds),
        format!("{:.0}", summary.loss_per_mille),
    ]
}

fn data(guest: &str, summary: &Summary, trials: &[Trial]) -> Value {
    json!({
        "guest": guest,
        "rule": summary.arm,
        "migrations": summary.migrations,
        "completed": summary.completed,
        "total_time_s": summary.total_s,
        "postcopy_s": summary.postcopy_s,
        "downtime_ms": summary.downtime_ms,
        "gap_ms": summary.gap_ms,
        "bytes": summary.bytes,
        "rounds": summary.rounds,
        "loss_per_mille": summary.loss_per_mille,
        "samples": trials.iter().map(Trial::to_json).collect::<Vec<_>>(),
    })
}
