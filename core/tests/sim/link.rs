//! Connections that can be cut or swallow everything, with frames on the way in both directions.

use std::collections::VecDeque;

use dunlin_core::units::Nanos;

#[derive(Clone)]
pub(crate) enum Frame {
    Control(Vec<u8>),
    Pages { first: u64, values: Vec<u64> },
    Request(u64),
}

/// What one end finds when it looks.
pub(crate) enum Arrival {
    Frame(Frame),
    /// The connection is gone; told once.
    Lost,
    Nothing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open,
    /// Takes everything, delivers nothing, tells nobody.
    Swallowing,
    Broken,
}

/// One connection. An end learns that it is broken when it has read what was on its way, or when it sends.
pub(crate) struct Pipe {
    state: State,
    to_target: VecDeque<Frame>,
    to_source: VecDeque<Frame>,
    source_is_told: bool,
    target_is_told: bool,
    source_is_deaf: bool,
    /// What is on its way to the source, and to the target, stays there until then.
    held_until: [Nanos; 2],
}

impl Pipe {
    fn closed() -> Self {
        Self {
            state: State::Closed,
            to_target: VecDeque::new(),
            to_source: VecDeque::new(),
            source_is_told: true,
            target_is_told: true,
            source_is_deaf: false,
            held_until: [Nanos::ZERO; 2],
        }
    }

    fn open() -> Self {
        Self {
            state: State::Open,
            ..Self::closed()
        }
    }

    /// It was open once, whatever became of it.
    pub(crate) fn was_opened(&self) -> bool {
        self.state != State::Closed
    }

    pub(crate) fn works(&self) -> bool {
        self.state == State::Open
    }

    /// Heartbeats pass.
    pub(crate) fn flows_to_source(&self) -> bool {
        self.works() && self.held_until[0] == Nanos::ZERO
    }

    pub(crate) fn flows_to_target(&self) -> bool {
        self.works() && self.held_until[1] == Nanos::ZERO
    }

    /// Keeps a third, two thirds or all of what is on its way: what the kernel had already passed on.
    pub(crate) fn cut(&mut self, keep_thirds: u64) {
        if matches!(self.state, State::Open | State::Swallowing) {
            let keep = |length: usize| length * (keep_thirds as usize + 1) / 3;
            self.to_target.truncate(keep(self.to_target.len()));
            self.to_source.truncate(keep(self.to_source.len()));
            self.state = State::Broken;
            (self.source_is_told, self.target_is_told) = (false, false);
        }
    }

    /// What arrives at the source from now on is not heard.
    pub(crate) fn source_stops_reading(&mut self) {
        self.to_source.clear();
        self.source_is_deaf = true;
    }

    fn swallow(&mut self) {
        if self.state == State::Open {
            self.to_target.clear();
            self.to_source.clear();
            self.state = State::Swallowing;
        }
    }

    /// The connection is gone for one end, while the other still sends into it and is told nothing.
    fn half_open(&mut self, source_learns: bool) {
        if self.state == State::Open {
            self.swallow();
            self.source_is_told = !source_learns;
            self.target_is_told = source_learns;
        }
    }

    /// Nothing arrives before that time; nothing is lost.
    fn hold(&mut self, until: [Nanos; 2]) {
        self.held_until = until;
    }

    /// Both ends have something on its way to them that will still arrive, or one has.
    fn holds_anything(&self) -> bool {
        self.held_until != [Nanos::ZERO; 2] && !(self.to_source.is_empty() && self.to_target.is_empty())
    }

    fn release(&mut self, now: Nanos) {
        for until in &mut self.held_until {
            if *until <= now {
                *until = Nanos::ZERO;
            }
        }
    }

    /// The source closes its end and hears no more; what it sent still arrives.
    fn source_closes(&mut self) {
        self.closes();
        self.to_source.clear();
        self.source_is_told = true;
    }

    /// Nobody hears of the end of a connection that swallows everything.
    fn closes(&mut self) {
        if self.state != State::Swallowing {
            self.cut(2);
        }
    }

    /// The same for the target.
    pub(crate) fn target_closes(&mut self) {
        self.closes();
        self.to_target.clear();
        self.target_is_told = true;
    }

    /// False if the sender learns that the connection is gone. What is swallowed seems sent.
    pub(crate) fn send_to_target(&mut self, frame: Frame) -> bool {
        if self.state == State::Open {
            self.to_target.push_back(frame);
        }
        matches!(self.state, State::Open | State::Swallowing)
    }

    pub(crate) fn send_to_source(&mut self, frame: Frame) -> bool {
        if self.state == State::Open && !self.source_is_deaf {
            self.to_source.push_back(frame);
        }
        matches!(self.state, State::Open | State::Swallowing)
    }

    pub(crate) fn next_for_target(&mut self) -> Arrival {
        match self.to_target.pop_front() {
            Some(frame) => Arrival::Frame(frame),
            None if !core::mem::replace(&mut self.target_is_told, true) => Arrival::Lost,
            None => Arrival::Nothing,
        }
    }

    pub(crate) fn next_for_source(&mut self) -> Arrival {
        match self.to_source.pop_front() {
            Some(frame) => Arrival::Frame(frame),
            None if !core::mem::replace(&mut self.source_is_told, true) => Arrival::Lost,
            None => Arrival::Nothing,
        }
    }

    fn has_for_target(&self) -> bool {
        self.held_until[1] == Nanos::ZERO && !(self.to_target.is_empty() && self.target_is_told)
    }

    fn has_for_source(&self) -> bool {
        self.held_until[0] == Nanos::ZERO && !(self.to_source.is_empty() && self.source_is_told)
    }
}

