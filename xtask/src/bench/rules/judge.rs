//! What the migrations of all rules say of `optimal`.

use super::super::figure::{Figure, Target, significant};
use super::super::sampling::Samples;
use super::arms::{OPTIMAL, QEMU};
use super::trial::Trial;

/// Medians that differ by less may differ by chance.
const NOISE: f64 = 0.05;
/// A rule is quick if its total time is no more than so many times the best.
const QUICK: f64 = 1.15;

/// What an arm's migrations of a guest were like, by their medians: of those that completed, or of all if none did.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    pub(super) arm: &'static str,
    pub(super) migrations: usize,
    pub(super) completed: usize,
    pub(super) total_s: f64,
    pub(super) postcopy_s: f64,
    pub(super) downtime_ms: Option<f64>,
    pub(super) gap_ms: f64,
    pub(super) bytes: Option<f64>,
    pub(super) loss_per_mille: f64,
    pub(super) rounds: f64,
}

impl Summary {
    /// # Panics
    /// Without a migration.
    pub(super) fn new(arm: &'static str, trials: &[Trial]) -> Self {
        let completed = trials.iter().filter(|trial| trial.completed).count();
        let counted: Vec<&Trial> = trials
            .iter()
            .filter(|trial| trial.completed || completed == 0)
            .collect();
        let median = |of: fn(&Trial) -> f64| Samples::new(counted.iter().map(|trial| of(trial)).collect()).median();
        let known = |of: fn(&Trial) -> Option<f64>| {
            let known: Vec<f64> = counted.iter().filter_map(|trial| of(trial)).collect();
            (!known.is_empty()).then(|| Samples::new(known).median())
        };
        Self {
            arm,
            migrations: trials.len(),
            completed,
            total_s: median(|trial| trial.total_s),
            postcopy_s: median(|trial| trial.postcopy_s),
            downtime_ms: known(|trial| trial.downtime_ms),
            gap_ms: median(|trial| trial.gap_ms),
            bytes: known(|trial| trial.bytes),
            loss_per_mille: median(|trial| trial.loss_per_mille),
            rounds: median(|trial| trial.rounds as f64),
        }
    }

    /// Whether all migrations did. Else it is none that one could rely on.
    fn is_complete(&self) -> bool {
        self.completed == self.migrations
    }
}

/// A guest with what became of it by each rule.
pub(super) struct Comparison {
    pub(super) guest: &'static str,
    pub(super) arms: Vec<Summary>,
}

impl Comparison {
    fn of(&self, arm: &str) -> &Summary {
        let found = self.arms.iter().find(|summary| summary.arm == arm);
        found.unwrap_or_else(|| panic!("there is no arm called {arm}"))
    }

    /// The rule that comes nearest to beating `optimal` both in post-copy duration and in total time, and the greater of its two
    /// ratios to it: less than 1 if it does. Nothing if no other rule completes.
    fn nearest_rival(&self) -> Option<(&'static str, f64)> {
        let optimal = self.of(OPTIMAL);
        let ratios = self.rivals().map(|rival| {
            let worse = match optimal.is_complete() {
                true => ratio(rival.postcopy_s, optimal.postcopy_s).max(ratio(rival.total_s, optimal.total_s)),
                false => 0.0,
            };
            (rival.arm, worse)
        });
        ratios.min_by(|one, other| one.1.total_cmp(&other.1))
    }

    /// The post-copy of `optimal` beside the shortest of the quick ones among the rules that completed with post-copy, and whose that is.
    /// Nothing if none did.
    fn postcopy_beside_best(&self) -> Option<(&'static str, f64)> {
        let optimal = self.of(OPTIMAL);
        let with_postcopy = || self.arms.iter().filter(|arm| arm.is_complete() && arm.postcopy_s > 0.0);
        let best_total = with_postcopy().map(|arm| arm.total_s).min_by(f64::total_cmp)?;
        let quick = with_postcopy().filter(|arm| arm.total_s <= QUICK * best_total);
        let least = quick.min_by(|one, other| one.postcopy_s.total_cmp(&other.postcopy_s))?;
        let value = match optimal.is_complete() {
            true => ratio(optimal.postcopy_s, least.postcopy_s),
            false => f64::INFINITY,
        };
        Some((least.arm, value))
    }

