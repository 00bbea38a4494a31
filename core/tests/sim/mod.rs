//! A world of one source, one target, one guest and connections that may fail.
//!
//! Hosts take their time: an action is asked for, carried out and reported at three different moments, and anything may
//! happen in between.

mod agent;
mod deliver;
mod explore;
mod fault;
mod guest;
mod link;
mod replay;
mod source_side;
mod storage;
mod target_side;
mod verdict;

use dunlin_core::message::{
    Capabilities, Hello, Message, Mode, Refusal, Region, Regions, SessionId, TargetReport, TargetStanding, Violation,
    VmId, end_gfn,
};
use dunlin_core::migrate::{
    FaultAnswer, FaultDecision, ForesightNeed, ForesightStorage, Phase, Resolution, Source, SourceAction, SourceConfig,
    SourceEvent, SourceMessage, SourceOutcome, SourceRecord, Target, TargetAction, TargetConfig, TargetEvent,
    TargetMessage, TargetOutcome, TargetRecord,
};
use dunlin_core::order::push::Scored;
use dunlin_core::pageset::{PageSet, Run, words_needed};
use dunlin_core::strategy::{Cut, First, Strategy};
use dunlin_core::units::{Gfn, Nanos, Pages};
use dunlin_core::wire::{decode_message, encode_message};

use agent::Agent;
pub(crate) use explore::{Choices, TWO_MISSING, TargetActs};
use fault::Faults;
pub(crate) use fault::{Fault, Plan};
use guest::Owner;
use link::{Arrival, Frame, Lane, Link};
pub(crate) use replay::named_world;
use source_side::SourceReport;
use storage::Storage;
use target_side::TargetReply;

const STATE: &[u8] = b"registers";
/// Silence that counts as a lost link.
const NETWORK_TIMEOUT: Nanos = Nanos::from_secs(3);
/// Heartbeats come this often.
const HEARTBEAT: Nanos = Nanos::from_millis(500);
/// Nothing new happens so long after the last trouble: what has not ended by then waits for a person.
const PATIENCE: Nanos = Nanos::from_secs(150);
/// Longest message between these small sides.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Many times what any run takes.
const STEPS_MAX: u64 = 400_000;

/// The RAM of a VM: first page and length of each region.
pub(crate) type Shape = &'static [(u64, u64)];

/// Two regions with a hole between them.
pub(crate) const HOLE: Shape = &[(0, 150), (192, 60)];
/// Three regions without one.
pub(crate) const ADJACENT: Shape = &[(0, 100), (100, 92), (192, 60)];
/// The smallest VM.
pub(crate) const ONE_PAGE: Shape = &[(0, 1)];

/// Where an action stands.
enum Doing<A, R> {
    Wanted(A),
    Done(R),
}

pub(crate) struct World {
    label: String,
    traced: bool,
    random: u64,
    now: Nanos,
    last_beat: Nanos,
    last_trouble: Nanos,
    steps: u64,
    faults: Faults,
    link: Link,
    storage: Storage,
    verify: bool,
    /// A round left pages for later.
    held_back: bool,
    config: SourceConfig,

    shape: Shape,
    owner: Owner,
    /// What the guest wrote: the truth that whoever runs it must show.
    truth: Vec<u64>,
    writes: u64,
    write_rate: u64,
    /// Freed and not written since: nobody will read what is there.
    soft: Vec<bool>,
    /// Written since tracking began.
    written: Vec<bool>,
    agent: Option<Agent>,
    /// Words of the agent that came while they were listened to.
    hints_heard: u64,

    source: Option<Source<'static>>,
    source_doing: Option<Doing<SourceAction, SourceReport>>,
    source_memory: Vec<u64>,
    dirty: Vec<bool>,
    tracking: bool,
    /// Samples that were taken of the dirty bits, in all and in rounds.
    samples: (u64, u64),
    source_record: SourceRecord,
    source_outcome: Option<SourceOutcome>,
    source_dead: bool,
    /// The guest could not be let run again, or tracking not ended.
    source_guest_broken: bool,
    tracking_stuck: bool,

