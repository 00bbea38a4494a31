//! What happens when: one queue of everything that is on its way.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use dunlin_core::message::{Message, Region, Regions, SessionId, TargetReport, VmId, end_gfn};
use dunlin_core::migrate::{
    Advisor, Source, SourceConfig, SourceEvent, SourceOutcome, Target, TargetConfig, TargetEvent, TargetOutcome,
};
use dunlin_core::pageset::{Run, words_needed};
use dunlin_core::strategy::{First, Slow, Strategy};
use dunlin_core::units::{Gfn, Nanos, Pages};
use dunlin_core::wire::{HEADER_BYTES, decode_message, encode_message};

use super::bookkeeping::Books;
use super::guest::{Fault, Guest};
use super::pull::Pull;
use super::report::Measured;
use super::slow::Slowing;
use super::storage::Storage;
use super::wire::Wire;
use super::{SimError, SimResult, SimSetup, advice};
use crate::channel::piece_pages;
use crate::run::ForesightMemory;

/// How often either side hears that the other is alive.
const HEARTBEAT: Nanos = Nanos::from_millis(500);
/// How often states are exchanged in the storage directory while the network is cut.
const EXCHANGE: Nanos = Nanos::from_secs(1);
const SECOND: Nanos = Nanos::from_secs(1);
/// Room for any message.
const MESSAGE_BYTES: usize = 1 << 20;

/// Something that will happen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Happening {
    /// A machine wants to be asked then.
    Poll,
    /// What a side was doing is done.
    SourceDone,
    TargetDone,
    Sent {
        data: Pages,
        zero: Pages,
    },
    ReconnectFailed,
    /// Something arrives, if the connection it was sent on is still the present one.
    ToTarget(u32, Vec<u8>),
    ToSource(u32, Vec<u8>),
    Pages(u32, Run, Vec<u32>),
    Request(u32, Gfn),
    Reply(u32, Gfn),
    /// Of the storage channel, see there.
    Wrote,
    Merged(Run, Vec<u32>),
    StaticEnded,
    PbWrote(Run),
    PbMerged(Run),
    Heartbeat,
    Cut,
    Silence,
    Back,
    Exchange,
    /// A second has passed.
    Second,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Due(Nanos, u64);

/// Who runs the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    Source,
    Nobody,
    Target,
}

/// One migration and everything around it.
pub(super) struct World<'a, 'w> {
    pub(super) setup: &'a SimSetup,
    pub(super) now: Nanos,
    queue: BinaryHeap<Reverse<Due>>,
    happenings: Vec<Option<Happening>>,
    free: Vec<usize>,
    sequence: u64,
    pub(super) source: Source<'w>,
    pub(super) target: Option<Target<'w>>,
    pub(super) target_storage: Option<(&'w mut [u64], &'w mut [u64])>,
    pub(super) source_outcome: Option<SourceOutcome>,
    pub(super) target_outcome: Option<TargetOutcome>,
    pub(super) guest: Guest,
    pub(super) owner: Owner,
    pub(super) forth: Wire,
    pub(super) back: Wire,
    pub(super) storage: Storage,
    pub(super) slowing: Slowing,
    pub(super) pull: Pull,
    /// Number of the present connections.
    pub(super) generation: u32,
    pub(super) is_cut: bool,
    pub(super) frame_pages: u64,
    pub(super) harvest: Vec<u64>,
    pub(super) books: Books,
    /// Pages asked for, and since when.
    pub(super) asked: std::collections::HashMap<Gfn, Nanos>,
    pub(super) measured: Measured,
    /// Contents at the target, if they are followed.
    pub(super) copies: Vec<u32>,
    pub(super) report: TargetReport,
    polls: [Option<Nanos>; 2],
    message: Vec<u8>,
}

