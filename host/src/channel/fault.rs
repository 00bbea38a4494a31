//! A link with faults, for tests: a proxy between two ends that cuts, stalls, corrupts, swallows or fragments what
//! passes.
//!
//! A proxy rather than a wrapper around [`Stream`], because the ends move guest memory with system calls of their own
//! on the bare socket, and because they may be other processes. Faults are set by byte offsets, so that a test hits the
//! same place of the protocol each time.

use super::{Address, Cancel, ChannelError, Listener, Stream, Wait, connect};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// How much passes at once.
const PIECE_BYTES: usize = 64 << 10;

/// How often a held link looks whether it is released.
const HOLD_SLICE: Duration = Duration::from_millis(2);

/// Which way the bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the end that connected to the proxy.
    Forward,
    /// To the end that connected to the proxy.
    Back,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Both directions end.
    Cut,
    /// Nothing passes any more in this direction, and nobody is told.
    Stall,
    /// The next byte arrives xor-ed with this.
    Corrupt(u8),
    /// That many bytes are lost.
    Swallow(u64),
    /// From here on, never more than that many bytes are passed on at once.
    Fragment(usize),
}

/// A fault and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which connection, counted from 0 in the order in which the proxy accepted them.
    pub connection: usize,
    /// Which half of it.
    pub direction: Direction,
    /// After how many bytes of this half.
    pub after_bytes: u64,
    /// What happens.
    pub kind: FaultKind,
}

/// A running proxy; ends, with all its connections, when dropped.
#[derive(Debug)]
pub struct FaultProxy {
    address: Address,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: Address,
    faults: Vec<Fault>,
    end: Cancel,
    held: AtomicBool,
    refusing: AtomicBool,
    passed: [AtomicU64; 2],
    live: Mutex<Vec<Stream>>,
}

impl FaultProxy {
    /// Listens at `listen` and connects each connection on to `target`, with these faults.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub fn start(listen: &Address, target: &Address, faults: Vec<Fault>) -> Result<Self, ChannelError> {
        let listener = Listener::bind(listen)?;
        let address = listener.address().clone();
        let shared = Arc::new(Shared {
            target: target.clone(),
            faults,
            end: Cancel::new(),
            held: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
            passed: [AtomicU64::new(0), AtomicU64::new(0)],
            live: Mutex::default(),
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

    /// Holds all traffic, as a pulled cable would, or lets it go on.
    pub fn hold(&self, held: bool) {
        self.shared.held.store(held, Ordering::Release);
    }

    /// Ends new connections at once, or stops doing so.
    pub fn refuse(&self, refusing: bool) {
        self.shared.refusing.store(refusing, Ordering::Release);
    }

    /// Ends all present connections.
    pub fn cut(&self) {
        for stream in self
            .shared
            .live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            stream.shutdown();
        }
    }

    /// How many bytes have passed on all connections together.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.shared.passed[direction as usize].load(Ordering::Acquire)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.end.raise();
        self.cut();
        if let Some(acceptor) = self.acceptor.take() {
            // A panic in there has been printed; the test fails at the other end.
            let _ = acceptor.join();
        }
    }
}

fn accept_all(listener: &Listener, shared: &Arc<Shared>) {
    let mut pumps = Vec::new();
    for connection in 0.. {
        let Ok(near) = listener.accept(Wait::forever(&shared.end)) else {
            break;
        };
        if shared.refusing.load(Ordering::Acquire) {
            continue;
        }
        // A target that is not there ends the connection, as a cut would.
        let Ok(far) = connect(&shared.target, Wait::forever(&shared.end)) else {
            continue;
        };
        let Ok(handles) = clones(&near, &far) else { continue };
        shared
            .live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(handles);
        let ends = Arc::new((near, far));
        for direction in [Direction::Forward, Direction::Back] {
            let (shared, ends) = (Arc::clone(shared), Arc::clone(&ends));
            pumps.push(thread::spawn(move || {
                Pump::new(&shared, connection, direction, &ends).run()
            }));
        }
    }
    for pump in pumps {
        let _ = pump.join();
    }
}

