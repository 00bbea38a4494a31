//! What the rounds so far prove about those to come.

use super::fixed::{ONE, log2};
use crate::units::Pages;

/// Steps between rounds that are looked at.
const STEPS: usize = 16;
/// By what the spread of so many steps the mean must be above a bound, in hundredths: quantiles of Student's t for 1 to 15 degrees of
/// freedom, exceeded by chance in 2 of 10 000 cases. Several windows are tried in each of many rounds, so each must be this sure.
const STUDENT: [i64; STEPS - 1] = [
    159_155, 4998, 1760, 1092, 836, 707, 631, 581, 546, 520, 500, 485, 472, 462, 453,
];
/// The spread of a step that is taken for granted before one is seen: 15 % of the level, 0.15 / ln 2 ≈ 0.2164, with the weight of so many steps.
const SPREAD: i64 = 226_914;
const SPREAD_WEIGHT: i64 = 4;
/// How far above an earlier level a rise must lead, in tenths of squared spreads. A walk that falls by d per step and has the spread s ever
/// exceeds where it started by h with probability exp(−2dh/s²), in log2 as in any unit. With d of a load that falls by
/// 10 % per round, log2(1/0.9) = 0.152, h = 8.5·s² is exceeded by chance in 8 of 100 walks and h = 28·s² in 2 of 10 000. There is
/// one first round to start from, but as many lowest ones as rounds, and a spread that only looks small.
const RISE_FROM_FIRST: i64 = 85;
const RISE_FROM_LOWEST: i64 = 280;
/// Levels that a line is laid through at the least: with fewer, a walk often looks like noise about a line.
const LINE_LEVELS: usize = 9;
/// Rounds in which the lowest level must have fallen by this part of it: log2(16/15) ≈ 0.0931.
const PATIENCE: usize = 16;
const PATIENCE_STEP: i64 = 97_633;

/// How the lowest plausible development was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Evidence {
    /// The steps of the last rounds do not differ enough to leave room for better ones.
    Steady,
    /// The levels of the last rounds lie along a line, up and down by turns, which leaves no room for a steeper one.
    Level,
    /// What is dirty has risen above an earlier level, in two rounds or more, further than its spread explains.
    Rising,
    /// For 16 rounds it has not fallen below where it was by a sixteenth.
    Stuck,
}

/// log2 V(i) over the rounds, and what follows from it. All logarithms in 20 binary places.
#[derive(Clone, Debug)]
pub(super) struct Trend {
    /// log2 V(i) / V(i−1), the step to the n-th round told at n mod 16.
    steps: [i64; STEPS],
    /// The lowest level up to a round, that of the n-th at n mod 16.
    lowest: [i64; PATIENCE],
    rounds: usize,
    first: i64,
    previous: i64,
    /// The lowest level up to the round before the previous one.
    lowest_before: i64,
    highest: Pages,
}

impl Trend {
    pub(super) const fn new() -> Self {
        Self {
            steps: [0; STEPS],
            lowest: [0; PATIENCE],
            rounds: 0,
            first: 0,
            previous: 0,
            lowest_before: 0,
            highest: Pages::ZERO,
        }
    }

    /// The largest V(i) so far.
    pub(super) const fn highest(&self) -> Pages {
        self.highest
    }

    /// Takes a round in. What log2 of V changes by in a round at the least, as far as the rounds prove, and what proves it; `None`
    /// before there are two steps. O(16).
    pub(super) fn update(&mut self, dirty: Pages) -> Option<(i64, Evidence)> {
        let level = log2(dirty.0);
        self.highest = self.highest.max(dirty);
        let (first, previous) = match self.rounds {
            0 => (level, level),
            _ => (self.first, self.previous),
        };
        let lowest_yet = match self.rounds {
            0 => level,
            rounds => self.lowest[(rounds - 1) % PATIENCE],
        };
        let lowest_then = (self.rounds >= PATIENCE).then(|| self.lowest[self.rounds % PATIENCE]);
        self.steps[self.rounds % STEPS] = level - previous;
        self.lowest[self.rounds % PATIENCE] = lowest_yet.min(level);
        self.rounds += 1;
        let found = (self.rounds > 2).then(|| self.bound(level, first, previous, lowest_yet.min(level), lowest_then));
        self.lowest_before = match self.rounds {
            1 => level,
            _ => self.lowest_before.min(previous),
        };
        (self.first, self.previous) = (first, level);
        found
    }

