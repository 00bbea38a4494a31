//! What a source makes of the target's messages.

use super::static_copy::AfterStatic;
use super::{Source, Step};
use crate::message::{
    AbortReason, Message, Mode, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, SIGNATURE_BYTES_MAX, TargetReport,
    TargetStanding, Violation,
};
use crate::migrate::regions::remove_outside;
use crate::migrate::source_types::SourceOutcome;
use crate::units::{Nanos, Pages};

impl Source<'_> {
    pub(super) fn message(&mut self, now: Nanos, message: &Message<'_>) {
        if !self.link && !matches!(message, Message::Abort(_)) {
            // Of a connection that is lost: whatever it says is asked again on the next. A promise stays one.
            return;
        }
        if self.outstanding && answers(message, self.step) {
            // It arrived, then, though the host has not said yet that it was sent.
            self.done(now);
        }
        match (message, self.step) {
            (Message::Welcome { protocol }, Step::AwaitWelcome { .. }) => self.welcome(now, *protocol),
            (Message::Refused(refusal), Step::AwaitWelcome { .. }) => {
                self.step = Step::Finished(SourceOutcome::Refused(*refusal));
            }
            // Only now is the round over: what still waited in sockets would distort its duration, and delay the hand-over.
            (Message::RoundReached { round }, Step::AwaitRound) if *round == self.round => {
                self.round_ended = now;
                self.step = Step::RoundIdle {
                    until: self.round_started.saturating_add(self.config.min_round),
                };
            }
            (Message::StaticMerged, step) if in_rounds(step) => self.static_merged(now),
            (Message::StaticFailed, step) if in_rounds(step) => self.static_failed_there(now),
            (Message::Ready, Step::AwaitReady { .. }) => self.step = Step::RecordGivenUp,
            (Message::Signed { signature }, _) if signature.len() <= SIGNATURE_BYTES_MAX => {}
            (Message::Abort(_), _) if self.peer_running => self.violation(now, Violation::UnexpectedMessage),
            (Message::Abort(reason), _) => self.aborted_there(*reason),
            (Message::Running, Step::AwaitRunning { .. }) => {
                self.running(now);
                self.step = self.after_running(now);
            }
            // Who says what it lacks does not lack nothing.
            (Message::Complete(report), step) if self.peer_running && !matches!(step, Step::AwaitMissing { .. }) => {
                self.complete(now, report);
            }
            (Message::Resumed(standing), Step::AwaitResumed { .. }) => self.resumed(now, *standing),
            (Message::Missing { first_word, words }, Step::AwaitMissing { found }) => {
                match self.missing(*first_word, words) {
                    Some(more) => {
                        self.step = Step::AwaitMissing {
                            found: found.saturating_add(more),
                        }
                    }
                    None => self.violation(now, Violation::BitmapChunk),
                }
            }
            (Message::MissingEnd { pages }, Step::AwaitMissing { found }) if *pages == found => {
                self.step = if remove_outside(&mut self.pending, &self.config.regions) == Pages::ZERO {
                    Step::ReopenFaultChannel { commit: false }
                } else {
                    return self.violation(now, Violation::PageOutside);
                };
            }
            _ => self.violation(now, Violation::UnexpectedMessage),
        }
    }

    fn welcome(&mut self, now: Nanos, protocol: u16) {
        if !(PROTOCOL_VERSION_MIN..=PROTOCOL_VERSION).contains(&protocol) {
            return self.violation(now, Violation::Version);
        }
        self.welcomed = true;
        self.step = if self.config.strategy.can_post_copy() {
            Step::OpenFaultChannel
        } else {
            self.first_step()
        };
    }

    /// A target that says so before it took the VM has promised never to run it.
    fn aborted_there(&mut self, reason: AbortReason) {
        let reason = match reason {
            AbortReason::Protocol(_) | AbortReason::TargetGuest | AbortReason::Record => reason,
            _ => AbortReason::Peer,
        };
        self.handover_sent = false;
        if self.given_up && !self.leaving() {
            self.take_back(reason);
        } else {
            self.abort(reason);
        }
    }

    fn complete(&mut self, now: Nanos, report: &TargetReport) {
        // What was on its way on a lost connection may have arrived after the target said what it lacked.
        if self.mode == Some(Mode::PostCopy) && !self.pending.is_empty() && !self.resumed {
            return self.violation(now, Violation::PagesMissing);
        }
        self.heard.report = Some(*report);
    }

    pub(super) fn running(&mut self, now: Nanos) {
        self.peer_running = true;
        self.running_heard.get_or_insert(now);
    }

    fn resumed(&mut self, now: Nanos, standing: TargetStanding) {
        match standing {
            TargetStanding::Ready if !self.peer_running => {
                // The fault channel went with the old connection.
                self.step = if self.mode == Some(Mode::PostCopy) {
                    Step::ReopenFaultChannel { commit: true }
                } else {
                    Step::Commit
                };
            }
            TargetStanding::Complete => {
                self.running(now);
                self.pending.clear();
                // The target starts its comparison anew with a new connection.
                self.hashes_sent = false;
                self.step = self.after_pages();
            }
            TargetStanding::PostCopy if self.mode == Some(Mode::PostCopy) => {
                self.running(now);
                self.pending.clear();
                // What it pushed around may be what was lost.
                self.pushing.start_again(self.config.strategy.push);
                self.resumed = true;
                self.hashes_sent = false;
                self.step = Step::AwaitMissing { found: Pages::ZERO };
            }
            TargetStanding::NeverTaken if !self.peer_running => self.take_back(AbortReason::TargetRestarted),
            // It knows nothing: perhaps another process listens there now. Only a person can tell.
            _ => self.link_lost(now, AbortReason::LinkLost),
        }
    }

    fn missing(&mut self, first_word: u64, words: &[u8]) -> Option<Pages> {
        let mut found = 0u64;
        let (chunks, rest) = words.as_chunks::<8>();
        if !rest.is_empty() {
            return None;
        }
        for (index, bytes) in chunks.iter().enumerate() {
            let word = u64::from_le_bytes(*bytes);
            let at = usize::try_from(first_word).ok()?.checked_add(index)?;
            found += self.pending.union_words(at, &[word]).ok()?.0;
        }
        Some(Pages(found))
    }
}

/// While the guest runs here and pages are copied.
const fn in_rounds(step: Step) -> bool {
    matches!(
        step,
        Step::StartStatic
            | Step::StopStatic(AfterStatic::Round)
            | Step::RoundStart
            | Step::RoundPages
            | Step::RoundEnd
            | Step::AwaitRound
            | Step::RoundIdle { .. }
            | Step::RoundHarvest
    )
}

/// Whether a message answers what this step sends.
fn answers(message: &Message<'_>, step: Step) -> bool {
    matches!(
        (message, step),
        (Message::Welcome { .. } | Message::Refused(_), Step::Hello)
            | (Message::StaticMerged | Message::StaticFailed, Step::StartStatic)
            | (Message::RoundReached { .. }, Step::RoundEnd)
            | (Message::Ready, Step::HandOver(_))
            | (Message::Running, Step::Commit)
            | (Message::Resumed(_), Step::SendResume)
    )
}