    fn rivals(&self) -> impl Iterator<Item = &Summary> {
        self.arms.iter().filter(|arm| arm.arm != OPTIMAL && arm.is_complete())
    }
}

/// Of two durations; those that are nothing both are alike.
fn ratio(one: f64, other: f64) -> f64 {
    if one == other { 1.0 } else { one / other }
}

/// What is asked of `optimal`, with the answers.
pub(super) fn figures(results: &[Comparison]) -> Vec<Figure> {
    let mut figures = vec![endless(results)];
    for result in results {
        let name = |what| format!("switch rules, {}: {what}", result.guest);
        if let Some((rival, worse)) = result.nearest_rival() {
            figures.push(
                Figure::plain(
                    name("nearest rival of optimal, the greater of its ratios in post-copy and total time"),
                    worse,
                    "ratio",
                )
                .target(Target::AtLeast(1.0 - NOISE))
                .beside(format!(
                    "{rival}; {} % on both are taken for noise",
                    significant(100.0 * NOISE)
                )),
            );
        }
        if let Some((best, value)) = result.postcopy_beside_best() {
            figures.push(
                Figure::plain(name("post-copy of optimal beside the shortest"), value, "ratio")
                    .target(Target::AtMost(1.0 + NOISE))
                    .beside(format!(
                        "{best}; among rules that completed with post-copy in {QUICK} times the best total time of these"
                    )),
            );
        }
    }
    figures
}