    target: Option<Target<'static>>,
    target_doing: Option<Doing<TargetAction, TargetReply>>,
    /// Absent pages are `None`.
    target_memory: Vec<Option<u64>>,
    installed_hash: Vec<u64>,
    wanted_hash: Vec<u64>,
    /// Pages that vCPUs wait for.
    waiting: Vec<u64>,
    target_record: Option<TargetRecord>,
    target_outcome: Option<TargetOutcome>,
    /// What a finished attempt reported, for a source that missed it.
    report: TargetReport,
    /// The next attempt, for which the present one has to end first.
    next_hello: bool,
    crashed_after_taking: bool,
    /// An action of the target failed while it believed in its link.
    target_failed_linked: bool,
}

fn storage(pages: u64) -> &'static mut [u64] {
    vec![0; words_needed(Pages(pages))].leak()
}

fn source(config: &SourceConfig, now: Nanos) -> Source<'static> {
    let words = vec![0; Source::words_needed(config)].leak();
    let need = ForesightNeed::of(&config.strategy, Pages(end_gfn(&config.regions).0));
    let foresight = ForesightStorage {
        words: vec![u64::MAX; need.words].leak(),
        scratch: vec![u32::MAX; need.scratch].leak(),
        ranking: vec![Scored::default(); need.ranking].leak(),
    };
    Source::looking_ahead(config.clone(), words, foresight, now).expect("storage fits")
}

fn hash(value: u64) -> u64 {
    value.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x55
}

impl World {
    pub(crate) fn new(strategy: &str, seed: u64, plans: &[Plan]) -> Self {
        Self::shaped(strategy, seed, HOLE, plans)
    }

    pub(crate) fn shaped(strategy: &str, seed: u64, shape: Shape, plans: &[Plan]) -> Self {
        let (first, count) = *shape.last().expect("a region");
        let end = (first + count) as usize;
        let now = Nanos::from_secs(1);
        let agent = agent::Kind::of(strategy);
        let (named, strategy) = (strategy, strategy.split('+').next().expect("the first"));
        let looks_ahead = strategy
            .parse()
            .is_ok_and(|it| ForesightNeed::of(&it, Pages(1)).words > 0);
        let config = SourceConfig {
            session: SessionId(seed.into()),
            vm: VmId(1),
            regions: regions(shape),
            strategy: strategy.parse().expect("a strategy"),
            downtime: Nanos::from_millis(3),
            handover_cost: Nanos::from_millis(2),
            max_rounds: 6,
            min_round: Nanos::from_millis(20),
            learning: Nanos::from_millis(100),
            push_pages: Pages(match end {
                0..=4 => 1,
                // Rounds go in such pieces, too, where samples are taken.
                _ if looks_ahead => 40,
                _ => 4,
            }),
            network_timeout: NETWORK_TIMEOUT,
            handover_timeout: Nanos::from_secs(10),
            merge_patience: Nanos::from_millis(200),
            verify: seed % 3 != 2,
            hint_patience: agent.map(|_| agent::PATIENCE),
            host_pages: [Run::new(Gfn(guest::host_page(shape)), Pages(1))].into_iter().collect(),
        };
        let mut world = Self {
            label: replay::label(named, seed, shape, plans),
            traced: false,
            random: seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1,
            now,
            last_beat: now,
            last_trouble: now,
            steps: 0,
            faults: Faults::new(plans),
            link: Link::new(),
            storage: Storage::default(),
            verify: config.verify,
            held_back: false,
            shape,
            owner: Owner::Source,
            truth: vec![0; end],
            writes: 0,
            write_rate: 1 + seed % 4,
            soft: vec![false; end],
            written: vec![false; end],
            agent: agent.map(Agent::new),
            hints_heard: 0,
            source: Some(source(&config, now)),
            config,
            source_doing: None,
            source_memory: vec![0; end],
            dirty: vec![false; end],
            tracking: false,
            samples: (0, 0),
            source_record: SourceRecord::Running,
            source_outcome: None,
            source_dead: false,
            source_guest_broken: false,
            tracking_stuck: false,
            target: None,
            target_doing: None,
            target_memory: vec![Some(0); end],
            installed_hash: vec![hash(0); end],
            wanted_hash: vec![0; end],
            waiting: Vec::new(),
            target_record: None,
            target_outcome: None,
            report: TargetReport::default(),
            next_hello: false,
            crashed_after_taking: false,
            target_failed_linked: false,
        };
        for _ in 0..120 {
            world.guest_writes();
        }
        for _ in 0..20 {
            world.guest_frees();
        }
        world
    }

