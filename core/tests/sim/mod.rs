//! A world of one source, one target, one guest and a link that may fail.

mod link;

use std::collections::VecDeque;

use dunlin_core::message::{
    CHUNK_BYTES_MAX, Message, Mode, Region, Regions, SessionId, TargetReport, TargetStanding, VmId,
};
use dunlin_core::migrate::{
    FaultAnswer, FaultDecision, Phase, Resolution, Source, SourceAction, SourceConfig, SourceEvent, SourceMessage,
    SourceOutcome, SourceRecord, Target, TargetAction, TargetConfig, TargetEvent, TargetMessage, TargetOutcome,
    TargetRecord,
};
use dunlin_core::pageset::{PageSet, Run, words_needed};
use dunlin_core::units::{Gfn, Nanos, Pages};
use dunlin_core::wire::{decode_message, encode_message};

use link::{Frame, Link};

/// What goes wrong, once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// Both ends learn at once that the link is gone; it works again later.
    Cut,
    /// The link swallows everything; the ends learn it from silence.
    BlackHole,
    /// A person cancels.
    Cancel,
    /// The target's process dies and is started anew with its record.
    CrashTarget,
    /// The source's process dies for good.
    CrashSource,
    /// One record write of the source fails.
    SourceRecordFails,
    /// One record write of the target fails.
    TargetRecordFails,
    /// The target cannot build, prepare or restore the guest.
    TargetActionFails,
}

/// Two regions with a hole between them.
const REGIONS: [(u64, u64); 2] = [(0, 150), (192, 60)];
const END: u64 = 252;
/// A page that the target's host reads itself.
const HOST_PAGE: u64 = 3;
const STATE: &[u8] = b"registers";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    Source,
    Nobody,
    Target,
}

pub(crate) struct World {
    label: String,
    random: u64,
    now: Nanos,
    fault: Option<(Fault, u64)>,
    boundary: u64,
    happened: bool,
    source: Option<Source<'static>>,
    target: Option<Target<'static>>,
    verify: bool,
    link: Link,
    owner: Owner,
    /// What the guest wrote: the truth that whoever runs it must show.
    truth: Vec<u64>,
    source_memory: Vec<u64>,
    dirty: Vec<bool>,
    tracking: bool,
    /// Absent pages are `None`.
    target_memory: Vec<Option<u64>>,
    installed_hash: Vec<u64>,
    received_hash: Vec<u64>,
    asked: VecDeque<u64>,
    writes: u64,
    source_record: SourceRecord,
    target_record: Option<TargetRecord>,
    source_outcome: Option<SourceOutcome>,
    target_outcome: Option<TargetOutcome>,
    target_ran: bool,
    verified: Option<(u64, u64)>,
    source_dead: bool,
    write_rate: u64,
    steps: u64,
}

fn storage() -> &'static mut [u64] {
    vec![0; words_needed(Pages(END))].leak()
}

fn regions() -> Regions {
    REGIONS
        .iter()
        .map(|&(first, pages)| Region {
            first: Gfn(first),
            pages: Pages(pages),
        })
        .collect()
}

fn is_ram(page: u64) -> bool {
    REGIONS
        .iter()
        .any(|&(first, pages)| (first..first + pages).contains(&page))
}

fn hash(value: u64) -> u64 {
    value.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x55
}

impl World {
    pub(crate) fn new(strategy: &str, seed: u64, fault: Option<(Fault, u64)>) -> Self {
        let config = SourceConfig {
            session: SessionId(seed.into()),
            vm: VmId(1),
            regions: regions(),
            strategy: strategy.parse().expect("a strategy"),
            downtime: Nanos::from_millis(3),
            handover_cost: Nanos::from_millis(2),
            max_rounds: 6,
            min_round: Nanos::from_millis(20),
            network_timeout: Nanos::from_secs(3),
            handover_timeout: Nanos::from_secs(10),
            verify: true,
            host_pages: [Run::new(Gfn(HOST_PAGE), Pages(1))].into_iter().collect(),
        };
        let mut world = Self {
            label: format!("strategy {strategy}, seed {seed}, fault {fault:?}"),
            random: seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1,
            now: Nanos::from_secs(1),
            fault,
            boundary: 0,
            happened: false,
            source: Some(Source::new(config, storage(), Nanos::from_secs(1)).expect("storage fits")),
            target: None,
            verify: true,
            link: Link::new(),
            owner: Owner::Source,
            truth: vec![0; END as usize],
            source_memory: vec![0; END as usize],
            dirty: vec![false; END as usize],
            tracking: false,
            target_memory: vec![Some(0); END as usize],
            installed_hash: vec![hash(0); END as usize],
            received_hash: vec![0; END as usize],
            asked: VecDeque::new(),
            writes: 0,
            source_record: SourceRecord::Running,
            target_record: None,
            source_outcome: None,
            target_outcome: None,
            target_ran: false,
            verified: None,
            source_dead: false,
            write_rate: 1 + seed % 4,
            steps: 0,
        };
        for _ in 0..120 {
            world.guest_writes();
        }
        world
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % limit
    }

