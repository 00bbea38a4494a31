//! What is asked of the results of a plan.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::fold::{Fold, PlaceNumber};
use super::value::PlanValue;
use super::{Point, PointResult};

/// A question about the results of some places in the sweep.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanCheck {
    /// In words.
    pub name: String,
    /// Of what.
    pub value: PlanValue,
    /// Of which arm.
    pub arm: String,
    /// Over this value of the same migration.
    #[serde(default)]
    pub per: Option<PlanValue>,
    /// Over the same of this arm, or of the best of these, seed by seed.
    #[serde(default)]
    pub by: Option<By>,
    /// By what the best is the best: the least of this; without it, of the value itself.
    #[serde(default)]
    pub best: Option<PlanValue>,
    /// Instead of over it: less it.
    #[serde(default)]
    pub difference: bool,
    /// Where in the sweep: values of some of its keys; over the others all points count.
    #[serde(default)]
    pub at: BTreeMap<String, String>,
    /// One number made of those of all places, seed by seed; without it each counts for itself.
    #[serde(default)]
    pub fold: Option<Fold>,
    /// What `fold = "share"` counts: places at which the number is no larger.
    #[serde(default)]
    pub within: Option<f64>,
    /// The largest that is good.
    #[serde(default)]
    pub at_most: Option<f64>,
    /// The smallest that is good.
    #[serde(default)]
    pub at_least: Option<f64>,
    /// What the paper has.
    #[serde(default)]
    pub paper: Option<f64>,
    /// Why it differs, if it does.
    #[serde(default)]
    pub why: Option<String>,
}

/// Whom an arm is compared with.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum By {
    /// One arm.
    Arm(String),
    /// The best of several, place by place and seed by seed: the clairvoyant.
    BestOf(Vec<String>),
}

impl By {
    pub(super) fn arms(&self) -> &[String] {
        match self {
            Self::Arm(arm) => std::slice::from_ref(arm),
            Self::BestOf(arms) => arms,
        }
    }
}

/// The numbers that a question is about, each of one migration or one seed.
#[derive(Clone, PartialEq, Debug)]
pub enum Numbers {
    /// Of which the median is wanted.
    Values(Vec<f64>),
    /// Of ones and zeros, or shares: the mean.
    Shares(Vec<f64>),
    /// The median of the first over that of the second.
    Ratios(Vec<(f64, f64)>),
    /// The mean of the first over that of the second: of shares.
    ShareRatios(Vec<(f64, f64)>),
}

impl PlanCheck {
    /// Whether it asks about this point: its arm, at its place in the sweep.
    pub(super) fn is_at(&self, point: &Point) -> bool {
        point.arm == self.arm && self.is_place_of(point)
    }

    fn is_place_of(&self, point: &Point) -> bool {
        self.at
            .iter()
            .all(|(name, value)| point.axes.iter().any(|(axis, at)| axis == name && at == value))
    }

    /// Why it is no question, whatever the sweep is.
    pub(super) fn contradiction(&self) -> Option<&'static str> {
        match self {
            Self {
                fold: Some(Fold::Share),
                within: None,
                ..
            } => Some("`fold = \"share\"` counts what is `within = …`: write that"),
            Self {
                fold, within: Some(_), ..
            } if *fold != Some(Fold::Share) => Some("`within` belongs to `fold = \"share\"`"),
            Self {
                by: None,
                difference: true,
                ..
            } => Some("`difference` needs another arm: write `by`"),
            Self {
                by: None,
                best: Some(_),
                ..
            } => Some("`best` chooses among the arms of `by`: write those"),
            Self {
                by: Some(By::BestOf(arms)),
                ..
            } if arms.is_empty() => Some("`by` has no arm: name some, or leave it out"),
            _ => None,
        }
    }

    /// The numbers it asks about, in the order of places and seeds; with a fold one for each seed. None at all where one is missing: the
    /// others alone would be another question.
    pub fn numbers(&self, results: &[PointResult]) -> Numbers {
        let places: Vec<&PointResult> = results.iter().filter(|result| self.is_at(&result.point)).collect();
        let seeds = places.iter().map(|place| place.results.len()).min().unwrap_or(0);
        let number = |place: &PointResult, seed: usize| {
            let value = self.of(place, seed)?;
            let base = match &self.by {
                Some(by) => Some(self.base(by, place, seed, results)?),
                None => None,
            };
            Some((value, base))
        };
        if let Some(fold) = self.fold {
            let folded = (0..seeds).map(|seed| {
                let numbers: Option<Vec<PlaceNumber>> = places
                    .iter()
                    .map(|place| {
                        let (value, base) = number(place, seed)?;
                        let number = match base {
                            Some(base) if self.difference => value - base,
                            Some(base) => value / base,
                            None => value,
                        };
                        Some(PlaceNumber {
                            place: place.point.axes.first().map_or("", |(_, text)| text),
                            number,
                        })
                    })
                    .collect();
                fold.of(
                    &numbers?,
                    self.within,
                    self.at_least.is_some() && self.at_most.is_none(),
                )
            });
            let folded = folded.collect::<Option<Vec<f64>>>().unwrap_or_default();
            return match fold {
                Fold::Share => Numbers::Shares(folded),
                _ => Numbers::Values(folded),
            };
        }
        let each = places
            .iter()
            .flat_map(|place| (0..seeds).map(|seed| number(place, seed)));
        let each: Vec<(f64, Option<f64>)> = each.collect::<Option<_>>().unwrap_or_default();
        match (&self.by, self.difference) {
            (Some(_), false) if self.value.is_share() => Numbers::ShareRatios(
                each.into_iter()
                    .filter_map(|(value, base)| Some((value, base?)))
                    .collect(),
            ),
            (Some(_), false) => Numbers::Ratios(
                each.into_iter()
                    .filter_map(|(value, base)| Some((value, base?)))
                    .collect(),
            ),
            (Some(_), true) => Numbers::Values(
                each.into_iter()
                    .filter_map(|(value, base)| Some(value - base?))
                    .collect(),
            ),
            (None, _) if self.value.is_share() => Numbers::Shares(each.into_iter().map(|(value, _)| value).collect()),
            (None, _) => Numbers::Values(each.into_iter().map(|(value, _)| value).collect()),
        }
    }

    /// Its value of one migration, in the unit that figures have; `None` if that has none.
    fn of(&self, place: &PointResult, seed: usize) -> Option<f64> {
        let result = place.results.get(seed)?;
        let value = self.value.of(result, &place.point)?;
        Some(match self.per {
            Some(per) => value / per.of(result, &place.point)?,
            None => self.value.shown().2 * value,
        })
    }

    fn base(&self, by: &By, place: &PointResult, seed: usize, results: &[PointResult]) -> Option<f64> {
        let same_place = |arm: &String| {
            let other = |result: &&PointResult| result.point.arm == *arm && result.point.axes == place.point.axes;
            results.iter().find(other)
        };
        let arms = by.arms().iter().filter_map(same_place);
        let rated = arms.filter_map(|arm| {
            let value = self.of(arm, seed)?;
            let rating = match self.best {
                Some(best) => best.of(arm.results.get(seed)?, &arm.point)?,
                None => value,
            };
            Some((rating, value))
        });
        rated.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, value)| value)
    }
}
