//! A client of QEMU's machine protocol: docs/interop/qmp-spec.txt of QEMU 7.2.
//!
//! Types of messages are those of JSON: QEMU adds states, events and fields every year, and a client that knows them all by name breaks
//! with the next one.

use std::collections::HashMap;
use std::io::{self, BufReader, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::address::{Address, Stream};
use super::error::QmpError;
use super::line::{Line, Unread, read_line, shown};

/// How long QEMU may take for an answer: it gives it at once, unless its main loop hangs.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What a QEMU says without being asked.
#[derive(Clone, PartialEq, Debug)]
pub enum Notice {
    /// An event, and what belongs to it.
    Event {
        /// Its name, `MIGRATION_PASS` for example.
        name: String,
        /// Its data; null if there are none.
        data: Value,
        /// When it arrived.
        at: Instant,
    },
    /// The connection has ended. Nothing comes after that.
    Closed,
}

/// A QEMU's version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Version {
    /// Of 7.2.22, the 7.
    pub major: u32,
    /// The 2.
    pub minor: u32,
    /// The 22.
    pub micro: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// A connection to a QEMU. Commands may be given by several threads. Dropping it ends the connection.
#[derive(Debug)]
pub struct Client {
    address: Address,
    version: Version,
    out_of_band: bool,
    peer: Option<u32>,
    stream: Mutex<Stream>,
    next: AtomicU64,
    waiting: Arc<Mutex<Waiting>>,
    reader: Option<JoinHandle<()>>,
}

/// Commands without an answer so far.
#[derive(Debug, Default)]
struct Waiting {
    answers: HashMap<String, mpsc::SyncSender<Value>>,
    closed: bool,
}

impl Client {
    /// Connects, and agrees on what both can do; out-of-band commands where QEMU offers them. `notice` is called by a thread of the
    /// client's with what QEMU says unasked; it must not give commands.
    ///
    /// # Errors
    /// [`QmpError::Connect`], [`QmpError::Busy`] when nobody greets, [`QmpError::NoQmp`], [`QmpError::Thread`].
    pub fn connect(address: &Address, notice: impl FnMut(Notice) + Send + 'static) -> Result<Self, QmpError> {
        let failed = |source| QmpError::Connect {
            address: address.clone(),
            source,
        };
        let stream = Stream::connect(address, PATIENCE).map_err(failed)?;
        stream.set_timeouts(Some(PATIENCE), Some(PATIENCE)).map_err(failed)?;
        let mut reader = BufReader::new(stream.try_clone().map_err(failed)?);
        let greeting = match read_line(&mut reader) {
            Ok(Line::Other(greeting)) => greeting,
            Ok(line) => return Err(QmpError::NoQmp(shown(&format!("{line:?}")))),
            Err(Unread::Io(error)) if is_timeout(&error) => return Err(QmpError::Busy(address.clone())),
            Err(Unread::Io(error)) => return Err(failed(error)),
            Err(Unread::Text(text)) => return Err(QmpError::NoQmp(text)),
        };
        let Some(about) = greeting.get("QMP") else {
            return Err(QmpError::NoQmp(shown(&greeting.to_string())));
        };
        let offers = |name: &str| {
            let capabilities = about["capabilities"].as_array().into_iter().flatten();
            capabilities.into_iter().any(|capability| capability == name)
        };
        let out_of_band = offers("oob");
        let number = |field: &str| about["version"]["qemu"][field].as_u64().unwrap_or(0) as u32;
        let version = Version {
            major: number("major"),
            minor: number("minor"),
            micro: number("micro"),
        };
        // From now on a silence is no mistake.
        stream.set_timeouts(None, Some(PATIENCE)).map_err(failed)?;
        let waiting = Arc::<Mutex<Waiting>>::default();
        let shared = Arc::clone(&waiting);
        let thread = Builder::new()
            .name("qmp".into())
            .spawn(move || listen(reader, &shared, notice));
        let client = Self {
            address: address.clone(),
            version,
            out_of_band,
            peer: stream.peer(),
            stream: Mutex::new(stream),
            next: AtomicU64::new(1),
            waiting,
            reader: Some(thread.map_err(QmpError::Thread)?),
        };
        let enable = if out_of_band { json!(["oob"]) } else { json!([]) };
        client.execute("qmp_capabilities", &json!({ "enable": enable }))?;
        Ok(client)
    }

    /// Where it is connected to.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// QEMU's version.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Whether QEMU takes out-of-band commands, which it carries out even while its main loop hangs.
    pub const fn has_out_of_band(&self) -> bool {
        self.out_of_band
    }

    /// The process at the other end; `None` for a connection over TCP.
    pub const fn peer(&self) -> Option<u32> {
        self.peer
    }

    /// Carries out a command, and returns what it returns.
    ///
    /// # Errors
    /// [`QmpError::Refused`] when QEMU says why it does not, [`QmpError::Silent`] after [`PATIENCE`], [`QmpError::Broken`].
    pub fn execute(&self, command: &'static str, arguments: &Value) -> Result<Value, QmpError> {
        self.command("execute", command, arguments)
    }

    /// The same, past all commands that wait to be carried out. Few commands can be: `migrate-recover` and `migrate-pause` are among them.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub fn execute_out_of_band(&self, command: &'static str, arguments: &Value) -> Result<Value, QmpError> {
        let how = if self.out_of_band { "exec-oob" } else { "execute" };
        self.command(how, command, arguments)
    }

    fn command(&self, how: &str, command: &'static str, arguments: &Value) -> Result<Value, QmpError> {
        let id = format!("dunlin-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let (sender, answer) = mpsc::sync_channel(1);
        {
            let mut waiting = lock(&self.waiting);
            if waiting.closed {
                return Err(self.broken(io::ErrorKind::UnexpectedEof.into()));
            }
            waiting.answers.insert(id.clone(), sender);
        }
        let line = format!("{}\n", json!({ how: command, "arguments": arguments, "id": id }));
        let written = lock(&self.stream).write_all(line.as_bytes());
        let answer = written.map_err(|error| self.broken(error)).and_then(|()| {
            answer.recv_timeout(PATIENCE).map_err(|error| match error {
                RecvTimeoutError::Timeout => QmpError::Silent {
                    address: self.address.clone(),
                    command,
                },
                RecvTimeoutError::Disconnected => self.broken(io::ErrorKind::UnexpectedEof.into()),
            })
        });
        lock(&self.waiting).answers.remove(&id);
        let mut answer = answer?;
        if let Some(value) = answer.get_mut("return") {
            return Ok(value.take());
        }
        let reason = answer["error"]["desc"].as_str().unwrap_or("no reason given");
        Err(QmpError::Refused {
            command,
            class: answer["error"]["class"].as_str().unwrap_or_default().to_owned(),
            reason: reason.to_owned(),
        })
    }

    fn broken(&self, source: io::Error) -> QmpError {
        QmpError::Broken {
            address: self.address.clone(),
            source,
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        lock(&self.stream).shut_down();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Passes on what comes, until nothing does any more.
fn listen(mut reader: BufReader<Stream>, waiting: &Mutex<Waiting>, mut notice: impl FnMut(Notice)) {
    loop {
        match read_line(&mut reader) {
            Ok(Line::Event { name, data }) => notice(Notice::Event {
                name,
                data,
                at: Instant::now(),
            }),
            Ok(Line::Answer { id, message }) => {
                if let Some(answer) = lock(waiting).answers.remove(&id) {
                    // One that nobody waits for any more came too late.
                    let _ = answer.try_send(message);
                }
            }
            // What is no message is nothing to act on.
            Ok(Line::Other(_)) | Err(Unread::Text(_)) => {}
            Err(Unread::Io(_)) => break,
        }
    }
    {
        let mut waiting = lock(waiting);
        waiting.closed = true;
        waiting.answers.clear();
    }
    notice(Notice::Closed);
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
