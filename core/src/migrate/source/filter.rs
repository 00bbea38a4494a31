//! Looking ahead: what the guest is seen to write, which dirty pages a round holds back for it, and what post-copy pushes first.
//!
//! Before anything is copied the guest is observed ([`SourceConfig::learning`]), every 50 ms
//! what it has written; then on through the rounds ("A novel hybrid-copy algorithm for live migration", 2017, observes for 8 s and
//! only before). A sample takes the dirty bits, so whatever it finds waits with the pages held back, and counts as dirty when
//! the round ends: no page is lost, and a round leaves as many as it would without samples. What a round collects
//! in the end belongs to the window under way, which the next sample closes: all windows are alike.
//!
//! The paper stops pre-copy when nothing is left to be sent, which is where a filter holds back everything. So does this, where
//! post-copy can follow and no static copy goes on; a strategy that cannot enter post-copy sends such a round whole, for there
//! waiting gains nothing.

use super::push::Pushing;
use super::static_copy::switch_setting;
use super::{CHUNK, NEVER, Source, SourceConfig, Step};
use crate::message::{AbortReason, Mode};
use crate::migrate::foresight::SAMPLE_EVERY;
use crate::order::filter::{HoldBack, hold_back};
use crate::order::push::Forecast;
use crate::predict::Predictor;
use crate::strategy::{Push, Strategy};
use crate::switch::{Decision, Reason, RoundEnd, Switcher, Verdict};
use crate::units::{Nanos, Pages};

/// What a filter leaves to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Left {
    Some,
    /// Everything that is dirty is held back.
    Nothing,
}

