//! A relay between the processes of a migration that reads what it passes on, and does something at a place of the protocol:
//! the network with its faults, and the moment at which a process dies.

mod deed;
mod place;

pub use deed::{Deed, Frozen, LONG, Side};
pub use place::{Lane, Passing, Place, Trigger};

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use dunlin::channel::{Address, Cancel, ChannelError, Direction, Listener, Stream, Wait, connect};
use dunlin_core::message::{Message, Mode};
use dunlin_core::wire::{FrameHeader, FrameKind, HEADER_BYTES, decode_message};
use place::payload_bytes;
use rustix::process::{Pid, Signal, kill_process};

/// How often something that is held is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// Shorter than any silence that a migration of these tests endures.
const SHORT: Duration = Duration::from_millis(300);

/// Numbers that a seed decides (`SplitMix64`): neighbouring seeds do not give neighbouring runs.
pub struct Random(u64);

impl Random {
    /// The numbers of this seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next one.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// A running relay; ends, with all its connections, when dropped.
pub struct Relay {
    address: Address,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    target: Address,
    deed: Deed,
    trigger: Mutex<Trigger>,
    /// Somebody is about to do the deed.
    met: AtomicBool,
    /// It has been done.
    struck: AtomicBool,
    random: Mutex<Random>,
    end: Cancel,
    passed: AtomicU64,
    weather: Mutex<Weather>,
    connections: Mutex<Vec<Arc<Connection>>>,
    processes: [OnceLock<Pid>; 2],
    client: OnceLock<Pid>,
    /// What went wrong with the deed itself.
    trouble: Mutex<Option<String>>,
}

/// What the network is like at the moment.
#[derive(Default)]
struct Weather {
    /// So many new connections end at once.
    refuse: u64,
    /// New connections are dead until then.
    dead_until: Option<Instant>,
    /// Nothing passes until then.
    held_until: Option<Instant>,
    trickle: bool,
    reorder: bool,
}

struct Connection {
    near: Stream,
    far: Stream,
    lane: OnceLock<Lane>,
    /// Takes everything, passes nothing on, tells nobody.
    dead: AtomicBool,
}

impl Relay {
    /// Listens on a free loopback port for a migration to `target`; at the place of `trigger` it does `deed`.
    ///
    /// # Errors
    /// If it cannot listen.
    pub fn start(target: &str, deed: Deed, trigger: Trigger, random: Random) -> anyhow::Result<Self> {
        let listener = Listener::bind(&"127.0.0.1:0".parse()?)?;
        let address = listener.address().clone();
        let shared = Arc::new(Shared {
            target: target.parse()?,
            deed,
            trigger: Mutex::new(trigger),
            met: AtomicBool::new(false),
            struck: AtomicBool::new(false),
            random: Mutex::new(random),
            end: Cancel::new(),
            passed: AtomicU64::new(0),
            weather: Mutex::default(),
            connections: Mutex::default(),
            processes: [OnceLock::new(), OnceLock::new()],
            client: OnceLock::new(),
            trouble: Mutex::default(),
        });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept_all(&listener, &shared)
        });
        Ok(Self {
            address,
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// Where to connect to.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// Says which processes the two sides are.
    pub fn between(&self, source: u32, target: u32) {
        for (known, pid) in self.shared.processes.iter().zip([source, target]) {
            let _ = known.set(process_id(pid));
        }
    }

    /// Says which process waits for the migration.
    pub fn waited_for_by(&self, client: u32) {
        let _ = self.shared.client.set(process_id(client));
    }

    /// The deed has been done, or is about to be: its effect may show already.
    pub fn strikes(&self) -> bool {
        self.shared.met.load(Ordering::Acquire)
    }

    /// The deed has been done.
    pub fn has_struck(&self) -> bool {
        self.shared.struck.load(Ordering::Acquire)
    }

    /// How the guest was handed over, once it was, and how many pages were dirty then.
    pub fn handed_over(&self) -> Option<(Mode, u64)> {
        lock(&self.shared.trigger).handed_over()
    }

    /// The source has said that it gave the guest up.
    pub fn committed(&self) -> bool {
        lock(&self.shared.trigger).committed()
    }

    /// Fails if the deed could not be done.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> anyhow::Result<()> {
        lock(&self.shared.trouble)
            .clone()
            .map_or(Ok(()), |trouble| Err(anyhow::anyhow!(trouble)))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.end.raise();
        for connection in lock(&self.shared.connections).drain(..) {
            connection.close();
        }
        if let Some(acceptor) = self.acceptor.take() {
            // A panic in there has been printed; the test fails at the other end.
            let _ = acceptor.join();
        }
    }
}

impl Connection {
    fn close(&self) {
        self.near.shutdown();
        self.far.shutdown();
    }

