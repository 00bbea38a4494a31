//! Which costs are better by a goal, and what simulation says to a recommendation.

use std::time::Duration;

use dunlin_core::choose::{Goal, Metric};

use super::costs::metric;
use crate::report::{Costs, EndName, Keeping, StrategyPrediction, bytes, duration};

/// Until [`keeping`] has judged.
pub(super) const NOT_JUDGED: Keeping = Keeping::NeverEnds;
/// What is better by less than that is as good, in thousandths.
const AS_GOOD_MILLI: u64 = 50;

/// How well costs keep a goal's bounds: surely if the worst does.
pub(super) fn keeping(costs: &Costs, goal: &Goal) -> Keeping {
    if costs.time_us.is_none() {
        return Keeping::NeverEnds;
    }
    let holds = |of: fn(crate::report::Likely) -> u64| {
        let below = |bound: &dunlin_core::choose::Bound| {
            metric(costs, bound.metric).is_some_and(|value| of(value) < bound.limit)
        };
        goal.bounds().iter().all(below)
    };
    let ends_always = costs.ends.iter().all(|end| end.by != EndName::Never);
    match (holds(|value| value.high) && ends_always, holds(|value| value.likely)) {
        (true, _) => Keeping::Surely,
        (false, true) => Keeping::Likely,
        (false, false) => Keeping::Not,
    }
}

/// Smaller is better, as [`dunlin_core::choose::choose`] has it: bounds first, by how far the worst of them is missed where they are, then the
/// weighted sum, in millionths of a point.
pub(super) fn rank(costs: &Costs, goal: &Goal) -> (Keeping, u64, u64) {
    let excess = goal.bounds().iter().map(|bound| {
        let value = metric(costs, bound.metric).map_or(u64::MAX, |value| value.likely);
        match value.checked_sub(bound.limit) {
            Some(over) => (u128::from(over) * 1000 / u128::from(bound.limit.max(1))).max(1) as u64,
            None => 0,
        }
    });
    (costs.keeps, excess.max().unwrap_or(0), cost_micro(costs, goal))
}

fn cost_micro(costs: &Costs, goal: &Goal) -> u64 {
    let of = |what: Metric| {
        let value = metric(costs, what).map_or(u64::MAX, |value| value.likely);
        u128::from(value) * u128::from(goal.weight_milli(what)) * 1000 / u128::from(what.point())
    };
    u64::try_from(Metric::ALL.into_iter().map(of).sum::<u128>()).unwrap_or(u64::MAX)
}

/// The best by the simulated costs among those that can be carried out; the first of equals.
pub(super) fn simulated_best<'a>(strategies: &'a [StrategyPrediction], goal: &Goal) -> Option<&'a StrategyPrediction> {
    let live = strategies.iter().filter(|strategy| strategy.live);
    live.min_by_key(|strategy| rank(&strategy.simulated, goal))
}

/// What simulation says against a recommended strategy: that another is clearly better, or that its time or downtime is none of those that
/// the forecast holds possible.
pub(super) fn objection(recommended: &StrategyPrediction, best: &StrategyPrediction, goal: &Goal) -> Option<String> {
    let (ours, theirs) = (rank(&recommended.simulated, goal), rank(&best.simulated, goal));
    if best.strategy != recommended.strategy {
        if ours.0 != theirs.0 {
            return Some(format!(
                "simulated with the recorded writes, {} keeps the goal {}: {}",
                best.strategy,
                match theirs.0 {
                    Keeping::Surely => "from every start",
                    Keeping::Likely => "from most starts",
                    Keeping::Not | Keeping::NeverEnds => "at least nearly",
                },
                in_short(&best.simulated)
            ));
        }
        let saved = u128::from(ours.2.saturating_sub(theirs.2)) * 1000;
        let saved = u64::try_from(saved / u128::from(ours.2.max(1))).unwrap_or(u64::MAX);
        if saved > AS_GOOD_MILLI {
            return Some(format!(
                "simulated with the recorded writes, {} is {} % better by the goal: {}, against {}",
                best.strategy,
                saved / 10,
                in_short(&best.simulated),
                in_short(&recommended.simulated)
            ));
        }
    }
    let (simulated, forecast) = (recommended.simulated.time_us?, recommended.forecast.time_us?);
    let wider = forecast.high.saturating_mul(AS_GOOD_MILLI) / 1000;
    let possible = forecast.low.saturating_sub(wider)..=forecast.high.saturating_add(wider);
    let is_outside = !possible.contains(&simulated.likely);
    is_outside.then(|| {
        format!(
            "simulated with the recorded writes, {} takes {}, where the forecast from the working-set curve is {} to {}",
            recommended.strategy,
            micros(simulated.likely),
            micros(forecast.low),
            micros(forecast.high)
        )
    })
}

fn in_short(costs: &Costs) -> String {
    let time = costs
        .time_us
        .map_or_else(|| "it never ends".into(), |time| micros(time.likely));
    let size = costs
        .bytes
        .map_or_else(String::new, |size| format!(", {}", bytes(size.likely)));
    format!("{time}, {} of downtime{size}", micros(costs.downtime_us.likely))
}

fn micros(time: u64) -> String {
    duration(Duration::from_micros(time))
}
