//! What the source's host does.

use super::*;

impl World {
    pub(super) fn source_step(&mut self) {
        let Some(source) = &mut self.source else { return };
        let action = source.poll(self.now);
        let before: &[Fault] = &[
            Fault::Cut,
            Fault::BlackHole,
            Fault::Cancel,
            Fault::CrashTarget,
            Fault::CrashSource,
        ];
        if !matches!(action, SourceAction::Wait { .. } | SourceAction::Finish(_)) {
            self.boundary(before);
            // The machine may have changed its mind; the action that was under way is carried out all the same.
            if self.source.is_none() {
                return;
            }
        }
        if matches!(action, SourceAction::Record(_)) && self.boundary(&[Fault::SourceRecordFails]) {
            return self.tell_source(SourceEvent::Failed);
        }
        self.perform_source(action);
        if matches!(
            action,
            SourceAction::Send(_) | SourceAction::Record(_) | SourceAction::SendHandOver(_)
        ) {
            self.boundary(before);
        }
    }

    pub(super) fn perform_source(&mut self, action: SourceAction) {
        match action {
            SourceAction::Wait { .. } => {}
            SourceAction::Finish(outcome) => {
                self.source_outcome = Some(outcome);
                // Its process closes the connection.
                self.target_link_lost();
            }
            SourceAction::Send(message) => {
                let message = match message {
                    SourceMessage::Hello => return self.connect(),
                    SourceMessage::RoundStart { round, pages } => Message::RoundStart { round, pages },
                    SourceMessage::RoundEnd { round } => Message::RoundEnd { round },
                    SourceMessage::Commit => {
                        assert_eq!(
                            self.source_record,
                            SourceRecord::GivenUp,
                            "{}: commit without record",
                            self.label
                        );
                        Message::Commit
                    }
                    SourceMessage::Abort(reason) => Message::Abort(reason),
                    SourceMessage::Resume { given_up } => return self.resume(given_up),
                    SourceMessage::Bye => Message::Bye,
                };
                self.send_to_target(&[message]);
            }
            SourceAction::OpenFaultChannel if self.link.up(self.now) => self.tell_source(SourceEvent::Done),
            SourceAction::OpenFaultChannel => self.tell_source(SourceEvent::LinkLost),
            SourceAction::StartTracking => {
                self.tracking = true;
                self.dirty.fill(false);
                self.tell_source(SourceEvent::Done);
            }
            SourceAction::StopTracking => {
                self.tracking = false;
                self.tell_source(SourceEvent::Done);
            }
            SourceAction::Harvest => {
                let mut words = [0u64; 4];
                for (page, dirty) in self.dirty.iter_mut().enumerate() {
                    words[page / 64] |= u64::from(core::mem::take(dirty)) << (page % 64);
                }
                self.tell_source(SourceEvent::Harvested(&words));
            }
            SourceAction::SendPages { run, .. } | SourceAction::PushPages(run) => self.send_pages(run),
            SourceAction::Pause => {
                assert_eq!(self.owner, Owner::Source, "{}: paused twice", self.label);
                self.owner = Owner::Nobody;
                self.tell_source(SourceEvent::Done);
            }
            SourceAction::SendHandOver(mode) => self.send_hand_over(mode),
            SourceAction::Record(record) => {
                self.source_record = record;
                self.tell_source(SourceEvent::Done);
            }
            SourceAction::SendHashes => {
                let bytes: Vec<u8> = (0..END)
                    .flat_map(|page| hash(self.source_memory[page as usize]).to_le_bytes())
                    .collect();
                let mut messages = Vec::new();
                for (first, pages) in REGIONS {
                    let at = first as usize * 8;
                    messages.push(Message::Hashes {
                        first: Gfn(first),
                        bytes: &bytes[at..at + pages as usize * 8],
                    });
                }
                messages.push(Message::HashesEnd);
                self.send_to_target(&messages);
            }
            SourceAction::ResumeGuest => {
                assert_eq!(
                    self.owner,
                    Owner::Nobody,
                    "{}: the source runs a VM that runs already",
                    self.label
                );
                self.owner = Owner::Source;
                self.tell_source(SourceEvent::Done);
            }
            SourceAction::Reconnect if self.link.reopen(self.now) => {
                self.target_link_lost();
                self.tell_source(SourceEvent::Done);
            }
            SourceAction::Reconnect => self.tell_source(SourceEvent::Failed),
        }
    }

