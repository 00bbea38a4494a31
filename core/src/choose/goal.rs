//! What a migration is to be good at, and how that is written.

use core::fmt;
use core::str::FromStr;

use crate::strategy::{Excerpt, StallWeight};

/// Most bounds of one goal.
pub const BOUNDS_MAX: usize = 4;

/// What can be asked of a migration.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Metric {
    /// `time`: from the first page to the last.
    Time,
    /// `downtime`: how long the guest is paused in the hand-over.
    Downtime,
    /// `bytes`: page contents sent, over all channels.
    Bytes,
    /// `faults`: pages that the guest demanded in post-copy.
    Faults,
    /// `stall`: by how much the guest falls behind while it runs: waiting for demanded pages, and throttled.
    Stall,
}

impl Metric {
    /// All of them, in the order of [`Weights`].
    pub const ALL: [Self; 5] = [Self::Time, Self::Downtime, Self::Bytes, Self::Faults, Self::Stall];

    /// As written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Downtime => "downtime",
            Self::Bytes => "bytes",
            Self::Faults => "faults",
            Self::Stall => "stall",
        }
    }

    const fn units(self) -> &'static [(&'static str, u64)] {
        match self {
            Self::Time | Self::Downtime | Self::Stall => &[
                ("ns", 1),
                ("us", 1_000),
                ("ms", 1_000_000),
                ("s", 1_000_000_000),
                ("min", 60_000_000_000),
                ("h", 3_600_000_000_000),
            ],
            Self::Bytes => &[
                ("B", 1),
                ("kB", 1_000),
                ("MB", 1_000_000),
                ("GB", 1_000_000_000),
                ("TB", 1_000_000_000_000),
                ("KiB", 1 << 10),
                ("MiB", 1 << 20),
                ("GiB", 1 << 30),
                ("TiB", 1 << 40),
            ],
            Self::Faults => &[("", 1)],
        }
    }

    /// What is written after a number of it, for error messages.
    const fn units_text(self) -> &'static str {
        match self {
            Self::Time | Self::Downtime | Self::Stall => "a number with ns, us, ms, s, min or h",
            Self::Bytes => "a number with B, kB, MB, GB, TB, KiB, MiB, GiB or TiB",
            Self::Faults => "a number",
        }
    }

    /// A value in its base unit (ns, bytes, faults) that costs one point of weight 1: a second, a GiB, a thousand faults.
    pub const fn point(self) -> u64 {
        match self {
            Self::Time | Self::Downtime | Self::Stall => 1_000_000_000,
            Self::Bytes => 1 << 30,
            Self::Faults => 1_000,
        }
    }

    fn parse(text: &str) -> Result<Self, GoalError> {
        let found = Self::ALL.into_iter().find(|metric| metric.name() == text);
        found.ok_or(GoalError::UnknownMetric {
            text: Excerpt::of(text),
        })
    }
}

/// A metric that must stay below a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Bound {
    /// What.
    pub metric: Metric,
    /// In nanoseconds, bytes or faults; the value itself does not keep the bound.
    pub limit: u64,
}

/// What a point of each metric costs, in thousandths, in the order of [`Metric::ALL`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Weights(pub [u32; 5]);

impl Weights {
    /// Where a goal names no weights: a second of total time costs 1, a second in which the guest does not run 10, in one piece
    /// (downtime) or in many (stall). Total time first, then transparency, is the order of the proposal "Workload-aware live
    /// migration" (2023); the number is ours.
    pub const BALANCED: Self = Self([1_000, 10_000, 0, 0, 10_000]);
}

/// What a migration is to be good at.
///
/// | written | meaning |
/// |---|---|
/// | `downtime<300ms` | the downtime must be shorter; beyond that, [`Weights::BALANCED`] |
/// | `time<60s,bytes<2GiB` | both must hold |
/// | `weighted:time=1,downtime=10,bytes=1` | as little as possible of the sum; what is not named costs nothing |
/// | `downtime<1s,weighted:bytes=1` | as little as possible of the sum among what keeps the bound |
///
/// Points of a weighted sum are seconds (`time`, `downtime`, `stall`), GiB (`bytes`) and thousands (`faults`). Weights have at most
/// three decimals and are at most 10⁶.
///
/// ```
/// use dunlin_core::choose::{Goal, Metric};
///
/// let goal: Goal = "downtime<300ms,weighted:time=1,bytes=0.5".parse()?;
/// assert_eq!(goal.bounds()[0].limit, 300_000_000);
/// assert_eq!(goal.weight_milli(Metric::Bytes), 500);
/// assert_eq!(goal.to_string(), "downtime<300ms,weighted:time=1.000,bytes=0.500");
/// # Ok::<(), dunlin_core::choose::GoalError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Goal {
    bounds: heapless::Vec<Bound, BOUNDS_MAX>,
    weights: Option<Weights>,
}