/// The share of guests that QEMU's pre-copy does not always move which `optimal` always does.
fn endless(results: &[Comparison]) -> Figure {
    let left: Vec<&Comparison> = results.iter().filter(|result| !result.of(QEMU).is_complete()).collect();
    let moved = left.iter().filter(|result| result.of(OPTIMAL).is_complete()).count();
    let name = "switch rules: guests moved by optimal of those that QEMU's pre-copy does not move";
    if left.is_empty() {
        return Figure::plain(name, 1.0, "ratio").beside("QEMU's pre-copy moved all of them");
    }
    let names: Vec<&str> = left.iter().map(|result| result.guest).collect();
    Figure::plain(name, moved as f64 / left.len() as f64, "ratio")
        .target(Target::AtLeast(1.0))
        .beside(format!("{moved} of {}: {}", left.len(), names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(completed: bool, total_s: f64, postcopy_s: f64) -> Trial {
        Trial {
            completed,
            reason: None,
            total_s,
            downtime_ms: completed.then_some(10.0 * total_s),
            postcopy_s,
            bytes: Some(1e6),
            gap_ms: 300.0,
            loss_per_mille: 100.0,
            rounds: 2,
        }
    }

    fn result(arms: &[(&'static str, bool, f64, f64)]) -> Comparison {
        let summary =
            |&(arm, completed, total, postcopy)| Summary::new(arm, &vec![trial(completed, total, postcopy); 3]);
        Comparison {
            guest: "idle",
            arms: arms.iter().map(summary).collect(),
        }
    }

    fn met(result: Comparison) -> Vec<Option<bool>> {
        let figures = figures(&[result]);
        let json = super::super::super::figure::to_json(&figures, &[]);
        let figures = json["figures"].as_array().expect("figures").clone();
        figures.iter().map(|figure| figure["met"].as_bool()).collect()
    }

    #[test]
    fn medians_are_of_those_that_completed() {
        let trials = [trial(false, 60.0, 0.0), trial(true, 5.0, 1.0), trial(true, 7.0, 2.0)];
        let some = Summary::new("a", &trials);
        assert_eq!((some.completed, some.total_s, some.postcopy_s), (2, 6.0, 1.5));
        assert_eq!(some.downtime_ms, Some(60.0));
        assert!(!some.is_complete());
        let none = Summary::new("a", &trials[..1]);
        assert_eq!((none.completed, none.total_s, none.downtime_ms), (0, 60.0, None));
        assert!(Summary::new("a", &trials[1..]).is_complete());
    }

    #[test]
    fn a_guest_that_pre_copy_does_not_move_must_be_moved() {
        let moved = |optimal| endless(&[result(&[(QEMU, false, 60.0, 0.0), (OPTIMAL, optimal, 6.0, 1.0)])]);
        let value = |figure| {
            let json = super::super::super::figure::to_json(&[figure], &[]);
            (
                json["figures"][0]["value"].as_f64(),
                json["figures"][0]["met"].as_bool(),
            )
        };
        assert_eq!(value(moved(true)), (Some(1.0), Some(true)));
        assert_eq!(value(moved(false)), (Some(0.0), Some(false)));
        let easy = endless(&[result(&[(QEMU, true, 3.0, 0.0), (OPTIMAL, true, 3.0, 0.0)])]);
        assert_eq!(value(easy), (Some(1.0), None));
    }

    #[test]
    fn a_rival_must_be_better_in_both_by_more_than_noise() {
        let rival = |total, postcopy| {
            result(&[
                (QEMU, false, 60.0, 0.0),
                ("lambda", true, total, postcopy),
                (OPTIMAL, true, 10.0, 1.0),
            ])
        };
        assert_eq!(rival(9.0, 0.9).nearest_rival(), Some(("lambda", 0.9)));
        assert_eq!(rival(9.0, 1.5).nearest_rival(), Some(("lambda", 1.5)));
        assert_eq!(met(rival(9.0, 0.9)), [Some(true), Some(false), Some(false)]);
        assert_eq!(met(rival(9.6, 0.5)), [Some(true), Some(true), Some(false)]);
        assert_eq!(met(rival(9.6, 0.96)), [Some(true), Some(true), Some(true)]);
        // Much better in one, and worse in the other.
        assert_eq!(met(rival(5.0, 1.1))[1], Some(true));
    }

    #[test]
    fn without_post_copy_total_times_decide() {
        let rival = |total| result(&[(QEMU, true, total, 0.0), (OPTIMAL, true, 4.0, 0.5)]);
        assert_eq!(rival(3.0).nearest_rival(), Some((QEMU, 0.75)));
        let neither = result(&[(QEMU, true, 3.0, 0.0), (OPTIMAL, true, 4.0, 0.0)]);
        // Nobody has a shorter post-copy than none.
        assert_eq!(neither.nearest_rival(), Some((QEMU, 1.0)));
        assert_eq!(neither.postcopy_beside_best(), None);
    }

    #[test]
    fn slow_rules_and_those_that_do_not_complete_set_no_standard() {
        let arms = |slow: f64| {
            result(&[
                (QEMU, false, 60.0, 0.0),
                ("libvirt", true, 4.0, 1.0),
                ("kubevirt-stall", true, slow, 0.2),
                (OPTIMAL, true, 4.5, 0.5),
            ])
        };
        assert_eq!(arms(40.0).postcopy_beside_best(), Some((OPTIMAL, 1.0)));
        assert_eq!(arms(4.5).postcopy_beside_best(), Some(("kubevirt-stall", 2.5)));
        let pre_copied = result(&[
            (QEMU, true, 4.0, 0.0),
            ("libvirt", true, 4.0, 1.0),
            (OPTIMAL, true, 4.0, 0.0),
        ]);
        assert_eq!(pre_copied.postcopy_beside_best(), Some(("libvirt", 0.0)));
    }

    #[test]
    fn one_that_does_not_complete_is_beaten() {
        let failed = result(&[
            (QEMU, false, 60.0, 0.0),
            ("libvirt", true, 4.0, 1.0),
            (OPTIMAL, false, 60.0, 0.0),
        ]);
        assert_eq!(failed.nearest_rival(), Some(("libvirt", 0.0)));
        assert_eq!(met(failed), [Some(false); 3]);
        let alone = result(&[(QEMU, false, 60.0, 0.0), (OPTIMAL, true, 4.0, 1.0)]);
        assert_eq!(alone.nearest_rival(), None);
    }
}
