//! The values of each key.

use core::fmt;
use core::str::FromStr;

use super::error::{Excerpt, Key, StrategyError};

/// An enum whose variants are written as fixed words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// The values there are, as written.
            pub const AVAILABLE: &[&str] = &[$($word),+];

            /// Reads one value.
            pub(super) fn parse(value: &str) -> Result<Self, StrategyError> {
                match value {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(StrategyError::UnknownValue { key: Key::$name, value: Excerpt::of(value) }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $word,)+
                })
            }
        }
    };
}

words! {
    /// How the first copy of all pages travels.
    First {
        /// As round 1, on the migration channel, before anything else.
        Serial = "serial",
    }
}
words! {
    /// Which dirty pages a pre-copy round holds back because they will soon be written again.
    Filter {
        /// None: every dirty page is sent in every round.
        None = "none",
    }
}
words! {
    /// In which order post-copy sends what is missing and was not asked for.
    Push {
        /// Ascending page numbers.
        Sequential = "sequential",
    }
}
words! {
    /// What happens when the network is cut during post-copy.
    Cut {
        /// The migration has failed.
        Fail = "fail",
        /// Both sides keep what they have, connect again and go on with what is still missing.
        Reconnect = "reconnect",
    }
}
words! {
    /// How a guest that writes faster than can be sent is slowed down.
    Slow {
        /// Not at all.
        None = "none",
    }
}
words! {
    /// When dirty bits are cleared.
    Clear {
        /// All at the start of a round, as the papers do: a page written during the round before it is sent counts as
        /// dirty again.
        Round = "round",
    }
}

/// When pre-copy ends and how; [`switch`](crate::switch) applies it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum SwitchRule {
    /// `never`: stop-and-copy when the rest fits the downtime, or at the round limit; no post-copy.
    Never,
    /// `rounds:N`: post-copy after N rounds, the first of which copies everything. `rounds:0` copies nothing ahead.
    Rounds(u32),
    /// `lambda`: post-copy when rounds stop converging by the λ rule of Li & Cao 2023.
    Lambda,
}

impl SwitchRule {
    /// The values there are, as written.
    pub const AVAILABLE: &[&str] = &["never", "rounds:N", "lambda", "libvirt (= rounds:1)"];

    /// Reads a rule.
    ///
    /// # Errors
    /// [`StrategyError::UnknownValue`] lists the rules there are; [`StrategyError::BadCount`].
    pub fn parse(value: &str) -> Result<Self, StrategyError> {
        match value {
            "never" => return Ok(Self::Never),
            "lambda" => return Ok(Self::Lambda),
            // libvirt's --postcopy-after-precopy.
            "libvirt" => return Ok(Self::Rounds(1)),
            _ => {}
        }
        match value.strip_prefix("rounds:") {
            Some(text) => count(text).map(Self::Rounds).ok_or(StrategyError::BadCount {
                item: Excerpt::of(value),
            }),
            None => Err(StrategyError::UnknownValue {
                key: Key::Switch,
                value: Excerpt::of(value),
            }),
        }
    }

    /// True if the rule can lead to post-copy.
    pub const fn can_post_copy(self) -> bool {
        !matches!(self, Self::Never)
    }
}

impl FromStr for SwitchRule {
    type Err = StrategyError;

    fn from_str(text: &str) -> Result<Self, StrategyError> {
        Self::parse(text)
    }
}

impl fmt::Display for SwitchRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::Rounds(count) => write!(f, "rounds:{count}"),
            Self::Lambda => f.write_str("lambda"),
        }
    }
}

/// A number of decimal digits alone: no sign, no spaces.
pub(super) fn count(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}
