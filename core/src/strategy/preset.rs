//! Names for common compositions.

use super::error::{Excerpt, StrategyError};
use super::rule::{Alpha, SwitchRule};
use super::values::{Filter, First, Push, count};

/// Names that stand for a whole composition.
pub(super) const PRESETS: &[&str] = &[
    "precopy",
    "postcopy",
    "hybrid:N",
    "dyn-hybrid",
    "heuristic-hybrid",
    "as-hybrid",
    "par-migrate",
    "pa-hybrid",
    "markov-sdf:A",
];

/// What a name stands for; in the rest presets do not differ.
#[derive(Clone, Copy)]
pub(super) struct Preset {
    pub(super) first: First,
    pub(super) filter: Filter,
    pub(super) switch: SwitchRule,
    pub(super) push: Push,
}

impl Preset {
    /// What a strategy is where nothing else is said, but for the rule.
    pub(super) const fn with_switch(switch: SwitchRule) -> Self {
        Self {
            first: First::Serial,
            filter: Filter::None,
            switch,
            push: Push::Sequential,
        }
    }

    pub(super) fn parse(name: &str) -> Result<Self, StrategyError> {
        let parallel = |switch| Self {
            first: First::Parallel,
            ..Self::with_switch(switch)
        };
        Ok(match name {
            "precopy" => Self::with_switch(SwitchRule::Never),
            "postcopy" => Self::with_switch(SwitchRule::Rounds(0)),
            "dyn-hybrid" => Self::with_switch(SwitchRule::Dyn),
            "heuristic-hybrid" => Self::with_switch(SwitchRule::Heuristic),
            "as-hybrid" => Self::with_switch(SwitchRule::Lambda),
            "par-migrate" => parallel(SwitchRule::Never),
            "pa-hybrid" => parallel(SwitchRule::Lambda),
            _ => return Self::parse_with_number(name),
        })
    }

    fn parse_with_number(name: &str) -> Result<Self, StrategyError> {
        let item = || Excerpt::of(name);
        match name.split_once(':') {
            Some(("hybrid", text)) => {
                let count = count(text).ok_or_else(|| StrategyError::BadCount { item: item() })?;
                Ok(Self::with_switch(SwitchRule::Rounds(count)))
            }
            Some(("markov-sdf", text)) => {
                let alpha = Alpha::parse(text).ok_or_else(|| StrategyError::BadAlpha { item: item() })?;
                Ok(Self {
                    filter: Filter::MarkovHalf,
                    push: Push::Forecast,
                    ..Self::with_switch(SwitchRule::Sdf(alpha))
                })
            }
            _ => Err(StrategyError::UnknownPreset { name: item() }),
        }
    }
}
