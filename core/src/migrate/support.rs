//! What of a strategy the state machines of a live migration carry out.

use core::fmt;

use crate::strategy::{Clear, Cut, Filter, First, Hold, Key, Push, Slow, Strategy};

/// A part of a strategy that a live migration does not carry out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnsupportedStrategy {
    key: Key,
    strategy: Strategy,
}

impl UnsupportedStrategy {
    /// The key whose value is not carried out.
    pub const fn key(&self) -> Key {
        self.key
    }

    /// The values of the key that are.
    const fn supported(&self) -> &'static str {
        match self.key {
            Key::Filter | Key::Slow => "none",
            Key::First | Key::Switch | Key::Cut => "any value",
            Key::Push => "sequential or bubble",
            Key::Clear => "round",
            Key::Hold => "none, or first=parallel beside it",
        }
    }
}

impl fmt::Display for UnsupportedStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.name();
        write!(f, "a live migration does not carry out {key}=")?;
        self.strategy.write_value(self.key, f)?;
        write!(f, ": write {key}={}", self.supported())
    }
}

impl core::error::Error for UnsupportedStrategy {}

/// Refuses a strategy with a part that [`Source`](super::Source) and [`Target`](super::Target) do not carry out: they would do
/// something else in its place. To be asked before anything starts.
///
/// Every first copy, every switch rule and every way to survive a cut is carried out, with no filter, a push that is sequential or
/// bubbles, no slowing down, and dirty bits cleared by the round. Pages are held back only beside a static copy.
///
/// # Errors
/// [`UnsupportedStrategy`] names the first such part in the order of the keys.
pub const fn check_strategy(strategy: &Strategy) -> Result<(), UnsupportedStrategy> {
    let key = match strategy {
        Strategy {
            filter: Filter::MarkovHalf | Filter::Markov | Filter::Hazard | Filter::Ppm | Filter::Frequency,
            ..
        } => Key::Filter,
        Strategy {
            push: Push::Forecast, ..
        } => Key::Push,
        Strategy {
            slow: Slow::AutoConverge | Slow::DirtyLimit,
            ..
        } => Key::Slow,
        Strategy { clear: Clear::Late, .. } => Key::Clear,
        Strategy {
            hold: Hold::Hot,
            first: First::Serial,
            ..
        } => Key::Hold,
        Strategy {
            first: First::Serial | First::Parallel,
            filter: Filter::None,
            switch: _,
            push: Push::Sequential | Push::Bubble(_),
            cut: Cut::Fail | Cut::Pbdata | Cut::Reconnect | Cut::Both,
            slow: Slow::None,
            clear: Clear::Round,
            hold: Hold::None | Hold::Hot,
        } => return Ok(()),
    };
    Err(UnsupportedStrategy {
        key,
        strategy: *strategy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::SwitchRule;
    use std::string::ToString;

    fn checked(text: &str) -> Result<(), UnsupportedStrategy> {
        check_strategy(&Strategy::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")))
    }

    #[test]
    fn every_switch_rule_and_every_bubble_is_carried_out() {
        for value in SwitchRule::AVAILABLE {
            let value = value.replace(":N", ":2").replace(":A", ":0.5").replace("[:40s]", ":1s");
            let value = value.split(' ').next().unwrap_or_default();
            assert_eq!(checked(&std::format!("switch={value}")), Ok(()), "{value}");
        }
        for name in [
            "precopy",
            "postcopy",
            "hybrid:2",
            "dyn-hybrid",
            "heuristic-hybrid",
            "as-hybrid",
            "postcopy,push=bubble",
            "hybrid:1,push=bubble:3",
            "hybrid:1,push=bubble:7",
            "par-migrate,hold=hot",
            "pa-hybrid",
            "hybrid:1,cut=both",
            "postcopy,cut=pbdata",
        ] {
            assert_eq!(checked(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn what_would_be_done_otherwise_is_refused_by_name() {
        for (text, refused, instead) in [
            ("markov-sdf:0.5", "filter=markov:half", "filter=none"),
            ("filter=markov", "filter=markov", "filter=none"),
            ("filter=hazard", "filter=hazard", "filter=none"),
            ("filter=ppm", "filter=ppm", "filter=none"),
            ("filter=frequency", "filter=frequency", "filter=none"),
            ("push=forecast", "push=forecast", "push=sequential or bubble"),
            ("slow=auto-converge", "slow=auto-converge", "slow=none"),
            ("slow=dirty-limit", "slow=dirty-limit", "slow=none"),
            ("clear=late", "clear=late", "clear=round"),
            ("hold=hot", "hold=hot", "hold=none, or first=parallel beside it"),
        ] {
            let message = checked(text).expect_err(text).to_string();
            let expected = std::format!("a live migration does not carry out {refused}: write {instead}");
            assert_eq!(message, expected, "{text}");
        }
    }
}
