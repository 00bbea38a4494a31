//! Made-up logs of rounds, and what rules make of them.

use dunlin_core::strategy::SwitchRule;
use dunlin_core::switch::{Decision, RoundEnd, SwitchSetting, Switcher};
use dunlin_core::units::{Nanos, Pages};

/// 3.8 GiB, one copy of which takes 30 s.
pub(super) const TOTAL: Pages = Pages(1_000_000);
const PAGE: Nanos = Nanos::from_micros(30);
const MIN_ROUND: Nanos = Nanos::from_millis(100);
/// More than any of the logs needs to converge.
const MAX_ROUNDS: u32 = 60;
/// Of a round's dirty pages, as a standard deviation of their logarithm.
pub(super) const NOISE: f64 = 0.15;

/// Where the noise of a log is.
#[derive(Clone, Copy)]
pub(super) enum Noise {
    /// In every step: V(i) goes on from where V(i−1) was.
    Walk,
    /// In what is seen of a steady course.
    Observation,
}

/// Logs whose V changes by a factor in each round.
#[derive(Clone, Copy)]
pub(super) struct Logs {
    pub(super) factor: f64,
    pub(super) noise: Noise,
    pub(super) spread: f64,
}

/// How a rule decided about logs: the round of the switch to post-copy of each, if it switched.
pub(super) struct Switches(Vec<Option<u32>>);

impl Switches {
    /// The share of logs in which it switched.
    pub(super) fn share(&self) -> f64 {
        self.0.iter().flatten().count() as f64 / self.0.len() as f64
    }

    /// The median round; infinite where fewer than half of the logs have one.
    pub(super) fn median_round(&self) -> f64 {
        let mut rounds: Vec<f64> = self
            .0
            .iter()
            .map(|round| round.map_or(f64::INFINITY, f64::from))
            .collect();
        rounds.sort_by(f64::total_cmp);
        rounds[rounds.len() / 2]
    }
}

/// 4 % of the guest fit the downtime: a load that falls by 10 % per round gets there in 31 rounds.
pub(super) fn setting() -> SwitchSetting {
    SwitchSetting {
        downtime: Nanos(PAGE.0 * TOTAL.0 / 25),
        max_rounds: MAX_ROUNDS,
        ..SwitchSetting::new(TOTAL)
    }
}

/// The decisions of a rule about `count` logs, the same for every rule.
pub(super) fn decide(rule: SwitchRule, logs: Logs, count: u32) -> Switches {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let decisions = (0..count).map(|_| {
        let mut switcher = Switcher::new(rule, setting());
        // Drawn whole, so that a rule that decides early sees the same logs as one that does not.
        let draws: Vec<f64> = (0..MAX_ROUNDS).map(|_| numbers.normal()).collect();
        let ends = rounds(logs, &draws);
        ends.into_iter()
            .find_map(|end| match switcher.on_round(&end).decision {
                Decision::Continue => None,
                // At the limit nobody has decided.
                Decision::PostCopy if end.round < MAX_ROUNDS => Some(Some(end.round)),
                Decision::PostCopy | Decision::StopCopy => Some(None),
            })
            .flatten()
    });
    Switches(decisions.collect())
}

/// The rounds of one log, everything dirty sent in each.
pub(super) fn rounds(logs: Logs, draws: &[f64]) -> Vec<RoundEnd> {
    let (mut course, mut previous_dirty, mut elapsed) = (TOTAL.0 as f64, TOTAL, Nanos::ZERO);
    let mut ends = Vec::with_capacity(draws.len());
    for (draw, round) in draws.iter().zip(1..) {
        let noise = (logs.spread * draw).exp();
        course *= logs.factor;
        let seen = course * noise;
        if matches!(logs.noise, Noise::Walk) {
            course = seen;
        }
        let duration = Nanos(previous_dirty.0 * PAGE.0);
        elapsed = elapsed.saturating_add(duration.max(MIN_ROUND));
        let end = RoundEnd {
            round,
            sent: previous_dirty,
            dirty: Pages((seen as u64).clamp(1, 1 << 38)),
            previous_dirty,
            duration,
            elapsed,
        };
        previous_dirty = end.dirty;
        ends.push(end);
    }
    ends
}

/// A deterministic stream (xorshift64, multiplied).
struct Numbers(u64);

impl Numbers {
    /// Above 0, at most 1.
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        (bits + 1) as f64 / (1u64 << 53) as f64
    }

    /// Of the standard normal distribution (Box and Muller 1958).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_of_the_normal_distribution() {
        let mut numbers = Numbers(1);
        let draws: Vec<f64> = (0..100_000).map(|_| numbers.normal()).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|draw| draw * draw).sum::<f64>() / draws.len() as f64;
        let beyond = draws.iter().filter(|draw| draw.abs() > 1.96).count() as f64 / draws.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
        assert!((beyond - 0.05).abs() < 0.005, "{beyond}");
    }

    #[test]
    fn a_log_without_noise_is_its_course() {
        let logs = Logs {
            factor: 0.5,
            noise: Noise::Walk,
            spread: 0.0,
        };
        let dirty: Vec<u64> = rounds(logs, &[1.0; 3]).iter().map(|end| end.dirty.0).collect();
        assert_eq!(dirty, [500_000, 250_000, 125_000]);
        let never = decide(SwitchRule::Never, logs, 3);
        assert_eq!((never.share(), never.median_round()), (0.0, f64::INFINITY));
        assert_eq!(decide(SwitchRule::Rounds(2), logs, 3).median_round(), 2.0);
    }
}
