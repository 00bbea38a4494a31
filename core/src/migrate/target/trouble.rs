//! What a target does when something goes wrong, and when its source comes back.

use super::{Answer, Outstanding, Step, TIMEOUTS_FOR_THE_END, Target};
use crate::message::{AbortReason, Violation};
use crate::units::{Gfn, Nanos};

impl Target<'_> {
    pub(super) fn action_failed(&mut self) {
        if self.outstanding == Outstanding::Nothing {
            return;
        }
        if self.outstanding != Outstanding::Step {
            // Without its answer the source is of no use on this connection.
            return self.link_lost(AbortReason::LinkLost);
        }
        match self.step {
            // What was said may have arrived all the same.
            Step::Welcome | Step::RoundReached | Step::Ready | Step::Running | Step::Complete => {
                self.link_lost(AbortReason::LinkLost)
            }
            // The VM is whole and runs here, whatever the record says; and what never ran, never ran.
            Step::FinishPostCopy
            | Step::RecordComplete
            | Step::RecordNeverTaken(_)
            | Step::Discard(_)
            | Step::Tell(_) => {
                self.done();
            }
            // Asked again: it may be all there is to wait for.
            Step::ReadPbData => {
                self.outstanding = Outstanding::Nothing;
                self.step = Step::AwaitInstalled;
            }
            Step::Compare => {
                self.outstanding = Outstanding::Nothing;
                self.step = Step::RecordComplete;
            }
            // Nobody is there to take the VM back: perhaps this is the last copy. It can be told to run it again.
            Step::RecordTaken | Step::Run if !self.link => {
                self.outstanding = Outstanding::Nothing;
                self.step = Step::AwaitCommit;
            }
            Step::RecordReceiving | Step::RecordTaken => self.fail(AbortReason::Record),
            _ => self.fail(AbortReason::TargetGuest),
        }
    }

    /// The source is back on a new connection.
    pub(super) fn reconnected(&mut self, now: Nanos, given_up: bool) {
        if self.link {
            // Nobody noticed the end of the old one.
            self.link_lost(AbortReason::LinkLost);
        }
        if matches!(self.step, Step::Finished(_)) {
            return;
        }
        self.last_heard = now;
        if !given_up {
            // The source runs the VM itself. Of a VM that runs here that cannot be true: it is not the source of this session.
            let starting = self.step == Step::Run && self.outstanding == Outstanding::Step;
            if !self.running && !starting {
                self.fail(AbortReason::Peer);
            }
            return;
        }
        self.link = true;
        if !self.committed() && self.step != Step::AwaitCommit {
            // This side cannot have been ready. What became of it is told when it is on record.
            return self.fail(AbortReason::Peer);
        }
        self.answer = Answer::Standing;
        (self.hashed_to, self.hashes_ended) = (Gfn::ZERO, false);
        match self.step {
            // The answer says so.
            Step::Running => self.step = self.after_running(),
            // The host forgets the hashes it has; all of them come again.
            Step::Compare => {
                self.outstanding = Outstanding::Nothing;
                self.step = Step::AwaitHashes;
            }
            _ => {}
        }
    }

    /// What the source wrote down is as good as what it says: it gave the VM up, or runs it itself.
    pub(super) fn source_state(&mut self, given_up: bool) {
        if self.link || self.step != Step::AwaitCommit {
            return;
        }
        // A VM that lacks pages runs only where they will come from.
        let can_run = self.missing.is_empty() || self.config.pb_data;
        if given_up && can_run {
            self.step = Step::RecordTaken;
        } else if !given_up {
            self.fail(AbortReason::Peer);
        }
    }

    /// As good as [`Message::Bye`](crate::message::Message::Bye), if this side has said that it is complete.
    pub(super) fn source_ended(&mut self) {
        if !self.link && matches!(self.step, Step::Complete | Step::AwaitBye) {
            self.outstanding = Outstanding::Nothing;
            self.step = self.completed();
        }
    }

    pub(super) fn link_lost(&mut self, reason: AbortReason) {
        self.link = false;
        self.answer = Answer::Nothing;
        if matches!(
            self.outstanding,
            Outstanding::Standing(_) | Outstanding::Missing | Outstanding::Static
        ) {
            self.outstanding = Outstanding::Nothing;
        }
        match self.step {
            // Their outcome is known to the host alone.
            Step::RecordTaken
            | Step::Run
            | Step::RecordComplete
            | Step::ReadPbData
            | Step::FinishPostCopy
            | Step::Compare => {}
            Step::RecordNeverTaken(_) | Step::Discard(_) => {}
            Step::AwaitCommit | Step::AwaitInstalled | Step::AwaitHashes | Step::Finished(_) => {}
            // It may have arrived: the source may commit.
            Step::Ready if self.outstanding == Outstanding::Step => {
                self.outstanding = Outstanding::Nothing;
                self.ready_sent = true;
                self.step = Step::AwaitCommit;
            }
            Step::Running | Step::Complete | Step::Tell(_) => self.outstanding = Outstanding::Nothing,
            // Nobody knows whether the source heard that the VM is whole: it may come back to ask.
            Step::AwaitBye => self.step = Step::Complete,
            _ => self.fail(reason),
        }
    }

    pub(super) fn violation(&mut self, violation: Violation) {
        self.trouble(AbortReason::Protocol(violation));
    }

    /// Before the source can have heard that this side is ready the attempt ends; afterwards a new connection may mend it.
    pub(super) fn trouble(&mut self, reason: AbortReason) {
        let may_be_ready = self.ready_sent || (self.step == Step::Ready && self.outstanding == Outstanding::Step);
        if self.running || may_be_ready {
            self.link_lost(reason);
        } else {
            self.fail(reason);
        }
    }

    /// Before the VM was taken: drop everything, record that, and say so. Order matters: the source may run the VM as soon as it hears.
    pub(super) fn fail(&mut self, reason: AbortReason) {
        let leaving = matches!(
            self.step,
            Step::RecordNeverTaken(_) | Step::Tell(_) | Step::Discard(_) | Step::Finished(_)
        );
        if !leaving {
            self.answer = Answer::Nothing;
            self.outstanding = Outstanding::Nothing;
            self.step = Step::Discard(reason);
        }
    }

    pub(super) fn check_time(&mut self, now: Nanos) {
        if self.patience().is_none_or(|until| now < until) {
            return;
        }
        if self.link {
            self.link_lost(AbortReason::Silence);
        } else if self.step == Step::AwaitHashes {
            self.step = Step::RecordComplete;
        } else {
            self.step = self.completed();
        }
    }

    /// Until when to wait for the source: while the link is believed in, for any sign of life; afterwards, with nothing missing, for
    /// its return.
    pub(super) fn patience(&self) -> Option<Nanos> {
        let timeouts = match self.step {
            Step::AwaitPages | Step::AwaitCommit | Step::AwaitInstalled | Step::AwaitHashes | Step::AwaitBye
                if self.link =>
            {
                1
            }
            Step::AwaitHashes | Step::Complete if !self.link => TIMEOUTS_FOR_THE_END,
            _ => return None,
        };
        let patience = Nanos(self.config.network_timeout.0.saturating_mul(timeouts));
        Some(self.last_heard.saturating_add(patience))
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;
    use crate::message::{Message, Mode, Region, SessionId, TargetStanding, VmId};
    use crate::migrate::{TargetAction, TargetConfig, TargetEvent, TargetMessage, TargetOutcome, TargetRecord};
    use crate::pageset::{Run, words_needed};
    use crate::units::{Gfn, Pages};

    const NOW: Nanos = Nanos(1);
    const TIMEOUT: Nanos = Nanos::from_secs(3);

    /// A target that has just said that the VM is whole, and waits for the last word.
    fn complete() -> Target<'static> {
        let region = Region {
            first: Gfn(0),
            pages: Pages(4),
        };
        let config = TargetConfig {
            session: SessionId(1),
            vm: VmId(1),
            regions: [region].into_iter().collect(),
            protocol: 1,
            verify: false,
            pb_data: false,
            static_copy: false,
            split: false,
            network_timeout: TIMEOUT,
        };
        let words = || vec![0; words_needed(Pages(4))].leak();
        let mut target = Target::new(config, words(), words(), NOW).expect("storage fits");
        let mode = Mode::StopCopy;
        for _ in 0..3 {
            done(&mut target);
        }
        target.on(NOW, TargetEvent::Received(Run::new(Gfn(0), Pages(4))));
        hear(
            &mut target,
            &Message::HandOver {
                mode,
                state_bytes: 0,
                final_dirty: Pages::ZERO,
            },
        );
        assert_eq!(done(&mut target), TargetAction::RestoreState);
        assert_eq!(done(&mut target), TargetAction::Send(TargetMessage::Ready));
        hear(&mut target, &Message::Commit);
        for action in [
            TargetAction::Record(TargetRecord::Taken),
            TargetAction::RunGuest,
            TargetAction::Send(TargetMessage::Running),
            TargetAction::Record(TargetRecord::Complete),
            TargetAction::Send(TargetMessage::Complete { verified: None }),
        ] {
            assert_eq!(done(&mut target), action);
        }
        target
    }

    fn done(target: &mut Target<'_>) -> TargetAction {
        let action = target.poll(NOW);
        target.on(NOW, TargetEvent::Done);
        action
    }

    fn hear(target: &mut Target<'_>, message: &Message<'_>) {
        target.on(NOW, TargetEvent::Message(message));
    }

    const COMPLETED: TargetAction = TargetAction::Finish(TargetOutcome::Completed { mode: Mode::StopCopy });

    #[test]
    fn a_source_that_did_not_hear_the_last_word_is_told_again() {
        let mut target = complete();
        target.on(NOW, TargetEvent::LinkLost);
        assert!(matches!(target.poll(NOW), TargetAction::Wait { until: Some(_) }));
        target.on(NOW, TargetEvent::Reconnected { given_up: true });
        let standing = TargetMessage::Resumed(TargetStanding::Complete);
        assert_eq!(done(&mut target), TargetAction::Send(standing));
        let complete = TargetMessage::Complete { verified: None };
        assert_eq!(done(&mut target), TargetAction::Send(complete));
        hear(&mut target, &Message::Bye);
        assert_eq!(target.poll(NOW), COMPLETED);
    }

    #[test]
    fn a_source_that_has_read_the_last_word_is_not_waited_for() {
        let mut target = complete();
        target.on(NOW, TargetEvent::SourceEnded);
        assert!(
            matches!(target.poll(NOW), TargetAction::Wait { .. }),
            "there is a link, on which it says so"
        );
        target.on(NOW, TargetEvent::LinkLost);
        target.on(NOW, TargetEvent::SourceEnded);
        assert_eq!(target.poll(NOW), COMPLETED);
    }

    #[test]
    fn a_source_that_is_gone_is_not_waited_for_for_ever() {
        let mut target = complete();
        target.on(NOW, TargetEvent::LinkLost);
        let patience = Nanos(TIMEOUT.0 * TIMEOUTS_FOR_THE_END);
        let until = NOW.saturating_add(patience);
        assert_eq!(target.poll(NOW), TargetAction::Wait { until: Some(until) });
        assert_eq!(target.poll(until), COMPLETED);
    }
}