/// Simulates `setup` from the guest's first step to the end of its migration.
pub(super) fn run(setup: &SimSetup) -> Result<SimResult, SimError> {
    let pages = setup.pages();
    let region = Region {
        first: Gfn::ZERO,
        pages,
    };
    let regions: Regions = [region].into_iter().collect();
    // Slowing down is done beside the machines, which do not know it.
    let strategy = match setup.strategy.slow {
        Slow::AutoConverge => Strategy {
            slow: Slow::None,
            ..setup.strategy
        },
        _ => setup.strategy,
    };
    let config = SourceConfig {
        downtime: setup.downtime,
        max_rounds: setup.max_rounds,
        min_round: setup.min_round,
        learning: setup.learning,
        push_pages: piece_pages(Some(setup.bandwidth)),
        network_timeout: setup.network_timeout,
        ..SourceConfig::new(SessionId(1), VmId(1), regions, strategy)
    };
    let refused = |error: &dyn std::fmt::Display| SimError::Setup(error.to_string());
    dunlin_core::migrate::check_strategy(&strategy).map_err(|error| refused(&error))?;
    let end = Pages(end_gfn(&config.regions).0);
    let mut guest = Guest::new(setup)?;
    guest.run_to(setup.warm_up);
    let mut words = vec![0; Source::words_needed(&config)];
    let mut foresight = ForesightMemory::new(&strategy, end);
    let mut table = Vec::new();
    let mut advisor = match &setup.goal {
        Some(goal) => {
            table.resize(Advisor::words_needed(end), 0);
            let used = Pages(pages.0 - guest.zero_pages(Gfn::ZERO, pages.0));
            let setting = advice::setting(setup, goal, &config, used);
            Some(Advisor::new(&mut table, end, setting).map_err(|error| refused(&error))?)
        }
        None => None,
    };
    let (mut missing, mut received) = (vec![0; words_needed(end)], vec![0; words_needed(end)]);
    let source =
        Source::looking_ahead(config, &mut words, foresight.lend(), setup.warm_up).map_err(|error| refused(&error))?;
    let source = match &mut advisor {
        Some(advisor) => source.advised(advisor),
        None => source,
    };
    let wire = |rate| Wire::new(rate, setup.latency, setup.jitter, setup.loss_ppm, setup.seed);
    let measured = Measured::before(setup, &mut guest);
    let mut world = World {
        setup,
        now: setup.warm_up,
        queue: BinaryHeap::new(),
        happenings: Vec::new(),
        free: Vec::new(),
        sequence: 0,
        source,
        target: None,
        target_storage: Some((&mut missing, &mut received)),
        source_outcome: None,
        target_outcome: None,
        owner: Owner::Source,
        forth: wire(Some(setup.bandwidth))
            .varying(setup.varies, setup.warm_up)
            .limiter(setup.limiter),
        back: wire(None),
        storage: Storage::new(setup),
        slowing: Slowing::new(&setup.strategy),
        pull: Pull::default(),
        generation: 1,
        is_cut: false,
        frame_pages: piece_pages(Some(setup.bandwidth)).0,
        harvest: vec![0; pages.0.div_ceil(64) as usize],
        books: Books::new(setup.bookkeeping),
        asked: std::collections::HashMap::new(),
        measured,
        copies: vec![0; if setup.check { pages.0 as usize } else { 0 }],
        report: TargetReport::default(),
        polls: [None; 2],
        message: vec![0; MESSAGE_BYTES],
        guest,
    };
    world.at(setup.warm_up, Happening::Heartbeat);
    world.at(setup.warm_up.saturating_add(SECOND), Happening::Second);
    world.go()?;
    Ok(world.result())
}

impl World<'_, '_> {
    fn go(&mut self) -> Result<(), SimError> {
        let quickest = self.back.latency().saturating_add(self.forth.latency());
        let lookahead = quickest.saturating_add(self.setup.fault_service).max(Nanos(1_000));
        let mut faults = Vec::new();
        self.poll();
        let mut guest_at = Nanos::ZERO;
        while !self.is_over() {
            let next = self.queue.peek().map_or(Nanos(u64::MAX), |due| due.0.0);
            if next > self.setup.warm_up.saturating_add(self.setup.patience) {
                return Err(SimError::Endless {
                    after: self.now,
                    phase: self.source.phase(),
                });
            }
            if self.owner == Owner::Target && self.missing() > Pages::ZERO {
                // No page that is asked for within this time can be there before its end; that it is asked for may happen before.
                guest_at = guest_at.max(self.now);
                if guest_at < next {
                    guest_at = next.min(guest_at.saturating_add(lookahead));
                    self.run_guest_with_missing(guest_at, &mut faults);
                    continue;
                }
            }
            self.now = self.now.max(next);
            let Some(happening) = self.take() else { continue };
            self.happens(happening);
            self.poll();
        }
        if self.owner != Owner::Nobody {
            self.guest.run_to(self.now);
        }
        Ok(())
    }

    /// Both came to their end, or the source did and nobody will tell the target.
    fn is_over(&self) -> bool {
        match self.source_outcome {
            None => false,
            Some(SourceOutcome::Completed) => self.target_outcome.is_some(),
            Some(_) => true,
        }
    }

