//! Somebody who listens on the wire: passes everything on, and keeps it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::Context as _;
use dunlin::channel::{Address, Cancel, Listener, Stream, Wait, connect};

const PIECE_BYTES: usize = 64 << 10;

/// A running tap; ends, with all its connections, when dropped.
pub struct Tap {
    address: Address,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    target: Address,
    end: Cancel,
    /// Of each connection what came from whoever made it, then what came back.
    heard: Mutex<Vec<[Vec<u8>; 2]>>,
}

impl Tap {
    /// Listens on a free loopback port, and connects whoever comes to `target`.
    ///
    /// # Errors
    /// If it cannot listen.
    pub fn start(target: &str) -> anyhow::Result<Self> {
        let listener = Listener::bind(&"127.0.0.1:0".parse()?).context("cannot listen")?;
        let address = listener.address().clone();
        let shared = Arc::new(Shared {
            target: target.parse()?,
            end: Cancel::new(),
            heard: Mutex::default(),
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

    /// What passed so far: of each connection what came from whoever made it, then what came back.
    pub fn heard(&self) -> Vec<[Vec<u8>; 2]> {
        lock(&self.shared.heard).clone()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.shared.end.raise();
        if let Some(acceptor) = self.acceptor.take() {
            // A panic in there has been printed; the test fails at the other end.
            let _ = acceptor.join();
        }
    }
}

fn accept_all(listener: &Listener, shared: &Shared) {
    thread::scope(|scope| {
        for connection in 0.. {
            let Ok(near) = listener.accept(Wait::forever(&shared.end)) else {
                break;
            };
            lock(&shared.heard).push(Default::default());
            let Ok(far) = connect(&shared.target, Wait::forever(&shared.end)) else {
                continue;
            };
            scope.spawn(move || {
                thread::scope(|scope| {
                    scope.spawn(|| pass(&near, &far, shared, (connection, 0)));
                    pass(&far, &near, shared, (connection, 1));
                });
            });
        }
    });
}

fn pass(from: &Stream, to: &Stream, shared: &Shared, (connection, direction): (usize, usize)) {
    let wait = Wait::forever(&shared.end);
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(read @ 1..) = from.read_some(&mut piece, wait) {
        lock(&shared.heard)[connection][direction].extend(&piece[..read]);
        if to.write_all(&piece[..read], wait).is_err() {
            break;
        }
    }
    to.finish();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