fn clones(near: &Stream, far: &Stream) -> Result<[Stream; 2], ChannelError> {
    Ok([near.try_clone()?, far.try_clone()?])
}

/// One direction of one connection.
struct Pump<'a> {
    shared: &'a Shared,
    from: &'a Stream,
    to: &'a Stream,
    passed: &'a AtomicU64,
    /// Still to come, the next one last.
    faults: Vec<Fault>,
    position: u64,
    piece: usize,
    corrupt: u8,
    swallow: u64,
}

impl<'a> Pump<'a> {
    fn new(shared: &'a Shared, connection: usize, direction: Direction, ends: &'a (Stream, Stream)) -> Self {
        let (from, to) = match direction {
            Direction::Forward => (&ends.0, &ends.1),
            Direction::Back => (&ends.1, &ends.0),
        };
        let mine = |fault: &&Fault| fault.connection == connection && fault.direction == direction;
        let mut faults: Vec<_> = shared.faults.iter().filter(mine).copied().collect();
        faults.sort_by_key(|fault| std::cmp::Reverse(fault.after_bytes));
        let passed = &shared.passed[direction as usize];
        Self {
            shared,
            from,
            to,
            passed,
            faults,
            position: 0,
            piece: PIECE_BYTES,
            corrupt: 0,
            swallow: 0,
        }
    }

    fn run(mut self) {
        let mut buffer = vec![0; PIECE_BYTES];
        // Any error is the end of a connection, which both ends get to see as such.
        while self.pass(&mut buffer).unwrap_or(false) {}
        if self.shared.end.is_raised() {
            self.from.shutdown();
        }
        self.to.finish();
    }

    /// Passes one piece on. False at the end.
    fn pass(&mut self, buffer: &mut [u8]) -> Result<bool, ChannelError> {
        if !self.apply_due() {
            return Ok(false);
        }
        let wait = Wait::forever(&self.shared.end);
        let before_next = self
            .faults
            .last()
            .map_or(u64::MAX, |fault| fault.after_bytes - self.position);
        let mut limit = before_next.min(self.piece.min(PIECE_BYTES) as u64);
        if self.swallow > 0 {
            limit = limit.min(self.swallow);
        }
        if self.corrupt != 0 {
            limit = 1;
        }
        let piece = &mut buffer[..usize::try_from(limit.max(1)).expect("at most the buffer")];
        let read = self.from.read_some(piece, wait)?;
        if read == 0 {
            return Ok(false);
        }
        while self.shared.held.load(Ordering::Acquire) {
            if !wait.sleep(HOLD_SLICE) {
                return Ok(false);
            }
        }
        self.position += read as u64;
        if self.swallow > 0 {
            self.swallow -= read as u64;
            return Ok(true);
        }
        piece[0] ^= std::mem::take(&mut self.corrupt);
        self.to.write_all(&piece[..read], wait)?;
        self.passed.fetch_add(read as u64, Ordering::AcqRel);
        Ok(true)
    }

