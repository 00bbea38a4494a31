//! `optimal` as a whole, from its documentation alone: the whole history in floating point, once leaning towards waiting and
//! once towards switching.

use core::ops::RangeInclusive;
use std::sync::OnceLock;
use std::vec::Vec;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, prop_oneof};

use super::model::smoothed_bandwidth;
use super::{Decision, RoundEnd, SwitchSetting};
use crate::strategy::StallWeight;
use crate::units::{Nanos, Pages};

/// How often chance may exceed the bound of a mean.
const CHANCE: f64 = 2e-4;
/// How far a logarithm may be off: in the rule it has 20 binary places. A spread of two steps is off by three of the last at most, its
/// square root included, and weighs 1591/2 times as much: 2.3·10⁻³.
const LOG: f64 = 3e-3;
/// How far costs may be off: in the rule a fault is counted in 1/1024 page times of which it takes 1 or more.
const COST: f64 = 2e-3;

/// The chance that Student's t exceeds t, by the angle θ = atan(t/√n), whose density is cosⁿ⁻¹.
fn chance_above(t: f64, freedom: usize) -> f64 {
    let below = |from: f64, to: f64| {
        let slices = 2000;
        let width = (to - from) / f64::from(slices);
        let density = |at: i32| (from + f64::from(at) * width).cos().powi(freedom as i32 - 1);
        let weighed = (1..slices).map(|at| density(at) * if at % 2 == 1 { 4.0 } else { 2.0 });
        (weighed.sum::<f64>() + density(0) + density(slices)) * width / 3.0
    };
    let right = core::f64::consts::FRAC_PI_2;
    below((t / (freedom as f64).sqrt()).atan(), right) / below(-right, right)
}

/// What chance exceeds so rarely, for 1 to 15 degrees of freedom, to two decimals.
pub(in crate::switch) fn quantiles() -> &'static [f64] {
    static QUANTILES: OnceLock<Vec<f64>> = OnceLock::new();
    QUANTILES.get_or_init(|| {
        let of = |freedom| {
            let (mut below, mut above) = (0.0, 1e6);
            for _ in 0..60 {
                let middle = (below + above) / 2.0;
                *(if chance_above(middle, freedom) > CHANCE {
                    &mut below
                } else {
                    &mut above
                }) = middle;
            }
            (below * 100.0).round() / 100.0
        };
        (1..16).map(of).collect()
    })
}

/// The highest lower bound of a mean step that the last 2 to 16 give.
fn steady(steps: &[f64]) -> f64 {
    let bound = |count: usize| {
        let last = &steps[steps.len() - count..];
        let mean = last.iter().sum::<f64>() / count as f64;
        let variance = last.iter().map(|step| (step - mean).powi(2)).sum::<f64>() / (count - 1) as f64;
        mean - quantiles()[count - 2] * (variance / count as f64).sqrt()
    };
    (2..=steps.len().min(16)).map(bound).fold(f64::NEG_INFINITY, f64::max)
}

/// The highest lower bound of the slope of a line through the last 9 to 17 levels whose steps take turns: without those that may or may
/// not, and with them.
pub(in crate::switch) fn line(levels: &[f64]) -> (f64, f64) {
    let bounds = (9..=levels.len().min(17)).map(|count| line_through(&levels[levels.len() - count..]));
    bounds.fold((f64::NEG_INFINITY, f64::NEG_INFINITY), |best, (bound, turns)| {
        (
            if turns > 0.0 { best.0.max(bound) } else { best.0 },
            if turns >= 0.0 { best.1.max(bound) } else { best.1 },
        )
    })
}

/// The lower bound by these levels, and whether their steps take turns: 1 if so, −1 if not, 0 if that hangs on the last place of a
/// logarithm.
fn line_through(levels: &[f64]) -> (f64, f64) {
    let count = levels.len() as f64;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (middle, centre) = ((count - 1.0) / 2.0, mean(levels));
    let places = || {
        levels
            .iter()
            .zip(0..)
            .map(|(level, at)| (f64::from(at) - middle, level - centre))
    };
    let width: f64 = places().map(|(away, _)| away * away).sum();
    let slope = places().map(|(away, level)| away * level).sum::<f64>() / width;
    let error: f64 = places().map(|(away, level)| (level - slope * away).powi(2)).sum();
    let bound = slope - quantiles()[levels.len() - 3] * (error / (count - 2.0) / width).sqrt();
    let steps: Vec<f64> = levels.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let usual = mean(&steps);
    let products: f64 = steps.windows(2).map(|pair| (pair[0] - usual) * (pair[1] - usual)).sum();
    let squares: f64 = steps.iter().map(|step| (step - usual).powi(2)).sum();
    let turns = -(products + squares / 2.0);
    let certain = turns.abs() > 3e-5 * squares.sqrt() + 1e-9;
    (bound, if certain { turns.signum() } else { 0.0 })
}

/// By how much what is dirty has risen further than its spread explains, or not fallen enough; above 0 there is no progress.
fn no_progress(levels: &[f64]) -> f64 {
    let now = levels.len() - 1;
    let lowest = |levels: &[f64]| levels.iter().copied().fold(f64::INFINITY, f64::min);
    let steps: Vec<f64> = levels.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let recent = &steps[steps.len().saturating_sub(16)..];
    let turns: f64 = recent.windows(2).map(|pair| (pair[1] - pair[0]).powi(2) / 2.0).sum();
    // A spread of 15 % counts as four measured ones.
    let variance = (4.0 * (0.15 / core::f64::consts::LN_2).powi(2) + turns) / (4 + recent.len() - 1) as f64;
    let rise = |from: f64, spreads: f64| {
        let two_rounds = levels[now] > levels[now - 1] && levels[now - 1] > from;
        if two_rounds {
            levels[now] - from - spreads * variance
        } else {
            f64::NEG_INFINITY
        }
    };
    let risen = rise(levels[0], 8.5).max(rise(lowest(&levels[..now - 1]), 28.0));
    let fallen = match now.checked_sub(16) {
        Some(then) => lowest(&levels[..=then]) - lowest(levels),
        None => f64::INFINITY,
    };
    risen.max((16.0f64 / 15.0).log2() - fallen)
}