    pub(super) fn tell_source(&mut self, event: SourceEvent<'_>) {
        if let Some(source) = &mut self.source {
            source.on(self.now, event);
        }
    }

    pub(super) fn tell_target(&mut self, event: TargetEvent<'_>) {
        if let Some(target) = &mut self.target {
            target.on(self.now, event);
        }
    }

    pub(super) fn connect(&mut self) {
        if !self.link.up(self.now) {
            return self.tell_source(SourceEvent::LinkLost);
        }
        let config = TargetConfig {
            session: SessionId(1),
            vm: VmId(1),
            regions: regions(),
            protocol: 1,
            verify: self.verify,
            network_timeout: Nanos::from_secs(3),
        };
        self.target = Some(Target::new(config, storage(), storage(), self.now).expect("storage fits"));
        self.tell_source(SourceEvent::Done);
    }

    /// What a target process does with a source that comes back.
    pub(super) fn resume(&mut self, given_up: bool) {
        if !self.link.up(self.now) {
            return self.tell_source(SourceEvent::LinkLost);
        }
        self.tell_source(SourceEvent::Done);
        if self.target.is_some() && self.target_outcome.is_none() {
            return self.tell_target(TargetEvent::Reconnected { given_up });
        }
        let standing = match (&self.target_outcome, self.target_record) {
            (Some(TargetOutcome::Completed { .. }), _) => TargetStanding::Complete,
            (_, Some(TargetRecord::Receiving | TargetRecord::NeverTaken)) => TargetStanding::NeverTaken,
            _ => TargetStanding::Unknown,
        };
        self.send_to_source(&[Message::Resumed(standing)]);
        if standing == TargetStanding::Complete {
            let report = TargetReport {
                verified: self.verified,
                ..TargetReport::default()
            };
            self.send_to_source(&[Message::Complete(report)]);
        }
    }

    pub(super) fn send_pages(&mut self, run: Run) {
        let values: Vec<u64> = (run.first.0..run.end().0)
            .map(|page| self.source_memory[page as usize])
            .collect();
        let zero = values.iter().filter(|value| **value == 0).count() as u64;
        if self.link.send_to_target(Frame::Pages {
            first: run.first.0,
            values,
            demanded: false,
        }) {
            self.tell_source(SourceEvent::PagesSent {
                data: Pages(run.count.0 - zero),
                zero: Pages(zero),
            });
        } else {
            self.tell_source(SourceEvent::LinkLost);
        }
    }

    pub(super) fn send_hand_over(&mut self, mode: Mode) {
        let source = self.source.as_ref().expect("it acts");
        let (final_dirty, words) = if mode == Mode::PostCopy {
            words_of(source.pending())
        } else {
            (Pages(0), Vec::new())
        };
        self.send_to_target(&[
            Message::FinalSet {
                first_word: 0,
                words: &words,
            },
            Message::State {
                offset: 0,
                bytes: STATE,
            },
            Message::HandOver {
                mode,
                state_bytes: STATE.len() as u32,
                final_dirty,
            },
        ]);
    }

    pub(super) fn send_to_target(&mut self, messages: &[Message<'_>]) {
        for message in messages {
            if !self.link.send_to_target(encode(message)) {
                return self.tell_source(SourceEvent::LinkLost);
            }
        }
        // The target may answer before this host comes to say that it has sent.
        for _ in 0..self.below(12) {
            self.deliver_to_target();
            self.target_step();
            self.deliver_to_source();
        }
        self.tell_source(SourceEvent::Done);
    }

    /// True if the link took them.
    pub(super) fn send_to_source(&mut self, messages: &[Message<'_>]) -> bool {
        messages.iter().all(|message| self.link.send_to_source(encode(message)))
    }
}
