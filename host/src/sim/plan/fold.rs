//! One number made of those of all places.

use serde::Deserialize;

use super::axis;

/// How numbers of several places become one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fold {
    /// The largest, or the least where that is what must not be too small.
    Worst,
    /// Their mean.
    Mean,
    /// The difference of the largest and the least, over the mean.
    Spread,
    /// Spearman's rank correlation with the order of the places: 1 if each is larger than the one before.
    Rank,
    /// R² of the straight line through them over the number that the place is: 1 if they lie on it.
    Linearity,
    /// The share of places at which the number is within a bound.
    Share,
}

/// A number, and the place it is from.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlaceNumber<'a> {
    /// The first key of the sweep, as written.
    pub(super) place: &'a str,
    pub(super) number: f64,
}

impl Fold {
    /// `None` where it is undefined: of no places, or of places that are no numbers.
    pub(super) fn of(self, numbers: &[PlaceNumber<'_>], within: Option<f64>, large_is_good: bool) -> Option<f64> {
        let values = || numbers.iter().map(|number| number.number);
        let count = numbers.len() as f64;
        let mean = values().sum::<f64>() / count;
        let (least, most) = (values().reduce(f64::min)?, values().reduce(f64::max)?);
        let folded = match self {
            Self::Worst if large_is_good => least,
            Self::Worst => most,
            Self::Mean => mean,
            Self::Spread => (most - least) / mean,
            Self::Rank => correlation(&ranks(values()), &ranks((0..numbers.len()).map(|at| at as f64))),
            Self::Linearity => {
                let places: Option<Vec<f64>> = numbers
                    .iter()
                    .map(|number| axis::number(number.place).map(|(_, number)| number))
                    .collect();
                correlation(&values().collect::<Vec<_>>(), &places?).powi(2)
            }
            Self::Share => {
                values()
                    .filter(|number| within.is_some_and(|bound| *number <= bound))
                    .count() as f64
                    / count
            }
        };
        folded.is_finite().then_some(folded)
    }
}

/// The place of each in their order; equal ones share the mean of theirs.
fn ranks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let values: Vec<f64> = values.collect();
    let rank = |value: &f64| {
        let below = values.iter().filter(|other| *other < value).count() as f64;
        let equal = values.iter().filter(|other| *other == value).count() as f64;
        below + (equal + 1.0) / 2.0
    };
    values.iter().map(rank).collect()
}

/// Pearson's; not finite if either does not vary.
fn correlation(one: &[f64], other: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (a, b) = (mean(one), mean(other));
    let products = one.iter().zip(other).map(|(x, y)| (x - a) * (y - b));
    let square = |values: &[f64], mean: f64| values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    products.sum::<f64>() / (square(one, a) * square(other, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(fold: Fold, numbers: &[(&str, f64)]) -> Option<f64> {
        let numbers: Vec<PlaceNumber<'_>> = numbers
            .iter()
            .map(|&(place, number)| PlaceNumber { place, number })
            .collect();
        fold.of(&numbers, Some(2.0), false)
    }

    #[track_caller]
    fn about(found: Option<f64>, expected: f64) {
        assert!(found.is_some_and(|found| (found - expected).abs() < 1e-9), "{found:?}");
    }

    #[test]
    fn numbers_of_places_become_one() {
        let numbers = [("8GiB", 1.0), ("16GiB", 2.0), ("24GiB", 6.0)];
        about(folded(Fold::Worst, &numbers), 6.0);
        about(folded(Fold::Mean, &numbers), 3.0);
        about(folded(Fold::Spread, &numbers), 5.0 / 3.0);
        about(folded(Fold::Share, &numbers), 2.0 / 3.0);
        about(folded(Fold::Rank, &numbers), 1.0);
        about(folded(Fold::Rank, &[("a", 3.0), ("b", 1.0), ("c", 2.0)]), -0.5);
        assert_eq!(folded(Fold::Worst, &[]), None);
    }

    /// By the memory, not by where it stands in the list.
    #[test]
    fn a_line_is_one_over_the_numbers_that_places_are() {
        about(
            folded(Fold::Linearity, &[("1GiB", 3.0), ("2GiB", 5.0), ("8GiB", 17.0)]),
            1.0,
        );
        about(folded(Fold::Linearity, &[("1", 1.0), ("2", 3.0), ("3", 2.0)]), 0.25);
        assert_eq!(folded(Fold::Linearity, &[("seq", 1.0), ("uniform", 2.0)]), None);
    }

    #[test]
    fn what_must_be_large_is_worst_where_it_is_least() {
        let numbers = [1.0, 2.0].map(|number| PlaceNumber { place: "", number });
        assert_eq!(Fold::Worst.of(&numbers, None, true), Some(1.0));
    }
}
