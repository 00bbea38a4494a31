//! Simulated beside live: by how much every arm's twin misses what was measured.

use serde_json::{Map, Value, json};

use super::Measured;
use super::calibration::Calibration;
use super::catalogue::{Arm, Experiment};
use super::check::{Check, Question};
use super::record::{Run, Runs};
use super::statistics::{Estimate, median};
use super::{twin, values};
use crate::bench::figure::Target;

/// What is compared, in the order of the table's columns.
pub(super) const COMPARED: [&str; 5] = [
    values::TIME_WITHOUT_OBSERVING,
    values::TOTAL,
    values::DOWNTIME,
    values::FAULTS,
    values::POSTCOPY,
];

/// Downtimes that differ by no more are alike.
const ALIKE_MS: f64 = 5.0;
/// Numbers of faults, too: when post-copy begins, guest and push race for the first pages.
const ALIKE_FAULTS: f64 = 5.0;

/// The medians of an arm's live runs and of their twins.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Pair {
    pub(super) live: f64,
    pub(super) simulated: f64,
}

impl Pair {
    /// `None` where neither has any of it, as faults without post-copy.
    pub(super) fn ratio(self) -> Option<f64> {
        (self.live != 0.0 || self.simulated != 0.0).then(|| self.simulated / self.live)
    }

    fn deviation(self) -> Option<f64> {
        self.ratio().map(|ratio| (ratio - 1.0).abs())
    }

    /// The same, and 0 of what is no further apart than that.
    fn deviation_beyond(self, alike: f64) -> Option<f64> {
        let deviation = self.deviation()?;
        Some(if (self.simulated - self.live).abs() <= alike {
            0.0
        } else {
            deviation
        })
    }
}

/// The twins of an experiment's arms.
#[derive(Default)]
pub(super) struct Twins {
    pub(super) calibration: Option<Calibration>,
    runs: Runs,
    /// Arms without one, and why.
    missing: Vec<(&'static str, &'static str)>,
}

impl Twins {
    /// Simulates the first repetitions of every arm that can be simulated.
    pub(super) fn simulate(
        experiment: &Experiment,
        repetitions: usize,
        calibration: &Calibration,
    ) -> anyhow::Result<Self> {
        let mut twins = Self {
            calibration: Some(calibration.clone()),
            ..Self::default()
        };
        for arm in &experiment.arms {
            if let Some(why) = twin::missing(arm) {
                twins.missing.push((arm.name, why));
                continue;
            }
            for repetition in 0..repetitions {
                twins.runs.0.push(Run {
                    arm: arm.name.into(),
                    repetition,
                    values: twin::run(&experiment.setup, arm, repetition, calibration)?,
                });
            }
        }
        Ok(twins)
    }

    /// What the twins alone answer; `None` where one that is asked about is missing.
    pub(super) fn answer(&self, question: &Question) -> Option<f64> {
        let is_there = |arm: &&str| self.runs.has(arm, 0);
        let all = question.arms().iter().all(is_there);
        all.then(|| question.answer(&self.runs).estimate)?
            .map(|estimate| estimate.value)
    }

    /// Why an arm has none.
    pub(super) fn why_missing(&self, arm: &Arm) -> Option<&'static str> {
        let missing = self.missing.iter().find(|(name, _)| *name == arm.name);
        missing.map(|(_, why)| *why)
    }

    /// A value of an arm in the repetitions that were measured and simulated; `None` without any.
    pub(super) fn pair(&self, arm: &Arm, value: &str, live: &Runs) -> Option<Pair> {
        let both: Vec<(f64, f64)> = live
            .0
            .iter()
            .filter(|run| run.arm == arm.name)
            .filter_map(|run| {
                let twin = self.runs.find(arm.name, run.repetition)?;
                Some((*run.values.get(value)?, *twin.values.get(value)?))
            })
            .collect();
        Some(Pair {
            live: median(both.iter().map(|pair| pair.0).collect())?,
            simulated: median(both.iter().map(|pair| pair.1).collect())?,
        })
    }
}

/// An arm's `"beside"`: a value's two medians and their ratio, or why there are none.
pub(super) fn to_json(measured: &Measured, arm: &Arm) -> Value {
    if let Some(why) = measured.twins.why_missing(arm) {
        return json!({ "not_modelled": why });
    }
    let each = COMPARED.into_iter().filter_map(|value| {
        let pair = measured.twins.pair(arm, value, &measured.runs)?;
        let object = json!({ "live": pair.live, "simulated": pair.simulated, "ratio": pair.ratio() });
        Some((value.to_owned(), object))
    });
    Value::Object(each.collect::<Map<String, Value>>())
}