impl Goal {
    /// No bound, and [`Weights::BALANCED`].
    pub const BALANCED: Self = Self {
        bounds: heapless::Vec::new(),
        weights: None,
    };

    /// Reads a goal. O(length).
    ///
    /// # Errors
    /// [`GoalError`] says what was not understood and what there is instead.
    pub fn parse(text: &str) -> Result<Self, GoalError> {
        let mut goal = Self::BALANCED;
        let mut rest = text;
        if text.is_empty() {
            return Err(GoalError::Empty);
        }
        loop {
            if let Some(weights) = rest.strip_prefix("weighted:") {
                goal.weights = Some(parse_weights(weights)?);
                return Ok(goal);
            }
            let (item, after) = match rest.split_once(',') {
                Some((item, after)) => (item, Some(after)),
                None => (rest, None),
            };
            goal.add(parse_bound(item)?)?;
            match after {
                Some(after) => rest = after,
                None => return Ok(goal),
            }
        }
    }

    /// One more bound.
    ///
    /// # Errors
    /// [`GoalError::Repeated`] if there is one of its metric, [`GoalError::TooManyBounds`].
    pub fn add(&mut self, bound: Bound) -> Result<(), GoalError> {
        if self.bounds.iter().any(|other| other.metric == bound.metric) {
            return Err(GoalError::Repeated { metric: bound.metric });
        }
        self.bounds.push(bound).map_err(|_| GoalError::TooManyBounds)
    }

    /// What must hold.
    pub fn bounds(&self) -> &[Bound] {
        &self.bounds
    }

    /// The weights, as written or balanced.
    pub fn weights(&self) -> Weights {
        self.weights.unwrap_or(Weights::BALANCED)
    }

    /// What a point of this metric costs, in thousandths.
    pub fn weight_milli(&self, metric: Metric) -> u32 {
        self.weights().0[metric as usize]
    }

    /// What a second in which the guest waits costs in seconds of total time, rounded, for `optimal:W`: 10 by balanced weights. The
    /// largest if time costs nothing, and the least if waiting does not.
    pub fn stall_weight(&self) -> StallWeight {
        let (time, stall) = (self.weight_milli(Metric::Time), self.weight_milli(Metric::Stall));
        let (least, most) = (StallWeight::MIN, StallWeight::MAX);
        if stall == 0 {
            return least;
        }
        // Weights are at most 10^9, so that this does not overflow.
        let rounded = (stall + time / 2).checked_div(time);
        let weight = rounded.map_or(u32::from(most.get()), |ratio| ratio.clamp(1, most.get().into()));
        StallWeight::new(weight).unwrap_or(most)
    }
}

impl FromStr for Goal {
    type Err = GoalError;

    fn from_str(text: &str) -> Result<Self, GoalError> {
        Self::parse(text)
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for bound in &self.bounds {
            // The largest unit of which it is a whole number.
            let units = bound.metric.units().iter();
            let fits = |(_, size): &&(&str, u64)| bound.limit % size == 0;
            let (unit, size) = units.filter(fits).max_by_key(|(_, size)| size).unwrap_or(&("", 1));
            write!(f, "{separator}{}<{}{unit}", bound.metric.name(), bound.limit / size)?;
            separator = ",";
        }
        if self.weights.is_none() && !self.bounds.is_empty() {
            return Ok(());
        }
        write!(f, "{separator}weighted:")?;
        separator = "";
        for (metric, weight) in Metric::ALL
            .into_iter()
            .zip(self.weights().0)
            .filter(|(_, weight)| *weight > 0)
        {
            write!(f, "{separator}{}={}.{:03}", metric.name(), weight / 1000, weight % 1000)?;
            separator = ",";
        }
        Ok(())
    }
}

