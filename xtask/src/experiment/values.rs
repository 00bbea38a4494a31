//! The numbers of one migration, by name.

use std::collections::BTreeMap;

use dunlin::report::MigrationReport;

use super::setup::Setup;

/// Numbers by their names, units last.
pub(super) type Values = BTreeMap<String, f64>;

/// From the command until everything was at the target.
pub(super) const TIME: &str = "time_ms";
pub(super) const DOWNTIME: &str = "downtime_ms";
/// Downtime over the limit that was asked for.
pub(super) const DOWNTIME_BY_LIMIT: &str = "downtime_by_limit";
pub(super) const MIGRATION: &str = "migration_bytes";
pub(super) const STORAGE: &str = "storage_bytes";
pub(super) const FAULT: &str = "fault_bytes";
pub(super) const CONTROL: &str = "control_bytes";
/// All but those of the storage channel.
pub(super) const NETWORK: &str = "network_bytes";
pub(super) const TOTAL: &str = "total_bytes";
/// Rounds before the guest was paused.
pub(super) const ROUNDS: &str = "rounds";
/// Pages that were dirty when it was decided to pause the guest.
pub(super) const FINAL_DIRTY: &str = "final_dirty_pages";
/// What was sent while the guest stood still, where no post-copy followed.
pub(super) const STOP_COPY: &str = "stop_copy_bytes";
/// 0 if there was none.
pub(super) const POSTCOPY: &str = "postcopy_ms";
/// Pages the guest had to wait for; 0 without post-copy.
pub(super) const FAULTS: &str = "faults";
/// Pages that crossed the network with their data.
pub(super) const PAGES: &str = "pages";
/// Faults over the pages that the guest touches in the time of one copy.
pub(super) const FAULTS_BY_WORKING_SET: &str = "faults_by_working_set";
/// Steps of the guest in the second before.
pub(super) const STEPS: &str = "steps_per_second";
pub(super) const SLOWDOWN: &str = "slowdown_percent";
/// 1 if the guest went on at the target and its memory came out right in the end, otherwise 0.
pub(super) const SURVIVED: &str = "survived";
/// From the cut until the migration had ended, in one way or the other.
pub(super) const AFTER_CUT: &str = "after_cut_ms";
/// From the switch until the network was cut.
pub(super) const CUT_AFTER: &str = "cut_after_ms";

/// What the report of a completed migration says.
pub(super) fn of_report(report: &MigrationReport, setup: &Setup) -> anyhow::Result<Values> {
    let switched_after = report.switch.as_ref().map_or(0, |switch| switch.round);
    let live = report.rounds.iter().filter(|round| round.round <= switched_after);
    let paused = report.rounds.iter().filter(|round| round.round > switched_after);
    let sent: u64 = report.rounds.iter().map(|round| round.sent_pages).sum();
    let postcopy = report.postcopy.clone().unwrap_or_default();
    let bytes = report.bytes;
    let milliseconds = |microseconds: u64| microseconds as f64 / 1e3;
    let steps = report.guest.steps_before as f64;
    let mut values = Values::new();
    let mut set = |name: &str, value: f64| {
        values.insert(name.to_owned(), value);
    };
    set(TIME, milliseconds(report.total_time_us));
    set(DOWNTIME, milliseconds(report.downtime_us));
    set(DOWNTIME_BY_LIMIT, report.downtime_us as f64 / setup.downtime_us as f64);
    set(MIGRATION, bytes.migration as f64);
    set(STORAGE, bytes.storage as f64);
    set(FAULT, bytes.fault as f64);
    set(CONTROL, bytes.control as f64);
    set(NETWORK, (bytes.total() - bytes.storage) as f64);
    set(TOTAL, bytes.total() as f64);
    set(ROUNDS, f64::from(switched_after));
    if let Some(last) = live.last() {
        set(FINAL_DIRTY, last.dirty_pages as f64);
    }
    if report.postcopy.is_none() {
        set(STOP_COPY, paused.map(|round| round.bytes as f64).sum());
    }
    set(POSTCOPY, milliseconds(postcopy.duration_us));
    set(FAULTS, postcopy.faults as f64);
    set(PAGES, (sent + postcopy.faults + postcopy.pushed) as f64);
    if steps > 0.0 {
        let touched = setup.load_at(steps)?.min(setup.h) * setup.link().pages() as f64;
        set(FAULTS_BY_WORKING_SET, postcopy.faults as f64 / touched);
        set(STEPS, steps);
    }
    if let Some(slowdown) = report.guest.slowdown_milli {
        set(SLOWDOWN, slowdown as f64 / 10.0);
    }
    Ok(values)
}
