//! What the source's host does.

use super::*;

/// What became of an action.
pub(super) enum SourceReport {
    Done,
    Failed,
    LinkLost,
    Harvested(Vec<u64>),
    Sampled(Vec<u64>),
    Sent { data: Pages, zero: Pages },
}

impl World {
    pub(super) fn source_step(&mut self) -> bool {
        let now = self.now;
        match self.source_doing.take() {
            Some(Doing::Wanted(action)) => {
                let report = self.perform_source(action);
                self.source_doing = Some(Doing::Done(report));
                self.boundary();
            }
            Some(Doing::Done(report)) => self.report_source(report),
            None => {
                let Some(source) = &mut self.source else { return false };
                self.held_back |= source.held_back() > Pages::ZERO;
                if source.phase() == Phase::PostCopy {
                    // The link is busy, now and then; as it happens, since it decides nothing else.
                    let busy = Nanos(self.steps % 4 * 100_000);
                    source.on(now, SourceEvent::RoomAt(now.saturating_add(busy)));
                }
                match source.poll(now) {
                    SourceAction::Wait { .. } => {
                        // Where it does not connect anew, which closes them, too.
                        let lost = !source.linked();
                        let hangs_up = lost && self.has_pb_data() && self.link.migration.works();
                        if hangs_up {
                            self.link.source_closes();
                        }
                        return hangs_up;
                    }
                    SourceAction::Finish(outcome) => {
                        if self.source_outcome.is_some() {
                            return false;
                        }
                        self.trace("source ends", &outcome);
                        self.source_outcome = Some(outcome);
                        // Its process closes the connections.
                        self.link.source_closes();
                    }
                    action => {
                        self.trace("source is to", &action);
                        self.source_doing = Some(Doing::Wanted(action));
                        self.boundary();
                    }
                }
            }
        }
        true
    }

    fn report_source(&mut self, report: SourceReport) {
        match report {
            SourceReport::Done => self.tell_source(SourceEvent::Done),
            SourceReport::Failed => self.tell_source(SourceEvent::Failed),
            SourceReport::LinkLost => self.tell_source(SourceEvent::LinkLost),
            SourceReport::Harvested(words) => self.tell_source(SourceEvent::Harvested(&words)),
            SourceReport::Sampled(words) => self.tell_source(SourceEvent::Sampled(&words)),
            SourceReport::Sent { data, zero } => self.tell_source(SourceEvent::PagesSent { data, zero }),
        }
    }

    fn perform_source(&mut self, action: SourceAction) -> SourceReport {
        if let SourceAction::Record(record) = action {
            return self.write_source_record(record);
        }
        if !self.strikes(Fault::SourceActionFails) {
            return self.carry_out_source(action);
        }
        // A guest that cannot go on cannot be helped; everything else may have happened in spite of the failure.
        self.source_guest_broken |= action == SourceAction::ResumeGuest;
        self.tracking_stuck |= action == SourceAction::StopTracking;
        if action == SourceAction::StopStatic {
            self.give_up_static();
        }
        if self.below(2) == 0 && action != SourceAction::ResumeGuest {
            self.carry_out_source(action);
        }
        SourceReport::Failed
    }

    fn write_source_record(&mut self, record: SourceRecord) -> SourceReport {
        if self.strikes(Fault::SlowSourceDisk) {
            self.now = self.now.saturating_add(Nanos::from_secs(5));
        }
        let full = self.strikes(Fault::SourceDiskFull) || self.faults.happened(Fault::SourceDiskFull);
        if !full || self.below(2) == 0 {
            self.source_record = record;
        }
        if full { SourceReport::Failed } else { SourceReport::Done }
    }

    fn carry_out_source(&mut self, action: SourceAction) -> SourceReport {
        match action {
            SourceAction::Send(message) => return self.send_as_source(message),
            SourceAction::OpenFaultChannel if self.link.open_fault(self.now) => {}
            SourceAction::OpenFaultChannel => return SourceReport::LinkLost,
            SourceAction::StartTracking => {
                self.tracking = true;
                self.dirty.fill(false);
                self.written.fill(false);
            }
            SourceAction::StopTracking => self.tracking = false,
            SourceAction::OpenEpoch => self.open_epoch(),
            SourceAction::SendZeros(run) => {
                let values = vec![0; run.count.0 as usize];
                let frame = Frame::Pages {
                    first: run.first.0,
                    values,
                };
                if !self.link.migration.send_to_target(frame) {
                    return SourceReport::LinkLost;
                }
            }
            SourceAction::StartPbData => self.start_pb_data(),
            SourceAction::StartStatic => self.start_static(),
            SourceAction::StopStatic => self.stop_static(),
            SourceAction::Harvest => return SourceReport::Harvested(self.take_dirty_bits()),
            SourceAction::Sample => {
                assert_eq!(self.owner, Owner::Source, "{self}: nothing is written to be sampled");
                let in_round = self.source.as_ref().is_some_and(|source| source.round() > 0);
                self.samples = (self.samples.0 + 1, self.samples.1 + u64::from(in_round));
                return SourceReport::Sampled(self.take_dirty_bits());
            }
            SourceAction::SendPages { run, .. } => return self.send_pages(run),
            SourceAction::PushPages(run) => {
                let served = self.link.fault.was_opened() || !self.link.migration.works();
                assert!(served, "{self}: push without fault channel");
                return self.send_pages(run);
            }
            SourceAction::Pause => {
                assert_eq!(self.owner, Owner::Source, "{self}: paused twice");
                self.assert_static_is_over();
                self.owner = Owner::Nobody;
            }
            SourceAction::SendHandOver(mode) => return self.send_hand_over(mode),
            SourceAction::SendHashes => return self.send_hashes(),
            SourceAction::ResumeGuest => {
                assert_ne!(
                    self.owner,
                    Owner::Target,
                    "{self}: the source runs a VM that runs already"
                );
                self.owner = Owner::Source;
            }
            SourceAction::Reconnect if self.link.connect(self.now) => {}
            SourceAction::Reconnect => return SourceReport::Failed,
            SourceAction::Record(_) | SourceAction::Wait { .. } | SourceAction::Finish(_) => {
                unreachable!("{self}: {action:?} is handled before")
            }
        }
        SourceReport::Done
    }

