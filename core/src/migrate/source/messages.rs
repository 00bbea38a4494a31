//! What a source makes of the target's messages.

use super::{Source, Step};
use crate::message::{AbortReason, Message, Mode, TargetStanding, Violation};
use crate::migrate::source_types::SourceOutcome;
use crate::units::{Nanos, Pages};

impl Source<'_> {
    pub(super) fn message(&mut self, now: Nanos, message: &Message<'_>) {
        // The answer may be faster than the host's word that the question has left.
        let asked = matches!(
            self.step,
            Step::Hello | Step::RoundEnd | Step::HandOver(_) | Step::Commit | Step::SendResume
        );
        if asked {
            self.done(now);
        }
        match (message, self.step) {
            (Message::Welcome { .. }, Step::AwaitWelcome { .. }) => {
                self.welcomed = true;
                self.step = if self.config.strategy.can_post_copy() {
                    Step::OpenFaultChannel
                } else {
                    self.first_step()
                };
            }
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
            (Message::Ready, Step::AwaitReady { .. }) => self.step = Step::RecordGivenUp,
            // A target that says Abort before it took the VM has promised never to run it.
            (Message::Abort(_), _) if self.peer_running => self.violation(now, Violation::UnexpectedMessage),
            (Message::Abort(_), _) if self.given_up => self.take_back(AbortReason::Peer),
            (Message::Abort(reason), _) => {
                let reason = match reason {
                    AbortReason::Protocol(violation) => AbortReason::Protocol(*violation),
                    AbortReason::TargetGuest | AbortReason::Record => *reason,
                    _ => AbortReason::Peer,
                };
                self.handover_sent = false;
                self.abort(reason);
            }
            (Message::Running, Step::AwaitRunning { .. }) => {
                self.running(now);
                self.step = self.after_running();
            }
            (Message::Complete(report), _) if self.peer_running => {
                self.heard.report = Some(*report);
                if self.mode == Some(Mode::PostCopy) && !self.pending.is_empty() {
                    self.violation(now, Violation::PagesMissing);
                }
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
                self.step = Step::ReopenFaultChannel;
            }
            _ => self.violation(now, Violation::UnexpectedMessage),
        }
    }

    pub(super) fn running(&mut self, now: Nanos) {
        self.peer_running = true;
        self.running_heard.get_or_insert(now);
    }

    pub(super) fn resumed(&mut self, now: Nanos, standing: TargetStanding) {
        match standing {
            TargetStanding::Ready if !self.peer_running => self.step = Step::Commit,
            TargetStanding::Complete => {
                self.running(now);
                self.pending.clear();
                // The target starts its comparison anew with a new connection.
                self.hashes_sent = false;
                self.final_pages = Pages::ZERO;
                self.step = if self.config.verify {
                    Step::Hashes
                } else {
                    Step::AwaitComplete
                };
            }
            TargetStanding::PostCopy if self.mode == Some(Mode::PostCopy) => {
                self.running(now);
                self.pending.clear();
                self.hashes_sent = false;
                self.step = Step::AwaitMissing { found: Pages::ZERO };
            }
            TargetStanding::NeverTaken if !self.peer_running => self.take_back(AbortReason::TargetRestarted),
            // It knows nothing: perhaps another process listens there now. Only a person can tell.
            _ => self.link_lost(now, AbortReason::LinkLost),
        }
    }

    pub(super) fn missing(&mut self, first_word: u64, words: &[u8]) -> Option<Pages> {
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
