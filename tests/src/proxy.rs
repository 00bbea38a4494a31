//! A proxy on loopback that breaks connections on purpose: cut, stall, delay, cut after so many bytes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// Forwards every connection made to [`address`](Proxy::address) to one target address, in both directions, until told
/// to misbehave. All connections end when it is dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

struct Shared {
    target: SocketAddr,
    /// Both ends of each connection.
    streams: Mutex<Vec<TcpStream>>,
    accepts: AtomicBool,
    ended: AtomicBool,
    stalled: Mutex<bool>,
    unstalled: Condvar,
    delay_us: AtomicU64,
    forwarded: AtomicU64,
    cut_at: AtomicU64,
}

/// Bytes moved at a time: small, so that a cut can fall inside a frame.
const CHUNK_BYTES: usize = 16 * 1024;

impl Proxy {
    /// Listens on a free loopback port and forwards to `target` (`host:port`).
    pub fn start(target: &str) -> anyhow::Result<Self> {
        let target = target
            .parse()
            .with_context(|| format!("`{target}` is no socket address"))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target,
            streams: Mutex::default(),
            accepts: AtomicBool::new(true),
            ended: AtomicBool::new(false),
            stalled: Mutex::new(false),
            unstalled: Condvar::new(),
            delay_us: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            cut_at: AtomicU64::new(u64::MAX),
        });
        let for_thread = Arc::clone(&shared);
        thread::spawn(move || for_thread.accept_all(&listener));
        Ok(Self { shared, address })
    }

    /// Where to connect, as `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Ends all connections now; new ones are refused until [`mend`](Self::mend).
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Cuts once so many bytes in all have passed towards the target. Zero is the next byte.
    pub fn cut_after(&self, bytes: u64) {
        self.shared
            .cut_at
            .store(self.shared.forwarded.load(SeqCst).saturating_add(bytes), SeqCst);
    }

    /// New connections are forwarded again.
    pub fn mend(&self) {
        self.shared.cut_at.store(u64::MAX, SeqCst);
        self.shared.accepts.store(true, SeqCst);
    }

    /// Holds back everything (connections stay open, nothing arrives) or lets it pass again.
    pub fn stall(&self, on: bool) {
        *self.shared.stalled.lock().expect("no panic under the lock") = on;
        self.shared.unstalled.notify_all();
    }

    /// Each chunk waits so long before it is passed on.
    pub fn delay(&self, each: Duration) {
        self.shared
            .delay_us
            .store(u64::try_from(each.as_micros()).unwrap_or(u64::MAX), SeqCst);
    }

    /// Bytes that have passed towards the target.
    pub fn forwarded(&self) -> u64 {
        self.shared.forwarded.load(SeqCst)
    }

    /// Waits until at least `bytes` have passed towards the target.
    pub fn wait_forwarded(&self, bytes: u64, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        while self.forwarded() < bytes {
            let passed = self.forwarded();
            anyhow::ensure!(
                Instant::now() < deadline,
                "only {passed} of {bytes} bytes passed within {limit:?}"
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        self.stall(false);
        self.cut();
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn accept_all(self: &Arc<Self>, listener: &TcpListener) {
        for incoming in listener.incoming() {
            if self.ended.load(SeqCst) {
                return;
            }
            let (true, Ok(incoming)) = (self.accepts.load(SeqCst), incoming) else {
                continue;
            };
            let Ok(outgoing) = TcpStream::connect(self.target) else {
                continue;
            };
            if let Err(error) = self.forward_pair(incoming, outgoing) {
                eprintln!("proxy: a connection could not be forwarded: {error}");
            }
        }
    }

    fn forward_pair(self: &Arc<Self>, incoming: TcpStream, outgoing: TcpStream) -> std::io::Result<()> {
        incoming.set_nodelay(true)?;
        outgoing.set_nodelay(true)?;
        self.streams
            .lock()
            .expect("no panic under the lock")
            .extend([incoming.try_clone()?, outgoing.try_clone()?]);
        let (back_from, back_to) = (outgoing.try_clone()?, incoming.try_clone()?);
        let (there, back) = (Arc::clone(self), Arc::clone(self));
        thread::spawn(move || there.forward(incoming, outgoing, true));
        thread::spawn(move || back.forward(back_from, back_to, false));
        Ok(())
    }

    fn forward(&self, mut from: TcpStream, mut to: TcpStream, towards_target: bool) {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = match from.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            self.wait_until_due();
            let passed = if towards_target {
                self.pass_before_cut(count)
            } else {
                count
            };
            if to.write_all(&chunk[..passed]).is_err() {
                break;
            }
            if passed < count {
                self.cut();
                break;
            }
        }
        // Half of a connection may end before the other: pass the end on like the data.
        let _ = to.shutdown(Shutdown::Write);
    }

    fn wait_until_due(&self) {
        let delay = self.delay_us.load(SeqCst);
        if delay > 0 {
            thread::sleep(Duration::from_micros(delay));
        }
        let stalled = self.stalled.lock().expect("no panic under the lock");
        drop(
            self.unstalled
                .wait_while(stalled, |stalled| *stalled)
                .expect("no panic under the lock"),
        );
    }

    /// How many of `count` bytes may pass; counts them.
    fn pass_before_cut(&self, count: usize) -> usize {
        let count = count as u64;
        let before = self.forwarded.fetch_add(count, SeqCst);
        let left = self.cut_at.load(SeqCst).saturating_sub(before);
        let passed = left.min(count);
        self.forwarded.fetch_sub(count - passed, SeqCst);
        usize::try_from(passed).expect("no more than a chunk")
    }

    fn cut(&self) {
        self.accepts.store(false, SeqCst);
        for stream in self.streams.lock().expect("no panic under the lock").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A server that counts what it gets on each connection and answers the count at the end.
    fn counting_server() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                thread::spawn(move || {
                    let mut all = Vec::new();
                    let _ = stream.read_to_end(&mut all);
                    let _ = stream.write_all(&(all.len() as u64).to_le_bytes());
                });
            }
        });
        address
    }

    fn send_through(proxy: &Proxy, bytes: usize) -> Option<u64> {
        let mut stream = TcpStream::connect(proxy.address).expect("the proxy listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
        stream.write_all(&vec![7; bytes]).ok()?;
        stream.shutdown(Shutdown::Write).ok()?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).ok()?;
        Some(u64::from_le_bytes(answer))
    }

    #[test]
    fn everything_passes_both_ways() {
        let proxy = Proxy::start(&counting_server().to_string()).expect("starts");
        assert_eq!(send_through(&proxy, 1_000_000), Some(1_000_000));
        assert_eq!(proxy.forwarded(), 1_000_000);
    }

    #[test]
    fn a_cut_falls_on_the_byte_and_mending_helps() {
        let proxy = Proxy::start(&counting_server().to_string()).expect("starts");
        proxy.cut_after(100_001);
        assert_eq!(send_through(&proxy, 1_000_000), None);
        assert_eq!(proxy.forwarded(), 100_001);
        assert_eq!(send_through(&proxy, 1), None, "still cut");
        proxy.mend();
        assert_eq!(send_through(&proxy, 10), Some(10));
    }

    #[test]
    fn nothing_passes_while_stalled() {
        let proxy = Proxy::start(&counting_server().to_string()).expect("starts");
        proxy.stall(true);
        let mut stream = TcpStream::connect(proxy.address).expect("the proxy listens");
        stream.write_all(b"held back").expect("buffered");
        assert!(proxy.wait_forwarded(1, Duration::from_millis(50)).is_err());
        proxy.stall(false);
        proxy.wait_forwarded(9, LIMIT).expect("passes once the stall ends");
    }
}
