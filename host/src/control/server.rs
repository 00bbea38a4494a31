//! The side of the process that holds the VM.

mod subscriber;

pub use subscriber::{Gone, Heard, Subscriber};

use super::{
    ControlError,
    client::Client,
    line::{LineReader, encode},
    protocol::{Failure, MigrateRequest, Request, Resolution, Response},
    recording::RecordRequest,
};
use crate::{
    channel::{Address, Cancel, ChannelError, Listener, Stream, Wait},
    report::{MigrationReport, Progress, Status, chain},
};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

/// The longest request, in bytes.
const REQUEST_MAX_BYTES: usize = 64 << 10;

/// The most clients at once; more are told to come again.
const CLIENTS_MAX: usize = 64;

/// How long a client may take to read its answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// How long to ask the owner of a socket that is in use who it is.
const OWNER_PATIENCE: Duration = Duration::from_secs(1);

/// How long a server that is dropped without [`Server::close`] waits for answers that are being given.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

/// How long to pause when no connection can be accepted: no descriptors are left, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who asks, as the system says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The user.
    pub uid: u32,
    /// The process.
    pub pid: i32,
}

/// What a server's clients can ask for. Called from one thread per client.
pub trait Handler: Send + Sync {
    /// What the process is doing.
    fn status(&self) -> Status;

    /// Moves the VM, calling `progress` when there is news. Goes on to its end whether or not the client is still
    /// there.
    ///
    /// # Errors
    /// [`ControlError::Failed`] when there is nothing to report: no VM here, or a migration going on already. A
    /// migration that was begun ends in a report, whatever becomes of it.
    fn migrate(
        &self,
        caller: Caller,
        request: MigrateRequest,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<MigrationReport, ControlError>;

    /// Stops the migration that is going on; returns when the VM runs on here, or when it is too late for that.
    ///
    /// # Errors
    /// [`ControlError::Failed`] when nothing is going on, or when the VM has been given up.
    fn cancel(&self, caller: Caller) -> Result<Status, ControlError>;

    /// Carries out a person's decision about a VM between two hosts.
    ///
    /// # Errors
    /// [`ControlError::Failed`] when there is nothing to decide.
    fn resolve(&self, caller: Caller, resolution: Resolution) -> Result<Status, ControlError>;

    /// Records which pages the VM writes for as long as its client wants it and is there. All that is said to the client, the answer
    /// included, is said to the subscriber.
    ///
    /// # Errors
    /// [`ControlError::Failed`] before the answer: no VM here, another recording, a migration, or a tracker that this VM does not have.
    fn record(&self, request: RecordRequest, subscriber: &mut Subscriber<'_>) -> Result<(), ControlError>;
}

/// A served control socket.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    path: PathBuf,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// No further requests.
    closing: Cancel,
    /// No further answers.
    end: Cancel,
    clients: Mutex<usize>,
    client_left: Condvar,
}

impl Server {
    /// Serves the control socket at `path`. A socket that a dead process left there is replaced.
    ///
    /// # Errors
    /// [`ControlError::InUse`] when a process answers there, saying which; [`ControlError::Address`] and
    /// [`ControlError::Channel`] when the path cannot be served.
    pub fn start(path: &Path, handler: Arc<dyn Handler>) -> Result<Self, ControlError> {
        let listener = Listener::bind(&Address::unix(path)?).map_err(|error| match error {
            ChannelError::InUse { .. } => ControlError::InUse {
                path: path.into(),
                owner: owner(path),
            },
            error => error.into(),
        })?;
        let shared = Arc::new(Shared::default());
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept_all(&listener, &shared, &handler)
        });
        Ok(Self {
            shared,
            path: path.into(),
            acceptor: Some(acceptor),
        })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes no more requests, waits for the answers of those that are being worked on, and removes the socket. Clients
    /// that get no answer within `patience` see their connection end.
    pub fn close(mut self, patience: Duration) {
        self.end(patience);
    }

    fn end(&mut self, patience: Duration) {
        let Some(acceptor) = self.acceptor.take() else { return };
        self.shared.closing.raise();
        // A panic in there has been printed; nothing of it concerns the clients that remain.
        let _ = acceptor.join();
        let clients = self.shared.clients();
        // Whether it came to none or ran out of patience, the same is left to do.
        let waited = self
            .shared
            .client_left
            .wait_timeout_while(clients, patience, |clients| *clients > 0);
        drop(waited);
        self.shared.end.raise();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(DROP_PATIENCE);
    }
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, usize> {
        // A plain counter is never half changed.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more client, if there is one.
    fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut clients = self.clients();
        (*clients < CLIENTS_MAX).then(|| {
            *clients += 1;
            Place(Arc::clone(self))
        })
    }
}

/// One of the places for clients; free again when dropped, also by a panic.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.clients() -= 1;
        self.0.client_left.notify_all();
    }
}

fn accept_all(listener: &Listener, shared: &Arc<Shared>, handler: &Arc<dyn Handler>) {
    let wait = Wait::forever(&shared.closing);
    loop {
        match listener.accept(wait) {
            Ok(stream) => {
                let place = shared.enter();
                let handler = Arc::clone(handler);
                let shared = Arc::clone(shared);
                thread::spawn(move || {
                    let connection = Connection {
                        stream,
                        shared: &shared,
                    };
                    match place {
                        Some(_place) => connection.admit(&*handler),
                        None => connection.turn_away(),
                    }
                });
            }
            Err(ChannelError::Cancelled) => return,
            Err(_) => {
                wait.sleep(ACCEPT_PAUSE);
            }
        }
    }
}

