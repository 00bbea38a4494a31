//! Which strategy, by how much, and why.

use core::fmt;

use super::forecast::{Forecast, ForecastError, forecast};
use super::goal::{Bound, Goal, Metric, Weights};
use super::setting::{Interval, Limits, Link, Uncertainty};
use super::walk::End;
use super::words::{Memory, Name, Time};
use crate::pattern::Profile;
use crate::strategy::{Cut, First, Slow, Strategy, SwitchRule};
use crate::units::{Nanos, Pages};

/// What is chosen from where nobody says otherwise: pre-copy plain and with auto-converge, post-copy, one to three rounds before
/// it, the rules that decide by progress, and the same over storage where there is some.
pub const CANDIDATES: [Strategy; 11] = [
    Strategy::with_switch(SwitchRule::Never),
    Strategy::with_switch(SwitchRule::Rounds(0)),
    Strategy::with_switch(SwitchRule::Rounds(1)),
    Strategy::with_switch(SwitchRule::Rounds(2)),
    Strategy::with_switch(SwitchRule::Rounds(3)),
    Strategy::with_switch(SwitchRule::Heuristic),
    Strategy::with_switch(SwitchRule::SdfAuto),
    Strategy::with_switch(SwitchRule::OPTIMAL),
    Strategy {
        slow: Slow::AutoConverge,
        ..Strategy::with_switch(SwitchRule::Never)
    },
    parallel(SwitchRule::Never),
    parallel(SwitchRule::Lambda),
];

const fn parallel(switch: SwitchRule) -> Strategy {
    let serial = Strategy::with_switch(switch);
    Strategy {
        first: First::Parallel,
        // Where there is storage, a cut in post-copy is answered from it, too.
        cut: if switch.can_post_copy() { Cut::Both } else { serial.cut },
        ..serial
    }
}

/// [`CANDIDATES`] for a goal: `optimal` weighs the guest's time as the goal does ([`Goal::stall_weight`]).
pub fn candidates(goal: &Goal) -> [Strategy; CANDIDATES.len()] {
    CANDIDATES.map(|strategy| match strategy.switch {
        SwitchRule::Optimal(_) => Strategy {
            switch: SwitchRule::Optimal(goal.stall_weight()),
            ..strategy
        },
        _ => strategy,
    })
}

/// How well a strategy keeps the goal's bounds, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Keeps {
    /// Under every assumption within the uncertainty.
    Surely,
    /// If everything is as given.
    Likely,
    /// Not even then.
    Not,
    /// It likely never ends.
    NeverEnds,
}

/// A candidate with what it will cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Candidate {
    /// Which.
    pub strategy: Strategy,
    /// What it will cost.
    pub forecast: Forecast,
    /// How well it keeps the bounds.
    pub keeps: Keeps,
    /// The weighted sum of what is likely, in millionths of a point, rounded down.
    pub cost_micro: u64,
    /// By how much it likely misses the bound it misses most, in thousandths of it; 0 if it keeps all.
    pub excess_permille: u64,
    /// By how much it likely misses all bounds together, in the same way.
    pub excesses_permille: u64,
}

impl Candidate {
    pub(super) fn new(strategy: Strategy, forecast: Forecast, goal: &Goal) -> Self {
        let excesses = goal
            .bounds()
            .iter()
            .map(|bound| excess_permille(bound, metric(&forecast, bound.metric).likely));
        let excess_permille = excesses.clone().max().unwrap_or(0);
        let excesses_permille = excesses.fold(0, u64::saturating_add);
        let surely = |bound: &Bound| metric(&forecast, bound.metric).high < bound.limit;
        let keeps = if forecast.end == End::Never {
            Keeps::NeverEnds
        } else if excess_permille > 0 {
            Keeps::Not
        } else if forecast.ends_surely && goal.bounds().iter().all(surely) {
            Keeps::Surely
        } else {
            Keeps::Likely
        };
        Self {
            strategy,
            cost_micro: cost_micro(&forecast, goal.weights()),
            forecast,
            keeps,
            excess_permille,
            excesses_permille,
        }
    }

    /// Smaller is better: bounds first, by how far they are missed where they are, the worst before all of them; then the cost.
    pub(super) fn rank(&self) -> (Keeps, u64, u64, u64) {
        (
            self.keeps,
            self.excess_permille,
            self.excesses_permille,
            self.cost_micro,
        )
    }
}