    fn of(&self, side: Side) -> &Stream {
        match side {
            Side::Source => &self.near,
            Side::Target => &self.far,
        }
    }
}

/// Ends a connection so that its peer gets a reset, and loses what it has not read.
fn reset(stream: &Stream) {
    // A connection that has ended already is as good.
    let _ = rustix::net::connect_unspec(stream);
    stream.shutdown();
}

fn accept_all(listener: &Listener, shared: &Arc<Shared>) {
    let mut pumps = Vec::new();
    while let Ok(near) = listener.accept(Wait::forever(&shared.end)) {
        let dead = {
            let mut weather = lock(&shared.weather);
            if weather.refuse > 0 {
                weather.refuse -= 1;
                reset(&near);
                continue;
            }
            weather.dead_until.is_some_and(|until| Instant::now() < until)
        };
        // A target that is not there ends the connection, as a cut would.
        let Ok(far) = connect(&shared.target, Wait::forever(&shared.end)) else {
            continue;
        };
        let connection = Arc::new(Connection {
            near,
            far,
            lane: OnceLock::new(),
            dead: AtomicBool::new(dead),
        });
        lock(&shared.connections).push(Arc::clone(&connection));
        for direction in [Direction::Forward, Direction::Back] {
            let (shared, connection) = (Arc::clone(shared), Arc::clone(&connection));
            pumps.push(thread::spawn(move || {
                Pump::new(&shared, &connection, direction).run();
            }));
        }
    }
    for pump in pumps {
        let _ = pump.join();
    }
}

/// One direction of one connection.
struct Pump<'a> {
    shared: &'a Arc<Shared>,
    connection: &'a Connection,
    direction: Direction,
    from: &'a Stream,
    to: &'a Stream,
}

impl<'a> Pump<'a> {
    fn new(shared: &'a Arc<Shared>, connection: &'a Connection, direction: Direction) -> Self {
        let (from, to) = match direction {
            Direction::Forward => (&connection.near, &connection.far),
            Direction::Back => (&connection.far, &connection.near),
        };
        Self {
            shared,
            connection,
            direction,
            from,
            to,
        }
    }

    fn run(self) {
        let mut frame = Vec::new();
        // Any error is the end of a connection, which both ends get to see as such.
        while self.pass(&mut frame).is_ok() {}
        if !self.connection.dead.load(Ordering::Acquire) {
            self.to.finish();
        }
    }

    fn wait(&self) -> Wait<'a> {
        Wait::forever(&self.shared.end)
    }

    /// Takes one frame in and passes it on.
    fn pass(&self, frame: &mut Vec<u8>) -> Result<(), ChannelError> {
        let mut head = [0; HEADER_BYTES];
        self.from.read_exact(&mut head, self.wait())?;
        let Ok(header) = FrameHeader::decode(&head) else {
            self.shared.note("a side sent what is no frame");
            return Err(ChannelError::Cancelled);
        };
        frame.clear();
        frame.extend_from_slice(&head);
        frame.resize(HEADER_BYTES + payload_bytes(&header), 0);
        self.from.read_exact(&mut frame[HEADER_BYTES..], self.wait())?;
        if self.connection.dead.load(Ordering::Acquire) {
            return Ok(());
        }
        let (strikes, is_behind) = self.looks_at(&header, &frame[HEADER_BYTES..]);
        if strikes && !is_behind {
            self.strike(frame);
        }
        self.weather()?;
        if self.connection.dead.load(Ordering::Acquire) {
            return Ok(());
        }
        self.write(frame)?;
        if self.direction == Direction::Forward {
            self.shared.passed.fetch_add(frame.len() as u64, Ordering::AcqRel);
        }
        if strikes && is_behind {
            self.strike(frame);
        }
        Ok(())
    }

    fn looks_at(&self, header: &FrameHeader, payload: &[u8]) -> (bool, bool) {
        let message = match header.kind {
            FrameKind::Control => decode_message(payload).ok(),
            _ => None,
        };
        let lane = *self.connection.lane.get_or_init(|| match message {
            Some(Message::Attach { .. }) => Lane::Fault,
            _ => Lane::Migration,
        });
        let passing = Passing {
            lane,
            direction: self.direction,
            header,
            message,
            bytes: self.shared.passed.load(Ordering::Acquire),
        };
        let mut trigger = lock(&self.shared.trigger);
        let here = trigger.meets(&passing) && !self.shared.met.swap(true, Ordering::AcqRel);
        (here, trigger.is_behind())
    }

    fn strike(&self, frame: &mut [u8]) {
        if let Err(error) = self.shared.perform(frame) {
            self.shared
                .note(&format!("{:?} could not be done: {error:#}", self.shared.deed));
        }
        self.shared.struck.store(true, Ordering::Release);
    }

    /// Waits as long as the weather wants.
    fn weather(&self) -> Result<(), ChannelError> {
        loop {
            let weather = lock(&self.shared.weather);
            if weather.held_until.is_none_or(|until| until <= Instant::now()) {
                // Of two frames on two connections each may be the first.
                let most_ms = if weather.reorder {
                    30
                } else {
                    u64::from(weather.trickle) * 8
                };
                drop(weather);
                let pause = Duration::from_millis(self.shared.random() % (most_ms + 1));
                return if pause.is_zero() || self.wait().sleep(pause) {
                    Ok(())
                } else {
                    Err(ChannelError::Cancelled)
                };
            }
            drop(weather);
            if !self.wait().sleep(LOOK) {
                return Err(ChannelError::Cancelled);
            }
        }
    }

    fn write(&self, frame: &[u8]) -> Result<(), ChannelError> {
        if !lock(&self.shared.weather).trickle {
            return self.to.write_all(frame, self.wait());
        }
        let mut rest = frame;
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(rest.len().min(1 + self.shared.random() as usize % 4000));
            self.to.write_all(piece, self.wait())?;
            rest = later;
        }
        Ok(())
    }
}

