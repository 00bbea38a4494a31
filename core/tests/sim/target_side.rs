//! What the target's host does.

use super::*;

impl World {
    pub(super) fn target_step(&mut self) {
        let Some(target) = &mut self.target else { return };
        let action = target.poll(self.now);
        if let TargetAction::Wait { .. } = action {
            return;
        }
        self.boundary(&[
            Fault::Cut,
            Fault::BlackHole,
            Fault::Cancel,
            Fault::CrashTarget,
            Fault::CrashSource,
        ]);
        if self.target.is_none() {
            return;
        }
        if matches!(action, TargetAction::Record(_)) && self.boundary(&[Fault::TargetRecordFails]) {
            return self.tell_target(TargetEvent::Failed);
        }
        let can_fail = matches!(
            action,
            TargetAction::CreateGuest | TargetAction::PrepareMissing | TargetAction::RestoreState
        );
        if can_fail && self.boundary(&[Fault::TargetActionFails]) {
            return self.tell_target(TargetEvent::Failed);
        }
        self.perform_target(action);
    }

    pub(super) fn perform_target(&mut self, action: TargetAction) {
        match action {
            TargetAction::Wait { .. } => {}
            TargetAction::Finish(outcome) => self.target_outcome = Some(outcome),
            TargetAction::CreateGuest => {
                self.target_memory = vec![Some(0); END as usize];
                self.installed_hash = vec![hash(0); END as usize];
                self.tell_target(TargetEvent::Done);
            }
            TargetAction::Record(record) => {
                self.target_record = Some(record);
                self.tell_target(TargetEvent::Done);
            }
            TargetAction::Send(message) => {
                let message = match message {
                    TargetMessage::Welcome { protocol } => Message::Welcome { protocol },
                    TargetMessage::RoundReached { round } => Message::RoundReached { round },
                    TargetMessage::Ready => Message::Ready,
                    TargetMessage::Running => Message::Running,
                    TargetMessage::Abort(reason) => Message::Abort(reason),
                    TargetMessage::Resumed(standing) => Message::Resumed(standing),
                    TargetMessage::Complete { verified } => {
                        self.verified = verified;
                        Message::Complete(TargetReport {
                            verified,
                            ..TargetReport::default()
                        })
                    }
                };
                let event = if self.send_to_source(&[message]) {
                    TargetEvent::Done
                } else {
                    TargetEvent::LinkLost
                };
                self.tell_target(event);
            }
            TargetAction::PrepareMissing => {
                let target = self.target.as_ref().expect("it acts");
                for run in target.missing().runs() {
                    for page in run.first.0..run.end().0 {
                        self.target_memory[page as usize] = None;
                    }
                }
                self.tell_target(TargetEvent::Done);
            }
            TargetAction::RestoreState => self.tell_target(TargetEvent::Done),
            TargetAction::RunGuest => {
                assert_eq!(
                    self.owner,
                    Owner::Nobody,
                    "{}: the target runs a VM that runs already",
                    self.label
                );
                assert_eq!(
                    self.target_record,
                    Some(TargetRecord::Taken),
                    "{}: ran without record",
                    self.label
                );
                self.owner = Owner::Target;
                self.target_ran = true;
                self.tell_target(TargetEvent::Done);
            }
            TargetAction::SendMissing => {
                let (pages, words) = words_of(self.target.as_ref().expect("it acts").missing());
                self.asked.clear();
                let sent = self.send_to_source(&[
                    Message::Missing {
                        first_word: 0,
                        words: &words,
                    },
                    Message::MissingEnd { pages },
                ]);
                self.tell_target(if sent { TargetEvent::Done } else { TargetEvent::LinkLost });
            }
            TargetAction::FinishPostCopy => self.tell_target(TargetEvent::Done),
            TargetAction::CompareHashes => {
                let ram = (0..END).filter(|page| is_ram(*page));
                let mismatches = ram
                    .clone()
                    .filter(|page| self.installed_hash[*page as usize] != self.received_hash[*page as usize]);
                let mismatches = mismatches.count() as u64;
                self.tell_target(TargetEvent::Compared {
                    pages: ram.count() as u64,
                    mismatches,
                });
            }
            TargetAction::Discard => {
                assert_ne!(self.owner, Owner::Target, "{}: dropped a running VM", self.label);
                self.target_memory = vec![Some(0); END as usize];
                self.tell_target(TargetEvent::Done);
            }
        }
    }
}