/// A metric of a forecast in its base unit.
pub(super) fn metric(forecast: &Forecast, metric: Metric) -> Interval<u64> {
    let nanos = |time: Interval<Nanos>| Interval {
        low: time.low.0,
        likely: time.likely.0,
        high: time.high.0,
    };
    match metric {
        Metric::Time => nanos(forecast.time),
        Metric::Downtime => nanos(forecast.downtime),
        Metric::Stall => nanos(forecast.stall),
        Metric::Bytes => Interval {
            low: forecast.bytes.low.0,
            likely: forecast.bytes.likely.0,
            high: forecast.bytes.high.0,
        },
        Metric::Faults => Interval {
            low: forecast.faults.low.0,
            likely: forecast.faults.likely.0,
            high: forecast.faults.high.0,
        },
    }
}

/// The weighted sum of the likely values in millionths of a point. Stops at the largest number.
pub(super) fn cost_micro(forecast: &Forecast, weights: Weights) -> u64 {
    let costs = Metric::ALL.into_iter().zip(weights.0).map(|(what, weight_milli)| {
        let value = u128::from(metric(forecast, what).likely);
        // Below 2⁶⁴ · 2³⁰ · 2¹⁰.
        value * u128::from(weight_milli) * 1000 / u128::from(what.point())
    });
    u64::try_from(costs.sum::<u128>()).unwrap_or(u64::MAX)
}

/// A value that does not keep its bound misses it by at least a thousandth.
fn excess_permille(bound: &Bound, value: u64) -> u64 {
    if value < bound.limit {
        return 0;
    }
    let over = u128::from(value - bound.limit) * 1000 / u128::from(bound.limit.max(1));
    u64::try_from(over).unwrap_or(u64::MAX).max(1)
}

/// The best of some strategies; `Display` says which, by how much and why.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Choice {
    /// The best.
    pub best: Candidate,
    /// The next best, if there is another.
    pub next: Option<Candidate>,
    /// What plain pre-copy would do.
    pub precopy: Forecast,
    /// Pages dirtied within the downtime, relative to what the link sends in it, in thousandths: if more than 1000, the rounds
    /// of plain pre-copy never become short enough (where the curve is concave).
    pub load_milli: u64,
    /// Candidates that this link cannot carry out.
    pub left_out: u32,
    goal: Goal,
}

impl Choice {
    /// By how much the best is better than the next, in millionths of a point; `None` without a next. If the best keeps the
    /// bounds better, it may cost more: then 0.
    pub fn margin_micro(&self) -> Option<u64> {
        self.next
            .map(|next| next.cost_micro.saturating_sub(self.best.cost_micro))
    }

    /// The same in thousandths of what the next costs.
    pub fn margin_permille(&self) -> Option<u64> {
        let next = self.next?;
        let margin = u128::from(self.margin_micro()?) * 1000;
        Some((margin / u128::from(next.cost_micro.max(1))) as u64)
    }
}

/// Forecasts every candidate and takes the best by the goal: the cheapest of those that keep all bounds in the worst case; if there
/// is none, of those that likely do; if there is none, the one nearest to the bound that it misses most, then to all together. The first of equals. Candidates
/// that copy over storage are left out where there is none. O(candidates) forecasts.
///
/// # Errors
/// [`ForecastError`] if no candidate can be forecast: the error of the last one, [`ForecastError::NoStorage`] for none at all.
pub fn choose(
    candidates: &[Strategy],
    profile: &Profile,
    link: &Link,
    limits: &Limits,
    goal: &Goal,
    uncertainty: Uncertainty,
) -> Result<Choice, ForecastError> {
    let mut error = ForecastError::NoStorage;
    let mut left_out = 0;
    let mut best: Option<Candidate> = None;
    let mut next: Option<Candidate> = None;
    for strategy in candidates {
        let forecast = match forecast(strategy, profile, link, limits, uncertainty) {
            Ok(forecast) => forecast,
            Err(reason) => {
                error = reason;
                left_out += 1;
                continue;
            }
        };
        let candidate = Candidate::new(*strategy, forecast, goal);
        if best.is_none_or(|best| candidate.rank() < best.rank()) {
            next = best.replace(candidate);
        } else if next.is_none_or(|next| candidate.rank() < next.rank()) {
            next = Some(candidate);
        }
    }
    let precopy = Strategy::with_switch(SwitchRule::Never);
    Ok(Choice {
        best: best.ok_or(error)?,
        next,
        precopy: forecast(&precopy, profile, link, limits, uncertainty)?,
        load_milli: load_milli(profile, link, limits),
        left_out,
        goal: goal.clone(),
    })
}