    fn bound(&self, level: i64, first: i64, previous: i64, lowest: i64, lowest_then: Option<i64>) -> (i64, Evidence) {
        let (bound, evidence) = match (self.steady(), self.line()) {
            (steady, Some(line)) if line > steady => (line, Evidence::Level),
            (steady, _) => (steady, Evidence::Steady),
        };
        if bound >= 0 {
            (bound, evidence)
        } else if self.rises(level, first, previous) {
            (0, Evidence::Rising)
        } else if lowest_then.is_some_and(|then| lowest > then - PATIENCE_STEP) {
            (0, Evidence::Stuck)
        } else {
            (bound, evidence)
        }
    }

    /// The highest of the lower bounds that the last 2, 3, … 16 steps give for their mean.
    fn steady(&self) -> i64 {
        let (mut sum, mut squares, mut best) = (0i64, 0i64, i64::MIN);
        for (count, step) in (1..).zip(self.newest_first()) {
            sum += step;
            squares += step * step;
            if count > 1 {
                // mean − t·√(Σ(x−mean)² / (n−1)) / √n, over a common denominator.
                let root = (deviation(count, sum, squares) / (count - 1)).isqrt();
                let student = STUDENT[count as usize - 2];
                best = best.max((100 * sum - student * root).div_euclid(100 * count));
            }
        }
        best
    }

    /// The highest of the lower bounds that the last 9, 10, … 17 levels give for the slope of a line through them; `None` where their
    /// steps do not turn back as noise about a line does.
    fn line(&self) -> Option<i64> {
        let mut through = Line::default();
        let mut level = 0;
        let bounds = self.newest_first().filter_map(|step| {
            level -= step;
            through.extend(level, step);
            through.slope_at_least()
        });
        bounds.max()
    }

    /// Up in this round, above an earlier level in the one before already, and now further above it than the spread explains.
    fn rises(&self, level: i64, first: i64, previous: i64) -> bool {
        // From step to step, so that a change of direction counts as spread only once.
        let (mut newer, mut count, mut squares) = (None, 0, 0);
        for step in self.newest_first() {
            if let Some(newer) = newer.replace(step) {
                squares += (newer - step) * (newer - step);
            }
            count += 1;
        }
        let variance = (SPREAD_WEIGHT * SPREAD * SPREAD + squares / 2) / (SPREAD_WEIGHT + count - 1);
        let beyond = |from: i64, tenths: i64| {
            let rise = i128::from(level - from) * i128::from(ONE);
            previous > from && 10 * rise > i128::from(tenths) * i128::from(variance)
        };
        level > previous && (beyond(first, RISE_FROM_FIRST) || beyond(self.lowest_before, RISE_FROM_LOWEST))
    }

    /// The steps so far, at most [`STEPS`]; the first round has none.
    fn newest_first(&self) -> impl Iterator<Item = i64> + '_ {
        let count = (self.rounds - 1).min(STEPS);
        (0..count).map(|back| self.steps[(self.rounds - 1 - back) % STEPS])
    }
}

/// A line by least squares through levels, told from the newest back to the oldest and counted from the newest, which is 0. Sums are of
/// at most 17 levels below 2^26 and their steps.
#[derive(Default)]
struct Line {
    steps: i64,
    /// Σy, Σk·y and Σy² of the level y that is k rounds old.
    sum: i64,
    moment: i64,
    squares: i64,
    oldest: i64,
    /// Σs² of the steps, and Σs·s′ of those next to each other.
    step_squares: i64,
    step_products: i64,
    newest_step: i64,
    oldest_step: i64,
}