    fn take_dirty_bits(&mut self) -> Vec<u64> {
        let mut words = vec![0u64; self.dirty.len().div_ceil(64)];
        for (page, dirty) in self.dirty.iter_mut().enumerate() {
            words[page / 64] |= u64::from(core::mem::take(dirty)) << (page % 64);
        }
        words
    }

    pub(super) fn tell_source(&mut self, event: SourceEvent<'_>) {
        self.trace("source hears", &event);
        if let Some(source) = &mut self.source {
            source.on(self.now, event);
        }
    }

    fn send_as_source(&mut self, message: SourceMessage) -> SourceReport {
        if message == SourceMessage::Commit {
            assert_eq!(
                self.source_record,
                SourceRecord::GivenUp,
                "{self}: commit without record"
            );
        }
        match message.message(&self.config) {
            Some(message) => self.send_to_target(&[message]),
            None => self.say_hello(),
        }
    }

    fn say_hello(&mut self) -> SourceReport {
        if !self.link.connect(self.now) {
            return SourceReport::LinkLost;
        }
        let hello = Message::Hello(Hello {
            protocol_min: 1,
            protocol_max: 1,
            capabilities: Capabilities::empty(),
            session: self.config.session,
            vm: VmId(1),
            page_size: 4096,
            regions: self.config.regions.clone(),
            vcpus: 1,
            tsc_khz: 0,
            state_version: 1,
            network_timeout: NETWORK_TIMEOUT,
            cpuid: &[],
            config: &[],
        });
        self.send_to_target(&[hello])
    }

    fn send_pages(&mut self, run: Run) -> SourceReport {
        let inside = self
            .shape
            .iter()
            .any(|&(first, pages)| run.first.0 >= first && run.end().0 <= first + pages);
        assert!(inside && !run.is_empty(), "{self}: {run} is not in one region");
        let values: Vec<u64> = (run.first.0..run.end().0)
            .map(|page| self.source_memory[page as usize])
            .collect();
        let zero = values.iter().filter(|value| **value == 0).count() as u64;
        let frame = Frame::Pages {
            first: run.first.0,
            values,
        };
        if !self.link.migration.send_to_target(frame) {
            return SourceReport::LinkLost;
        }
        SourceReport::Sent {
            data: Pages(run.count.0 - zero),
            zero: Pages(zero),
        }
    }

    fn send_hand_over(&mut self, mode: Mode) -> SourceReport {
        self.keep_final_set();
        let source = self.source.as_ref().expect("it acts");
        let (final_dirty, words) = match mode {
            Mode::PostCopy => words_of(source.pending()),
            Mode::StopCopy => (Pages(0), Vec::new()),
        };
        self.send_to_target(&[
            Message::FinalSet {
                first_word: 0,
                words: &words,
            },
            Message::State {
                offset: 0,
                bytes: &STATE[..4],
            },
            Message::State {
                offset: 4,
                bytes: &STATE[4..],
            },
            Message::HandOver {
                mode,
                state_bytes: STATE.len() as u32,
                final_dirty,
            },
        ])
    }

    fn send_hashes(&mut self) -> SourceReport {
        let zeroed = self.source.as_ref().and_then(|source| source.zeroed());
        let sent = |(page, value): (usize, &u64)| match zeroed {
            Some(zeroed) if zeroed.contains(Gfn(page as u64)) => 0,
            _ => *value,
        };
        let bytes: Vec<u8> = self
            .source_memory
            .iter()
            .enumerate()
            .flat_map(|page| hash(sent(page)).to_le_bytes())
            .collect();
        let mut messages: Vec<_> = self
            .shape
            .iter()
            .map(|&(first, pages)| Message::Hashes {
                first: Gfn(first),
                bytes: &bytes[first as usize * 8..(first + pages) as usize * 8],
            })
            .collect();
        messages.push(Message::HashesEnd);
        self.send_to_target(&messages)
    }

    /// Several messages may be cut apart.
    fn send_to_target(&mut self, messages: &[Message<'_>]) -> SourceReport {
        for (index, message) in messages.iter().enumerate() {
            if index > 0 {
                self.boundary();
            }
            if !self.link.migration.send_to_target(encode(message)) {
                return SourceReport::LinkLost;
            }
        }
        SourceReport::Done
    }
}
