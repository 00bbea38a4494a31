//! A world of one source, one target, one guest and a link that may fail.

mod deliver;
mod link;
mod source_side;
mod target_side;
mod verdict;

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
