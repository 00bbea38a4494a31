//! What a source does when something goes wrong.

use super::static_copy::AfterStatic;
use super::{RECONNECT_EVERY, RECONNECT_FIRST, Source, Step};
use crate::message::{AbortReason, Mode, Violation};
use crate::migrate::source_types::SourceOutcome;
use crate::strategy::Cut;
use crate::units::Nanos;

impl Source<'_> {
    pub(super) fn link_lost(&mut self, now: Nanos, reason: AbortReason) {
        self.link = false;
        match self.step {
            // The record is being written: its outcome decides, not the link.
            Step::RecordGivenUp if self.outstanding => return,
            // It cannot be said any more.
            Step::TellAbort(_) => self.outstanding = false,
            // Of the connection before.
            Step::Reconnect { .. } if !self.outstanding => return,
            Step::AwaitStorage => return,
            // What became of it tells how to go on.
            Step::StartPbData if self.outstanding => return,
            _ => {}
        }
        if !self.given_up {
            return self.abort(reason);
        }
        let pause = if self.seeks_target() {
            RECONNECT_EVERY
        } else {
            RECONNECT_FIRST
        };
        match self.step {
            Step::RecordMovedAway | Step::RecordRunning(_) => return,
            Step::Bye => {}
            _ if self.heard.report.is_some() => self.step = Step::RecordMovedAway,
            _ if self.peer_running && self.mode == Some(Mode::PostCopy) && self.config.strategy.cut == Cut::Fail => {
                self.step = Step::Finished(SourceOutcome::Lost);
            }
            _ => self.step = self.seek(now.saturating_add(pause)),
        }
        self.forget_outstanding();
    }

    /// What is reported of the action under way no longer matters.
    pub(super) fn forget_outstanding(&mut self) {
        self.outstanding = false;
        self.last_chunk = None;
    }

    /// Before the hand-over the guest goes on here; afterwards the connection is not trusted any more.
    pub(super) fn violation(&mut self, now: Nanos, violation: Violation) {
        if !self.link {
            // It came on a connection that is lost anyway.
            return;
        }
        if self.given_up || (self.step == Step::RecordGivenUp && self.outstanding) {
            self.link_lost(now, AbortReason::Protocol(violation));
        } else {
            self.abort(AbortReason::Protocol(violation));
        }
    }

    /// The target will never run the VM in this session: it runs here again.
    pub(super) fn take_back(&mut self, reason: AbortReason) {
        self.forget_outstanding();
        self.handover_sent = false;
        self.welcomed = false;
        self.step = Step::RecordRunning(reason);
    }

    /// An action that failed, or whose outcome nobody waits for, may have had its effect all the same.
    pub(super) fn may_have_happened(&mut self, step: Step) {
        self.paused |= matches!(step, Step::Pause(_));
        self.tracking |= step == Step::StartTracking;
        self.static_begun |= step == Step::StartStatic;
    }

    pub(super) fn abort(&mut self, reason: AbortReason) {
        if self.leaving() || self.given_up {
            return;
        }
        if self.outstanding {
            self.may_have_happened(self.step);
            self.forget_outstanding();
        }
        self.step = if self.step == Step::RecordGivenUp {
            Step::RecordRunning(reason)
        } else {
            Step::ResumeGuest(reason)
        };
    }

    /// The end of an attempt whose guest stays here. What was sent last need not have arrived: a target that might have become
    /// ready is told once more, on a new connection.
    pub(super) fn aborted(&self, reason: AbortReason) -> Step {
        Step::Finished(SourceOutcome::Aborted {
            reason,
            target_may_hold: self.handover_sent && self.welcomed && reason != AbortReason::TargetRestarted,
        })
    }

    /// On the way out, with the guest on this side.
    pub(super) fn leaving(&self) -> bool {
        matches!(
            self.step,
            Step::ResumeGuest(_)
                | Step::StopTracking(_)
                | Step::StopStatic(AfterStatic::Leave(_))
                | Step::TellAbort(_)
                | Step::RecordRunning(_)
                | Step::Finished(_)
        )
    }

    /// Given up, and the target has not answered on a new connection yet.
    pub(super) fn seeks_target(&self) -> bool {
        matches!(
            self.step,
            Step::Reconnect { .. } | Step::AwaitStorage | Step::SendResume | Step::AwaitResumed { .. }
        ) || (self.step == Step::StartPbData && !self.link)
    }

    pub(super) fn check_time(&mut self, now: Nanos) {
        self.check_static(now);
        let late = |since: Nanos| now >= since.saturating_add(self.config.handover_timeout);
        let silent = now >= self.silence_at();
        match self.step {
            Step::AwaitWelcome { since } | Step::AwaitReady { since } if late(since) => {
                self.abort(AbortReason::Silence)
            }
            Step::Learn { .. }
            | Step::AwaitHints { .. }
            | Step::RoundPages
            | Step::AwaitRound
            | Step::RoundIdle { .. }
                if silent =>
            {
                self.abort(AbortReason::Silence);
            }
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