/// What is asked of the twins of these experiments' arms, all together; nothing if there are none.
pub(super) fn checks<'m>(measured: impl IntoIterator<Item = &'m Measured>) -> Vec<Check> {
    let mut all = Deviations::default();
    for one in measured {
        let modelled = |arm: &&Arm| one.twins.runs.has(arm.name, 0);
        for arm in one.experiment.arms.iter().filter(modelled) {
            all.add(one, arm);
        }
    }
    if all.arms == 0 {
        return Vec::new();
    }
    let (most, worst) = (
        |bound| Target::AtMost(bound),
        |values: &[f64]| values.iter().copied().reduce(f64::max),
    );
    let check = |name: &str, value: Option<f64>, target| {
        let estimate = value.map(|value| Estimate {
            value,
            interval: [value; 2],
        });
        let check = Check::of(format!("simulated ÷ live, {name}"), estimate, Some(target));
        if all.complete { check } else { check.incomplete() }
    };
    let mut checks = vec![
        check("time, median", median(all.time.clone()), most(0.10)),
        check("time, worst", worst(&all.time), most(0.20)),
        check("bytes, median", median(all.bytes.clone()), most(0.10)),
        check("bytes, worst", worst(&all.bytes), most(0.20)),
        check("downtime, worst (alike within 5 ms)", worst(&all.downtime), most(0.20)),
    ];
    if !all.faults.is_empty() {
        checks.push(check(
            "faults, median (alike within 5)",
            median(all.faults.clone()),
            most(0.25),
        ));
    }
    checks
}

/// |ratio − 1| of every arm.
#[derive(Default)]
struct Deviations {
    arms: usize,
    /// Every arm with a twin was measured.
    complete: bool,
    time: Vec<f64>,
    bytes: Vec<f64>,
    /// 0 for those that are alike.
    downtime: Vec<f64>,
    /// Of those that had any; 0 for those that are alike.
    faults: Vec<f64>,
}