    pub(crate) fn run(&mut self) {
        while self.steps < 60_000 && !self.settled() {
            self.steps += 1;
            match self.below(8) {
                0 | 1 => self.source_step(),
                2 | 3 => self.target_step(),
                4 => self.deliver_to_target(),
                5 => self.deliver_to_source(),
                6 => self.faults_step(),
                _ => {
                    for _ in 0..self.write_rate {
                        self.guest_writes();
                    }
                }
            }
            self.now = self.now.saturating_add(Nanos(200_000 + self.below(200_000)));
            if self.steps.is_multiple_of(64) {
                self.now = self.now.saturating_add(Nanos::from_millis(100));
                self.heartbeats();
            }
            self.check();
        }
        assert!(
            self.settled(),
            "{}: does not come to an end (source {:?})",
            self.label,
            self.source.as_ref().map(Source::phase)
        );
        self.settle_crash();
    }

    /// Both sides came to their end, or what is left can only be decided by a person.
    fn settled(&self) -> bool {
        let source = self.source_dead || self.source_outcome.is_some() || self.source_is_stuck();
        let target = match &self.target {
            None => true,
            Some(target) => {
                self.target_outcome.is_some()
                    || (self.source_gone()
                        && matches!(
                            target.phase(),
                            Phase::HandOverUnknown | Phase::PostCopyPaused | Phase::Complete
                        ))
                    || matches!(
                        self.source_outcome,
                        Some(SourceOutcome::Aborted {
                            target_may_hold: true,
                            ..
                        })
                    ) && target.phase() == Phase::HandOverUnknown
            }
        };
        source && target && self.link.is_quiet()
    }

    fn source_gone(&self) -> bool {
        self.source_dead || self.source_outcome.is_some()
    }

    /// The target was restarted after it took the VM: no protocol brings it back.
    fn source_is_stuck(&self) -> bool {
        self.happened
            && self.target.is_none()
            && matches!(self.target_record, Some(TargetRecord::Taken | TargetRecord::Complete))
            && self.steps > 20_000
    }

    /// What a person does about a target whose source has died.
    fn settle_crash(&mut self) {
        if !self.source_dead {
            return;
        }
        if let Some(target) = &mut self.target
            && target.phase() == Phase::HandOverUnknown
            && target.resolve(Resolution::RunHere).is_ok()
        {
            for _ in 0..20 {
                self.target_step();
                self.check();
            }
            assert!(
                self.owner == Owner::Target,
                "{}: run-here did not run the VM",
                self.label
            );
        }
    }

    /// One fault, at the chosen boundary. True if the caller's action must fail.
    fn boundary(&mut self, kinds: &[Fault]) -> bool {
        let Some((fault, at)) = self.fault else { return false };
        if self.happened || !kinds.contains(&fault) {
            return false;
        }
        self.boundary += 1;
        if self.boundary <= at {
            return false;
        }
        self.happened = true;
        let keep = self.below(3);
        match fault {
            Fault::Cut => {
                self.link.cut(keep, self.now.saturating_add(Nanos::from_millis(300)));
                if let Some(source) = &mut self.source {
                    source.on(self.now, SourceEvent::LinkLost);
                }
                self.target_link_lost();
            }
            Fault::BlackHole => self.link.swallow(self.now.saturating_add(Nanos::from_secs(4))),
            Fault::Cancel => {
                if let Some(source) = &mut self.source {
                    source.on(self.now, SourceEvent::Cancel);
                }
            }
            Fault::CrashTarget => {
                self.link.cut(0, self.now);
                if let Some(source) = &mut self.source {
                    source.on(self.now, SourceEvent::LinkLost);
                }
                self.target = None;
                self.target_memory = vec![Some(0); END as usize];
                if self.owner == Owner::Target {
                    self.owner = Owner::Nobody;
                }
            }
            Fault::CrashSource => {
                self.link.cut(keep, Nanos(u64::MAX));
                self.source_dead = true;
                self.source = None;
                if self.owner == Owner::Source {
                    self.owner = Owner::Nobody;
                }
                self.target_link_lost();
            }
            Fault::SourceRecordFails | Fault::TargetRecordFails | Fault::TargetActionFails => return true,
        }
        false
    }

