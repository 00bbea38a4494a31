//! The results for people: setups, what the arms cost by channel, and what was asked.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use super::beside::{self, COMPARED};
use super::catalogue::Arm;
use super::statistics::median;
use super::values;
use super::{Check, Measured};
use crate::bench::figure::{Target, significant};

/// For a terminal: experiment by experiment.
pub(super) fn terminal(measured: &[Measured]) -> String {
    let mut text = String::new();
    for one in measured {
        let _ = write!(
            text,
            "\n{} {}\n{}\n{}\n{}\n",
            one.experiment.id,
            one.experiment.title,
            render(presets::UTF8_HORIZONTAL_ONLY, 2, SETUP, [setup(one)]),
            render(presets::UTF8_HORIZONTAL_ONLY, 1, ARMS, arms(one)),
            render(presets::UTF8_HORIZONTAL_ONLY, 1, CHECKS, checks(one.checks())),
        );
    }
    if let Some(section) = beside(presets::UTF8_HORIZONTAL_ONLY, measured) {
        let _ = write!(text, "\n{section}");
    }
    text
}

/// For README: all setups, with how they were chosen, all arms, all checks.
pub(super) fn markdown(measured: &[Measured]) -> String {
    let table = |words, header: &[&str], rows: Vec<Vec<String>>| render(presets::ASCII_MARKDOWN, words, header, rows);
    let arms = measured.iter().flat_map(|one| {
        let with_id = |row: Vec<String>| std::iter::once(one.experiment.id.to_owned()).chain(row).collect();
        arms(one).into_iter().map(with_id).collect::<Vec<Vec<String>>>()
    });
    let arms_header = std::iter::once("setup").chain(ARMS.iter().copied()).collect::<Vec<_>>();
    let mut text = format!(
        "{}\n\n{}\n\n{}\n\n",
        table(2, SETUP, measured.iter().map(setup).collect()),
        table(2, &arms_header, arms.collect()),
        table(
            1,
            CHECKS,
            measured.iter().flat_map(|one| checks(one.checks())).collect()
        ),
    );
    for one in measured {
        let _ = writeln!(text, "- {}: {}", one.experiment.id, one.experiment.chosen);
    }
    if let Some(section) = beside(presets::ASCII_MARKDOWN, measured) {
        let _ = write!(text, "\n{section}");
    }
    text
}

/// Every arm beside its twin, and what is asked of all of them; `None` if there are no twins.
fn beside(preset: &str, measured: &[Measured]) -> Option<String> {
    let calibration = measured.iter().find_map(|one| one.twins.calibration.as_ref())?;
    let rows = measured.iter().flat_map(|one| {
        let arms = one.experiment.arms.iter();
        arms.map(|arm| ratios(one, arm))
    });
    let mut text = format!(
        "simulated ÷ live, medians; calibrated before, with other guests: {}\n\n{}\n\n{}\n",
        calibration.text(),
        render(preset, 2, BESIDE, rows),
        render(preset, 1, CHECKS, checks(beside::checks(measured))),
    );
    for one in measured {
        for arm in &one.experiment.arms {
            if let Some(why) = one.twins.why_missing(arm) {
                let _ = writeln!(text, "{} {} is not simulated: {why}", one.experiment.id, arm.name);
            }
        }
    }
    Some(text)
}

const BESIDE: &[&str] = &["setup", "arm", "time", "bytes", "downtime", "faults", "post-copy"];

/// A cell is simulated / live = ratio.
fn ratios(measured: &Measured, arm: &Arm) -> Vec<String> {
    let cell = |value: &str| {
        let shown = |number: f64| match value {
            values::TOTAL => format!("{} MB", significant(number / 1e6)),
            values::FAULTS => number.to_string(),
            values::DOWNTIME => format!("{} ms", significant(number)),
            _ => format!("{} s", significant(number / 1e3)),
        };
        let pair = measured.twins.pair(arm, value, &measured.runs);
        pair.and_then(|pair| {
            let ratio = significant(pair.ratio()?);
            Some(format!("{} / {} = {ratio}", shown(pair.simulated), shown(pair.live)))
        })
        .unwrap_or_else(|| "-".into())
    };
    let names = [measured.experiment.id.to_owned(), arm.name.to_owned()];
    names.into_iter().chain(COMPARED.into_iter().map(cell)).collect()
}