impl Line {
    /// A level further back, and the step from it to the one after it.
    fn extend(&mut self, level: i64, step: i64) {
        self.step_products += self.oldest_step * step;
        self.step_squares += step * step;
        if self.steps == 0 {
            self.newest_step = step;
        }
        (self.oldest, self.oldest_step) = (level, step);
        self.steps += 1;
        self.sum += level;
        self.moment += self.steps * level;
        self.squares += level * level;
    }

    /// The slope less t times its standard error. `None` for less than [`LINE_LEVELS`], and where steps do not turn back.
    fn slope_at_least(&self) -> Option<i64> {
        let count = self.steps + 1;
        if count < LINE_LEVELS as i64 || !self.turns_back() {
            return None;
        }
        // With n levels and D = n·(n² − 1), which is 12·Σ(k − mean)², the slope is −6·(2Σky − (n−1)Σy) / D, and the squared error of
        // the line D·Σy² − (n²−1)·(Σy)² − 3·(2Σky − (n−1)Σy)², over D; the slope's is 12 times that over (n−2)·D².
        let spread = count * (count * count - 1);
        let moment = 2 * self.moment - (count - 1) * self.sum;
        let wide = |value: i64| i128::from(value);
        let error = wide(spread) * wide(self.squares)
            - wide(count * count - 1) * wide(self.sum) * wide(self.sum)
            - 3 * wide(moment) * wide(moment);
        let root = root(12 * error.max(0).unsigned_abs() / (count - 2).unsigned_abs() as u128);
        let student = STUDENT[count as usize - 3];
        Some((-600 * moment - student * root).div_euclid(100 * spread))
    }

    /// Whether a step down mostly follows a step up: of noise about a line, neighbouring steps have a correlation of −1/2, of a walk
    /// none.
    fn turns_back(&self) -> bool {
        // With n steps of the sum S: n²·Σ(s−m)(s′−m) ≤ −½·n²·Σ(s−m)², m = S/n, S = −oldest level.
        let (count, sum) = (i128::from(self.steps), -i128::from(self.oldest));
        let ends = i128::from(self.newest_step + self.oldest_step);
        let products =
            count * count * i128::from(self.step_products) - count * sum * (2 * sum - ends) + (count - 1) * sum * sum;
        let squares = count * count * i128::from(self.step_squares) - count * sum * sum;
        2 * products <= -squares
    }
}

/// The square root, rounded down, exact to 32 places.
const fn root(square: u128) -> i64 {
    let places = u128::BITS - square.leading_zeros();
    let shift = places.saturating_sub(u64::BITS).next_multiple_of(2);
    (((square >> shift) as u64).isqrt() << (shift / 2)) as i64
}

/// n·Σ(x − mean)² from n, Σx and Σx². Steps are below 2^26, so that 16 of them leave room.
const fn deviation(count: i64, sum: i64, squares: i64) -> i64 {
    count * squares - sum * sum
}

#[cfg(test)]
#[expect(clippy::float_arithmetic, reason = "compared with floating point")]
mod tests {
    use super::super::tests::{line, quantiles};
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// What a trend says after each of these rounds.
    fn updates(dirty: &[u64]) -> Vec<Option<(i64, Evidence)>> {
        let mut trend = Trend::new();
        dirty.iter().map(|&dirty| trend.update(Pages(dirty))).collect()
    }

    fn last(dirty: &[u64]) -> (i64, Evidence) {
        updates(dirty).pop().flatten().expect("three rounds")
    }

    #[test]
    fn quantiles_are_those_of_students_t() {
        for (&quantile, exact) in STUDENT.iter().zip(quantiles()) {
            assert_eq!(quantile as f64, (exact * 100.0).round());
        }
    }