/// D(δ) / (B·δ) for the time δ that the downtime leaves for pages.
fn load_milli(profile: &Profile, link: &Link, limits: &Limits) -> u64 {
    let window = limits.downtime.saturating_sub(limits.handover);
    let dirtied = u128::from(profile.dirtied_in(window).bytes().0) * 1_000_000_000;
    let sent = (u128::from(link.bandwidth.0) * u128::from(window.0)).max(1);
    u64::try_from(dirtied * 1000 / sent).unwrap_or(u64::MAX)
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { best, next, .. } = self;
        let forecast = &best.forecast;
        write!(
            f,
            "{}: {} ({} to {}), {} of downtime, {}",
            Name(&best.strategy),
            Time(forecast.time.likely),
            Time(forecast.time.low),
            Time(forecast.time.high),
            Time(forecast.downtime.likely),
            Memory(forecast.bytes.likely),
        )?;
        if forecast.faults.likely > Pages::ZERO {
            write!(f, ", {} faults", forecast.faults.likely)?;
        }
        self.of_bounds(f)?;
        self.of_precopy(f)?;
        match next {
            None => f.write_str("; there is no other"),
            Some(next) => self.of_next(f, next),
        }
    }
}

impl Choice {
    fn of_bounds(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.best.keeps == Keeps::NeverEnds {
            return f.write_str("; none of the strategies would end");
        }
        for bound in self.goal.bounds() {
            let value = metric(&self.best.forecast, bound.metric);
            let name = bound.metric.name();
            let (limit, likely, high) = (Amount(bound.metric, bound.limit), value.likely, value.high);
            if high < bound.limit {
                write!(f, "; {name} stays below {limit} in the worst case")
            } else if likely < bound.limit {
                let high = Amount(bound.metric, high);
                write!(f, "; {name} likely stays below {limit}, but may reach {high}")
            } else {
                let likely = Amount(bound.metric, likely);
                let nearest = match self.goal.bounds().len() {
                    1 => "no other strategy comes nearer",
                    _ => "no other strategy comes nearer to the bound that it misses most",
                };
                write!(f, "; {name} will not stay below {limit} but be {likely}, and {nearest}")
            }?;
        }
        Ok(())
    }

    fn of_precopy(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = (self.load_milli / 1000, self.load_milli % 1000 / 10);
        match self.precopy.end {
            End::StopCopy if self.best.strategy.switch == SwitchRule::Never => Ok(()),
            End::StopCopy => {
                let rounds = self.precopy.rounds.likely;
                let plural = if rounds == 1 { "" } else { "s" };
                write!(f, "; precopy would converge in {rounds} round{plural}")
            }
            _ => write!(
                f,
                "; precopy would not converge (λ of the load {}.{:02})",
                load.0, load.1
            ),
        }
    }

    fn of_next(&self, f: &mut fmt::Formatter<'_>, next: &Candidate) -> fmt::Result {
        let name = Name(&next.strategy);
        if next.keeps == Keeps::NeverEnds {
            return write!(f, "; the next best, {name}, would not end");
        }
        if next.keeps != self.best.keeps {
            return write!(f, "; the next best, {name}, keeps the goal less surely");
        }
        let permille = self.margin_permille().unwrap_or(0);
        let Self { best, .. } = self;
        if best.excess_permille < next.excess_permille {
            return write!(f, "; {name} is farther from the goal");
        }
        if permille < 5 {
            return write!(f, "; {name} is as good");
        }
        let single = Metric::ALL
            .into_iter()
            .find(|what| best.saves_only(*what, self.goal.weights()));
        let percent = (permille + 5) / 10;
        match single {
            Some(Metric::Time) => write!(f, "; {percent} % faster than {name}"),
            Some(what) => write!(f, "; {percent} % less {} than {name}", what.name()),
            None => write!(f, "; {percent} % better than {name} by the weighted sum"),
        }
    }
}

impl Candidate {
    /// True if the weights ask for this metric alone.
    fn saves_only(&self, what: Metric, weights: Weights) -> bool {
        weights
            .0
            .iter()
            .enumerate()
            .all(|(metric, weight)| (*weight > 0) == (metric == what as usize))
    }
}

/// An amount of a metric in words.
struct Amount(Metric, u64);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Metric::Time | Metric::Downtime | Metric::Stall => write!(f, "{}", Time(Nanos(self.1))),
            Metric::Bytes => write!(f, "{}", Memory(crate::units::Bytes(self.1))),
            Metric::Faults => write!(f, "{}", self.1),
        }
    }
}
