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

mod bandwidth;
mod dynamic;
mod fixed;
mod heuristic;
mod kubevirt;
mod lambda;
mod never;
mod nova;
mod optimal;
mod ovirt;
mod reason;
mod round_end;
mod rounds;
mod sdf;
mod switcher;
#[cfg(test)]
mod tests;
mod trend;
mod xen;

pub(crate) use bandwidth::Smoothed;
pub use dynamic::Dyn;
pub use heuristic::Heuristic;
pub use kubevirt::KubevirtStall;
pub use lambda::Lambda;
pub use never::Never;
pub use nova::Nova10;
pub use optimal::Optimal;
pub use ovirt::Ovirt;
pub use reason::Reason;
pub use round_end::RoundEnd;
pub use rounds::Rounds;
pub use sdf::Sdf;
pub use switcher::{SwitchSetting, Switcher};
pub use trend::Evidence;
pub use xen::Xen;

use core::fmt;

use crate::strategy::SwitchRule;
use crate::units::Nanos;

/// Fewer dirty pages than these are not worth another round: Xen's `dirty_count < 50` (tools/libs/guest/xg_sr_save.c).
/// The hybrid-copy paper of 2017, built on Xen, leaves its `dirty_threshold` open; this is the reading of it here.
const FEW_PAGES: u64 = 50;
/// Of the pages that are missing at the switch, those that the guest waits for, in hundredths: with adaptive pre-paging faults
/// are within 21 % of the working set (Hines & Gopalan 2009).
const FAULTS_PERCENT: u128 = 21;

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

/// A decision with its reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Verdict {
    /// What to do next.
    pub decision: Decision,
    /// What the rule measured of this round, in thousandths: λ(i) for `lambda` and `heuristic`, SDF(i) for `sdf`, the progress of the
    /// round for `nova10`, dirty rate by bandwidth for `dyn`, what is left by the best for `kubevirt-stall`, the best that a
    /// round may leave of what is dirty for `optimal`; 0 for rules that measure
    /// nothing.
    pub score_milli: i64,
    /// Why.
    pub reason: Reason,
}

/// One of the rules, dispatched without pointers.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is no heap to keep the large ones on")]
pub enum AnyRule {
    /// `never` and `qemu`, which differ in the round limit only.
    Never(Never),
    /// `rounds:N`.
    Rounds(Rounds),
    /// `lambda`.
    Lambda(Lambda),
    /// `sdf:A` and `sdf:auto`.
    Sdf(Sdf),
    /// `dyn`.
    Dyn(Dyn),
    /// `heuristic`.
    Heuristic(Heuristic),
    /// `optimal[:W]`.
    Optimal(Optimal),
    /// `xen`.
    Xen(Xen),
    /// `kubevirt-stall`.
    KubevirtStall(KubevirtStall),
    /// `nova10`.
    Nova10(Nova10),
    /// `ovirt`.
    Ovirt(Ovirt),
}

impl AnyRule {
    /// The rule at the start of a migration.
    pub const fn new(rule: SwitchRule, setting: &SwitchSetting) -> Self {
        match rule {
            SwitchRule::Never | SwitchRule::Qemu => Self::Never(Never),
            SwitchRule::Rounds(count) => Self::Rounds(Rounds::new(count)),
            SwitchRule::Lambda => Self::Lambda(Lambda::new()),
            SwitchRule::Optimal(weight) => Self::Optimal(Optimal::new(weight, setting)),
            SwitchRule::Sdf(alpha) => Self::Sdf(Sdf::new(alpha)),
            SwitchRule::SdfAuto => Self::Sdf(Sdf::auto(setting.fault_stall)),
            SwitchRule::Dyn => Self::Dyn(Dyn::new(setting)),
            SwitchRule::Heuristic => Self::Heuristic(Heuristic),
            SwitchRule::Xen => Self::Xen(Xen),
            SwitchRule::KubevirtStall(window) => Self::KubevirtStall(KubevirtStall::new(window, setting.memory)),
            SwitchRule::Nova10 => Self::Nova10(Nova10),
            SwitchRule::Ovirt => Self::Ovirt(Ovirt),
        }
    }

    /// What the rule alone says at the end of a round. To be told of every round, in order.
    pub fn on_round(&mut self, end: &RoundEnd) -> Verdict {
        match self {
            Self::Never(rule) => rule.on_round(end),
            Self::Rounds(rule) => rule.on_round(end),
            Self::Lambda(rule) => rule.on_round(end),
            Self::Sdf(rule) => rule.on_round(end),
            Self::Dyn(rule) => rule.on_round(end),
            Self::Heuristic(rule) => rule.on_round(end),
            Self::Optimal(rule) => rule.on_round(end),
            Self::Xen(rule) => rule.on_round(end),
            Self::KubevirtStall(rule) => rule.on_round(end),
            Self::Nova10(rule) => rule.on_round(end),
            Self::Ovirt(rule) => rule.on_round(end),
        }
    }

    /// The downtime that the rest has to fit at the end of this round, if the rule has one of its own; the hand-over's fixed
    /// cost is part of it.
    pub const fn downtime(&self, round: u32) -> Option<Nanos> {
        match self {
            Self::Ovirt(_) => Some(Ovirt::downtime(round)),
            _ => None,
        }
    }
}