    #[test]
    fn a_level_that_stays_proves_itself_after_two_steps() {
        assert_eq!(updates(&[700, 700, 700]), [None, None, Some((0, Evidence::Steady))]);
        assert_eq!(last(&[1024, 512, 256]), (-ONE, Evidence::Steady));
        assert_eq!(last(&[256, 512, 1024, 2048]), (ONE, Evidence::Steady));
    }

    #[test]
    fn spread_leaves_room_for_better() {
        // Steps −1, −2, −3: mean −2, spread 1, 49.98/√3 = 28.86 below.
        let (bound, evidence) = last(&[1 << 20, 1 << 19, 1 << 17, 1 << 14]);
        let expected = -(2.0 + 49.98 / 3f64.sqrt()) * ONE as f64;
        assert!((bound as f64 - expected).abs() < 30.0, "{bound} {expected}");
        assert_eq!(evidence, Evidence::Steady);
    }

    #[test]
    fn a_rise_counts_from_the_second_round_on() {
        // Steps log2 1.15 and log2 1.25, as unlike as ordinary noise: h = 8.5·0.0390 = 0.332, the rise 0.526.
        assert_eq!(last(&[1000, 1150, 1440]), (0, Evidence::Rising));
        assert_ne!(
            last(&[1000, 990, 1440]).1,
            Evidence::Rising,
            "one round above the first"
        );
        assert_ne!(last(&[1000, 1500, 1440]).1, Evidence::Rising, "falling again");
        assert_ne!(last(&[1000, 1050, 1200]).1, Evidence::Rising, "no further than noise");
    }

    #[test]
    fn a_rise_is_seen_from_the_lowest_level_as_well() {
        let falling = [1000, 900, 800, 730, 650, 590, 530, 480];
        assert!(last(&falling).0 < 0);
        // h = 28·0.038 = 1.07, the rise 1.17, in steps unlike enough to be no proof by themselves.
        let rising = [&falling[..], &[700, 1080]].concat();
        assert_eq!(last(&rising), (0, Evidence::Rising));
        assert_ne!(last(&[&falling[..], &[700, 960]].concat()).1, Evidence::Rising);
    }

    #[test]
    fn a_line_proves_what_steps_by_turns_do_not() {
        let turns = [1000, 950, 1020, 970, 1040, 960, 1010, 940, 990];
        let (bound, evidence) = last(&turns);
        assert_eq!(evidence, Evidence::Level);
        assert!(bound as f64 > -0.1 * ONE as f64, "{bound}");
        assert_eq!(last(&turns[..8]).1, Evidence::Steady, "eight levels are too few");
        // The same steps in another order are a walk.
        let mut steps: Vec<f64> = turns.windows(2).map(|pair| pair[1] as f64 / pair[0] as f64).collect();
        steps.sort_by(f64::total_cmp);
        let walk = steps.iter().scan(1000.0, |level, step| {
            *level *= step;
            Some(*level as u64)
        });
        let walk: Vec<u64> = core::iter::once(1000).chain(walk).collect();
        assert_eq!(last(&walk).1, Evidence::Steady);
    }

    #[test]
    fn no_new_low_for_sixteen_rounds_is_stuck() {
        // By twos, so that steps do not take turns.
        let noise: Vec<u64> = [1000, 700, 700, 1000].into_iter().cycle().take(17).collect();
        assert_eq!(last(&noise).1, Evidence::Steady, "sixteen rounds ago it was at 1000");
        let longer = [&noise[..], &[657]].concat();
        assert_eq!(last(&longer), (0, Evidence::Stuck));
        let lower = [&noise[..], &[655]].concat();
        assert_eq!(last(&lower).1, Evidence::Steady, "a sixteenth below 700");
    }

