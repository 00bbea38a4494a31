//! The values of each key.

use core::fmt;

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
        /// As a static copy over the storage channel, while pages written meanwhile go over the migration channel (Li & Cao
        /// 2023, "par-migrate").
        Parallel = "parallel",
    }
}
words! {
    /// Which dirty pages a pre-copy round holds back because they will soon be written again.
    Filter {
        /// None: every dirty page is sent in every round.
        None = "none",
        /// The half of the dirty pages most likely to be written next, by first-order transitions between windows of 50 ms
        /// (the hybrid-copy paper of 2017).
        MarkovHalf = "markov:half",
        /// What the same model says will be written again.
        Markov = "markov",
        /// What each page's intervals between writes say will be written again within a round.
        Hazard = "hazard",
        /// What prediction by partial matching, up to order 2, says will be written again.
        Ppm = "ppm",
        /// What was written in most of the last rounds (after Ma et al. 2010).
        Frequency = "frequency",
    }
}
words! {
    /// What happens when the network is cut during post-copy.
    Cut {
        /// The migration has failed.
        Fail = "fail",
        /// What is still missing comes from shared storage, where the final dirty pages were saved at the switch (Li & Cao
        /// 2023, "PbData").
        Pbdata = "pbdata",
        /// Both sides keep what they have, connect again and go on with what is still missing.
        Reconnect = "reconnect",
        /// Whichever of shared storage and a new connection serves first.
        Both = "both",
    }
}
words! {
    /// How a guest that writes faster than can be sent is slowed down.
    Slow {
        /// Not at all.
        None = "none",
        /// All vCPUs for a growing share of the time while rounds do not converge (QEMU's auto-converge).
        AutoConverge = "auto-converge",
        /// Only vCPUs that write, each by how fast it does (QEMU's dirty-limit).
        DirtyLimit = "dirty-limit",
    }
}
words! {
    /// When dirty bits are cleared.
    Clear {
        /// All at the start of a round, as the papers do: a page written during the round before it is sent counts as
        /// dirty again.
        Round = "round",
        /// Each chunk's just before it is read.
        Late = "late",
    }
}

words! {
    /// Which dirty pages stay behind while a static copy is on its way.
    Hold {
        /// None: every dirty page is sent in every round.
        None = "none",
        /// Those that are likely to be written again before the copy is merged. They are sent when they have been quiet for as long
        /// as the copy still takes, or just in time to be there with it.
        Hot = "hot",
    }
}
words! {
    /// Which channel carries a static copy.
    Split {
        /// The storage channel all of it.
        None = "none",
        /// Both, so much each that they end together: the migration channel takes from the end what the storage channel has not
        /// begun, whenever it is idle.
        Speed = "speed",
    }
}

/// In which order post-copy sends what is missing and was not asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Push {
    /// `sequential`: ascending page numbers.
    Sequential,
    /// `bubble:N`: around the last N pages that were asked for, growing outwards (Hines & Gopalan 2009). `bubble` is `bubble:1`.
    Bubble(Pivots),
    /// `forecast`: those first that are most likely to be written next.
    Forecast,
    /// `recorded`: as they were asked for in an earlier migration (Ustiugov et al. 2021). Which, the caller says beside it; a
    /// command writes `recorded:FILE`.
    Recorded,
}

/// How many pages `bubble` grows around at a time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Pivots {
    /// 1.
    One,
    /// 3.
    Three,
    /// 7.
    Seven,
}

impl Pivots {
    /// As a number.
    pub const fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Three => 3,
            Self::Seven => 7,
        }
    }
}

impl Push {
    /// The values there are, as written.
    pub const AVAILABLE: &[&str] = &["sequential", "bubble[:1|3|7]", "forecast", "recorded"];

    /// Reads one value.
    pub(super) fn parse(value: &str) -> Result<Self, StrategyError> {
        Ok(match value {
            "sequential" => Self::Sequential,
            "bubble" | "bubble:1" => Self::Bubble(Pivots::One),
            "bubble:3" => Self::Bubble(Pivots::Three),
            "bubble:7" => Self::Bubble(Pivots::Seven),
            "forecast" => Self::Forecast,
            "recorded" => Self::Recorded,
            _ => {
                return Err(StrategyError::UnknownValue {
                    key: Key::Push,
                    value: Excerpt::of(value),
                });
            }
        })
    }
}

impl fmt::Display for Push {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sequential => f.write_str("sequential"),
            Self::Bubble(pivots) => write!(f, "bubble:{}", pivots.count()),
            Self::Forecast => f.write_str("forecast"),
            Self::Recorded => f.write_str("recorded"),
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
