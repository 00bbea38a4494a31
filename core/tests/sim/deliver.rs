//! What arrives, and where it goes.

use super::*;

impl World {
    pub(super) fn deliver_to_source(&mut self) -> bool {
        if self.source.is_none() {
            return false;
        }
        let lanes = self.link.for_source();
        if lanes.is_empty() {
            return false;
        }
        let lane = lanes[self.below(lanes.len() as u64) as usize];
        match self.link.pipe(lane).next_for_source() {
            Arrival::Frame(Frame::Control(bytes)) => {
                let message = decode_message(&bytes).expect("what was encoded is decoded");
                self.tell_source(SourceEvent::Message(&message));
            }
            Arrival::Frame(Frame::Request(page)) => self.serve(page),
            Arrival::Frame(Frame::Pages { .. }) => panic!("{self}: pages flow to the target only"),
            Arrival::Lost => self.tell_source(SourceEvent::LinkLost),
            Arrival::Nothing => return false,
        }
        true
    }

    pub(super) fn serve(&mut self, page: u64) {
        let Some(source) = &mut self.source else { return };
        if source.on_fault_request(Gfn(page)) == FaultAnswer::Refuse {
            return self.tell_source(SourceEvent::Violation(Violation::UnexpectedMessage));
        }
        let values = vec![self.source_memory[page as usize]];
        if !self.link.fault.send_to_target(Frame::Pages { first: page, values }) {
            self.tell_source(SourceEvent::LinkLost);
        }
    }

    pub(super) fn deliver_to_target(&mut self) -> bool {
        let lanes = self.link.for_target();
        if lanes.is_empty() {
            return false;
        }
        let lane = lanes[self.below(lanes.len() as u64) as usize];
        self.deliver_to_target_from(lane)
    }

    pub(super) fn deliver_to_target_from(&mut self, lane: Lane) -> bool {
        let from_fault = matches!(lane, Lane::Fault | Lane::OldFault);
        let known = match lane {
            Lane::Migration => !self.link.target_is_on_old,
            Lane::OldFault => self.link.target_is_on_old,
            Lane::Fault | Lane::OldMigration => true,
        };
        match self.link.pipe(lane).next_for_target() {
            Arrival::Frame(Frame::Control(bytes)) => {
                let message = decode_message(&bytes).expect("what was encoded is decoded");
                self.hear_at_target(&message);
            }
            Arrival::Frame(Frame::Pages { first, values }) if from_fault => self.install(first, &values, true),
            Arrival::Frame(Frame::Pages { first, values }) => self.receive(first, &values),
            Arrival::Frame(Frame::Request(_)) => panic!("{self}: requests flow to the source only"),
            Arrival::Lost if known => self.tell_target(TargetEvent::LinkLost),
            // A connection that the target has turned away from, or has not heard of yet.
            Arrival::Lost => {}
            Arrival::Nothing => return false,
        }
        true
    }

    fn hear_at_target(&mut self, message: &Message<'_>) {
        match message {
            Message::Hello(_) => self.hello(),
            Message::Resume { given_up, .. } => self.resume(*given_up),
            Message::Hashes { first, bytes } => {
                for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
                    self.wanted_hash[first.0 as usize + index] = u64::from_le_bytes(*word);
                }
                self.tell_target(TargetEvent::Message(message));
            }
            _ => self.tell_target(TargetEvent::Message(message)),
        }
    }

    /// Pages on the migration channel.
    fn receive(&mut self, first: u64, values: &[u64]) {
        let Some(target) = &self.target else { return };
        if target.running() {
            return self.install(first, values, false);
        }
        if !target.accepts_pages() {
            return self.tell_target(TargetEvent::Violation(Violation::UnexpectedMessage));
        }
        for (index, value) in values.iter().enumerate() {
            let page = first as usize + index;
            self.target_memory[page] = Some(*value);
            self.installed_hash[page] = hash(*value);
            self.came_on_migration_channel(page);
        }
        let run = Run::new(Gfn(first), Pages(values.len() as u64));
        self.tell_target(TargetEvent::Received(run));
    }

    fn hello(&mut self) {
        self.link.target_turns();
        if self.target.is_some() && self.target_outcome.is_none() {
            if !self.target_waits() {
                self.link
                    .migration
                    .send_to_source(encode(&Message::Refused(Refusal::Busy)));
                return;
            }
            // Only who runs the VM says hello for it: the hand-over that this side waits for is off.
            self.next_hello = true;
            return self.tell_target(TargetEvent::Reconnected { given_up: false });
        }
        self.begin_target();
    }

    pub(super) fn begin_target(&mut self) {
        let config = TargetConfig {
            session: self.config.session,
            vm: VmId(1),
            regions: self.config.regions.clone(),
            protocol: 1,
            verify: self.verify,
            static_copy: self.is_parallel(),
            pb_data: self.has_pb_data(),
            split: self.config.strategy.splits(),
            network_timeout: NETWORK_TIMEOUT,
        };
        let end = self.end();
        self.target = Some(Target::new(config, storage(end), storage(end), self.now).expect("storage fits"));
        self.target_doing = None;
        self.target_outcome = None;
        self.waiting.clear();
    }

    /// What a target process does with a source that comes back.
    fn resume(&mut self, given_up: bool) {
        // An old connection whose end nobody noticed is dropped.
        if self.link.old_migration.works() || self.below(2) == 0 {
            self.tell_target(TargetEvent::LinkLost);
        }
        self.link.target_turns();
        if self.target.is_some() && self.target_outcome.is_none() {
            self.wanted_hash.fill(0);
            return self.tell_target(TargetEvent::Reconnected { given_up });
        }
        let standing = match (&self.target_outcome, self.target_record) {
            (Some(TargetOutcome::Completed { .. }), _) => TargetStanding::Complete,
            (_, Some(TargetRecord::Receiving | TargetRecord::NeverTaken)) => TargetStanding::NeverTaken,
            (Some(TargetOutcome::Aborted(_)), _) => TargetStanding::NeverTaken,
            _ => TargetStanding::Unknown,
        };
        self.link.migration.send_to_source(encode(&Message::Resumed(standing)));
        if standing == TargetStanding::Complete {
            self.link
                .migration
                .send_to_source(encode(&Message::Complete(self.report)));
        }
    }
}
