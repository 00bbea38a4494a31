//! What the target's host does.

use super::*;

/// What became of an action.
pub(super) enum TargetReply {
    Done,
    Failed,
    LinkLost,
    Compared { pages: u64, mismatches: u64 },
}

impl World {
    pub(super) fn target_step(&mut self) -> bool {
        let now = self.now;
        match self.target_doing.take() {
            Some(Doing::Wanted(action)) => {
                let reply = self.perform_target(action);
                // A crash on the way leaves nobody to report to.
                if self.target.is_some() {
                    self.target_doing = Some(Doing::Done(reply));
                    self.boundary();
                }
            }
            Some(Doing::Done(reply)) => self.report_target(reply),
            None => {
                let Some(target) = &mut self.target else { return false };
                match target.poll(now) {
                    TargetAction::Wait { .. } => {
                        let hangs_up = !target.linked() && self.link.migration_of_target().works();
                        if hangs_up {
                            self.link.migration_of_target().target_closes();
                        }
                        return hangs_up;
                    }
                    TargetAction::Finish(outcome) => return self.end_target(outcome),
                    action => {
                        self.trace("target is to", &action);
                        self.target_doing = Some(Doing::Wanted(action));
                        self.boundary();
                    }
                }
            }
        }
        true
    }

    fn end_target(&mut self, outcome: TargetOutcome) -> bool {
        if self.target_outcome.is_some() {
            return false;
        }
        self.trace("target ends", &outcome);
        self.target_outcome = Some(outcome);
        if core::mem::take(&mut self.next_hello) {
            self.begin_target();
        } else {
            self.link.target_closes();
        }
        true
    }

    fn report_target(&mut self, reply: TargetReply) {
        let linked = self.target.as_ref().is_some_and(Target::linked);
        self.target_failed_linked |= linked && matches!(reply, TargetReply::Failed);
        self.tell_target(match reply {
            TargetReply::Done => TargetEvent::Done,
            TargetReply::Failed => TargetEvent::Failed,
            TargetReply::LinkLost => TargetEvent::LinkLost,
            TargetReply::Compared { pages, mismatches } => TargetEvent::Compared { pages, mismatches },
        });
    }

    pub(super) fn tell_target(&mut self, event: TargetEvent<'_>) {
        self.trace("target hears", &event);
        if let Some(target) = &mut self.target
            && self.target_outcome.is_none()
        {
            target.on(self.now, event);
        }
    }

    fn perform_target(&mut self, action: TargetAction) -> TargetReply {
        if let TargetAction::Record(record) = action {
            return self.write_target_record(record);
        }
        if !self.strikes(Fault::TargetActionFails) {
            return self.carry_out_target(action);
        }
        // A guest that could not be started has not run; everything else may have happened in spite of the failure.
        if self.below(2) == 0 && action != TargetAction::RunGuest {
            self.carry_out_target(action);
        }
        TargetReply::Failed
    }

    fn write_target_record(&mut self, record: TargetRecord) -> TargetReply {
        if self.strikes(Fault::SlowTargetDisk) {
            self.now = self.now.saturating_add(Nanos::from_secs(5));
        }
        let full = self.strikes(Fault::TargetDiskFull) || self.faults.happened(Fault::TargetDiskFull);
        if !full || self.below(2) == 0 {
            self.target_record = Some(record);
        }
        if full { TargetReply::Failed } else { TargetReply::Done }
    }

    fn carry_out_target(&mut self, action: TargetAction) -> TargetReply {
        match action {
            TargetAction::CreateGuest => {
                self.start_reading();
                self.target_memory.fill(Some(0));
                self.installed_hash.fill(hash(0));
                self.wanted_hash.fill(0);
            }
            TargetAction::Send(message) => return self.send_as_target(message),
            TargetAction::PrepareMissing => {
                self.stop_reading();
                let target = self.target.as_ref().expect("it acts");
                for run in target.missing().runs() {
                    for page in run.first.0..run.end().0 {
                        self.target_memory[page as usize] = None;
                    }
                }
            }
            TargetAction::ReadPbData => self.start_reading_pb_data(),
            TargetAction::RestoreState => self.stop_reading(),
            TargetAction::RunGuest => {
                assert_eq!(
                    self.owner,
                    Owner::Nobody,
                    "{self}: the target runs a VM that runs already"
                );
                let taken = self.target_record == Some(TargetRecord::Taken);
                assert!(taken, "{self}: ran without record");
                self.check_target_memory();
                self.owner = Owner::Target;
            }
            TargetAction::SendMissing => {
                let (pages, words) = words_of(self.target.as_ref().expect("it acts").missing());
                let half = words.len() / 16 * 8;
                return self.send_to_source(&[
                    Message::Missing {
                        first_word: 0,
                        words: &words[..half],
                    },
                    Message::Missing {
                        first_word: half as u64 / 8,
                        words: &words[half..],
                    },
                    Message::MissingEnd { pages },
                ]);
            }
            TargetAction::FinishPostCopy => {
                let complete = self.target_memory.iter().all(Option::is_some);
                assert!(complete, "{self}: post-copy ended with pages missing");
            }
            TargetAction::CompareHashes => return self.compare(),
            TargetAction::Discard => {
                assert_ne!(self.owner, Owner::Target, "{self}: dropped a running VM");
                self.check_last_copy();
                self.stop_reading();
                self.target_memory.fill(Some(0));
            }
            TargetAction::Record(_) | TargetAction::Wait { .. } | TargetAction::Finish(_) => {
                unreachable!("{self}: {action:?} is handled before")
            }
        }
        TargetReply::Done
    }

    /// A side that cannot take the VM gives it back, as long as it believes that somebody is there; otherwise it is the last to have it.
    fn check_last_copy(&self) {
        let target = self.target.as_ref().expect("it acts");
        let whole = target.mode().is_some() && target.missing().is_empty();
        let gave_up = self.source_record == SourceRecord::GivenUp && !self.faults.happened(Fault::SourceDiskFull);
        let last = self.source_dead && gave_up && whole && !self.target_failed_linked;
        assert!(!last, "{self}: the last copy is dropped");
    }

    fn compare(&self) -> TargetReply {
        let ram: Vec<usize> = (0..self.end())
            .filter(|page| self.is_ram(*page))
            .map(|page| page as usize)
            .collect();
        let differs = |page: &&usize| self.installed_hash[**page] != self.wanted_hash[**page];
        TargetReply::Compared {
            pages: ram.len() as u64,
            mismatches: ram.iter().filter(differs).count() as u64,
        }
    }

    fn send_as_target(&mut self, message: TargetMessage) -> TargetReply {
        if let TargetMessage::Complete { verified } = message {
            self.report.verified = verified;
        }
        if message == TargetMessage::StaticMerged {
            self.told_merged();
        }
        let message = message.message(&self.report);
        self.send_to_source(&[message])
    }

    fn send_to_source(&mut self, messages: &[Message<'_>]) -> TargetReply {
        for (index, message) in messages.iter().enumerate() {
            if index > 0 {
                self.boundary();
            }
            if !self.link.migration_of_target().send_to_source(encode(message)) {
                return TargetReply::LinkLost;
            }
        }
        TargetReply::Done
    }
}