/// One of the connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lane {
    Migration,
    Fault,
    OldMigration,
    OldFault,
}

/// All connections of the two processes.
pub(crate) struct Link {
    pub(crate) migration: Pipe,
    pub(crate) fault: Pipe,
    /// What the target still reads from until it hears of the connection that replaced it.
    pub(crate) old_migration: Pipe,
    pub(crate) old_fault: Pipe,
    /// The target works on `old_migration` still.
    pub(crate) target_is_on_old: bool,
    down_until: Nanos,
}

impl Link {
    pub(crate) fn new() -> Self {
        Self {
            migration: Pipe::closed(),
            fault: Pipe::closed(),
            old_migration: Pipe::closed(),
            old_fault: Pipe::closed(),
            target_is_on_old: false,
            down_until: Nanos::ZERO,
        }
    }

    /// Every connection breaks, and no new one comes about before that time.
    pub(crate) fn cut(&mut self, keep_thirds: u64, down_until: Nanos) {
        for pipe in self.pipes() {
            pipe.cut(keep_thirds);
        }
        self.down_until = self.down_until.max(down_until);
    }

    pub(crate) fn swallow(&mut self, down_until: Nanos) {
        self.migration.swallow();
        self.fault.swallow();
        self.down_until = self.down_until.max(down_until);
    }

    /// The present connections end for one side alone.
    pub(crate) fn half_open(&mut self, source_learns: bool) {
        self.migration.half_open(source_learns);
        self.fault.half_open(source_learns);
    }

    /// Holds what flows to the source and to the target on one connection, or on all.
    pub(crate) fn hold(&mut self, lane: Option<Lane>, until: [Nanos; 2]) {
        for held in [Lane::Migration, Lane::Fault] {
            if lane.is_none_or(|lane| lane == held) {
                self.pipe(held).hold(until);
            }
        }
    }

    /// Lets go what was held long enough.
    pub(crate) fn release(&mut self, now: Nanos) {
        for pipe in self.pipes() {
            pipe.release(now);
        }
    }

    /// Something will arrive yet, though nothing does now.
    pub(crate) fn holds_anything(&self) -> bool {
        let pipes = [&self.migration, &self.fault, &self.old_migration, &self.old_fault];
        pipes.into_iter().any(Pipe::holds_anything)
    }

    fn pipes(&mut self) -> [&mut Pipe; 4] {
        [
            &mut self.migration,
            &mut self.fault,
            &mut self.old_migration,
            &mut self.old_fault,
        ]
    }

    pub(crate) fn is_up(&self, now: Nanos) -> bool {
        now >= self.down_until
    }

    pub(crate) fn repair(&mut self) {
        self.down_until = Nanos::ZERO;
        for pipe in self.pipes() {
            pipe.hold([Nanos::ZERO; 2]);
        }
    }

    /// The source opens the migration channel anew; true if that worked.
    pub(crate) fn connect(&mut self, now: Nanos) -> bool {
        self.source_closes();
        if !self.is_up(now) {
            return false;
        }
        if !self.target_is_on_old {
            self.old_migration = core::mem::replace(&mut self.migration, Pipe::closed());
            self.target_is_on_old = true;
        }
        self.migration = Pipe::open();
        true
    }

    /// The target turns to the connection that the source opened last.
    pub(crate) fn target_turns(&mut self) {
        self.old_migration = Pipe::closed();
        self.target_is_on_old = false;
    }

    pub(crate) fn open_fault(&mut self, now: Nanos) -> bool {
        let works = self.is_up(now) && self.migration.works();
        if works {
            // The target's fault server drops the channel it had.
            self.old_fault = Pipe::closed();
            self.fault = Pipe::open();
        }
        works
    }

    pub(crate) fn source_closes(&mut self) {
        self.migration.source_closes();
        self.fault.source_closes();
        if self.fault.state == State::Broken {
            self.old_fault = core::mem::replace(&mut self.fault, Pipe::closed());
        }
    }

    pub(crate) fn target_closes(&mut self) {
        for pipe in [&mut self.fault, &mut self.old_migration, &mut self.old_fault] {
            pipe.target_closes();
        }
        if !self.target_is_on_old {
            self.migration.target_closes();
        }
    }

    /// The connection that the target believes to be the migration channel.
    pub(crate) fn migration_of_target(&mut self) -> &mut Pipe {
        if self.target_is_on_old {
            &mut self.old_migration
        } else {
            &mut self.migration
        }
    }

    /// The connections on which the target would find something.
    pub(crate) fn for_target(&self) -> Vec<Lane> {
        let lanes = [
            (Lane::Migration, &self.migration),
            (Lane::Fault, &self.fault),
            (Lane::OldMigration, &self.old_migration),
            (Lane::OldFault, &self.old_fault),
        ];
        let with_news = lanes.into_iter().filter(|(_, pipe)| pipe.has_for_target());
        with_news.map(|(lane, _)| lane).collect()
    }

    /// The same for the source, which has closed its end of the old ones.
    pub(crate) fn for_source(&self) -> Vec<Lane> {
        let lanes = [(Lane::Migration, &self.migration), (Lane::Fault, &self.fault)];
        let with_news = lanes.into_iter().filter(|(_, pipe)| pipe.has_for_source());
        with_news.map(|(lane, _)| lane).collect()
    }

    pub(crate) fn pipe(&mut self, lane: Lane) -> &mut Pipe {
        match lane {
            Lane::Migration => &mut self.migration,
            Lane::Fault => &mut self.fault,
            Lane::OldMigration => &mut self.old_migration,
            Lane::OldFault => &mut self.old_fault,
        }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.for_target().is_empty() && self.for_source().is_empty()
    }
}