fn parse_bound(item: &str) -> Result<Bound, GoalError> {
    let (name, value) = item.split_once('<').ok_or(GoalError::NotABound {
        text: Excerpt::of(item),
    })?;
    let metric = Metric::parse(name)?;
    let bad = GoalError::BadLimit {
        metric,
        text: Excerpt::of(value),
    };
    let digits = value
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let unit = metric.units().iter().find(|(name, _)| *name == unit);
    match (milli(number), unit) {
        (Some(milli), Some((_, size))) => {
            let limit = u128::from(milli) * u128::from(*size) / 1000;
            let limit = u64::try_from(limit).map_err(|_| bad)?;
            Ok(Bound { metric, limit })
        }
        _ => Err(bad),
    }
}

fn parse_weights(text: &str) -> Result<Weights, GoalError> {
    const MOST_MILLI: u64 = 1_000_000_000;
    let mut weights = [None; 5];
    for item in text.split(',') {
        let (name, value) = item.split_once('=').ok_or(GoalError::NotAWeight {
            text: Excerpt::of(item),
        })?;
        let metric = Metric::parse(name)?;
        let weight = milli(value)
            .filter(|weight| *weight <= MOST_MILLI)
            .ok_or(GoalError::BadWeight {
                metric,
                text: Excerpt::of(value),
            })?;
        if weights[metric as usize].replace(weight as u32).is_some() {
            return Err(GoalError::Repeated { metric });
        }
    }
    let weights = weights.map(|weight| weight.unwrap_or(0));
    if weights == [0; 5] {
        return Err(GoalError::AllZero);
    }
    Ok(Weights(weights))
}

/// A decimal number with at most three decimals, in thousandths.
fn milli(text: &str) -> Option<u64> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > 3 {
        return None;
    }
    let scale = 10u64.pow(3 - decimals.len() as u32);
    let decimals = decimals.parse::<u64>().ok()? * scale;
    whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(decimals)
}

/// Why a text is no goal. Each message says what there is instead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GoalError {
    /// Nothing was written.
    Empty,
    /// Neither a bound nor `weighted:`.
    NotABound {
        /// The item.
        text: Excerpt,
    },
    /// Something before `<` or `=` that is no metric.
    UnknownMetric {
        /// What.
        text: Excerpt,
    },
    /// Something after `<` that is no amount of the metric.
    BadLimit {
        /// Of what.
        metric: Metric,
        /// The amount.
        text: Excerpt,
    },
    /// An item after `weighted:` that is not `metric=weight`.
    NotAWeight {
        /// The item.
        text: Excerpt,
    },
    /// Something after `=` that is no weight.
    BadWeight {
        /// Of what.
        metric: Metric,
        /// The weight.
        text: Excerpt,
    },
    /// A metric twice.
    Repeated {
        /// Which.
        metric: Metric,
    },
    /// More than [`BOUNDS_MAX`] bounds.
    TooManyBounds,
    /// Weights that make everything cost nothing.
    AllZero,
}

impl fmt::Display for GoalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const METRICS: &str = "there are time, downtime, bytes, faults and stall";
        match self {
            Self::Empty => f.write_str("no goal: write for example downtime<300ms or weighted:time=1,downtime=10"),
            Self::NotABound { text } => write!(
                f,
                "{text} is neither a bound such as downtime<300ms nor a sum such as weighted:time=1,downtime=10"
            ),
            Self::UnknownMetric { text } => write!(f, "{text} cannot be asked of a migration: {METRICS}"),
            Self::BadLimit { metric, text } => {
                write!(
                    f,
                    "{text} is no limit of {}: write {}",
                    metric.name(),
                    metric.units_text()
                )
            }
            Self::NotAWeight { text } => write!(f, "{text} is no weight: write for example time=1; {METRICS}"),
            Self::BadWeight { metric, text } => write!(
                f,
                "{text} is no weight of {}: write a number up to 1000000 with at most three decimals",
                metric.name()
            ),
            Self::Repeated { metric } => write!(f, "{} is given twice: leave one out", metric.name()),
            Self::TooManyBounds => write!(f, "a goal has at most {BOUNDS_MAX} bounds: leave some out"),
            Self::AllZero => {
                f.write_str("all weights are 0, so that nothing is better than anything else: give one of them a value")
            }
        }
    }
}