    /// A guest that never writes, in memory that is all zero.
    pub(crate) fn silent(mut self) -> Self {
        self.write_rate = 0;
        replay::mark_silent(&mut self.label);
        self.truth.fill(0);
        self.source_memory.fill(0);
        self
    }

    /// Prints everything that goes in and out of the machines.
    pub(crate) fn traced(mut self) -> Self {
        self.traced = true;
        self
    }

    fn trace(&self, what: &str, detail: &dyn core::fmt::Debug) {
        if self.traced {
            eprintln!("{:>9} us {what} {detail:?}", self.now.as_micros());
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % limit
    }

    fn end(&self) -> u64 {
        self.truth.len() as u64
    }

    /// Runs until both sides have ended, or wait for a person.
    pub(crate) fn run(&mut self) {
        let mut idle = 0;
        while !self.settled() && self.now < self.last_trouble.saturating_add(PATIENCE) {
            self.steps += 1;
            assert!(self.steps < STEPS_MAX, "{self}: never comes to rest");
            let acts = match (self.has_pb_data(), self.is_parallel()) {
                (true, _) => 18,
                (false, true) => 16,
                (false, false) => 10,
            };
            let acted = match self.below(acts) {
                0..=2 => self.source_step(),
                3..=5 => self.target_step(),
                6 => self.deliver_to_target(),
                7 => self.deliver_to_source(),
                8 => self.ask_for_pages(),
                10..=12 => self.write_static() | self.write_pb_data(),
                13..=15 => (0..8).filter(|_| self.read_static() | self.read_pb_data()).count() > 0,
                16..=17 => {
                    self.exchange_states();
                    false
                }
                _ => {
                    for _ in 0..self.write_rate {
                        self.guest_writes();
                    }
                    self.guest_frees();
                    false
                }
            };
            self.agent_acts();
            idle = if acted || !self.link.is_quiet() { 0 } else { idle + 1 };
            let pause = if idle >= 40 {
                Nanos::from_millis(100)
            } else {
                Nanos(50_000 + self.below(100_000))
            };
            self.now = self.now.saturating_add(pause);
            self.link.release(self.now);
            if self.now.saturating_sub(self.last_beat) >= HEARTBEAT {
                self.heartbeats();
            }
        }
        self.ask_a_person();
    }

    /// Both sides came to their end.
    fn settled(&self) -> bool {
        let source = self.source_dead || self.source_outcome.is_some();
        let target = self.target.is_none() || self.target_outcome.is_some();
        source && target && self.source_doing.is_none() && self.link.is_quiet() && !self.link.holds_anything()
    }

    fn heartbeats(&mut self) {
        self.last_beat = self.now;
        if self.link.target_is_on_old {
            return;
        }
        if self.link.migration.flows_to_source() && self.target.is_some() && self.target_outcome.is_none() {
            self.tell_source(SourceEvent::Heard);
        }
        if self.link.migration.flows_to_target() && self.source_outcome.is_none() && !self.source_dead {
            self.tell_target(TargetEvent::Heard);
        }
    }

    /// What a person decides where no protocol can: the other process is dead, and provably so.
    fn ask_a_person(&mut self) {
        let source_waits = self.phase_of_source() == Some(Phase::HandOverUnknown);
        if source_waits && self.target.is_none() && !self.crashed_after_taking {
            self.resolve_source(Resolution::RunHere);
        }
        // A source that had not given the VM up, or could not write so, may have let it run on before it died.
        let given_up = self.source_record == SourceRecord::GivenUp && !self.faults.happened(Fault::SourceDiskFull);
        if self.source_dead && given_up && self.target_waits() {
            let missing = self.target.as_ref().is_some_and(|target| !target.missing().is_empty());
            let resolved = self.target.as_mut().map(|target| target.resolve(Resolution::RunHere));
            assert_eq!(
                resolved.is_some_and(|resolved| resolved.is_ok()),
                !missing,
                "{self}: run-here"
            );
            self.finish_up(|world| !missing && world.target_outcome.is_none());
            if !missing && self.target_waits() {
                // It could not: the person mends what is broken, and says so again.
                self.faults = Faults::new(&[]);
                let resolved = self.target.as_mut().map(|target| target.resolve(Resolution::RunHere));
                assert_eq!(resolved, Some(Ok(())), "{self}: run-here again");
                self.finish_up(|world| world.target_outcome.is_none());
            }
            assert!(
                missing || self.owner == Owner::Target || self.target.is_none(),
                "{self}: run-here did not run the VM"
            );
        }
    }

    fn resolve_source(&mut self, resolution: Resolution) {
        let resolved = self.source.as_mut().expect("it waits").resolve(resolution);
        assert_eq!(resolved, Ok(()), "{self}: {resolution:?}");
        self.finish_up(|world| world.source_outcome.is_none());
    }

    /// Goes on without trouble while there is something to do.
    fn finish_up(&mut self, unfinished: impl Fn(&Self) -> bool) {
        for _ in 0..2000 {
            if !unfinished(self) {
                return;
            }
            self.source_step();
            self.target_step();
            self.now = self.now.saturating_add(Nanos::from_millis(50));
        }
    }

    /// A second attempt after a failed one, without trouble, must move the VM.
    pub(crate) fn migrate_again(&mut self) {
        assert!(
            self.target.is_none() || self.target_outcome.is_some() || self.target_waits(),
            "{self}: target hangs"
        );
        self.faults = Faults::new(&[]);
        self.link.repair();
        self.label.push_str(", again");
        self.config.session = SessionId(self.config.session.0 + 1000);
        // Each session has a folder of its own.
        self.storage = Storage::default();
        self.source = Some(source(&self.config, self.now));
        self.source_doing = None;
        self.source_outcome = None;
        (self.last_trouble, self.last_beat) = (self.now, self.now);
        self.run();
        self.assert_runs_whole_on_target();
    }

    /// Whether any round left pages for later.
    pub(crate) fn held_back(&self) -> bool {
        self.held_back
    }

    fn target_waits(&self) -> bool {
        self.phase_of_target() == Some(Phase::HandOverUnknown)
    }

    fn phase_of_target(&self) -> Option<Phase> {
        self.target.as_ref().map(Target::phase)
    }

    fn phase_of_source(&self) -> Option<Phase> {
        self.source.as_ref().map(Source::phase)
    }
}

impl core::fmt::Display for World {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.label)
    }
}

fn regions(shape: Shape) -> Regions {
    let region = |&(first, pages): &(u64, u64)| Region {
        first: Gfn(first),
        pages: Pages(pages),
    };
    shape.iter().map(region).collect()
}

fn encode(message: &Message<'_>) -> Frame {
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    let length = encode_message(message, &mut buffer).expect("fits");
    buffer.truncate(length);
    Frame::Control(buffer)
}

fn words_of(set: &PageSet<'_>) -> (Pages, Vec<u8>) {
    let words = set.words().iter().flat_map(|word| word.to_le_bytes()).collect();
    (set.len(), words)
}
