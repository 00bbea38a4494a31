//! The numbers of one migration, by name.

use std::collections::BTreeMap;

use dunlin::report::{MigrationReport, PostcopyReport};

use super::setup::Setup;

/// Numbers by their names, units last.
pub(super) type Values = BTreeMap<String, f64>;

/// From the command until everything was at the target.
pub(super) const TIME: &str = "time_ms";
/// The same without what observing the guest took before anything was copied.
pub(super) const TIME_WITHOUT_OBSERVING: &str = "time_without_observing_ms";
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
    let rounds = report.switch.as_ref().map_or(0, |switch| switch.round);
    let last = report.rounds.last();
    let left = last.map_or(0, |last| last.dirty_pages);
    let bytes = report.bytes;
    let in_rounds: u64 = report.rounds.iter().map(|round| round.bytes).sum();
    let sent: u64 = report.rounds.iter().map(|round| round.sent_pages).sum();
    let (postcopy, afterwards) = match &report.postcopy {
        Some(postcopy) => (postcopy.clone(), postcopy.faults + postcopy.pushed),
        None => (PostcopyReport::default(), left),
    };
    let milliseconds = |microseconds: u64| microseconds as f64 / 1e3;
    let steps = report.guest.steps_before as f64;
    let mut values = Values::new();
    let mut set = |name: &str, value: f64| {
        values.insert(name.to_owned(), value);
    };
    set(TIME, milliseconds(report.total_time_us));
    let without_observing = report.sampling.map(|sampling| sampling.total_time_without_us);
    let without_observing = without_observing.unwrap_or(report.total_time_us);
    set(TIME_WITHOUT_OBSERVING, milliseconds(without_observing));
    set(DOWNTIME, milliseconds(report.downtime_us));
    set(DOWNTIME_BY_LIMIT, report.downtime_us as f64 / setup.downtime_us as f64);
    set(MIGRATION, bytes.migration as f64);
    set(STORAGE, bytes.storage as f64);
    set(FAULT, bytes.fault as f64);
    set(CONTROL, bytes.control as f64);
    set(NETWORK, (bytes.total() - bytes.storage) as f64);
    set(TOTAL, bytes.total() as f64);
    set(ROUNDS, f64::from(rounds));
    if last.is_some() {
        set(FINAL_DIRTY, left as f64);
    }
    if report.postcopy.is_none() {
        set(STOP_COPY, bytes.migration.saturating_sub(in_rounds) as f64);
    }
    set(POSTCOPY, milliseconds(postcopy.duration_us));
    set(FAULTS, postcopy.faults as f64);
    set(PAGES, (sent + afterwards) as f64);
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

#[cfg(test)]
mod tests {
    use dunlin::report::{ByteCounts, Outcome, RoundReport, SamplingReport, SwitchReport};

    use super::super::load::Link;
    use super::super::setup::Original;
    use super::*;
    use dunlin_core::units::{Bytes, BytesPerSec};

    fn setup() -> Setup {
        let link = Link {
            memory: Bytes(64 << 20),
            bandwidth: BytesPerSec(64 << 20),
        };
        // One copy takes a second there, too, so that limits are as published.
        let original = Original {
            megabytes: 50.0,
            megabytes_per_second: 50.0,
        };
        Setup::new(link, 1, "seq", 8192, original).expect("a setup")
    }

    fn report() -> MigrationReport {
        let round = |round, sent_pages, dirty_pages, bytes| RoundReport {
            round,
            sent_pages,
            dirty_pages,
            bytes,
            ..RoundReport::default()
        };
        MigrationReport {
            total_time_us: 2_500_000,
            downtime_us: 150_000,
            rounds: vec![round(1, 16_384, 8000, 67_200_000), round(2, 8000, 3000, 32_800_000)],
            switch: Some(SwitchReport {
                round: 2,
                rule: "never".into(),
                reason: String::new(),
            }),
            bytes: ByteCounts {
                migration: 112_300_000,
                storage: 7,
                fault: 400,
                control: 20,
            },
            ..MigrationReport::new("precopy", Outcome::Completed)
        }
    }

    #[test]
    fn stop_and_copy_is_what_no_round_sent() {
        let values = of_report(&report(), &setup()).expect("numbers");
        let expected = [
            (TIME, 2500.0),
            (DOWNTIME, 150.0),
            (DOWNTIME_BY_LIMIT, 0.5),
            (NETWORK, 112_300_420.0),
            (TOTAL, 112_300_427.0),
            (STOP_COPY, 12_300_000.0),
            (FINAL_DIRTY, 3000.0),
            (ROUNDS, 2.0),
            (PAGES, 27_384.0),
            (POSTCOPY, 0.0),
        ];
        for (name, value) in expected {
            assert!((values[name] - value).abs() < 1e-9, "{name}: {}", values[name]);
        }
        assert!(
            !values.contains_key(FAULTS_BY_WORKING_SET),
            "nothing is known of the guest's speed"
        );
    }

    #[test]
    fn observing_is_counted_and_left_out() {
        let mut report = report();
        report.sampling = Some(SamplingReport {
            learning_us: 800_000,
            total_time_without_us: 1_700_000,
            ..SamplingReport::default()
        });
        let values = of_report(&report, &setup()).expect("numbers");
        assert_eq!((values[TIME], values[TIME_WITHOUT_OBSERVING]), (2500.0, 1700.0));
    }

    /// A guest at 8192 steps a second touches half of its 16 384 pages in the second that a copy takes.
    #[test]
    fn faults_are_compared_with_what_the_guest_touches() {
        let mut report = report();
        report.guest.steps_before = 8192;
        report.postcopy = Some(PostcopyReport {
            duration_us: 1_000_000,
            faults: 2048,
            pushed: 952,
            ..PostcopyReport::default()
        });
        let values = of_report(&report, &setup()).expect("numbers");
        assert!((values[FAULTS_BY_WORKING_SET] - 0.25).abs() < 0.001);
        assert_eq!((values[PAGES], values[POSTCOPY]), (27_384.0, 1000.0));
        assert!(!values.contains_key(STOP_COPY));
    }
}