impl core::error::Error for GoalError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    fn goal(text: &str) -> Goal {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn bounds(text: &str) -> std::vec::Vec<(Metric, u64)> {
        goal(text)
            .bounds()
            .iter()
            .map(|bound| (bound.metric, bound.limit))
            .collect()
    }

    #[test]
    fn bounds_and_weights_are_read() {
        assert_eq!(bounds("downtime<300ms"), [(Metric::Downtime, 300_000_000)]);
        assert_eq!(
            bounds("time<1.5min,bytes<2GiB,faults<1000,stall<20us"),
            [
                (Metric::Time, 90_000_000_000),
                (Metric::Bytes, 2 << 30),
                (Metric::Faults, 1000),
                (Metric::Stall, 20_000)
            ]
        );
        assert_eq!(bounds("bytes<2GB"), [(Metric::Bytes, 2_000_000_000)]);
        assert_eq!(goal("downtime<1s").weights(), Weights::BALANCED);
        assert_eq!(
            goal("weighted:time=1,downtime=10,bytes=0.25").weights(),
            Weights([1000, 10_000, 250, 0, 0])
        );
        assert_eq!(
            goal("time<1h,weighted:faults=1000000").weights(),
            Weights([0, 0, 0, 1_000_000_000, 0])
        );
    }

    #[test]
    fn waiting_weighs_against_time_as_the_goal_says() {
        for (text, weight) in [
            ("downtime<1s", 10),
            ("time<1h,weighted:time=1,stall=128", 128),
            ("weighted:time=0.4,stall=1", 3),
            ("weighted:time=1000000,stall=0.001", 1),
            ("weighted:time=0.001,stall=1000000", 1000),
            ("weighted:stall=0.001", 1000),
            ("weighted:time=1", 1),
            ("weighted:bytes=1", 1),
        ] {
            assert_eq!(u32::from(goal(text).stall_weight().get()), weight, "{text}");
        }
    }

    #[test]
    fn what_is_no_goal_says_what_there_is() {
        let message = |text: &str| Goal::parse(text).expect_err(text).to_string();
        assert!(message("").contains("downtime<300ms"));
        assert!(message("fast").contains("neither a bound"));
        assert!(message("speed<3").contains("time, downtime, bytes, faults and stall"));
        assert!(message("time<3").contains("ns, us, ms, s, min or h"));
        assert!(message("time<3GiB").contains("no limit of time"));
        assert!(message("time<.5s").contains("no limit"));
        assert!(message("time<5.s").contains("no limit"));
        assert!(message("time<99999999999999h").contains("no limit"));
        assert!(message("bytes<-1B").contains("GiB"));
        assert!(message("time<1s,time<2s").contains("time is given twice"));
        assert!(message("weighted:time").contains("no weight"));
        assert!(message("weighted:").contains("no weight"));
        assert!(message("weighted:time=x").contains("three decimals"));
        assert!(message("weighted:time=0.0001").contains("three decimals"));
        assert!(message("weighted:time=1000001").contains("up to 1000000"));
        assert!(message("weighted:time=1,time=1").contains("twice"));
        assert!(message("weighted:time=0").contains("nothing is better"));
        assert!(message("time<1s,").contains("neither a bound"));
        assert!(message("time<1s,downtime<1s,bytes<1B,faults<1,stall<1s").contains("at most 4 bounds"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            limits in prop::collection::btree_map(0..5usize, any::<u64>().prop_map(|n| n / 1000), 0..=4), weights in prop::option::of(prop::array::uniform5(0..1_000_000_001u32)),
        ) {
            let mut goal = Goal::BALANCED;
            for (metric, limit) in limits {
                goal.add(Bound { metric: Metric::ALL[metric], limit }).unwrap();
            }
            goal.weights = weights.map(|mut weights| { weights[0] += 1; weights[0] = weights[0].min(1_000_000_000); Weights(weights) });
            let read = Goal::parse(&goal.to_string()).unwrap();
            prop_assert_eq!(read.bounds(), goal.bounds());
            prop_assert_eq!(read.weights(), goal.weights());
        }

        #[test]
        fn no_text_is_too_strange(text in ".{0,40}", item in "(time|bytes|weighted:faults)[<=][0-9.]{0,24}[a-zA-Z]{0,3}") {
            let _ = Goal::parse(&text).map_err(|error| error.to_string());
            let _ = Goal::parse(&item).map_err(|error| error.to_string());
        }
    }
}
