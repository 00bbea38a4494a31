//! Deciding for a hypervisor that does the copying itself, and can only be told when to stop.
//!
//! It has counters and reads its dirty log every so often; each reading ends a round. [`Passes`] makes rounds of the counters,
//! [`Steering`] asks a rule of [`switch`](super::switch) at the end of each, and what the hypervisor is to be told is an
//! [`Order`]. The same rounds can be asked about before anything is done: [`Outlook`]. A connection that breaks after the switch is made
//! again as [`Recovery`] says, and what is known at the end says who holds the guest: [`Standing`].
//!
//! What such counters are worth, of QEMU: `remaining` is live and right; `dirty-pages-rate` is as old as a second, and `mbps` is a
//! tenth of a second's. So rates are those of whole rounds, and smoothed.
//!
//! ```
//! use dunlin_core::steer::{Counters, Limits, Order, Steering};
//! use dunlin_core::strategy::SwitchRule;
//! use dunlin_core::switch::SwitchSetting;
//! use dunlin_core::units::{Nanos, Pages};
//!
//! let total = Pages(100_000);
//! let mut steering = Steering::new(SwitchRule::Lambda, SwitchSetting::new(total), Limits::default());
//! let mut counters = Counters { syncs: 1, remaining: total, ..Counters::default() };
//! assert!(steering.on_counters(&counters).is_none()); // the first pass begins
//! counters = Counters {
//!     at: Nanos::from_secs(10),
//!     syncs: 2,
//!     remaining: Pages(2_000),
//!     sent: Pages(100_000),
//!     ..counters
//! };
//! let turn = steering.on_counters(&counters).expect("it has ended");
//! assert_eq!(turn.order, Order::LetStop); // 2 000 pages take 200 ms
//! ```

mod balloon;
mod holder;
mod outlook;
mod passes;
mod recovery;
#[cfg(test)]
mod tests;

pub use balloon::{Balloon, MemoryUse};
pub use holder::{Holder, Peer, Standing};
pub use outlook::{Heading, Outlook};
pub use passes::{Counters, Pass, Passes};
pub use recovery::{Connection, Recovery, Remedy};

use core::fmt;

use crate::strategy::SwitchRule;
use crate::switch::{Decision, Reason, Smoothed, SwitchSetting, Switcher, Verdict};
use crate::units::{BytesPerSec, Nanos, Pages};

/// What the hypervisor is to be told at the end of a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// To go on copying.
    Continue,
    /// To stop the guest as soon as the rest fits the downtime, as it does by its own rule.
    LetStop,
    /// To stop the guest and send the rest, however long that takes.
    Stop,
    /// To run the guest on the target, and send the rest after.
    PostCopy,
}

/// What a switch to post-copy has to keep to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Whether both sides can do it at all.
    pub can_post_copy: bool,
    /// The longest that sending the rest may take: as long, the guest depends on both hosts and on the network between them. `None`
    /// for any time.
    pub drain: Option<Nanos>,
    /// The bandwidth that post-copy is held to; `None` if it has what pre-copy has.
    pub bandwidth: Option<BytesPerSec>,
}

impl Default for Limits {
    /// Post-copy of any length.
    fn default() -> Self {
        Self {
            can_post_copy: true,
            drain: None,
            bandwidth: None,
        }
    }
}

/// Why a switch that the rule wants does not take place in this round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// One of the sides cannot do it.
    Impossible,
    /// Sending the rest would take too long.
    TooLong {
        /// How long at the present bandwidth; the largest time if that is not known.
        drain: Nanos,
        /// How long it may take.
        limit: Nanos,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Impossible => f.write_str("post-copy is not possible between these two"),
            Self::TooLong { drain, limit } => write!(
                f,
                "the rest would take {}.{} s in post-copy, and at most {}.{} s are allowed",
                drain.0 / 1_000_000_000,
                drain.0 / 100_000_000 % 10,
                limit.0 / 1_000_000_000,
                limit.0 / 100_000_000 % 10
            ),
        }
    }
}