    fn run_guest_with_missing(&mut self, until: Nanos, faults: &mut Vec<Fault>) {
        let Some(target) = &self.target else { return };
        faults.clear();
        self.guest.run_with_missing(until, target.missing(), faults);
        for fault in faults.iter() {
            if self.asked.contains_key(&fault.gfn) {
                continue;
            }
            self.asked.insert(fault.gfn, fault.at);
            if self.setup.pull {
                self.pull_for_guest(fault.gfn, fault.at);
            } else {
                self.ask(fault.gfn, fault.at);
            }
        }
    }

    /// Notes how far the guest has come.
    fn second(&mut self) {
        if self.owner == Owner::Source {
            self.guest.run_to(self.now);
        }
        let steps = self.guest.steps();
        self.measured.timeline.push(steps);
        self.at(self.now.saturating_add(SECOND), Happening::Second);
    }

    /// The target asks for a page, if it can.
    pub(super) fn ask(&mut self, gfn: Gfn, at: Nanos) {
        if self.is_cut || !self.target.as_ref().is_some_and(dunlin_core::migrate::Target::linked) {
            return;
        }
        self.send_request(gfn, at);
    }

    pub(super) fn send_request(&mut self, gfn: Gfn, at: Nanos) {
        self.measured.fault_bytes += HEADER_BYTES as u64;
        let arrives = self.back.urgent_arrival(at);
        self.at(arrives, Happening::Request(self.generation, gfn));
    }

    pub(super) fn missing(&self) -> Pages {
        self.target
            .as_ref()
            .map_or(Pages::ZERO, |target| target.missing().len())
    }

    /// Lets something happen then, or now.
    pub(super) fn at(&mut self, time: Nanos, happening: Happening) {
        let place = match self.free.pop() {
            Some(place) => {
                self.happenings[place] = Some(happening);
                place
            }
            None => {
                self.happenings.push(Some(happening));
                self.happenings.len() - 1
            }
        };
        // What was sent first happens first; the place only finds it again.
        self.sequence += 1;
        let order = self.sequence << 24 | place as u64;
        self.queue.push(Reverse(Due(time.max(self.now), order)));
    }

    fn take(&mut self) -> Option<Happening> {
        let Reverse(Due(_, order)) = self.queue.pop()?;
        let place = (order & 0xff_ffff) as usize;
        self.free.push(place);
        self.happenings[place].take()
    }

    /// Asks both machines until they wait.
    fn poll(&mut self) {
        loop {
            let source = self.source_outcome.is_none() && self.source_acts();
            let target = self.target.is_some() && self.target_outcome.is_none() && self.target_acts();
            if !source && !target {
                return;
            }
        }
    }

