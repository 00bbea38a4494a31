//! What can be wrong with a written strategy.

use core::fmt;

use super::preset::PRESETS;
use super::rule::{StallWeight, SwitchRule};
use super::values::{Clear, Cut, Filter, First, Hold, Push, Slow, Split};

/// Most bytes of a wrong input that an error message repeats.
const EXCERPT_BYTES: usize = 40;

/// A key of a composition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Key {
    /// `first`.
    First,
    /// `filter`.
    Filter,
    /// `switch`.
    Switch,
    /// `push`.
    Push,
    /// `cut`.
    Cut,
    /// `slow`.
    Slow,
    /// `clear`.
    Clear,
    /// `hold`.
    Hold,
    /// `split`.
    Split,
}

impl Key {
    pub(super) const ALL: [Self; 9] = [
        Self::First,
        Self::Filter,
        Self::Switch,
        Self::Push,
        Self::Cut,
        Self::Slow,
        Self::Clear,
        Self::Hold,
        Self::Split,
    ];

    /// As written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Filter => "filter",
            Self::Switch => "switch",
            Self::Push => "push",
            Self::Cut => "cut",
            Self::Slow => "slow",
            Self::Clear => "clear",
            Self::Hold => "hold",
            Self::Split => "split",
        }
    }

    /// The values there are for it.
    pub const fn available(self) -> &'static [&'static str] {
        match self {
            Self::First => First::AVAILABLE,
            Self::Filter => Filter::AVAILABLE,
            Self::Switch => SwitchRule::AVAILABLE,
            Self::Push => Push::AVAILABLE,
            Self::Cut => Cut::AVAILABLE,
            Self::Slow => Slow::AVAILABLE,
            Self::Clear => Clear::AVAILABLE,
            Self::Hold => Hold::AVAILABLE,
            Self::Split => Split::AVAILABLE,
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, StrategyError> {
        let known = Self::ALL.into_iter().find(|key| key.name() == text);
        known.ok_or(StrategyError::UnknownKey { key: Excerpt::of(text) })
    }
}

/// The beginning of a text that was not understood.
#[derive(Clone, PartialEq, Eq)]
pub struct Excerpt {
    text: heapless::String<EXCERPT_BYTES>,
    cut: bool,
}

impl Excerpt {
    pub(crate) fn of(text: &str) -> Self {
        let mut excerpt = Self {
            text: heapless::String::new(),
            cut: false,
        };
        excerpt.cut = text.chars().any(|c| excerpt.text.push(c).is_err());
        excerpt
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Quoted and escaped: the text may be anything a person or a peer has typed.
        write!(f, "{:?}{}", self.text.as_str(), if self.cut { "…" } else { "" })
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no strategy. Each message says what there is instead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StrategyError {
    /// Nothing was written.
    Empty,
    /// A name that is no preset.
    UnknownPreset {
        /// The name.
        name: Excerpt,
    },
    /// An item after the first that is not `key=value`.
    NotKeyValue {
        /// The item.
        item: Excerpt,
    },
    /// A key that does not exist.
    UnknownKey {
        /// The key.
        key: Excerpt,
    },
    /// A value that the key does not have.
    UnknownValue {
        /// The key.
        key: Key,
        /// The value.
        value: Excerpt,
    },
    /// A number of rounds that is none.
    BadCount {
        /// The preset or value it belongs to.
        item: Excerpt,
    },
    /// An α that is none.
    BadAlpha {
        /// The preset or value it belongs to.
        item: Excerpt,
    },
    /// A window that is none.
    BadWindow {
        /// The value it belongs to.
        item: Excerpt,
    },
    /// A weight that is none.
    BadWeight {
        /// The value it belongs to.
        item: Excerpt,
    },
    /// A key that was given twice.
    Repeated {
        /// The key.
        key: Key,
    },
}

impl fmt::Display for StrategyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "the strategy is empty: write {Choices}"),
            // Whoever writes a rule alone means it as part of a composition.
            Self::UnknownPreset { name } if SwitchRule::parse(&name.text).is_ok() => {
                write!(f, "{name} is no strategy but a switch rule: write switch={}", name.text)
            }
            Self::UnknownPreset { name } => write!(f, "{name} is no strategy: write {Choices}"),
            Self::NotKeyValue { item } => {
                write!(
                    f,
                    "{item} is not key=value: a preset stands first, what follows replaces its values; write {Choices}"
                )
            }
            Self::UnknownKey { key } => write!(
                f,
                "a strategy has no key {key}: its keys are {}",
                List(&Key::ALL.map(Key::name))
            ),
            Self::UnknownValue { key, value } => {
                let name = key.name();
                write!(
                    f,
                    "{name}={value} is not available: {name} can be {}",
                    List(key.available())
                )
            }
            Self::BadCount { item } => write!(
                f,
                "{item} needs a number of rounds from 0 to {} after the colon",
                u32::MAX
            ),
            Self::BadAlpha { item } => write!(
                f,
                "{item} needs a number from 0 to 1 with at most three decimals after the colon"
            ),
            Self::BadWindow { item } => write!(f, "{item} needs a time after the colon: 40s or 500ms for example"),
            Self::BadWeight { item } => write!(
                f,
                "{item} needs a whole number from {} to {} after the colon, what a second in which the guest waits costs in seconds of the link",
                StallWeight::MIN,
                StallWeight::MAX
            ),
            Self::Repeated { key } => write!(f, "{} is given more than once: leave one", key.name()),
        }
    }
}

impl core::error::Error for StrategyError {}

/// What a strategy can be.
struct Choices;

impl fmt::Display for Choices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, or key=value,… with the keys {}",
            List(PRESETS),
            List(&Key::ALL.map(Key::name))
        )
    }
}

struct List<'a>(&'a [&'a str]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.iter().enumerate() {
            write!(f, "{}{item}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