/// The end of a round, and what follows from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    /// What happened in the round.
    pub pass: Pass,
    /// What the rule says of it.
    pub verdict: Verdict,
    /// What to do.
    pub order: Order,
    /// Why not what the rule says.
    pub refusal: Option<Refusal>,
    /// How long sending the rest takes in post-copy at the present bandwidth; `None` if that is not known.
    pub drain: Option<Nanos>,
}

/// A rule that is asked at the end of each round of somebody else's pre-copy.
#[derive(Clone, Debug)]
pub struct Steering {
    passes: Passes,
    switcher: Switcher,
    bandwidth: Smoothed,
    limits: Limits,
}

impl Steering {
    /// Before the first round, or somewhere in the middle: the first reading of the dirty log that it is told of begins the first
    /// round it knows.
    pub const fn new(rule: SwitchRule, setting: SwitchSetting, limits: Limits) -> Self {
        Self {
            passes: Passes::new(setting.total),
            switcher: Switcher::new(rule, setting),
            bandwidth: Smoothed::new(),
            limits,
        }
    }

    /// Whether post-copy is to be entered before any round has ended (`rounds:0`).
    pub const fn starts_with_post_copy(&self) -> bool {
        self.switcher.starts_with_post_copy()
    }

    /// Tells it of counters, read at any time, best right after a reading of the dirty log. `None` unless a round has ended since
    /// those before. O(1).
    pub fn on_counters(&mut self, counters: &Counters) -> Option<Turn> {
        let pass = self.passes.on_counters(counters)?;
        let verdict = self.switcher.on_round(&pass.end);
        self.bandwidth.update(&pass.end);
        let drain = self.drain(pass.end.dirty);
        let (order, refusal) = match verdict.decision {
            Decision::Continue => (Order::Continue, None),
            Decision::StopCopy if matches!(verdict.reason, Reason::Fits | Reason::FitsStep { .. }) => {
                (Order::LetStop, None)
            }
            Decision::StopCopy => (Order::Stop, None),
            Decision::PostCopy => match self.refusal(drain) {
                None => (Order::PostCopy, None),
                refusal => (Order::Continue, refusal),
            },
        };
        Some(Turn {
            pass,
            verdict,
            order,
            refusal,
            drain,
        })
    }

    /// The slower of the last round and the mean of all, and of what post-copy is held to: a network that has just become slow is no
    /// better than what it was just now, and one that was fast for once no better than usual.
    fn drain(&self, rest: Pages) -> Option<Nanos> {
        let now = self.switcher.time_to_send(rest)?;
        let usual = self.bandwidth.time_to_send(rest).unwrap_or(now);
        let held = self
            .limits
            .bandwidth
            .filter(|rate| rate.0 > 0)
            .map_or(Nanos::ZERO, |rate| {
                let nanos = u128::from(rest.bytes().0) * 1_000_000_000 / u128::from(rate.0);
                Nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            });
        Some(now.max(usual).max(held))
    }

    fn refusal(&self, drain: Option<Nanos>) -> Option<Refusal> {
        if !self.limits.can_post_copy {
            return Some(Refusal::Impossible);
        }
        let limit = self.limits.drain?;
        let drain = drain.unwrap_or(Nanos(u64::MAX));
        (drain > limit).then_some(Refusal::TooLong { drain, limit })
    }
}

/// How long to wait between attempts to reach somebody again: 1 s, 2 s, 4 s, … at most 30 s.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The longest wait.
    pub const LONGEST: Nanos = Nanos::from_secs(30);

    /// Before the first attempt.
    pub const fn new() -> Self {
        Self { attempts: 0 }
    }

    /// How many attempts were made.
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// An attempt is made: how long to wait after it.
    pub const fn next(&mut self) -> Nanos {
        let seconds = if self.attempts < 5 { 1 << self.attempts } else { 30 };
        self.attempts = self.attempts.saturating_add(1);
        Nanos::from_secs(seconds)
    }
}