impl Shared {
    fn random(&self) -> u64 {
        lock(&self.random).next()
    }

    fn note(&self, trouble: &str) {
        lock(&self.trouble).get_or_insert_with(|| trouble.to_owned());
    }

    fn pid(&self, side: Side) -> anyhow::Result<Pid> {
        let known = self.processes[side as usize].get();
        known.copied().context("the relay was not told its processes")
    }

    /// Does the deed while `frame` waits to be passed on.
    fn perform(self: &Arc<Self>, frame: &mut [u8]) -> anyhow::Result<()> {
        match self.deed {
            Deed::Reset => {
                lock(&self.weather).refuse = self.random() % 4;
                self.cut(|connection| {
                    reset(&connection.near);
                    reset(&connection.far);
                });
            }
            Deed::Close => self.cut(Connection::close),
            Deed::HalfOpen(learns) => self.cut(|connection| {
                connection.dead.store(true, Ordering::Release);
                reset(connection.of(learns));
            }),
            Deed::BlackHole => {
                lock(&self.weather).dead_until = Some(Instant::now() + LONG);
                self.cut(|connection| connection.dead.store(true, Ordering::Release));
            }
            Deed::Stall => lock(&self.weather).held_until = Some(Instant::now() + SHORT),
            Deed::LongStall => lock(&self.weather).held_until = Some(Instant::now() + LONG),
            Deed::Trickle => lock(&self.weather).trickle = true,
            Deed::Reorder => lock(&self.weather).reorder = true,
            Deed::Corrupt => {
                let bit = self.random();
                frame[(bit / 8) as usize % frame.len()] ^= 1 << (bit % 8);
            }
            Deed::Kill(side) => {
                deed::kill(self.pid(side)?)?;
                if self.random().is_multiple_of(2) {
                    // What it sent last got lost with it.
                    self.cut(Connection::close);
                }
            }
            Deed::Freeze(side) => {
                let frozen = Frozen::new(self.pid(side)?)?;
                let shared = Arc::clone(self);
                thread::spawn(move || {
                    // Cut short by the end of the relay.
                    let _ = Wait::forever(&shared.end).sleep(LONG);
                    drop(frozen);
                });
            }
            Deed::Interrupt => {
                // It asked for the migration, so it is known a moment later at most.
                let deadline = Instant::now() + LONG;
                while self.client.get().is_none() && Instant::now() < deadline {
                    thread::sleep(LOOK);
                }
                let client = self.client.get().context("the relay was not told who waits")?;
                kill_process(*client, Signal::INT)?;
            }
        }
        Ok(())
    }

    /// Ends all present connections in some way.
    fn cut(&self, end: impl Fn(&Connection)) {
        for connection in &*lock(&self.connections) {
            if !connection.dead.load(Ordering::Acquire) {
                end(connection);
            }
        }
    }
}

/// A process as the system calls name it.
///
/// # Panics
/// If the number is 0, which no process has.
pub fn process_id(id: u32) -> Pid {
    Pid::from_raw(id.cast_signed()).expect("a process id is not 0")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
