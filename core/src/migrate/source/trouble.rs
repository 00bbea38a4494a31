//! What a source does when something goes wrong.

use super::{RECONNECT_FIRST, Source, Step};
use crate::message::{AbortReason, Mode, Violation};
use crate::migrate::source_types::SourceOutcome;
use crate::units::Nanos;

impl Source<'_> {
    pub(super) fn link_lost(&mut self, now: Nanos, reason: AbortReason) {
        if matches!(self.step, Step::Finished(_)) {
            return;
        }
        self.link = false;
        if self.step == Step::RecordGivenUp && self.outstanding {
            // The record is being written: its outcome decides, not the link.
            return;
        }
        if !self.given_up {
            return self.abort(reason);
        }
        self.outstanding = false;
        self.last_chunk = None;
        match self.step {
            Step::Bye
            | Step::RecordMovedAway
            | Step::RecordRunning(_)
            | Step::ResumeGuest(_)
            | Step::StopTracking(_)
            | Step::TellAbort(_) => {}
            _ if self.heard.report.is_some() => self.step = Step::RecordMovedAway,
            _ if self.peer_running && self.mode == Some(Mode::PostCopy) && !self.config.strategy.reconnects() => {
                self.step = Step::Finished(SourceOutcome::Lost);
            }
            _ => {
                self.step = Step::Reconnect {
                    not_before: now.saturating_add(RECONNECT_FIRST),
                }
            }
        }
    }

    /// Before the hand-over the guest goes on here; afterwards the connection is not trusted any more.
    pub(super) fn violation(&mut self, now: Nanos, violation: Violation) {
        if self.given_up || (self.step == Step::RecordGivenUp && self.outstanding) {
            self.link_lost(now, AbortReason::Protocol(violation));
        } else {
            self.abort(AbortReason::Protocol(violation));
        }
    }

    pub(super) fn take_back(&mut self, reason: AbortReason) {
        self.handover_sent = false;
        self.welcomed = false;
        self.step = Step::RecordRunning(reason);
    }

    pub(super) fn abort(&mut self, reason: AbortReason) {
        let leaving = matches!(
            self.step,
            Step::ResumeGuest(_)
                | Step::StopTracking(_)
                | Step::TellAbort(_)
                | Step::RecordRunning(_)
                | Step::Finished(_)
        );
        if leaving || self.given_up {
            return;
        }
        if self.outstanding {
            // The host reports an outstanding pause or start of tracking after all: assume that it happened.
            self.paused |= matches!(self.step, Step::Pause(_));
            self.tracking |= self.step == Step::StartTracking;
            self.outstanding = false;
        }
        self.step = if self.step == Step::RecordGivenUp {
            Step::RecordRunning(reason)
        } else {
            Step::ResumeGuest(reason)
        };
    }

    pub(super) fn check_time(&mut self, now: Nanos) {
        let late = |since: Nanos| now >= since.saturating_add(self.config.handover_timeout);
        let silent = now >= self.silence_at();
        match self.step {
            Step::AwaitWelcome { since } | Step::AwaitReady { since } if late(since) => {
                self.abort(AbortReason::Silence)
            }
            Step::RoundPages | Step::AwaitRound | Step::RoundIdle { .. } if silent => self.abort(AbortReason::Silence),
            Step::AwaitRunning { since } | Step::AwaitResumed { since } if late(since) || silent => {
                self.link_lost(now, AbortReason::Silence);
            }
            Step::Push | Step::AwaitComplete | Step::AwaitMissing { .. } if silent => {
                self.link_lost(now, AbortReason::Silence);
            }
            _ => {}
        }
    }

    pub(super) fn silence_at(&self) -> Nanos {
        self.last_heard.saturating_add(self.config.network_timeout)
    }
}
