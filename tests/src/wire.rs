//! A wire between two socket files that can be cut, and mended.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;

/// How often something that is held is looked at.
const LOOK: Duration = Duration::from_millis(2);
const CHUNK: usize = 64 << 10;

/// What the wire does with what it is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Passes it on.
    Whole,
    /// Ends all connections, and refuses new ones.
    Cut,
    /// Takes it, and passes nothing on.
    Silent,
}

/// A wire from one socket file to another. Ended with this.
#[derive(Debug)]
pub struct Wire {
    path: PathBuf,
    target: PathBuf,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    mode: Mode,
    listens: bool,
    connections: Vec<UnixStream>,
}

impl Wire {
    /// From `path`, which is made, to `target`, to which it connects whenever somebody connects to it.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn new(path: &Path, target: &Path) -> anyhow::Result<Self> {
        let wire = Self {
            path: path.to_owned(),
            target: target.to_owned(),
            shared: Arc::new(Mutex::new(Shared {
                mode: Mode::Whole,
                listens: false,
                connections: vec![],
            })),
        };
        wire.listen()?;
        Ok(wire)
    }

    /// Does something else from now on.
    ///
    /// # Errors
    /// If the socket cannot be made again.
    pub fn set(&self, mode: Mode) -> anyhow::Result<()> {
        lock(&self.shared).mode = mode;
        if mode == Mode::Cut {
            self.end();
            return Ok(());
        }
        self.listen()
    }

    fn listen(&self) -> anyhow::Result<()> {
        if std::mem::replace(&mut lock(&self.shared).listens, true) {
            return Ok(());
        }
        let listener =
            UnixListener::bind(&self.path).with_context(|| format!("cannot listen at {}", self.path.display()))?;
        listener.set_nonblocking(true)?;
        let (shared, target) = (Arc::clone(&self.shared), self.target.clone());
        thread::spawn(move || {
            while lock(&shared).listens {
                match listener.accept() {
                    // Whoever cannot be served sees its connection end.
                    Ok((client, _)) => drop(serve(client, &target, &shared)),
                    Err(_) => thread::sleep(LOOK),
                }
            }
        });
        Ok(())
    }

    fn end(&self) {
        // First, so that nobody who sees its connection end gets another one.
        let _ = std::fs::remove_file(&self.path);
        let mut shared = lock(&self.shared);
        shared.listens = false;
        end(&mut shared);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.end();
    }
}

fn end(shared: &mut Shared) {
    for connection in shared.connections.drain(..) {
        let _ = connection.shutdown(Shutdown::Both);
    }
}

fn serve(client: UnixStream, target: &Path, shared: &Arc<Mutex<Shared>>) -> io::Result<()> {
    client.set_nonblocking(false)?;
    let server = UnixStream::connect(target)?;
    lock(shared)
        .connections
        .extend([client.try_clone()?, server.try_clone()?]);
    for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        let shared = Arc::clone(shared);
        thread::spawn(move || pass(from, to, &shared));
    }
    Ok(())
}

fn pass(mut from: UnixStream, mut to: UnixStream, shared: &Mutex<Shared>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(bytes) = from.read(&mut buffer)
        && bytes > 0
    {
        while lock(shared).mode == Mode::Silent {
            thread::sleep(LOOK);
        }
        if to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