    /// A machine that waits wants to be asked at `until`.
    pub(super) fn poll_at(&mut self, side: usize, until: Option<Nanos>) {
        let Some(until) = until else { return };
        let earlier = self.polls[side].is_some_and(|known| known > self.now && known <= until);
        if !earlier {
            self.polls[side] = Some(until);
            self.at(until, Happening::Poll);
        }
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Poll => {}
            Happening::SourceDone => self.tell_source(SourceEvent::Done),
            Happening::TargetDone => self.tell_target(TargetEvent::Done),
            Happening::Sent { data, zero } => self.tell_source(SourceEvent::PagesSent { data, zero }),
            Happening::ReconnectFailed => self.tell_source(SourceEvent::Failed),
            Happening::Heartbeat => {
                if !self.is_cut {
                    self.tell_source(SourceEvent::Heard);
                    self.tell_target(TargetEvent::Heard);
                }
                self.at(self.now.saturating_add(HEARTBEAT), Happening::Heartbeat);
            }
            Happening::Cut => self.cut(),
            Happening::Silence => {
                self.tell_source(SourceEvent::LinkLost);
                self.tell_target(TargetEvent::LinkLost);
                self.at(self.now.saturating_add(EXCHANGE), Happening::Exchange);
            }
            Happening::Back => self.is_cut = false,
            Happening::Second => self.second(),
            Happening::Exchange => self.exchange(),
            Happening::ToTarget(..)
            | Happening::ToSource(..)
            | Happening::Pages(..)
            | Happening::Request(..)
            | Happening::Reply(..) => self.arrives(happening),
            Happening::Wrote
            | Happening::Merged(..)
            | Happening::StaticEnded
            | Happening::PbWrote(_)
            | Happening::PbMerged(_) => self.in_storage(happening),
        }
    }

    fn arrives(&mut self, happening: Happening) {
        let present = |generation: u32, world: &Self| generation == world.generation && !world.is_cut;
        match happening {
            Happening::ToTarget(generation, bytes) if present(generation, self) => {
                let message = decode_message(&bytes).expect("what was encoded is decoded");
                self.hear_at_target(&message);
            }
            Happening::ToSource(generation, bytes) if present(generation, self) => {
                let message = decode_message(&bytes).expect("what was encoded is decoded");
                self.source.on(self.now, SourceEvent::Message(&message));
            }
            Happening::Pages(generation, run, copies) if present(generation, self) => self.pages_arrive(run, &copies),
            Happening::Request(generation, gfn) if present(generation, self) => self.serve(gfn),
            Happening::Reply(generation, gfn) if present(generation, self) => self.reply_arrives(gfn),
            _ => {}
        }
    }

    fn hear_at_target(&mut self, message: &Message<'_>) {
        match message {
            Message::Hello(_) => self.begin_target(),
            Message::Resume { given_up, .. } => {
                self.tell_target(TargetEvent::LinkLost);
                self.tell_target(TargetEvent::Reconnected { given_up: *given_up });
                let asked: Vec<Gfn> = self.asked.keys().copied().collect();
                for gfn in asked {
                    self.ask(gfn, self.now);
                }
            }
            _ => self.tell_target(TargetEvent::Message(message)),
        }
    }

    fn begin_target(&mut self) {
        let (source, strategy) = (self.source.config(), self.setup.strategy);
        let config = TargetConfig {
            session: source.session,
            vm: source.vm,
            regions: source.regions.clone(),
            protocol: 1,
            verify: false,
            pb_data: strategy.has_pb_data(),
            static_copy: strategy.first == First::Parallel,
            split: strategy.splits(),
            network_timeout: self.setup.network_timeout,
        };
        if let Some((missing, received)) = self.target_storage.take() {
            let target = Target::new(config, missing, received, self.now);
            self.target = Some(target.expect("the storage was made for it"));
        }
    }

    pub(super) fn tell_source(&mut self, event: SourceEvent<'_>) {
        if self.source_outcome.is_none() {
            self.source.on(self.now, event);
        }
    }

    pub(super) fn tell_target(&mut self, event: TargetEvent<'_>) {
        if let Some(target) = &mut self.target
            && self.target_outcome.is_none()
        {
            target.on(self.now, event);
        }
    }

    /// Sends a message towards the target. It never waits for the rate, but counts.
    pub(super) fn say_to_target(&mut self, message: &Message<'_>) {
        let bytes = self.encoded(message);
        let size = (HEADER_BYTES + bytes.len()) as u64;
        self.measured.control_bytes += size;
        let left = self.forth.occupy(size, self.now);
        let arrives = self.forth.arrival(left);
        self.at(arrives, Happening::ToTarget(self.generation, bytes));
    }

    pub(super) fn say_to_source(&mut self, message: &Message<'_>) {
        let bytes = self.encoded(message);
        self.measured.control_bytes += (HEADER_BYTES + bytes.len()) as u64;
        let arrives = self.back.arrival(self.now);
        self.at(arrives, Happening::ToSource(self.generation, bytes));
    }

    fn encoded(&mut self, message: &Message<'_>) -> Vec<u8> {
        let length = encode_message(message, &mut self.message).expect("there is room for any message");
        self.message[..length].to_vec()
    }

    /// The guest has begun to run at the target.
    pub(super) fn arm_cut(&mut self) {
        if let Some(cut) = self.setup.cut {
            self.at(self.now.saturating_add(cut.after), Happening::Cut);
        }
    }

    fn cut(&mut self) {
        self.is_cut = true;
        self.generation += 1;
        self.at(self.now.saturating_add(self.setup.network_timeout), Happening::Silence);
        if let Some(lasts) = self.setup.cut.and_then(|cut| cut.lasts) {
            self.at(self.now.saturating_add(lasts), Happening::Back);
        }
    }

    /// What either side reads in the storage directory of where the other stands.
    fn exchange(&mut self) {
        if self.setup.strategy.has_pb_data() {
            let target = self.target.as_ref().and_then(Target::stored_standing);
            if let Some(standing) = target.filter(|_| !self.source.linked()) {
                let report = self.target_report();
                self.tell_source(SourceEvent::TargetState { standing, report });
            }
            let cut_off = self.target.as_ref().is_some_and(|target| !target.linked());
            if let Some(given_up) = self.source.stored_given_up().filter(|_| cut_off) {
                self.tell_target(TargetEvent::SourceState { given_up });
            }
            if self.source_outcome == Some(SourceOutcome::Completed) && cut_off {
                self.tell_target(TargetEvent::SourceEnded);
            }
        }
        self.at(self.now.saturating_add(EXCHANGE), Happening::Exchange);
    }
}
