//! What of a strategy the state machines of a live migration carry out.

use core::fmt;

use crate::strategy::{Clear, Filter, First, Hold, Key, Push, Slow, Split, Strategy};

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
            Key::Slow => "none",
            Key::First | Key::Filter | Key::Switch | Key::Push | Key::Cut => "any value",
            Key::Clear => "round",
            Key::Hold => "none, or first=parallel beside it and neither a filter nor push=forecast",
            Key::Split => "none, or first=parallel beside it",
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
/// Every first copy, filter, switch rule, push and way to survive a cut is carried out, with no slowing down, and dirty bits
/// cleared by the round. Pages are held back for being hot only beside a static copy, and where no samples
/// are taken of what is written: each of the two would miss what the other sees. Channels
/// share only a static copy.
///
/// # Errors
/// [`UnsupportedStrategy`] names the first such part in the order of the keys.
pub const fn check_strategy(strategy: &Strategy) -> Result<(), UnsupportedStrategy> {
    let key = match strategy {
        Strategy {
            slow: Slow::AutoConverge | Slow::DirtyLimit,
            ..
        } => Key::Slow,
        Strategy { clear: Clear::Late, .. } => Key::Clear,
        Strategy {
            hold: Hold::Hot,
            first: First::Serial,
            ..
        }
        | Strategy {
            hold: Hold::Hot,
            filter: Filter::MarkovHalf | Filter::Markov | Filter::Hazard | Filter::Ppm | Filter::Frequency,
            ..
        }
        | Strategy {
            hold: Hold::Hot,
            push: Push::Forecast,
            ..
        } => Key::Hold,
        Strategy {
            split: Split::Speed,
            first: First::Serial,
            ..
        } => Key::Split,
        Strategy {
            first: First::Serial | First::Parallel,
            filter: _,
            switch: _,
            push: _,
            cut: _,
            slow: Slow::None,
            clear: Clear::Round,
            hold: Hold::None | Hold::Hot,
            split: Split::None | Split::Speed,
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
    fn every_filter_switch_rule_and_push_is_carried_out() {
        for value in SwitchRule::AVAILABLE {
            let value = value.replace(":N", ":2").replace(":A", ":0.5");
            let value = value.replace("[:40s]", ":1s").replace("[:128]", ":10");
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
            "hybrid:1,push=forecast",
            "postcopy,push=forecast",
            "markov-sdf:0.5",
            "filter=markov",
            "filter=hazard",
            "filter=ppm",
            "filter=frequency",
            "par-migrate,split=speed",
        ] {
            assert_eq!(checked(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn what_would_be_done_otherwise_is_refused_by_name() {
        let beside = "hold=none, or first=parallel beside it and neither a filter nor push=forecast";
        for (text, refused, instead) in [
            ("slow=auto-converge", "slow=auto-converge", "slow=none"),
            ("slow=dirty-limit", "slow=dirty-limit", "slow=none"),
            ("clear=late", "clear=late", "clear=round"),
            ("hold=hot", "hold=hot", beside),
            ("par-migrate,hold=hot,filter=hazard", "hold=hot", beside),
            (
                "hybrid:1,first=parallel,hold=hot,push=forecast,cut=fail",
                "hold=hot",
                beside,
            ),
            ("split=speed", "split=speed", "split=none, or first=parallel beside it"),
        ] {
            let message = checked(text).expect_err(text).to_string();
            let expected = std::format!("a live migration does not carry out {refused}: write {instead}");
            assert_eq!(message, expected, "{text}");
        }
    }
}
