//! When pre-copy ends, and how: decided at the end of each round, in exact integers.
//!
//! Rounds count from 1. After round i, S(i) is the number of pages sent in it, V(i) the number that are dirty as it ends
//! (what round i + 1 would send), T(i) its duration without idling; V(0) is the whole guest. [`Switcher`] asks, in this order:
//!
//! 1. **fits**: V(i)·T(i) ≤ downtime·S(i), so the rest can be sent while the guest is paused → stop-and-copy. The bandwidth
//!    is the round's own goodput, not a configured cap; if nothing was sent it is the last known one. V(i) = 0 always fits.
//! 2. **the rule**, one of [`AnyRule`].
//! 3. **limit**: i ≥ max-rounds → post-copy where the rule can enter it, otherwise stop-and-copy. Li & Cao 2023 leave open
//!    what an adaptive hybrid does at the limit; as it "guarantees" completion, it switches.
//!
//! With a parallel first copy all three wait until the static copy is merged, [`SwitchSetting::static_done_after`]; the
//! rules' history is kept from round 1.
//!
//! A decision takes O(1) time and memory. Nothing is rounded before a comparison.
//!
//! ```
//! use dunlin_core::strategy::SwitchRule;
//! use dunlin_core::switch::{Decision, RoundEnd, SwitchSetting, Switcher};
//! use dunlin_core::units::{Nanos, Pages};
//!
//! let mut switcher = Switcher::new(SwitchRule::Lambda, SwitchSetting::new(Pages(100_000)));
//! let mut round = RoundEnd {
//!     round: 1,
//!     sent: Pages(100_000),
//!     dirty: Pages(20_000),
//!     previous_dirty: Pages(100_000),
//!     duration: Nanos::from_secs(10),
//!     elapsed: Nanos::from_secs(10),
//! };
//! assert_eq!(switcher.on_round(&round).decision, Decision::Continue); // 20 000 pages would take 2 s
//! round = RoundEnd {
//!     round: 2,
//!     sent: Pages(20_000),
//!     dirty: Pages(2_000),
//!     previous_dirty: Pages(20_000),
//!     duration: Nanos::from_secs(2),
//!     elapsed: Nanos::from_secs(12),
//! };
//! assert_eq!(switcher.on_round(&round).decision, Decision::StopCopy); // 2 000 pages take 200 ms
//! ```

mod lambda;
mod never;
mod rounds;
mod switcher;
#[cfg(test)]
mod tests;

pub use lambda::Lambda;
pub use never::Never;
pub use rounds::Rounds;
pub use switcher::{SwitchSetting, Switcher};

use core::fmt;

use crate::strategy::SwitchRule;
use crate::units::{Nanos, Pages, Ratio};

/// What happened in a round, as it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RoundEnd {
    /// i, from 1.
    pub round: u32,
    /// S(i): pages sent in the round.
    pub sent: Pages,
    /// V(i): pages dirty as the round ends.
    pub dirty: Pages,
    /// V(i−1): pages dirty as the round before ended; all pages of the guest for round 1.
    pub previous_dirty: Pages,
    /// T(i): time spent sending, without idling up to the minimum round.
    pub duration: Nanos,
    /// Since the migration began, idling included: what rules that look at the clock go by.
    pub elapsed: Nanos,
}

impl RoundEnd {
    /// The convergence factor λ(i) = V(i) / S(i) of Li & Cao 2023, "Adaptive hybrid migration process", eq. 1 to 3: dirty
    /// rate by bandwidth. Eq. 1 prints R(1) and means R(i).
    ///
    /// λ(1) is 1 by definition, a neutral seed: what round 1 says, measured against the whole guest, is no sign of
    /// convergence. If nothing was sent, λ is 0 if nothing is dirty either, otherwise 1, which is neutral again.
    pub fn lambda(&self) -> Ratio {
        if self.round <= 1 {
            return Ratio::ONE;
        }
        let of_nothing = if self.dirty == Pages::ZERO {
            Ratio::ZERO
        } else {
            Ratio::ONE
        };
        Ratio::new(self.dirty.0, self.sent.0).unwrap_or(of_nothing)
    }

    /// λ(i) in thousandths, rounded toward zero.
    pub fn lambda_milli(&self) -> i64 {
        self.lambda().milli()
    }