/// Who serves the socket at `path`, for a message.
fn owner(path: &Path) -> String {
    let cancel = Cancel::new();
    let wait = Wait::within(OWNER_PATIENCE, &cancel);
    let Ok(mut client) = Client::connect(path, wait) else {
        return "another process".into();
    };
    let process = client
        .server_pid()
        .map_or("another process".into(), |pid| format!("process {pid}"));
    match client.status(wait) {
        Ok(Status { name: Some(name), .. }) => format!("{process}, which holds the VM {name:?}"),
        Ok(_) => format!("{process}, a dunlin without a VM"),
        Err(_) => process,
    }
}

/// One client.
struct Connection<'a> {
    stream: Stream,
    shared: &'a Shared,
}

impl Connection<'_> {
    /// Serves a client that may control this process: its own user, or root. The socket's mode keeps others away already, unless
    /// somebody changes it.
    fn admit(&self, handler: &dyn Handler) {
        let refusal = match peer_of(&self.stream) {
            Ok(caller) if may_control(caller.uid, rustix::process::getuid().as_raw()) => {
                return self.serve(handler, caller);
            }
            Ok(caller) => format!(
                "user {} may not control this process: only the user who started it may, and root",
                caller.uid
            ),
            Err(errno) => format!("the system does not say who asks ({errno}): try again"),
        };
        // A connection that is closed with a request unread takes the answer along. What it asks does not matter.
        let wait = Wait::within(OWNER_PATIENCE, &self.shared.closing);
        let _ = LineReader::new(REQUEST_MAX_BYTES).next(&self.stream, wait);
        self.send(&encode(&failed(&ControlError::refused(refusal))));
    }

    fn serve(&self, handler: &dyn Handler, caller: Caller) {
        let mut lines = LineReader::new(REQUEST_MAX_BYTES);
        loop {
            let answer = match lines.next(&self.stream, Wait::forever(&self.shared.closing)) {
                Ok(None) | Err(ControlError::Channel(_)) => return,
                Ok(Some(line)) => match serde_json::from_slice(&line) {
                    Ok(Request::Record(request)) => {
                        let mut subscriber = Subscriber::new(&self.stream, &mut lines, &self.shared.closing);
                        match handler.record(*request, &mut subscriber) {
                            Ok(()) if subscriber.is_broken() => return,
                            // All has been said.
                            Ok(()) => continue,
                            Err(error) => encode(&failed(&error)),
                        }
                    }
                    Ok(request) => self.fulfil(handler, caller, request),
                    Err(error) => encode(&failed(&ControlError::Request {
                        reason: error.to_string(),
                    })),
                },
                // Where the next line begins is unknown then.
                Err(error) => {
                    self.send(&encode(&failed(&error)));
                    return;
                }
            };
            if !self.send(&answer) {
                return;
            }
        }
    }

    fn turn_away(&self) {
        let message = format!("{CLIENTS_MAX} clients are connected already: try again later");
        self.send(&encode(&failed(&ControlError::refused(message))));
    }

    /// The last lines of the answer.
    fn fulfil(&self, handler: &dyn Handler, caller: Caller, request: Request) -> Answer {
        match request {
            Request::Status => answer(Ok(handler.status())),
            Request::Cancel => answer(handler.cancel(caller)),
            Request::Resolve { resolution } => answer(handler.resolve(caller, resolution)),
            Request::Record(_) | Request::Go | Request::Stop => answer::<()>(Err(ControlError::refused(
                "nothing is being recorded over this connection: ask for it first, with {\"command\":\"record\"}",
            ))),
            Request::Migrate(request) => {
                let mut news = News {
                    stream: &self.stream,
                    cancel: &self.shared.end,
                    pending: Vec::new(),
                    gone: false,
                };
                let report = handler.migrate(caller, *request, &mut |progress| news.offer(progress));
                let mut lines = news.pending;
                lines.extend(answer(report));
                lines
            }
        }
    }

    /// Whether the client has got it.
    fn send(&self, lines: &[u8]) -> bool {
        self.stream
            .write_all(lines, Wait::within(ANSWER_PATIENCE, &self.shared.end))
            .is_ok()
    }
}

fn peer_of(stream: &Stream) -> Result<Caller, rustix::io::Errno> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    Ok(Caller {
        uid: peer.uid.as_raw(),
        pid: peer.pid.as_raw_nonzero().get(),
    })
}

const fn may_control(uid: u32, owner: u32) -> bool {
    uid == owner || uid == 0
}

/// Encoded lines.
type Answer = Vec<u8>;

fn answer<T: Serialize>(result: Result<T, ControlError>) -> Answer {
    let response = match result {
        Ok(document) => Response::Result(serde_json::to_value(document).expect("reports always have a JSON form")),
        Err(error) => failed(&error),
    };
    encode(&response)
}

fn failed(error: &ControlError) -> Response {
    Response::Error(Failure {
        message: chain(error),
        exit_code: error.exit_code(),
    })
}

/// Progress lines to a client that may be slow, stuck or gone: a migration never waits for it.
struct News<'a> {
    stream: &'a Stream,
    cancel: &'a Cancel,
    /// What the client has not taken yet of a line that it has begun to get.
    pending: Vec<u8>,
    gone: bool,
}

impl News<'_> {
    /// Sends a line, or forgets it if the client has not taken the one before.
    fn offer(&mut self, progress: &Progress) {
        self.push();
        if self.pending.is_empty() && !self.gone {
            self.pending = encode(&Response::Progress(progress.clone()));
            self.push();
        }
    }

    fn push(&mut self) {
        while !self.pending.is_empty() && !self.gone {
            match self
                .stream
                .write_some(&self.pending, Wait::within(Duration::ZERO, self.cancel))
            {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(ChannelError::TimedOut { .. }) => return,
                Err(_) => self.gone = true,
            }
        }
    }
}

#[cfg(test)]
mod tests;