    /// The same with whole histories and floating point; `None` where rounding could turn the answer.
    fn model(dirty: &[u64]) -> Option<(f64, Evidence)> {
        let levels: Vec<f64> = dirty.iter().map(|&dirty| (dirty.max(1) as f64).log2()).collect();
        let steps: Vec<f64> = levels.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let recent = &steps[steps.len().saturating_sub(16)..];
        let squares = |steps: &[f64]| {
            let mean = steps.iter().sum::<f64>() / steps.len() as f64;
            (mean, steps.iter().map(|step| (step - mean).powi(2)).sum::<f64>())
        };
        let steady = (2..=recent.len())
            .map(|count| {
                let (mean, squares) = squares(&recent[recent.len() - count..]);
                let spread = (squares / (count - 1) as f64 / count as f64).sqrt();
                mean - STUDENT[count - 2] as f64 / 100.0 * spread
            })
            .fold(f64::NEG_INFINITY, f64::max);
        let unsure = |distance: f64| distance.abs() < 1e-3;
        let (least, most) = line(&levels);
        if (least, most) != (f64::NEG_INFINITY, f64::NEG_INFINITY) && unsure(most - steady) {
            // Either says the same, and which it is hangs on the last place.
            return None;
        }
        if least < most && most > steady {
            return None;
        }
        let (bound, evidence) = match most > steady {
            true => (most, Evidence::Level),
            false => (steady, Evidence::Steady),
        };
        if unsure(bound) && bound != 0.0 {
            return None;
        }
        if bound >= 0.0 {
            return Some((bound, evidence));
        }
        let now = levels.len() - 1;
        let changes = recent.windows(2).map(|pair| (pair[1] - pair[0]).powi(2)).sum::<f64>();
        let variance = (4.0 * 0.2164f64.powi(2) + changes / 2.0) / (3 + recent.len()) as f64;
        let lowest = |levels: &[f64]| levels.iter().copied().fold(f64::INFINITY, f64::min);
        for (from, spreads) in [(levels[0], 8.5), (lowest(&levels[..now - 1]), 28.0)] {
            let beyond = levels[now] - from - spreads * variance;
            if levels[now] > levels[now - 1] && levels[now - 1] > from {
                if unsure(beyond) {
                    return None;
                }
                if beyond > 0.0 {
                    return Some((0.0, Evidence::Rising));
                }
            }
        }
        if now >= 16 {
            let above = lowest(&levels) - lowest(&levels[..=now - 16]) + (16f64 / 15.0).log2();
            if unsure(above) {
                return None;
            }
            if above > 0.0 {
                return Some((0.0, Evidence::Stuck));
            }
        }
        Some((bound, evidence))
    }

    /// Levels that fall, stay or rise, with any noise.
    fn histories() -> impl proptest::strategy::Strategy<Value = Vec<u64>> {
        let noise = prop_oneof![Just(0.0), Just(0.01), Just(0.1), Just(1.0)];
        (-0.3..0.3f64, noise, vec(-1.0..1.0f64, 3..40), 0..1u64 << 32).prop_map(|(drift, noise, draws, start)| {
            let mut level = (start.max(1000) as f64).log2();
            let next = draws.into_iter().map(|draw| {
                level = (level + drift + noise * draw).clamp(4.0, 40.0);
                level.exp2() as u64
            });
            next.collect()
        })
    }

    proptest! {
        #[test]
        fn finds_what_floating_point_finds(dirty in histories()) {
            for count in 3..=dirty.len() {
                let (bound, evidence) = last(&dirty[..count]);
                if let Some((expected, by)) = model(&dirty[..count]) {
                    prop_assert_eq!(evidence, by);
                    // Each logarithm is off by no more than its last place; the first window magnifies that.
                    prop_assert!((bound as f64 / ONE as f64 - expected).abs() < 3e-3, "{} {}", bound, expected);
                }
            }
        }

        #[test]
        fn any_counts_are_taken(dirty in vec(any::<u64>(), 0..40)) {
            updates(&dirty);
        }
    }
}
