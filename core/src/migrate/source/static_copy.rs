//! The static copy: all of memory on the storage channel, beside rounds of what is written meanwhile.
//!
//! Li & Cao 2023, "Parallel migration process" (Algorithm 1): the copy is merged at the target under whatever came on the
//! migration channel, and nothing is decided before it is. Where the paper is silent: a copy that fails is given up, and the
//! migration goes on as if it had begun without one.

use super::{Source, Step};
use crate::message::{AbortReason, Mode, Violation, total_pages};
use crate::pageset::Run;
use crate::strategy::First;
use crate::switch::{SwitchSetting, Switcher};
use crate::units::{Nanos, Pages};

/// What the host writes at a time.
const STATIC_BLOCK: Nanos = Nanos::from_millis(50);
/// Smallest piece of a static copy.
const STATIC_BLOCK_MIN: Pages = Pages(64);

/// How far the static copy is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StaticCopy {
    /// None is wanted, or it was not begun yet.
    None,
    Running,
    Merged,
    Failed,
}

/// What follows the end of a copy that is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AfterStatic {
    Round,
    Pause(Mode),
    Leave(AbortReason),
}

impl Source<'_> {
    /// After tracking has begun: a page written from now on is sent on the migration channel.
    pub(super) fn after_tracking(&mut self, now: Nanos) -> Step {
        match self.config.strategy.first {
            First::Serial => self.first_round(now),
            First::Parallel => Step::StartStatic,
        }
    }

    /// Everything is on its way: a round sends only what is written from now on.
    pub(super) fn static_started(&mut self, now: Nanos) -> Step {
        self.static_begun = true;
        self.static_began = now;
        if let Some(holding) = &mut self.holding {
            holding.begin(now);
        }
        if self.static_copy == StaticCopy::None {
            self.static_copy = StaticCopy::Running;
            self.pending.clear();
            self.switcher.wait_for_static_copy();
        }
        self.first_round(now)
    }

    /// The next pages of the static copy for the host to write, at most `most`: a run in one region, in ascending order, short
    /// enough that how far the copy is follows from it. `None` when there are no more. O(regions).
    pub fn next_static(&mut self, now: Nanos, most: Pages) -> Option<Run> {
        let regions = self.config.regions.iter();
        let run = regions
            .map(|region| self.untaken_of(Run::new(region.first, region.pages)))
            .find(|run| run.count > Pages::ZERO)?;
        let block = self.storage_speed(now).pages_in(STATIC_BLOCK);
        let count = block.max(STATIC_BLOCK_MIN).min(most).max(Pages(1)).min(run.count);
        let run = Run::new(run.first, count);
        self.static_next = run.end();
        self.static_taken = self.static_taken.saturating_add(count);
        Some(run)
    }

    /// How long pages of the static copy will still be taken at the speeds so far; `None` as long as they are not known.
    pub(super) fn static_left(&self, now: Nanos) -> Option<Nanos> {
        let (storage, rest) = (self.storage_speed(now), self.static_rest());
        match self.config.strategy.splits() {
            true => storage.time_beside(self.channel_speed, rest),
            false => storage.time_for(rest),
        }
    }

    pub(super) fn static_written(&mut self, now: Nanos) {
        // The host's writer may be done before the host says that it has begun.
        let starting = self.step == Step::StartStatic && self.outstanding;
        if self.static_copy == StaticCopy::Running || starting {
            let took = now.saturating_sub(self.static_began);
            self.static_due = Some(now.saturating_add(took.max(self.config.merge_patience)));
        }
    }

    pub(super) fn check_static(&mut self, now: Nanos) {
        if self.static_copy == StaticCopy::Running && self.static_due.is_some_and(|due| now >= due) {
            self.static_failed();
        }
        self.check_speed(now);
    }

    pub(super) fn static_merged(&mut self, now: Nanos) {
        match self.static_copy {
            StaticCopy::Running => {
                self.static_copy = StaticCopy::Merged;
                self.static_begun = false;
                let decides = self.release();
                self.switcher.static_copy_done(decides);
            }
            // It was given up here before the target could know.
            StaticCopy::Failed => {}
            StaticCopy::None | StaticCopy::Merged => self.violation(now, Violation::UnexpectedMessage),
        }
    }

    pub(super) fn static_failed_there(&mut self, now: Nanos) {
        match self.static_copy {
            StaticCopy::Running | StaticCopy::Failed => self.static_failed(),
            StaticCopy::None | StaticCopy::Merged => self.violation(now, Violation::UnexpectedMessage),
        }
    }

    /// All pages go on the migration channel after all, but for those that it has taken already. What the target has of the
    /// copy is replaced by them. The rule begins anew with the round that sends them: against it, rounds beside a static copy
    /// say nothing.
    pub(super) fn static_failed(&mut self) {
        let starting = self.step == Step::StartStatic && self.outstanding;
        if self.static_copy != StaticCopy::Running && !starting {
            return;
        }
        self.static_copy = StaticCopy::Failed;
        if starting {
            return;
        }
        self.put_held_back();
        for index in 0..self.config.regions.len() {
            let region = self.config.regions[index];
            let mut run = Run::new(region.first, region.pages);
            // What lies beyond was sent in a round or is pending.
            run.count = run.count.min(Pages(self.static_end.0.saturating_sub(run.first.0)));
            // The regions fit the set: they were all in it at first.
            let _ = self.pending.insert_run(run);
        }
        self.keep_hints();
        let in_round = self.in_round();
        let on_its_way = self.last_chunk.map_or(Pages::ZERO, |run| run.count);
        self.round_pages = Pages(self.sent_data.0 + self.sent_zero.0 + on_its_way.0 + self.pending.len().0);
        if in_round {
            self.previous_dirty = total_pages(&self.config.regions);
        }
        self.begin_rule_anew(if in_round { self.round } else { self.round + 1 });
    }

    /// What the rule was told so far says nothing. It decides from the end of that round on.
    pub(super) fn begin_rule_anew(&mut self, static_done_after: u32) {
        self.misled = false;
        let mut setting = switch_setting(&self.config);
        setting.static_done_after = static_done_after;
        self.switcher = Switcher::new(self.config.strategy.switch, setting);
    }

    /// Whether nothing is decided before the copy is merged.
    pub(super) fn waits_for_static(&self) -> bool {
        self.static_copy == StaticCopy::Running
    }

    /// Whether the host still writes a copy that is of no use.
    pub(super) fn must_stop_static(&self) -> bool {
        self.static_begun && self.static_copy != StaticCopy::Running
    }
}

pub(super) fn switch_setting(config: &super::SourceConfig) -> SwitchSetting {
    SwitchSetting {
        downtime: config.downtime.saturating_sub(config.handover_cost),
        handover_cost: config.handover_cost,
        max_rounds: config.max_rounds,
        ..SwitchSetting::new(total_pages(&config.regions))
    }
}