/// The first `words` columns are no numbers.
fn render(preset: &str, words: usize, header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(preset).set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(words) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

const SETUP: &[&str] = &[
    "setup",
    "workload",
    "memory",
    "network",
    "storage",
    "λ wanted",
    "λ",
    "ρ",
    "h",
    "δ",
    "downtime",
    "round",
];

fn setup(measured: &Measured) -> Vec<String> {
    let setup = &measured.experiment.setup;
    let milliseconds = |microseconds: u64| format!("{} ms", significant(microseconds as f64 / 1e3));
    vec![
        measured.experiment.id.into(),
        format!("`{}`", setup.workload),
        format!("{} MiB", setup.memory_mib),
        format!("{} MB/s", setup.bandwidth_mb),
        format!("{} MB/s", setup.storage_mb),
        significant(setup.lambda),
        measured.measured_lambda().map_or_else(String::new, significant),
        setup.rho.to_string(),
        significant(setup.h),
        significant(setup.delta),
        milliseconds(setup.downtime_us),
        milliseconds(setup.min_round_us),
    ]
}

const ARMS: &[&str] = &[
    "arm",
    "runs",
    "time",
    "downtime",
    "rounds",
    "migration",
    "storage",
    "fault",
    "control",
    "post-copy",
    "faults",
    "slow-down",
];

fn arms(measured: &Measured) -> Vec<Vec<String>> {
    let row = |arm: &Arm| {
        let shown = |value: &str, unit: &str, factor: f64| {
            let median = median(measured.runs.values(arm.name, value));
            median.map_or_else(
                || "-".into(),
                |median| format!("{}{unit}", significant(median * factor)),
            )
        };
        let counted = |value: &str| {
            let median = median(measured.runs.values(arm.name, value));
            median.map_or_else(|| "-".into(), |median| median.to_string())
        };
        let megabytes = |channel| shown(channel, " MB", 1e-6);
        let runs = measured.runs.0.iter().filter(|run| run.arm == arm.name).count();
        vec![
            arm.name.to_owned(),
            runs.to_string(),
            shown(values::TIME, " s", 1e-3),
            shown(values::DOWNTIME, " ms", 1.0),
            counted(values::ROUNDS),
            megabytes(values::MIGRATION),
            megabytes(values::STORAGE),
            megabytes(values::FAULT),
            megabytes(values::CONTROL),
            shown(values::POSTCOPY, " s", 1e-3),
            counted(values::FAULTS),
            shown(values::SLOWDOWN, " %", 1.0),
        ]
    };
    measured.experiment.arms.iter().map(row).collect()
}

const CHECKS: &[&str] = &["claim", "value", "95 % interval", "target", "met"];

fn checks(checks: Vec<Check>) -> Vec<Vec<String>> {
    let row = |check: Check| {
        let (value, interval) = match check.estimate {
            Some(estimate) => {
                let [low, high] = estimate.interval.map(significant);
                (significant(estimate.value), format!("{low} to {high}"))
            }
            None => ("not measured".into(), String::new()),
        };
        let met = check.met().map_or("", |met| if met { "yes" } else { "NO" }).to_owned();
        let target = check.target.map(Target::text).unwrap_or_default();
        vec![check.name, value, interval, target, met]
    };
    checks.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::super::record::{Run, Runs};
    use super::super::{Measured, chosen};
    use super::*;

    fn measured() -> Measured {
        let values = |time: f64, migration: f64| {
            let numbers = [
                (values::TIME, time),
                (values::MIGRATION, migration),
                (values::STORAGE, 268e6),
                (values::FAULTS, 12.0),
            ];
            numbers.map(|(name, value)| (name.to_owned(), value)).into()
        };
        let run = |arm: &str, values| Run {
            arm: arm.into(),
            repetition: 0,
            values,
        };
        let runs = vec![
            run("pa-hybrid", values(7000.0, 100e6)),
            run("hybrid:1", values(9200.0, 368e6)),
        ];
        let experiment = chosen(&["R9".into()], false).expect("there is one").remove(0);
        Measured::new(experiment, Runs(runs))
    }

    #[test]
    fn every_channel_is_shown_apart() {
        let rows = arms(&measured());
        assert_eq!(rows[0][..3], ["pa-hybrid", "1", "7.00 s"]);
        assert_eq!(rows[0][5..8], ["100 MB", "268 MB", "-"]);
        assert_eq!(rows[0][10], "12");
        assert_eq!(rows[2][1..3], ["0", "-"]);
    }

    #[test]
    fn a_check_shows_value_interval_target_and_whether_it_is_met() {
        let rows = checks(measured().checks());
        assert_eq!(
            rows[0],
            [
                "R9 time, pa-hybrid by hybrid:1",
                "0.761",
                "0.761 to 0.761",
                "<= 0.77",
                "yes"
            ]
        );
        assert_eq!(rows[1][1..], ["not measured", "", "<= 0.68", "NO"]);
    }

    #[test]
    fn twins_stand_beside_what_was_measured() {
        let pairs = [(9000.0, 8910.0), (365e6, 368e6), (6.0, 5.0), (200.0, 190.0)];
        let with_twins = beside::tests::measured("R9", &[("hybrid:1", pairs)]);
        let rows: Vec<Vec<String>> = with_twins
            .experiment
            .arms
            .iter()
            .map(|arm| ratios(&with_twins, arm))
            .collect();
        assert_eq!(rows[0][..3], ["R9", "pa-hybrid", "-"]);
        let expected = [
            "R9",
            "hybrid:1",
            "8.91 s / 9.00 s = 0.990",
            "368 MB / 365 MB = 1.01",
            "5.00 ms / 6.00 ms = 0.833",
            "190 / 200 = 0.950",
            "-",
        ];
        assert_eq!(rows[1], expected);
        let text = markdown(&[with_twins]);
        assert!(
            text.contains("simulated ÷ live, medians; calibrated before, with other guests: hand-over 0.500 ms")
                && text.contains("| simulated ÷ live, time, median"),
            "{text}"
        );
        assert!(!markdown(&[measured()]).contains("simulated"), "there are none");
    }

    #[test]
    fn markdown_has_all_setups_first() {
        let text = markdown(&[measured()]);
        assert!(text.starts_with("| setup | workload"), "{text}");
        assert!(
            text.contains("| R9    | pa-hybrid") && text.contains("- R9: The totals"),
            "{text}"
        );
        assert!(terminal(&[measured()]).contains("PA-hybrid beside"));
    }
}
