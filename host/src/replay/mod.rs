//! What switch rules would have decided: a recorded log of pre-copy rounds in, decisions out.
//!
//! [`RoundLog`] reads the log line by line, in bounded memory, and says of a wrong one where and why it is. [`Trial`] tells a
//! rule of [`dunlin_core::switch`] of one round after the other, by the same code that decides in a live migration, until
//! it ends pre-copy.
//!
//! A log does not say how long the guest idled between rounds. So the time since the migration began, which some rules
//! go by, is here the sum of the rounds' durations.
#![forbid(unsafe_code)]

mod error;
mod lines;
mod log;
#[cfg(test)]
mod tests;

pub use error::{Column, Fault, LogError, Place};
pub use log::{HEADER, HEADER_WITH_ZEROS, RoundLog, STATIC_DONE_AFTER};

use dunlin_core::{
    strategy::SwitchRule,
    switch::{Decision, RoundEnd, SwitchSetting, Switcher, Verdict},
    units::{Nanos, Pages},
};

/// One rule that is told of the rounds of a log.
#[derive(Clone, Debug)]
pub struct Trial {
    rule: SwitchRule,
    switcher: Switcher,
    sent: Pages,
    ending: Option<Ending>,
}

/// How a rule ended pre-copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The round at whose end it was decided.
    pub end: RoundEnd,
    /// What was decided, never [`Decision::Continue`].
    pub verdict: Verdict,
    /// Pages sent up to then, in all rounds.
    pub sent: Pages,
    /// How long sending the rest takes at the last known bandwidth; `None` if no round has sent anything.
    pub rest_takes: Option<Nanos>,
}

impl Trial {
    /// The rule before round 1.
    pub fn new(rule: SwitchRule, setting: SwitchSetting) -> Self {
        Self {
            rule,
            switcher: Switcher::new(rule, setting),
            sent: Pages::ZERO,
            ending: None,
        }
    }

    /// Which rule it is.
    pub const fn rule(&self) -> SwitchRule {
        self.rule
    }

    /// Tells it of the next round. `None` once pre-copy has ended: a migration has no rounds after that.
    pub fn on_round(&mut self, end: &RoundEnd) -> Option<Verdict> {
        if self.ending.is_some() {
            return None;
        }
        self.sent = self.sent.saturating_add(end.sent);
        let verdict = self.switcher.on_round(end);
        if verdict.decision != Decision::Continue {
            self.ending = Some(Ending {
                end: *end,
                verdict,
                sent: self.sent,
                rest_takes: self.switcher.time_to_send(end.dirty),
            });
        }
        Some(verdict)
    }

    /// Pages sent in the rounds it was told of.
    pub const fn sent(&self) -> Pages {
        self.sent
    }

    /// How long `pages` take at the last known bandwidth, see [`Switcher::time_to_send`].
    pub fn time_to_send(&self, pages: Pages) -> Option<Nanos> {
        self.switcher.time_to_send(pages)
    }

    /// How pre-copy ended, if it has.
    pub const fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }
}

/// Every rule there is; one that needs a number has one or two usual ones.
pub fn example_rules() -> Vec<SwitchRule> {
    const RULES: [&str; 14] = [
        "never",
        "qemu",
        "rounds:1",
        "rounds:2",
        "lambda",
        "sdf:0.5",
        "sdf:auto",
        "dyn",
        "heuristic",
        "optimal",
        "xen",
        "kubevirt-stall",
        "nova10",
        "ovirt",
    ];
    RULES
        .iter()
        .map(|rule| SwitchRule::parse(rule).expect("a test reads each of them"))
        .collect()
}
