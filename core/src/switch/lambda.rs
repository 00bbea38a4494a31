//! The λ rule: switch when rounds stop converging.

use super::{Decision, Reason, RoundEnd, Verdict};
use crate::units::Ratio;

/// Values the rule looks at.
const WINDOW: usize = 3;
/// Values above 1 that it takes.
const ABOVE_MIN: u32 = 2;
/// Pages that a λ is exact for, 1 PiB of them.
const COUNT_MAX: u64 = 1 << 38;

// The largest product of the mean test: three values of COUNT_MAX / 1, over a common denominator, in thousandths.
const _: () = assert!((COUNT_MAX as u128).pow(3).checked_mul(WINDOW as u128 * 1000).is_some());

/// `lambda`: if at least two of the last three λ are above 1 and their mean is at least 1 → post-copy.
///
/// Li & Cao 2023, "Adaptive hybrid migration process", eq. 3 and Algorithm 2; [`RoundEnd::lambda`] is the λ. Read thus where
/// the paper leaves it open:
///
/// * No decision before there are three values. λ(1) = 1 is a seed, never *above* 1, but part of the mean; so the
///   earliest switch is at the end of round 3, by λ(2) > 1 and λ(3) > 1.
/// * "All below 1" and "two above 1" leave cases between, such as one above 1 or values equal to 1: pre-copy goes on.
/// * λ(i) needs the dirty pages at the end of round i, so it decides about round i + 1.
///
/// **A saturated writer has λ = 1, not above.** A guest that dirties its whole working set in every round, however much faster
/// than the link, sends what it dirtied before: V(i) = S(i). The rule then waits for noise to lift two values, or for the
/// round limit. That is the rule of the paper, not an oversight here.
///
/// Exact for up to 2^38 pages (1 PiB); larger counts are read as that. O(1) per round, three fractions of memory.
#[derive(Clone, Debug)]
pub struct Lambda {
    /// The last λ values, the value of the n-th round told at n mod 3.
    recent: [Ratio; WINDOW],
    /// Values seen, stopping at the largest number.
    seen: u32,
    next: usize,
}

impl Default for Lambda {
    fn default() -> Self {
        Self::new()
    }
}

impl Lambda {
    /// No round seen yet.
    pub const fn new() -> Self {
        Self {
            recent: [Ratio::ONE; WINDOW],
            seen: 0,
            next: 0,
        }
    }

    /// Takes λ(i) in and looks at the last three; the score is λ(i).
    pub fn on_round(&mut self, end: &RoundEnd) -> Verdict {
        let lambda = end.lambda();
        self.recent[self.next] = within_range(lambda);
        self.next = (self.next + 1) % WINDOW;
        self.seen = self.seen.saturating_add(1);
        let (decision, reason) = self.judge();
        Verdict {
            decision,
            score_milli: lambda.milli(),
            reason,
        }
    }

    fn judge(&self) -> (Decision, Reason) {
        if self.seen < WINDOW as u32 {
            return (Decision::Continue, Reason::LambdaTooFew { values: self.seen });
        }
        let above = self.recent.iter().filter(|&&lambda| lambda > Ratio::ONE).count() as u32;
        if above < ABOVE_MIN {
            return (Decision::Continue, Reason::LambdaConverging { above });
        }
        let (sum, unit) = self.sum();
        let parts = WINDOW as u128 * unit;
        let mean_milli = i64::try_from(sum * 1000 / parts).unwrap_or(i64::MAX);
        if sum >= parts {
            (Decision::PostCopy, Reason::LambdaDiverging { above, mean_milli })
        } else {
            (Decision::Continue, Reason::LambdaMeanBelowOne { mean_milli })
        }
    }

    /// The sum of the three values, as a fraction over their common denominator.
    fn sum(&self) -> (u128, u128) {
        let [a, b, c] = self.recent.map(|lambda| u128::from(lambda.numerator()));
        let [x, y, z] = self.recent.map(|lambda| u128::from(lambda.denominator()));
        (a * y * z + b * x * z + c * x * y, x * y * z)
    }
}