    /// Carries out the faults of this place. False when the direction ends here.
    fn apply_due(&mut self) -> bool {
        while let Some(fault) = self.faults.pop_if(|fault| fault.after_bytes <= self.position) {
            match fault.kind {
                FaultKind::Cut => {
                    self.from.shutdown();
                    self.to.shutdown();
                    return false;
                }
                FaultKind::Stall => {
                    while Wait::forever(&self.shared.end).sleep(HOLD_SLICE) {}
                    return false;
                }
                FaultKind::Corrupt(xor) => self.corrupt ^= xor,
                FaultKind::Swallow(bytes) => self.swallow += bytes,
                FaultKind::Fragment(bytes) => self.piece = bytes.max(1),
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOREVER_FOR_A_TEST: Duration = Duration::from_secs(20);

    fn fault(direction: Direction, after_bytes: u64, kind: FaultKind) -> Fault {
        Fault {
            connection: 0,
            direction,
            after_bytes,
            kind,
        }
    }

    /// Sends `bytes` through a proxy with `faults` and returns what arrives until the end of the stream.
    fn through(faults: Vec<Fault>, bytes: &[u8]) -> Vec<u8> {
        let cancel = Cancel::new();
        let wait = Wait::within(FOREVER_FOR_A_TEST, &cancel);
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = Listener::bind(&any).unwrap();
        let proxy = FaultProxy::start(&any, listener.address(), faults).unwrap();
        let sender = connect(proxy.address(), wait).unwrap();
        let receiver = listener.accept(wait).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                // A cut makes this fail, as it should.
                let _ = sender.write_all(bytes, wait);
                sender.finish();
            });
            let (mut all, mut piece) = (Vec::new(), [0; 1000]);
            loop {
                match receiver.read_some(&mut piece, wait) {
                    Ok(0) | Err(ChannelError::Closed { .. }) => return all,
                    Ok(read) => all.extend(&piece[..read]),
                    Err(error) => panic!("{error}"),
                }
            }
        })
    }

    fn sample() -> Vec<u8> {
        (0..200_000u32).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn nothing_happens_to_other_connections_and_directions() {
        let other = Fault {
            connection: 1,
            ..fault(Direction::Forward, 5, FaultKind::Cut)
        };
        assert_eq!(
            through(vec![other, fault(Direction::Back, 0, FaultKind::Corrupt(1))], &sample()),
            sample()
        );
        let faults = vec![fault(Direction::Forward, 7, FaultKind::Fragment(999))];
        assert_eq!(through(faults, &sample()), sample());
    }

    #[test]
    fn faults_hit_their_byte() {
        let sample = sample();
        assert_eq!(
            through(vec![fault(Direction::Forward, 70_000, FaultKind::Cut)], &sample),
            sample[..70_000]
        );

        let mut expected = sample.clone();
        expected[70_000] ^= 0x10;
        let faults = vec![fault(Direction::Forward, 70_000, FaultKind::Corrupt(0x10))];
        assert_eq!(through(faults, &sample), expected);

        let faults = vec![
            fault(Direction::Forward, 100, FaultKind::Fragment(3)),
            fault(Direction::Forward, 10, FaultKind::Swallow(20)),
            fault(Direction::Forward, 500, FaultKind::Cut),
        ];
        assert_eq!(through(faults, &sample), [&sample[..10], &sample[30..500]].concat());
    }

    #[test]
    fn a_stall_is_silent_and_a_hold_loses_nothing() {
        let cancel = Cancel::new();
        let wait = Wait::within(FOREVER_FOR_A_TEST, &cancel);
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = Listener::bind(&any).unwrap();
        let faults = vec![fault(Direction::Forward, 3, FaultKind::Stall)];
        let proxy = FaultProxy::start(&any, listener.address(), faults).unwrap();
        let near = connect(proxy.address(), wait).unwrap();
        let far = listener.accept(wait).unwrap();

        near.write_all(b"abcdef", wait).unwrap();
        let mut three = [0; 3];
        far.read_exact(&mut three, wait).unwrap();
        assert_eq!(&three, b"abc");
        let silent = far.read_some(&mut three, Wait::within(Duration::from_millis(20), &cancel));
        assert!(matches!(silent, Err(ChannelError::TimedOut { .. })));
        assert_eq!(proxy.passed(Direction::Forward), 3);

        proxy.hold(true);
        far.write_all(b"back", wait).unwrap();
        let mut four = [0; 4];
        let held = near.read_some(&mut four, Wait::within(Duration::from_millis(20), &cancel));
        assert!(matches!(held, Err(ChannelError::TimedOut { .. })));
        proxy.hold(false);
        near.read_exact(&mut four, wait).unwrap();
        assert_eq!(&four, b"back");

        proxy.cut();
        assert_eq!(near.read_some(&mut four, wait).unwrap_or(0), 0);
    }
}