    fn target_link_lost(&mut self) {
        // What was on its way may still arrive before the target notices.
        while self.link.has_for_target() {
            self.deliver_to_target();
        }
        if let Some(target) = &mut self.target {
            target.on(self.now, TargetEvent::LinkLost);
        }
    }

    fn source_step(&mut self) {
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

    fn perform_source(&mut self, action: SourceAction) {
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

    fn tell_source(&mut self, event: SourceEvent<'_>) {
        if let Some(source) = &mut self.source {
            source.on(self.now, event);
        }
    }

    fn tell_target(&mut self, event: TargetEvent<'_>) {
        if let Some(target) = &mut self.target {
            target.on(self.now, event);
        }
    }

    fn connect(&mut self) {
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
    fn resume(&mut self, given_up: bool) {
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

    fn send_pages(&mut self, run: Run) {
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

    fn send_hand_over(&mut self, mode: Mode) {
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

    fn send_to_target(&mut self, messages: &[Message<'_>]) {
        for message in messages {
            if !self.link.send_to_target(encode(message)) {
                return self.tell_source(SourceEvent::LinkLost);
            }
        }
        self.tell_source(SourceEvent::Done);
    }

    /// True if the link took them.
    fn send_to_source(&mut self, messages: &[Message<'_>]) -> bool {
        messages.iter().all(|message| self.link.send_to_source(encode(message)))
    }

    fn target_step(&mut self) {
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

    fn perform_target(&mut self, action: TargetAction) {
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

    fn deliver_to_source(&mut self) {
        match self.link.next_for_source() {
            Some(Frame::Control(bytes)) => {
                let message = decode_message(&bytes).expect("what was encoded is decoded");
                self.tell_source(SourceEvent::Message(message));
            }
            Some(Frame::Request(page)) => {
                let Some(source) = &mut self.source else { return };
                if source.on_fault_request(Gfn(page)) == FaultAnswer::Send {
                    let values = vec![self.source_memory[page as usize]];
                    self.link.send_to_target(Frame::Pages {
                        first: page,
                        values,
                        demanded: true,
                    });
                }
            }
            Some(Frame::Pages { .. }) => panic!("{}: pages flow to the target only", self.label),
            None => {}
        }
    }

    fn deliver_to_target(&mut self) {
        match self.link.next_for_target() {
            Some(Frame::Control(bytes)) => {
                let message = decode_message(&bytes).expect("what was encoded is decoded");
                if let Message::Hashes { first, bytes } = &message {
                    for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
                        self.received_hash[first.0 as usize + index] = u64::from_le_bytes(*word);
                    }
                }
                self.tell_target(TargetEvent::Message(message));
            }
            Some(Frame::Pages {
                first,
                values,
                demanded,
            }) => self.install(first, &values, demanded),
            Some(Frame::Request(_)) => panic!("{}: requests flow to the source only", self.label),
            None => {}
        }
    }

    fn install(&mut self, first: u64, values: &[u64], demanded: bool) {
        let Some(target) = &self.target else { return };
        let running = target.running();
        for (index, value) in values.iter().enumerate() {
            let page = first as usize + index;
            if !running || self.target_memory[page].is_none() {
                self.target_memory[page] = Some(*value);
                self.installed_hash[page] = hash(*value);
            }
        }
        let run = Run::new(Gfn(first), Pages(values.len() as u64));
        self.tell_target(if running {
            TargetEvent::Installed { run, demanded }
        } else {
            TargetEvent::Received(run)
        });
    }

    fn guest_writes(&mut self) {
        let page = (self.below(2) * 192 + self.below(60)) as usize;
        self.writes += 1;
        match self.owner {
            Owner::Nobody => {}
            Owner::Source => {
                self.truth[page] = self.writes;
                self.source_memory[page] = self.writes;
                self.dirty[page] |= self.tracking;
            }
            Owner::Target => match self.target_memory[page] {
                None => self.asked.push_back(page as u64),
                Some(found) => {
                    assert_eq!(
                        found, self.truth[page],
                        "{}: the guest read a stale page {page}",
                        self.label
                    );
                    self.truth[page] = self.writes;
                    self.target_memory[page] = Some(self.writes);
                }
            },
        }
    }

    fn faults_step(&mut self) {
        let Some(target) = &self.target else { return };
        let Some(page) = self.asked.pop_front() else { return };
        if self.target_memory[page as usize].is_some() {
            return;
        }
        assert_eq!(
            target.on_fault(Gfn(page)),
            FaultDecision::Request,
            "{}: absent but not missing",
            self.label
        );
        if !self.link.send_to_source(Frame::Request(page)) {
            self.asked.push_back(page);
        }
    }

    fn heartbeats(&mut self) {
        if self.link.up(self.now) && !self.link.is_black_hole() && !self.source_dead {
            if self.target.is_some() {
                self.tell_source(SourceEvent::Heard);
            }
            self.tell_target(TargetEvent::Heard);
        }
    }

    /// What must hold at every instant.
    fn check(&self) {
        match self.owner {
            Owner::Nobody => {}
            Owner::Source => assert_eq!(
                self.source_memory, self.truth,
                "{}: the source shows other memory",
                self.label
            ),
            Owner::Target => {
                let wrong = (0..END as usize)
                    .find(|page| self.target_memory[*page].is_some_and(|value| value != self.truth[*page]));
                assert_eq!(wrong, None, "{}: stale page on the running target", self.label);
                assert!(
                    self.target_memory[HOST_PAGE as usize].is_some(),
                    "{}: a host page is missing",
                    self.label
                );
            }
        }
    }

    pub(crate) fn fault_happened(&self) -> bool {
        self.happened
    }

    /// Its record says so; whether it came to run the VM then is the same to everybody else.
    pub(crate) fn target_took(&self) -> bool {
        matches!(self.target_record, Some(TargetRecord::Taken | TargetRecord::Complete))
    }

    pub(crate) fn assert_verified(&self) {
        let pages = REGIONS.iter().map(|(_, pages)| pages).sum();
        assert_eq!(self.verified, Some((pages, 0)), "{}", self.label);
        let report = self.source.as_ref().and_then(|source| source.target_report().copied());
        assert_eq!(
            report.and_then(|report| report.verified),
            Some((pages, 0)),
            "{}",
            self.label
        );
    }

    pub(crate) fn assert_runs_whole_on_target(&self) {
        assert_eq!(
            self.owner,
            Owner::Target,
            "{}: outcome {:?}",
            self.label,
            self.source_outcome
        );
        assert!(
            self.target_memory.iter().all(Option::is_some),
            "{}: pages are missing",
            self.label
        );
        assert_eq!(self.source_outcome, Some(SourceOutcome::Completed), "{}", self.label);
    }

    pub(crate) fn assert_runs_whole_on_source(&self) {
        assert_eq!(
            self.owner,
            Owner::Source,
            "{}: outcome {:?}",
            self.label,
            self.source_outcome
        );
        assert!(!self.tracking, "{}: tracking goes on", self.label);
        assert!(
            matches!(self.source_outcome, Some(SourceOutcome::Aborted { .. })),
            "{}: {:?}",
            self.label,
            self.source_outcome
        );
    }

    pub(crate) fn assert_runs_whole_somewhere(&self) {
        match self.owner {
            Owner::Source => self.assert_runs_whole_on_source(),
            _ => self.assert_runs_whole_on_target(),
        }
    }

    pub(crate) fn assert_lost_with_target(&self) {
        assert_eq!(
            self.owner,
            Owner::Nobody,
            "{}: the source runs a VM that ran elsewhere",
            self.label
        );
    }

    /// The VM is gone only where nothing could have saved it: before the source gave it up, or with pages still missing.
    pub(crate) fn assert_after_source_crash(&self) {
        if !self.happened {
            return self.assert_runs_whole_on_target();
        }
        let missing = self.target_memory.iter().filter(|page| page.is_none()).count();
        match self.owner {
            Owner::Source => panic!("{}: runs on a dead source", self.label),
            Owner::Target => assert!(
                missing == 0 || self.phase() == Some(Phase::PostCopyPaused),
                "{}",
                self.label
            ),
            Owner::Nobody => {
                assert!(!self.target_ran, "{}: the target stopped a VM it had taken", self.label);
                assert!(
                    self.phase() != Some(Phase::HandOverUnknown) || missing > 0,
                    "{}: savable, not saved",
                    self.label
                );
            }
        }
    }

    fn phase(&self) -> Option<Phase> {
        self.target.as_ref().map(Target::phase)
    }
}

fn encode(message: &Message<'_>) -> Frame {
    let mut buffer = vec![0; 2 * CHUNK_BYTES_MAX];
    let length = encode_message(message, &mut buffer).expect("fits");
    buffer.truncate(length);
    Frame::Control(buffer)
}

fn words_of(set: &PageSet<'_>) -> (Pages, Vec<u8>) {
    (
        set.len(),
        set.words().iter().flat_map(|word| word.to_le_bytes()).collect(),
    )
}