    /// SDF(i) = (V(i−1) − V(i)) / S(i) in thousandths, rounded toward zero: the progress per page sent, negative if more is
    /// dirty than before. Nothing sent counts as no progress, 0. Stops at the ends of its range.
    ///
    /// From "A novel hybrid-copy algorithm for live migration" (2017), eq. 7, whose printed direction is inverted; its
    /// text is right. If everything dirty was sent, SDF(i) = 1 − λ(i) for i > 1.
    pub fn sdf_milli(&self) -> i64 {
        if self.sent == Pages::ZERO {
            return 0;
        }
        let progress = i128::from(self.previous_dirty.0) - i128::from(self.dirty.0);
        let milli = progress * 1000 / i128::from(self.sent.0);
        i64::try_from(milli).unwrap_or(if milli < 0 { i64::MIN } else { i64::MAX })
    }
}

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Decision {
    /// Another pre-copy round.
    Continue,
    /// Pause the guest, send the rest, run it on the target.
    StopCopy,
    /// Pause the guest, run it on the target, send the rest after.
    PostCopy,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Continue => "continue",
            Self::StopCopy => "stop-copy",
            Self::PostCopy => "post-copy",
        })
    }
}

/// Why it was decided so; `Display` says it in words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Reason {
    /// The rest can be sent within the downtime.
    Fits,
    /// The round limit is reached.
    RoundLimit {
        /// The limit.
        max_rounds: u32,
    },
    /// The static copy beside the rounds is not merged yet.
    StaticCopyRuns {
        /// The round at whose end it is.
        until: u32,
    },
    /// The rule waits for the rest to fit.
    DoesNotFit,
    /// `rounds:N`: fewer than N rounds were made.
    RoundsLeft {
        /// How many are still to come.
        left: u32,
    },
    /// `rounds:N`: N rounds were made.
    RoundsDone {
        /// N.
        rounds: u32,
    },
    /// `lambda`: fewer than three values.
    LambdaTooFew {
        /// How many there are.
        values: u32,
    },
    /// `lambda`: fewer than two of the last three values are above 1.
    LambdaConverging {
        /// How many are.
        above: u32,
    },
    /// `lambda`: two of the last three values are above 1, but their mean is below.
    LambdaMeanBelowOne {
        /// The mean in thousandths, rounded toward zero.
        mean_milli: i64,
    },
    /// `lambda`: at least two of the last three values are above 1, and their mean is at least 1.
    LambdaDiverging {
        /// How many are.
        above: u32,
        /// The mean in thousandths, rounded toward zero.
        mean_milli: i64,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fits => f.write_str("the rest fits the downtime"),
            Self::RoundLimit { max_rounds } => write!(f, "the limit of {max_rounds} rounds is reached"),
            Self::StaticCopyRuns { until } => {
                write!(f, "the static copy is not merged before the end of round {until}")
            }
            Self::DoesNotFit => f.write_str("the rest does not fit the downtime"),
            Self::RoundsLeft { left } => write!(f, "{left} more to go before the switch"),
            Self::RoundsDone { rounds: 1 } => f.write_str("the one round before the switch is done"),
            Self::RoundsDone { rounds } => write!(f, "{rounds} rounds before the switch are done"),
            Self::LambdaTooFew { values } => write!(f, "{values} of the 3 λ values that the rule looks at"),
            Self::LambdaConverging { above } => write!(f, "{above} of the last 3 λ above 1"),
            Self::LambdaMeanBelowOne { mean_milli } => {
                write!(
                    f,
                    "2 of the last 3 λ above 1, but their mean is {}",
                    Thousandths(*mean_milli)
                )
            }
            Self::LambdaDiverging { above, mean_milli } => {
                write!(
                    f,
                    "{above} of the last 3 λ above 1, and their mean is {}",
                    Thousandths(*mean_milli)
                )
            }
        }
    }
}

/// A number of thousandths, not negative, written with three decimals.
struct Thousandths(i64);

impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// A decision with its reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Verdict {
    /// What to do next.
    pub decision: Decision,
    /// What the rule measured of this round, in thousandths: λ(i) for `lambda`, 0 for rules that measure nothing.
    pub score_milli: i64,
    /// Why.
    pub reason: Reason,
}

/// One of the rules, dispatched without pointers.
#[derive(Clone, Debug)]
pub enum AnyRule {
    /// `never`.
    Never(Never),
    /// `rounds:N`.
    Rounds(Rounds),
    /// `lambda`.
    Lambda(Lambda),
}

impl AnyRule {
    /// The rule at the start of a migration.
    pub const fn new(rule: SwitchRule) -> Self {
        match rule {
            SwitchRule::Never => Self::Never(Never),
            SwitchRule::Rounds(count) => Self::Rounds(Rounds::new(count)),
            SwitchRule::Lambda => Self::Lambda(Lambda::new()),
        }
    }

    /// What the rule alone says at the end of a round. To be told of every round, in order.
    pub fn on_round(&mut self, end: &RoundEnd) -> Verdict {
        match self {
            Self::Never(rule) => rule.on_round(end),
            Self::Rounds(rule) => rule.on_round(end),
            Self::Lambda(rule) => rule.on_round(end),
        }
    }
}
