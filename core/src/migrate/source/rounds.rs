//! Rounds of a source: what is sent next, and what a finished round decides.

use super::{Source, Step};
use crate::message::{AbortReason, Mode};
use crate::migrate::regions::{remove_outside, room_in_region};
use crate::migrate::source_types::RoundReport;
use crate::pageset::Run;
use crate::switch::{Decision, RoundEnd};
use crate::units::{Gfn, Nanos, Pages};

impl Source<'_> {
    pub(super) fn harvested(&mut self, now: Nanos, words: &[u64]) {
        if !core::mem::take(&mut self.outstanding) {
            return;
        }
        match self.step {
            Step::RoundHarvest | Step::FinalHarvest(_) if self.pending.union_words(0, words).is_err() => {
                return self.abort(AbortReason::Internal);
            }
            Step::RoundHarvest | Step::FinalHarvest(_) => self.put_back(now, words),
            _ => return self.broken_law(now),
        }
        self.end_waiting(words);
        // A tracker may know nothing of holes.
        remove_outside(&mut self.pending, &self.config.regions);
        self.end_hints_of_dirty();
        if let Step::FinalHarvest(mode) = self.step {
            self.cursor = Gfn::ZERO;
            self.step = Step::FinalPages(mode);
        } else {
            self.end_round(now);
        }
    }

    pub(super) fn pages_sent(&mut self, now: Nanos, data: Pages, zero: Pages) {
        if !core::mem::take(&mut self.outstanding) {
            return;
        }
        let Some(run) = self.last_chunk.take() else {
            return self.broken_law(now);
        };
        self.sent_data = self.sent_data.saturating_add(data);
        self.sent_zero = self.sent_zero.saturating_add(zero);
        if self.step == Step::Push {
            self.pushed += run.count.0;
        }
        if data.saturating_add(zero) != run.count || !self.balanced() {
            self.broken_law(now);
        }
    }

    /// Before the hand-over the attempt ends; afterwards a new connection starts from what the target says it lacks.
    pub(super) fn broken_law(&mut self, now: Nanos) {
        if self.given_up {
            self.link_lost(now, AbortReason::Internal);
        } else {
            self.may_have_happened(self.step);
            self.abort(AbortReason::Internal);
        }
    }

    /// The conservation law: within a round what was sent and what is pending make the round's pages; after the switch what was
    /// served, pushed and is pending make the final dirty set.
    pub(super) fn balanced(&self) -> bool {
        match self.step {
            Step::RoundPages => self.sent_data.0 + self.sent_zero.0 + self.pending.len().0 == self.round_pages.0,
            Step::Push => self.served_first + self.pushed_first + self.pending.len().0 == self.final_pages.0,
            _ => true,
        }
    }

    pub(super) fn begin_round(&mut self, now: Nanos) {
        self.round += 1;
        self.cursor = Gfn::ZERO;
        self.hold_back(now);
        self.take_from_static(now);
        self.round_pages = self.pending.len();
        self.sent_data = Pages::ZERO;
        self.sent_zero = Pages::ZERO;
        self.round_started = now;
        if self.round == 1 {
            self.copy_started = now;
        }
    }

    pub(super) fn end_round(&mut self, now: Nanos) {
        let end = RoundEnd {
            round: self.round,
            sent: self.sent_data,
            dirty: self.pending.len(),
            // Zero pages travel as a few bytes: they are no part of what a round had to send (paper 000 counts M so).
            previous_dirty: self.previous_dirty.saturating_sub(self.sent_zero),
            duration: self.round_ended.saturating_sub(self.round_started),
            elapsed: now.saturating_sub(self.copy_started),
        };
        self.previous_dirty = end.dirty;
        let verdict = self.switcher.on_round(&end);
        let verdict = self.revised(now, &end, verdict);
        let verdict = self.filtered(now, verdict);
        if end.sent > Pages::ZERO {
            self.channel_speed.add(end.sent, end.duration);
        }
        self.last_round = Some(RoundReport {
            round: end.round,
            duration: end.duration,
            sent: end.sent,
            zero: self.sent_zero,
            dirty: end.dirty,
            lambda_milli: end.lambda_milli(),
            sdf_milli: end.sdf_milli(),
            verdict,
        });
        self.step = match verdict.decision {
            Decision::Continue => Step::RoundStart,
            Decision::StopCopy => Step::Pause(Mode::StopCopy),
            Decision::PostCopy => Step::Pause(Mode::PostCopy),
        };
    }

    /// Takes the next chunk of a round, or of the pause, out of the pending set, from the cursor upwards, then from the start.
    pub(super) fn next_chunk(&mut self, within: Option<Run>) -> Option<Run> {
        let from = within.map_or(self.cursor, |run| run.first);
        let chunk = self.chunk();
        let mut run = match self.pending.next_run(from, chunk) {
            Some(run) => run,
            None if within.is_none() && from > Gfn::ZERO => self.pending.next_run(Gfn::ZERO, chunk)?,
            None => return None,
        };
        if let Some(within) = within {
            if run.first >= within.end() {
                return None;
            }
            run.count = run.count.min(Pages(within.end().0 - run.first.0));
        }
        // Neighbouring regions may be neighbours in the set, too; the target takes a run into one region.
        run.count = run.count.min(room_in_region(&self.config.regions, run.first)?);
        self.pending.remove_run(run);
        self.cursor = run.end();
        self.last_chunk = Some(run);
        Some(run)
    }

    /// Stop-and-copy sends everything; post-copy only what the target's host reads itself.
    pub(super) fn next_final_chunk(&mut self, mode: Mode) -> Option<Run> {
        if mode == Mode::StopCopy {
            return self.next_chunk(None);
        }
        (0..self.config.host_pages.len()).find_map(|index| self.next_chunk(Some(self.config.host_pages[index])))
    }

    pub(super) fn first_step(&self) -> Step {
        // `rounds:0` is pure post-copy: nothing is copied before the pause, so nothing needs tracking but for a forecast and for hints.
        if self.switcher.starts_with_post_copy() && self.foresight.is_none() && self.hints.is_none() {
            Step::Pause(Mode::PostCopy)
        } else {
            Step::StartTracking
        }
    }

    /// What is left to do once the target runs the VM.
    pub(super) fn after_running(&mut self, now: Nanos) -> Step {
        match self.mode {
            Some(Mode::PostCopy) => {
                self.rank_push(now);
                self.final_pages = self.pending.len();
                self.served_first = 0;
                self.pushed_first = 0;
                if self.wants_pb_data() {
                    Step::StartPbData
                } else {
                    Step::Push
                }
            }
            _ => self.after_pages(),
        }
    }

    /// What is left to do once the target has been sent every page.
    pub(super) fn after_pages(&self) -> Step {
        if self.config.verify && !self.hashes_sent {
            Step::Hashes
        } else {
            Step::AwaitComplete
        }
    }

    /// Pages served now are certain to be counted by both sides.
    pub(super) fn counts_served(&self) -> bool {
        self.link
            && !self.seeks_target()
            && !matches!(self.step, Step::AwaitMissing { .. } | Step::ReopenFaultChannel { .. })
    }
}