impl Source<'_> {
    /// Until when the guest is only observed; `None` if it is not, or not any more.
    pub fn observes_until(&self) -> Option<Nanos> {
        match self.step {
            Step::Learn { until } => Some(until),
            _ => None,
        }
    }

    /// After tracking has begun: the guest is observed if the strategy looks ahead.
    pub(super) fn after_start(&mut self, now: Nanos) -> Step {
        self.tracking_began = now;
        if self.foresight.is_none() && self.advisor.is_none() {
            return self.before_copy(now);
        }
        self.sample_due = now.saturating_add(SAMPLE_EVERY);
        Step::Learn {
            until: now.saturating_add(self.config.learning),
        }
    }

    /// Enough is known.
    pub(super) fn after_learning(&mut self, now: Nanos) -> Step {
        self.learned_for = now.saturating_sub(self.tracking_began);
        if self.foresight.is_none() {
            self.sample_due = NEVER;
        }
        self.take_advice();
        self.before_copy(now)
    }

    /// The advisor's strategy in place of the configured one.
    fn take_advice(&mut self) {
        let advice = self
            .advisor
            .as_mut()
            .and_then(|advisor| advisor.choose(&self.config.regions, self.learned_for));
        if let Some(strategy) = advice {
            self.go_on_with(strategy);
            self.pushing = Pushing::new(strategy.push);
        }
    }

    fn go_on_with(&mut self, strategy: Strategy) {
        self.config.strategy = strategy;
        self.switcher = Switcher::new(strategy.switch, switch_setting(&self.config));
    }

    /// Another strategy, where rounds show that it is better from here, decides about this round, too.
    pub(super) fn revised(&mut self, now: Nanos, end: &RoundEnd, verdict: Verdict) -> Verdict {
        let idle = now.saturating_sub(self.round_ended);
        let advice = self
            .advisor
            .as_mut()
            .filter(|_| verdict.decision == Decision::Continue)
            .and_then(|advisor| advisor.revise(end, idle));
        match advice {
            Some(strategy) => {
                self.go_on_with(strategy);
                self.switcher.on_round(end)
            }
            None => verdict,
        }
    }

    pub(super) fn sampled(&mut self, now: Nanos, words: &[u64]) {
        if !core::mem::take(&mut self.outstanding) {
            return;
        }
        if !self.sampling {
            return self.broken_law(now);
        }
        self.samples += 1;
        // However long sampling takes, at least half of the time is left for the rest.
        let half = Nanos(SAMPLE_EVERY.0 / 2);
        self.sample_due = self
            .sample_due
            .saturating_add(SAMPLE_EVERY)
            .max(now.saturating_add(half));
        if let Some(advisor) = &mut self.advisor {
            advisor.sample(words);
        }
        // Before the copy begins every page is to be sent anyway, but for those that are hinted.
        let learning = matches!(self.step, Step::Learn { .. });
        if learning && self.hints.as_mut().is_some_and(|hints| hints.sampled(words).is_err()) {
            return self.abort(AbortReason::Internal);
        }
        let Some(foresight) = &mut self.foresight else { return };
        let inside = foresight.learn(now, words) && (learning || foresight.waiting.union_words(0, words).is_ok());
        if !inside {
            self.abort(AbortReason::Internal);
        }
    }

    /// What waited is dirty like everything that was collected.
    pub(super) fn end_waiting(&mut self, words: &[u64]) {
        let Some(foresight) = &mut self.foresight else { return };
        // Made for the same pages.
        let joined = self.pending.union(&foresight.waiting);
        debug_assert!(joined.is_ok(), "both sets have the capacity of the VM");
        foresight.waiting.clear();
        foresight.collected(words);
    }

    /// The first round of a copy, or post-copy at once if the filter leaves nothing for it.
    pub(super) fn first_round(&mut self, now: Nanos) -> Step {
        match self.hold_for_filter(now) {
            Left::Some => Step::RoundStart,
            Left::Nothing => Step::Pause(Mode::PostCopy),
        }
    }

    /// Holds pages back for the round that follows one with this verdict.
    pub(super) fn filtered(&mut self, now: Nanos, verdict: Verdict) -> Verdict {
        if verdict.decision != Decision::Continue || self.hold_for_filter(now) == Left::Some {
            return verdict;
        }
        Verdict {
            decision: Decision::PostCopy,
            reason: Reason::NothingToSend {
                dirty: self.pending.len(),
            },
            ..verdict
        }
    }

    /// Takes what the filter holds back out of the pending set.
    fn hold_for_filter(&mut self, now: Nanos) -> Left {
        let beside_static = self.waits_for_static();
        let Some(foresight) = &mut self.foresight else {
            return Left::Some;
        };
        let Some(rule) = foresight.rule else { return Left::Some };
        let dirty = self.pending.len();
        let sent = match rule {
            HoldBack::Half => Pages(dirty.0 - dirty.0 / 2),
            HoldBack::Above(_) => dirty,
        };
        let horizon = expected_time(&self.switcher, &self.config, sent).max(self.config.min_round);
        foresight.predictor.aim(now, horizon);
        let held = hold_back(
            &self.pending,
            &foresight.predictor,
            rule,
            foresight.scratch,
            &mut foresight.waiting,
        );
        debug_assert!(held.is_ok(), "the storage was measured for all pages");
        let all_held = dirty > Pages::ZERO && foresight.waiting.len() == dirty;
        if all_held && !beside_static {
            foresight.waiting.clear();
            return if self.config.strategy.can_post_copy() {
                Left::Nothing
            } else {
                Left::Some
            };
        }
        self.pending.subtract(&foresight.waiting);
        Left::Some
    }

    /// Ranks what is missing, once, when the guest runs on the target.
    pub(super) fn rank_push(&mut self, now: Nanos) {
        let Some(foresight) = &mut self.foresight else { return };
        if self.config.strategy.push != Push::Forecast || foresight.ranking.is_empty() {
            return;
        }
        let horizon = expected_time(&self.switcher, &self.config, self.pending.len());
        foresight.predictor.aim(now, horizon);
        let ranking = core::mem::take(&mut foresight.ranking);
        let score = |gfn| foresight.predictor.score(gfn).0;
        self.pushing.rank(Forecast::new(&self.pending, score, ranking));
    }

    /// Most pages of one action of a round: where samples are taken, what takes some milliseconds.
    pub(super) fn chunk(&self) -> Pages {
        match self.foresight {
            Some(_) => self.config.push_pages.clamp(Pages(1), CHUNK),
            None => CHUNK,
        }
    }
}

/// How long so many pages will take; as long as the guest was observed where no round has told.
fn expected_time(switcher: &Switcher, config: &SourceConfig, pages: Pages) -> Nanos {
    switcher.time_to_send(pages).unwrap_or(config.learning)
}
