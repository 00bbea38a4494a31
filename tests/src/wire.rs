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
    target: PathBuf,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    mode: Mode,
    listens: bool,
    connections: Vec<UnixStream>,
    first_bytes: Vec<u8>,
    shears: Option<Shears>,
}

/// Where in what passes the wire is cut.
#[derive(Debug)]
struct Shears {
    mark: Vec<u8>,
    /// What passed last, in case the mark begins in it.
    tail: Vec<u8>,
    /// How much passes behind the mark, and whether that has been there.
    behind: usize,
    is_found: bool,
}

impl Shears {
    /// How many of these bytes pass, if the cut is among them.
    fn on_bytes(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut allowed = self.behind;
        if !self.is_found {
            let before = self.tail.len();
            self.tail.extend_from_slice(bytes);
            let mark = self.tail.windows(self.mark.len()).position(|it| it == self.mark);
            let Some(start) = mark else {
                let kept = self.tail.len().min(self.mark.len() - 1);
                self.tail.drain(..self.tail.len() - kept);
                return None;
            };
            self.is_found = true;
            allowed += start + self.mark.len() - before;
        }
        if allowed <= bytes.len() {
            return Some(allowed);
        }
        self.behind = allowed - bytes.len();
        None
    }
}

impl Wire {
    /// From `path`, which is made, to `target`, to which it connects whenever somebody connects to it.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn new(path: &Path, target: &Path) -> anyhow::Result<Self> {
        let wire = Self {
            target: target.to_owned(),
            shared: Arc::new(Mutex::new(Shared {
                path: path.to_owned(),
                mode: Mode::Whole,
                listens: false,
                connections: vec![],
                first_bytes: vec![],
                shears: None,
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
        if mode == Mode::Cut {
            lock(&self.shared).cut();
            return Ok(());
        }
        lock(&self.shared).mode = mode;
        self.listen()
    }

    /// Cuts itself, once, when so many bytes have passed behind the first such ones, from whoever connects.
    pub fn cut_behind(&self, mark: &[u8], bytes: usize) {
        lock(&self.shared).shears = Some(Shears {
            mark: mark.to_vec(),
            tail: vec![],
            behind: bytes,
            is_found: false,
        });
    }

    /// Whether it is cut.
    pub fn is_cut(&self) -> bool {
        lock(&self.shared).mode == Mode::Cut
    }

    /// What came first by each connection, from whoever made it.
    pub fn first_bytes(&self) -> Vec<u8> {
        lock(&self.shared).first_bytes.clone()
    }

    fn listen(&self) -> anyhow::Result<()> {
        let path = {
            let mut shared = lock(&self.shared);
            if std::mem::replace(&mut shared.listens, true) {
                return Ok(());
            }
            shared.path.clone()
        };
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
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
}

impl Drop for Wire {
    fn drop(&mut self) {
        lock(&self.shared).cut();
    }
}

impl Shared {
    fn cut(&mut self) {
        // First, so that nobody who sees its connection end gets another one.
        let _ = std::fs::remove_file(&self.path);
        (self.mode, self.listens) = (Mode::Cut, false);
        for connection in self.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn serve(client: UnixStream, target: &Path, shared: &Arc<Mutex<Shared>>) -> io::Result<()> {
    client.set_nonblocking(false)?;
    let server = UnixStream::connect(target)?;
    let both = [client.try_clone()?, server.try_clone()?];
    {
        let mut shared = lock(shared);
        if shared.mode == Mode::Cut {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        shared.connections.extend(both);
    }
    let there = (client.try_clone()?, server.try_clone()?, true);
    for (from, to, is_there) in [there, (server, client, false)] {
        let shared = Arc::clone(shared);
        thread::spawn(move || pass(from, to, is_there, &shared));
    }
    Ok(())
}

/// Until either end ends it; `is_there` on the way from whoever connected.
fn pass(mut from: UnixStream, mut to: UnixStream, is_there: bool, shared: &Mutex<Shared>) {
    let mut buffer = vec![0; CHUNK];
    let mut is_first = is_there;
    while let Ok(bytes) = from.read(&mut buffer)
        && bytes > 0
    {
        while lock(shared).mode == Mode::Silent {
            thread::sleep(LOOK);
        }
        let bytes = &buffer[..bytes];
        if std::mem::take(&mut is_first) {
            lock(shared).first_bytes.push(bytes[0]);
        }
        let cut = is_there
            .then(|| lock(shared).shears.as_mut()?.on_bytes(bytes))
            .flatten();
        if to.write_all(&bytes[..cut.unwrap_or(bytes.len())]).is_err() {
            break;
        }
        if cut.is_some() {
            let mut shared = lock(shared);
            shared.shears = None;
            shared.cut();
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_cut_where_it_is_told_to_be() {
        for chunk in 1..9 {
            for behind in 0..4 {
                let folder = tempfile::tempdir().unwrap();
                let [near, far] = ["near", "far"].map(|name| folder.path().join(name));
                let listener = UnixListener::bind(&far).unwrap();
                let wire = Wire::new(&near, &far).unwrap();
                wire.cut_behind(b"mark", behind);
                let mut client = UnixStream::connect(&near).unwrap();
                let (mut server, _) = listener.accept().unwrap();
                thread::spawn(move || {
                    for bytes in b"..mmark1234567".chunks(chunk) {
                        // It may be cut already.
                        let _ = client.write_all(bytes);
                    }
                    thread::sleep(Duration::from_secs(60));
                });
                let mut arrived = vec![];
                server.read_to_end(&mut arrived).unwrap();
                assert_eq!(arrived, b"..mmark1234567"[..7 + behind], "{chunk} {behind}");
                assert!(wire.is_cut() && !near.exists());
                assert_eq!(wire.first_bytes(), b".");
            }
        }
    }
}