impl Deviations {
    fn add(&mut self, measured: &Measured, arm: &Arm) {
        let pair = |value| measured.twins.pair(arm, value, &measured.runs);
        let deviation = |value| pair(value).and_then(Pair::deviation);
        let known = deviation(values::TIME_WITHOUT_OBSERVING).is_some();
        self.complete = known && (self.complete || self.arms == 0);
        self.arms += 1;
        self.time.extend(deviation(values::TIME_WITHOUT_OBSERVING));
        self.bytes.extend(deviation(values::TOTAL));
        let beyond = |value, alike| pair(value).and_then(|pair: Pair| pair.deviation_beyond(alike));
        self.faults.extend(beyond(values::FAULTS, ALIKE_FAULTS));
        self.downtime.extend(beyond(values::DOWNTIME, ALIKE_MS));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::chosen;
    use super::super::record::tests::run;
    use super::*;

    /// Of each arm: live and simulated time, bytes, downtime and faults.
    pub(in super::super) fn measured(id: &str, arms: &[(&str, [(f64, f64); 4])]) -> Measured {
        let experiment = chosen(&[id.into()], false).expect("there is one").remove(0);
        let mut measured = Measured::new(experiment, Runs::default());
        measured.twins.calibration = Some(Calibration::default());
        let names = [
            values::TIME_WITHOUT_OBSERVING,
            values::TOTAL,
            values::DOWNTIME,
            values::FAULTS,
        ];
        for (arm, pairs) in arms {
            let of = |which: fn(&(f64, f64)) -> f64| {
                let each: Vec<(&str, f64)> = names.into_iter().zip(pairs.iter().map(which)).collect();
                run(arm, 0, &each)
            };
            measured.runs.0.push(of(|pair| pair.0));
            measured.twins.runs.0.push(of(|pair| pair.1));
        }
        measured
    }

    fn found(checks: &[Check]) -> Vec<(&str, f64, bool)> {
        let each = checks.iter().map(|check| {
            let name = check.name.strip_prefix("simulated ÷ live, ").expect("its name");
            let value = check.estimate.expect("measured").value;
            (name, (value * 1e6).round() / 1e6, check.met().expect("it has a target"))
        });
        each.collect()
    }

    #[test]
    fn medians_and_worst_of_all_arms_are_checked() {
        let r9 = measured(
            "R9",
            &[
                ("pa-hybrid", [(100.0, 104.0), (10.0, 10.0), (10.0, 14.9), (0.0, 0.0)]),
                ("hybrid:1", [(100.0, 92.0), (10.0, 9.0), (100.0, 81.0), (200.0, 250.0)]),
                (
                    "hybrid:2",
                    [(100.0, 125.0), (10.0, 11.5), (100.0, 130.0), (100.0, 80.0)],
                ),
                (
                    "dyn-hybrid",
                    [(100.0, 100.0), (10.0, 10.0), (100.0, 100.0), (100.0, 70.0)],
                ),
            ],
        );
        assert_eq!(
            found(&checks([&r9])),
            [
                ("time, median", 0.06, true),
                ("time, worst", 0.25, false),
                ("bytes, median", 0.05, true),
                ("bytes, worst", 0.15, true),
                ("downtime, worst (alike within 5 ms)", 0.3, false),
                ("faults, median (alike within 5)", 0.25, true),
            ]
        );
    }

    #[test]
    fn experiments_are_checked_together() {
        let faultless = [(100.0, 101.0), (10.0, 10.0), (10.0, 10.0), (0.0, 0.0)];
        let one = measured("R1-kernel", &[("precopy", faultless), ("par-migrate", faultless)]);
        let alone = checks([&one]);
        assert_eq!(alone.len(), 5, "nobody had to wait for a page");
        let other = measured(
            "R16",
            &[("push=bubble", [(100.0, 111.0), (10.0, 10.0), (1.0, 1.0), (8.0, 8.0)])],
        );
        let both = checks([&one, &other]);
        assert_eq!(
            found(&both)[..2],
            [("time, median", 0.01, true), ("time, worst", 0.11, true)]
        );
        assert_eq!(both.len(), 6);
    }

    /// Faults on one side only are as far apart as can be.
    #[test]
    fn what_only_one_of_them_has_is_no_match() {
        let pair = |live, simulated| Pair { live, simulated };
        assert_eq!(pair(0.0, 0.0).ratio(), None);
        assert_eq!(pair(0.0, 0.0).deviation_beyond(5.0), None);
        assert_eq!(pair(4.0, 0.0).deviation_beyond(5.0), Some(0.0));
        assert_eq!(pair(4.0, 10.0).deviation_beyond(5.0), Some(1.5));
        assert_eq!(pair(4.0, 0.0).deviation(), Some(1.0));
        assert_eq!(pair(0.0, 4.0).deviation(), Some(f64::INFINITY));
    }

    #[test]
    fn an_arm_that_was_not_measured_is_none_that_is_met() {
        let alike = [(100.0, 100.0), (10.0, 10.0), (10.0, 10.0), (0.0, 0.0)];
        let mut r9 = measured("R9", &[("pa-hybrid", alike), ("hybrid:1", alike)]);
        assert!(checks([&r9]).iter().all(|check| check.met() == Some(true)));
        r9.runs.0.remove(0);
        assert!(checks([&r9]).iter().all(|check| check.met() == Some(false)));
        r9.runs.0.clear();
        assert!(checks([&r9]).iter().all(|check| check.met() == Some(false)));
    }

    #[test]
    fn repetitions_are_compared_that_both_have() {
        let alike = [(100.0, 100.0), (10.0, 10.0), (10.0, 10.0), (0.0, 0.0)];
        let mut r9 = measured("R9", &[("hybrid:1", alike)]);
        r9.twins.runs.0.push(run("hybrid:1", 1, &[(values::TOTAL, 50.0)]));
        let arm = r9.experiment.arms[1].clone();
        let pair = r9.twins.pair(&arm, values::TOTAL, &r9.runs);
        assert_eq!(
            pair,
            Some(Pair {
                live: 10.0,
                simulated: 10.0
            })
        );
        assert_eq!(to_json(&r9, &arm)["total_bytes"]["ratio"], 1.0);
        assert_eq!(to_json(&r9, &arm)["faults"]["ratio"], Value::Null);
    }

    #[test]
    fn arms_without_a_twin_say_why() {
        let experiment = chosen(&["R12".into()], false).expect("there is one").remove(0);
        let twins = Twins::simulate(&experiment, 1, &Calibration::default()).expect("none is simulated");
        let mut r12 = Measured::new(experiment, Runs::default());
        r12.twins = twins;
        let arm = r12.experiment.arms[0].clone();
        let why = to_json(&r12, &arm)["not_modelled"].clone();
        assert!(why.as_str().is_some_and(|why| why.contains("cuts")), "{why}");
        assert!(checks([&r12]).is_empty());
    }
}