/// log2 f: between what, as far as it is certain; none before three rounds.
fn factor(history: &[RoundEnd]) -> Option<RangeInclusive<f64>> {
    let levels: Vec<f64> = history.iter().map(|end| (end.dirty.0.max(1) as f64).log2()).collect();
    let steps: Vec<f64> = levels.windows(2).map(|pair| pair[1] - pair[0]).collect();
    if steps.len() < 2 {
        return None;
    }
    let (steady, beyond) = (steady(&steps), no_progress(&levels));
    let (least, most) = line(&levels);
    let (lowest, highest) = (steady.max(least), steady.max(most));
    let at_least = if beyond > LOG { 0.0 } else { f64::NEG_INFINITY };
    let at_most = if beyond > -LOG { 0.0 } else { f64::NEG_INFINITY };
    Some(lowest.max(at_least) - LOG..=highest.max(at_most) + LOG)
}

/// Whether waiting up to eight rounds is cheaper by a quarter than switching now. `lean` tips the scales towards that.
fn pays(weight: StallWeight, setting: &SwitchSetting, history: &[RoundEnd], rate: f64, log: f64, lean: f64) -> bool {
    let dirty = |end: &RoundEnd| end.dirty.0 as f64;
    let largest = history.iter().map(dirty).fold(0.0, f64::max);
    let now = dirty(&history[history.len() - 1]);
    // In page times.
    let stall = (setting.fault_stall.0 as f64 * rate / 1e9).clamp(1.0, (1u64 << 40) as f64);
    let left_behind = 1.0 + f64::from(weight.get()) * 0.21 * stall;
    let room = setting.downtime.0 as f64 * rate / 1e9 * (1.0 + lean * 1e-9);
    let (mut sent, mut left) = (0.0, now);
    (0..8).any(|_| {
        sent += left;
        // There the rest is whole pages, rounded down.
        left = (left * log.clamp(-16.0, 16.0).exp2() - if lean > 0.0 { 1.0 } else { 0.0 }).clamp(0.0, largest);
        let rest = left * if left <= room { 1.0 } else { left_behind };
        sent + rest < 0.75 * now * left_behind * (1.0 + lean * COST)
    })
}

/// What the rule can say at the end of the last round: one decision but for those on the edge.
pub(super) fn possible(weight: StallWeight, setting: &SwitchSetting, history: &[RoundEnd]) -> Vec<Decision> {
    let Some((factor, rate)) = factor(history).zip(smoothed_bandwidth(history)) else {
        return Vec::from([Decision::Continue]);
    };
    let rate = rate as f64 / 65_536.0;
    let mut possible = Vec::new();
    if pays(weight, setting, history, rate, *factor.start(), 1.0) {
        possible.push(Decision::Continue);
    }
    if !pays(weight, setting, history, rate, *factor.end(), -1.0) {
        possible.push(Decision::PostCopy);
    }
    possible
}

/// The score, in thousandths.
pub(super) fn scores(history: &[RoundEnd]) -> RangeInclusive<f64> {
    match factor(history).filter(|_| smoothed_bandwidth(history).is_some()) {
        Some(log) => {
            log.start().clamp(-16.0, 16.0).exp2() * 1000.0 - 1.0..=log.end().clamp(-16.0, 16.0).exp2() * 1000.0
        }
        None => 0.0..=0.0,
    }
}

/// Rounds of a load that falls, stays or rises, with bursts, over a link whose bandwidth wavers.
pub(super) fn developments() -> impl Strategy<Value = Vec<RoundEnd>> {
    let noise = prop_oneof![Just(0.0), Just(0.002), Just(0.02), Just(0.15)];
    let rounds = vec((-1.0..1.0f64, 0.7..1.3f64, proptest::bool::weighted(0.05)), 1..40);
    let start = prop_oneof![1 => 1..100u64, 3 => 100..1_000_000u64, 1 => 1..=1u64 << 32];
    let drift = prop_oneof![1 => Just(0.0), 4 => -0.25..0.1f64];
    (start, drift, noise, 1_000..50_000_000u64, rounds).prop_map(|(start, drift, noise, page_nanos, rounds)| {
        let (mut level, mut previous_dirty, mut elapsed) = (start as f64, Pages(start), Nanos::ZERO);
        let ends = rounds.into_iter().zip(1..).map(|((draw, pace, burst), round)| {
            level = (level * (drift + noise * draw).exp()).clamp(1.0, (1u64 << 32) as f64);
            let dirty = Pages((level * if burst { 3.0 } else { 1.0 }) as u64);
            let duration = Nanos((previous_dirty.0 as f64 * page_nanos as f64 * pace) as u64);
            elapsed = elapsed.saturating_add(duration);
            let end = RoundEnd {
                round,
                sent: previous_dirty,
                dirty,
                previous_dirty,
                duration,
                elapsed,
            };
            previous_dirty = dirty;
            end
        });
        ends.collect()
    })
}
