//! The three tests in their order.

use super::{AnyRule, Decision, Reason, RoundEnd, Verdict};
use crate::strategy::SwitchRule;
use crate::units::{Bytes, BytesPerSec, Nanos, Pages};

/// What a [`Switcher`] knows before round 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SwitchSetting {
    /// V(0): all pages of the guest.
    pub total: Pages,
    /// How much memory that is: what rules with a budget per GiB go by.
    pub memory: Bytes,
    /// What sending the rest may take while the guest is paused. A caller that measures the fixed cost of its hand-over (state,
    /// records, round trips) gives the downtime without it.
    pub downtime: Nanos,
    /// The number of rounds after which pre-copy ends at the latest (0 and 1: after the first).
    pub max_rounds: u32,
    /// How long one post-copy fault holds a vCPU up, as far as known.
    pub fault_stall: Nanos,
    /// The round at whose end a static copy beside the rounds is merged: before that nothing is decided, and the rule gathers
    /// what it will go by. 0 if there is none, the largest number as long as it is not known.
    pub static_done_after: u32,
    /// The fixed cost of the hand-over that `downtime` is already without; rules that bring a downtime of their own (`ovirt`) take it off
    /// as well.
    pub handover_cost: Nanos,
    /// How fast the guest dirtied memory before the migration, if that was measured; `dyn` goes by it.
    pub dirty_rate_before: Option<BytesPerSec>,
}

impl SwitchSetting {
    /// A guest of so many pages of [`PAGE_SIZE`](crate::units::PAGE_SIZE). Downtime 300 ms and 30 rounds, QEMU's default and the limit
    /// of Li & Cao 2023; a fault of 500 us, what QEMU's postcopy-preempt needs on a network of 10 Gbit/s.
    pub const fn new(total: Pages) -> Self {
        Self {
            total,
            memory: total.bytes(),
            downtime: Nanos::from_millis(300),
            max_rounds: 30,
            fault_stall: Nanos::from_micros(500),
            static_done_after: 0,
            handover_cost: Nanos::ZERO,
            dirty_rate_before: None,
        }
    }
}

/// Decides at the end of every round: fits, then the rule, then the limit; see [`switch`](super).
#[derive(Clone, Debug)]
pub struct Switcher {
    rule: AnyRule,
    can_post_copy: bool,
    has_round_limit: bool,
    setting: SwitchSetting,
    /// Pages and time of the last round that sent anything: the last known bandwidth.
    last_sending: Option<(Pages, Nanos)>,
}

impl Switcher {
    /// A switcher before round 1.
    pub const fn new(rule: SwitchRule, setting: SwitchSetting) -> Self {
        Self {
            rule: AnyRule::new(rule, &setting),
            can_post_copy: rule.can_post_copy(),
            has_round_limit: rule.has_round_limit(),
            setting,
            last_sending: None,
        }
    }

    /// True if post-copy is entered before any round (`rounds:0`).
    pub const fn starts_with_post_copy(&self) -> bool {
        matches!(&self.rule, AnyRule::Rounds(rule) if rule.starts_with_post_copy())
    }

    /// Decides at the end of a round. To be told of every round, in order. O(1).
    pub fn on_round(&mut self, end: &RoundEnd) -> Verdict {
        // The rule hears of every round, also where it is not asked: its history has no gaps.
        let of_rule = self.rule.on_round(end);
        if end.sent > Pages::ZERO {
            self.last_sending = Some((end.sent, end.duration));
        }
        if end.round < self.setting.static_done_after {
            return Verdict {
                decision: Decision::Continue,
                reason: Reason::StaticCopyRuns {
                    until: self.setting.static_done_after,
                },
                ..of_rule
            };
        }
        let (downtime, fits) = match self.rule.downtime(end.round) {
            Some(downtime) => (
                downtime.saturating_sub(self.setting.handover_cost),
                Reason::FitsStep { downtime },
            ),
            None => (self.setting.downtime, Reason::Fits),
        };
        if self.fits(end.dirty, downtime) {
            return Verdict {
                decision: Decision::StopCopy,
                reason: fits,
                ..of_rule
            };
        }
        let at_limit = self.has_round_limit && end.round >= self.setting.max_rounds;
        if of_rule.decision != Decision::Continue || !at_limit {
            return of_rule;
        }
        let decision = if self.can_post_copy {
            Decision::PostCopy
        } else {
            Decision::StopCopy
        };
        Verdict {
            decision,
            reason: Reason::RoundLimit {
                max_rounds: self.setting.max_rounds,
            },
            ..of_rule
        }
    }

    /// A static copy was begun beside the rounds: nothing is decided before [`static_copy_done`](Self::static_copy_done).
    pub const fn wait_for_static_copy(&mut self) {
        self.setting.static_done_after = u32::MAX;
    }

    /// The round at whose end something is decided for the first time: see [`SwitchSetting::static_done_after`].
    pub const fn static_done_after(&self) -> u32 {
        self.setting.static_done_after
    }

    /// It is merged: the end of `round` is the first at which something is decided.
    pub const fn static_copy_done(&mut self, round: u32) {
        self.setting.static_done_after = round;
    }

    /// How long `pages` take at the last known bandwidth S / T, rounded up, stopping at the largest time; `None` if no round
    /// has sent anything.
    pub fn time_to_send(&self, pages: Pages) -> Option<Nanos> {
        let (sent, duration) = self.last_sending?;
        let nanos = (u128::from(pages.0) * u128::from(duration.0)).div_ceil(u128::from(sent.0));
        Some(Nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// V·T ≤ downtime·S at the last known bandwidth S / T. Products of two 64-bit numbers: no overflow.
    fn fits(&self, dirty: Pages, downtime: Nanos) -> bool {
        if dirty == Pages::ZERO {
            return true;
        }
        let Some((sent, duration)) = self.last_sending else {
            return false;
        };
        u128::from(dirty.0) * u128::from(duration.0) <= u128::from(downtime.0) * u128::from(sent.0)
    }
}