/// A fraction with both counts cut to [`COUNT_MAX`].
fn within_range(ratio: Ratio) -> Ratio {
    let (numerator, denominator) = (ratio.numerator().min(COUNT_MAX), ratio.denominator().min(COUNT_MAX));
    Ratio::new(numerator, denominator).unwrap_or(Ratio::ONE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Nanos, Pages};
    use std::vec::Vec;

    /// Feeds rounds of (sent, dirty) and gives the verdict of each.
    fn verdicts(rounds: &[(u64, u64)]) -> Vec<Verdict> {
        let mut rule = Lambda::new();
        let ends = rounds.iter().enumerate().map(|(index, &(sent, dirty))| RoundEnd {
            round: index as u32 + 1,
            sent: Pages(sent),
            dirty: Pages(dirty),
            previous_dirty: Pages(sent),
            duration: Nanos::from_secs(1),
            elapsed: Nanos::ZERO,
        });
        ends.map(|end| rule.on_round(&end)).collect()
    }

    fn first_switch(rounds: &[(u64, u64)]) -> Option<usize> {
        let switch = verdicts(rounds)
            .iter()
            .position(|verdict| verdict.decision == Decision::PostCopy);
        switch.map(|index| index + 1)
    }

    #[test]
    fn two_values_above_one_switch_at_the_end_of_round_three() {
        // λ = 1, 700/600, 710/700: mean 1.0603.
        let verdicts = verdicts(&[(1000, 600), (600, 700), (700, 710)]);
        assert_eq!(verdicts[0].reason, Reason::LambdaTooFew { values: 1 });
        assert_eq!(verdicts[1].reason, Reason::LambdaTooFew { values: 2 });
        assert_eq!(
            verdicts.iter().map(|verdict| verdict.score_milli).collect::<Vec<_>>(),
            [1000, 1166, 1014]
        );
        assert_eq!(
            verdicts[2].reason,
            Reason::LambdaDiverging {
                above: 2,
                mean_milli: 1060
            }
        );
        assert_eq!(verdicts[2].decision, Decision::PostCopy);
    }

    #[test]
    fn the_seed_is_never_above_one_whatever_round_one_says() {
        assert_eq!(verdicts(&[(10, 1000)])[0].score_milli, 1000);
        assert_eq!(first_switch(&[(10, 1000), (1000, 1500), (1500, 1500)]), None);
    }

    #[test]
    fn a_saturated_writer_never_switches() {
        assert_eq!(first_switch(&[(800, 800); 1000]), None);
    }

    #[test]
    fn the_mean_has_the_last_word() {
        // 1/2, 5/4, 5/4: mean exactly 1.
        let two_above = |dirty| verdicts(&[(1000, 1000), (1000, dirty), (400, 500), (400, 500)])[3];
        assert_eq!(two_above(500).decision, Decision::PostCopy);
        assert_eq!(two_above(499).decision, Decision::Continue);
        assert_eq!(two_above(499).reason, Reason::LambdaMeanBelowOne { mean_milli: 999 });
    }

    #[test]
    fn only_the_last_three_count() {
        // Above 1 in rounds 2 and 4 only: round 4 sees rounds 2, 3, 4 with mean (1.5 + 0.5 + 1.5) / 3.
        assert_eq!(first_switch(&[(100, 50), (100, 150), (100, 50), (100, 150)]), Some(4));
        // Above 1 in rounds 2 and 5: never in the same window.
        assert_eq!(
            first_switch(&[(100, 50), (100, 150), (100, 90), (100, 90), (100, 150), (100, 90)]),
            None
        );
    }

    #[test]
    fn rounds_that_sent_nothing_are_neutral_or_zero() {
        let verdicts = verdicts(&[(100, 0), (0, 0), (0, 7), (7, 8)]);
        assert_eq!(
            verdicts.iter().map(|verdict| verdict.score_milli).collect::<Vec<_>>(),
            [1000, 0, 1000, 1142]
        );
    }

    #[test]
    fn absurd_counts_are_decided_without_overflow() {
        let all = u64::MAX;
        assert_eq!(first_switch(&[(all, all), (1, all), (1, all), (1, all)]), Some(3));
        assert_eq!(first_switch(&[(all, 0), (all, 1), (all, all - 1)]), None);
        // Both counts are read as the largest that is exact.
        assert_eq!(first_switch(&[(all - 1, all); 5]), None);
    }
}
