//! Medians of few repetitions, and how far they can be trusted.

use crate::bench::sampling::Samples;

/// How often the repetitions are drawn anew.
const DRAWS: usize = 10_000;
/// Makes the same results give the same interval.
const SEED: u64 = 1;

/// A number computed from repetitions, with the interval that holds it in 95 of 100 cases.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) interval: [f64; 2],
}

/// The middle of `values`; `None` without any.
pub(super) fn median(values: Vec<f64>) -> Option<f64> {
    (!values.is_empty()).then(|| Samples::new(values).median())
}

/// The median of `values`.
pub(super) fn estimate(values: &[f64]) -> Option<Estimate> {
    bootstrap(values.len(), |drawn| {
        median(drawn.iter().map(|&at| values[at]).collect())
    })
}

/// The mean of `values`: of ones and zeros the share of ones.
pub(super) fn estimate_mean(values: &[f64]) -> Option<Estimate> {
    bootstrap(values.len(), |drawn| {
        let sum: f64 = drawn.iter().map(|&at| values[at]).sum();
        (!drawn.is_empty()).then(|| sum / drawn.len() as f64)
    })
}

/// The median of the first numbers over that of the second ones, of repetitions that were measured in turn.
pub(super) fn estimate_ratio(pairs: &[(f64, f64)]) -> Option<Estimate> {
    bootstrap(pairs.len(), |drawn| {
        let above = median(drawn.iter().map(|&at| pairs[at].0).collect())?;
        let below = median(drawn.iter().map(|&at| pairs[at].1).collect())?;
        let ratio = above / below;
        ratio.is_finite().then_some(ratio)
    })
}

/// The same of means: of ones and zeros, how much more often the first are ones.
pub(super) fn estimate_mean_ratio(pairs: &[(f64, f64)]) -> Option<Estimate> {
    bootstrap(pairs.len(), |drawn| {
        let above: f64 = drawn.iter().map(|&at| pairs[at].0).sum();
        let below: f64 = drawn.iter().map(|&at| pairs[at].1).sum();
        let ratio = above / below;
        ratio.is_finite().then_some(ratio)
    })
}

/// The percentile bootstrap (Efron 1979): the statistic over repetitions drawn with replacement, again and again, and what
/// the middle 95 % of the results span. Whole repetitions are drawn, so that arms measured in the same minute stay together.
///
/// `None` if the statistic is undefined for the repetitions as they are; draws for which it is undefined do not count.
fn bootstrap(repetitions: usize, statistic: impl Fn(&[usize]) -> Option<f64>) -> Option<Estimate> {
    let mut drawn: Vec<usize> = (0..repetitions).collect();
    let value = statistic(&drawn)?;
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut results = Vec::with_capacity(DRAWS);
    for _ in 0..DRAWS {
        drawn.iter_mut().for_each(|at| *at = random.usize(..repetitions));
        results.extend(statistic(&drawn));
    }
    results.sort_by(f64::total_cmp);
    let at = |permille: usize| results[(results.len() * permille / 1000).min(results.len() - 1)];
    Some(Estimate {
        value,
        interval: [at(25), at(975)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_repetition_is_all_that_is_known() {
        let expected = Estimate {
            value: 0.5,
            interval: [0.5, 0.5],
        };
        assert_eq!(estimate(&[0.5]), Some(expected));
        assert_eq!(estimate_ratio(&[(1.0, 2.0)]), Some(expected));
        assert_eq!((estimate(&[]), estimate_ratio(&[])), (None, None));
    }

    #[test]
    fn the_interval_holds_the_median_and_leaves_rare_outliers_out() {
        let values: Vec<f64> = (1..=99).map(f64::from).chain([1e6]).collect();
        let found = estimate(&values).expect("values");
        assert_eq!(found.value, 50.5);
        // The standard error of a median of 100 uniform values of 1 to 100 is 100 / (2·√100) = 5.
        let [low, high] = found.interval;
        assert!(
            (36.0..=45.0).contains(&low) && (56.0..=65.0).contains(&high),
            "{found:?}"
        );
    }

    /// Of 5 repetitions the least is the median of a draw if at least 3 are the least: with probability 0.058, above 2.5 %.
    #[test]
    fn five_repetitions_are_spanned_by_their_extremes() {
        let found = estimate(&[3.0, 1.0, 2.0, 5.0, 4.0]).expect("values");
        assert_eq!((found.value, found.interval), (3.0, [1.0, 5.0]));
    }

    #[test]
    fn a_single_loss_is_seen_in_a_mean() {
        let found = estimate_mean(&[1.0, 1.0, 0.0, 1.0, 1.0]).expect("values");
        assert!(
            (found.value - 0.8).abs() < 1e-12 && found.interval[0] < 0.8,
            "{found:?}"
        );
        assert_eq!(estimate_mean(&[1.0; 5]).expect("values").interval, [1.0, 1.0]);
        assert_eq!(estimate_mean(&[]), None);
    }

    #[test]
    fn shares_are_compared_by_their_means() {
        let pairs = [(1.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 0.0)];
        let found = estimate_mean_ratio(&pairs).expect("pairs");
        assert!((found.value - 0.25).abs() < 1e-12, "{found:?}");
        assert_eq!(found.interval[0], 0.0);
        assert_eq!(estimate_mean_ratio(&[(1.0, 0.0)]), None);
    }

    #[test]
    fn a_slow_minute_that_hits_both_arms_does_not_widen_the_ratio() {
        let pairs: Vec<(f64, f64)> = [1.0, 2.0, 3.0, 4.0, 5.0].map(|slow| (7.0 * slow, 10.0 * slow)).into();
        let found = estimate_ratio(&pairs).expect("pairs");
        let close = |value: f64| (value - 0.7).abs() < 1e-12;
        assert!(close(found.value) && found.interval.into_iter().all(close), "{found:?}");
    }

    #[test]
    fn a_ratio_to_nothing_is_undefined() {
        assert_eq!(estimate_ratio(&[(1.0, 0.0), (2.0, 0.0), (1.0, 4.0)]), None);
        let found = estimate_ratio(&[(1.0, 0.0), (2.0, 4.0), (1.0, 4.0)]).expect("most have a base");
        assert!(found.interval.into_iter().all(f64::is_finite), "{found:?}");
    }
}
