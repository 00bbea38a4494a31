//! What an experiment is asked, and its answers.

use serde_json::{Value, json};

use super::record::Runs;
use super::statistics::{Estimate, estimate, estimate_mean, estimate_ratio};
use crate::bench::figure::Target;

/// A number computed from the runs of one or two arms.
#[derive(Clone, Copy, Debug)]
pub(super) enum Quantity {
    /// The median of a value.
    Median(&'static str, &'static str),
    /// The mean of a value that is 0 or 1: how often it was 1.
    Share(&'static str, &'static str),
    /// The median of a value of one arm over that of another.
    Ratio(&'static str, &'static str, &'static str),
}

/// A question, in advance.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) name: String,
    pub(super) quantity: Quantity,
    pub(super) target: Option<Target>,
}

/// Its answer.
pub(crate) struct Check {
    pub(crate) name: String,
    /// `None` if too little could be measured.
    pub(crate) estimate: Option<Estimate>,
    pub(crate) target: Option<Target>,
    /// Every repetition has what is asked for.
    complete: bool,
}

impl Question {
    pub(super) fn new(name: impl Into<String>, quantity: Quantity) -> Self {
        Self {
            name: name.into(),
            quantity,
            target: None,
        }
    }

    pub(super) fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    pub(super) fn at_most(self, bound: f64) -> Self {
        self.target(Target::AtMost(bound))
    }

    /// The arms it needs.
    pub(super) fn arms(&self) -> Vec<&'static str> {
        match self.quantity {
            Quantity::Median(_, arm) | Quantity::Share(_, arm) => vec![arm],
            Quantity::Ratio(_, arm, base) => vec![arm, base],
        }
    }

    pub(super) fn answer(&self, runs: &Runs) -> Check {
        let estimate = match self.quantity {
            Quantity::Median(value, arm) => estimate(&runs.values(arm, value)),
            Quantity::Share(value, arm) => estimate_mean(&runs.values(arm, value)),
            Quantity::Ratio(value, arm, base) => estimate_ratio(&runs.pairs(value, arm, base)),
        };
        let found = match self.quantity {
            Quantity::Median(value, arm) | Quantity::Share(value, arm) => runs.values(arm, value).len(),
            Quantity::Ratio(value, arm, base) => runs.pairs(value, arm, base).len(),
        };
        Check {
            name: self.name.clone(),
            estimate,
            target: self.target,
            complete: found == runs.repetitions(),
        }
    }
}

impl Check {
    /// Of numbers that are all there.
    pub(super) fn of(name: String, estimate: Option<Estimate>, target: Option<Target>) -> Self {
        Self {
            name,
            estimate,
            target,
            complete: true,
        }
    }

    /// Of numbers some of which could not be had: it is not met.
    pub(super) fn incomplete(self) -> Self {
        Self {
            complete: false,
            ..self
        }
    }

    /// Whether the whole interval meets the target, and every repetition is in it; `None` if there is none.
    pub(super) fn met(&self) -> Option<bool> {
        let target = self.target?;
        let met = |estimate: Estimate| estimate.interval.into_iter().all(|bound| target.is_met_by(bound));
        Some(self.complete && self.estimate.is_some_and(met))
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "value": self.estimate.map(|estimate| estimate.value),
            "interval": self.estimate.map(|estimate| estimate.interval),
            "target": self.target.map(Target::text),
            "met": self.met(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Run;
    use super::*;

    fn runs(of: &[(&str, usize, f64)]) -> Runs {
        let runs = of.iter().map(|&(arm, repetition, time)| Run {
            arm: arm.into(),
            repetition,
            values: [("time_ms".to_owned(), time)].into(),
        });
        Runs(runs.collect())
    }

    fn ratio() -> Question {
        Question::new("R9 time", Quantity::Ratio("time_ms", "new", "old"))
    }

    #[test]
    fn a_target_is_met_by_the_whole_interval() {
        let runs = runs(&[("new", 0, 7.0), ("new", 1, 9.0), ("old", 0, 10.0), ("old", 1, 10.0)]);
        let check = ratio().at_most(0.85).answer(&runs);
        assert_eq!(check.estimate.expect("measured").value, 0.8);
        assert_eq!(check.met(), Some(false), "the interval ends at 0.9");
        assert_eq!(ratio().at_most(0.9).answer(&runs).met(), Some(true));
        assert_eq!(ratio().target(Target::AtLeast(0.75)).answer(&runs).met(), Some(false));
        assert_eq!(
            ratio().target(Target::Within(0.7, 0.89)).answer(&runs).met(),
            Some(false)
        );
        assert_eq!(ratio().target(Target::Within(0.7, 0.9)).answer(&runs).met(), Some(true));
        assert_eq!(ratio().answer(&runs).met(), None);
        let json = check.to_json();
        assert_eq!((&json["value"], &json["target"]), (&json!(0.8), &json!("<= 0.85")));
        assert_eq!((&json["interval"], &json["met"]), (&json!([0.7, 0.9]), &json!(false)));
    }

    #[test]
    fn all_must_survive_where_that_is_asked() {
        let question = Question::new("R12", Quantity::Share("time_ms", "new")).target(Target::AtLeast(1.0));
        let of = |values: [f64; 3]| runs(&[0, 1, 2].map(|repetition| ("new", repetition, values[repetition])));
        assert_eq!(question.answer(&of([1.0, 1.0, 1.0])).met(), Some(true));
        let check = question.answer(&of([1.0, 0.0, 1.0]));
        assert_eq!(check.met(), Some(false));
        assert!((check.estimate.expect("measured").value - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(question.arms(), ["new"]);
    }

    #[test]
    fn what_was_not_measured_is_not_met() {
        let check = ratio()
            .at_most(0.85)
            .answer(&runs(&[("new", 0, 7.0), ("old", 1, 10.0)]));
        assert_eq!((check.met(), &check.to_json()["value"]), (Some(false), &Value::Null));
    }

    /// What failed may be what would have missed the target.
    #[test]
    fn a_repetition_that_is_missing_is_none_that_meets_it() {
        let mut of = vec![("new", 0, 7.0), ("old", 0, 10.0), ("new", 1, 7.0), ("old", 1, 10.0)];
        assert_eq!(ratio().at_most(0.85).answer(&runs(&of)).met(), Some(true));
        of.remove(2);
        let check = ratio().at_most(0.85).answer(&runs(&of));
        assert_eq!(
            (check.estimate.expect("of the other").value, check.met()),
            (0.7, Some(false))
        );
    }

    #[test]
    fn a_question_names_its_arms() {
        assert_eq!(ratio().arms(), ["new", "old"]);
        assert_eq!(Question::new("q", Quantity::Median("time_ms", "new")).arms(), ["new"]);
    }
}
