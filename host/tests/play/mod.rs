//! A process that pretends to hold a guest, and the command as a child.

use dunlin::{
    channel::Cancel,
    control::{Caller, ControlError, Handler, MigrateRequest, RecordRequest, Resolution, Server, Subscriber},
    journal::Role,
    report::{MigrationReport, Outcome, Progress, State, Status},
};
use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use serde_json::Value;
use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStderr, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Nothing here takes long, except on a machine that is very busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for something that is bound to happen.
pub(crate) fn until(what: &str, mut happens: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happens() {
        assert!(Instant::now() < deadline, "still not: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A served control socket.
pub(crate) struct Stage {
    _dir: tempfile::TempDir,
    path: String,
    actor: Arc<Actor>,
    server: Mutex<Option<Server>>,
}

#[derive(Default)]
struct Actor {
    can_cancel: bool,
    cancelled: Cancel,
    migrating: AtomicBool,
    vanished: AtomicBool,
    ending: Mutex<Option<Result<MigrationReport, &'static str>>>,
}

impl Stage {
    /// Nobody serves the socket.
    pub(crate) fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control").to_str().unwrap().to_owned();
        Self {
            _dir: dir,
            path,
            actor: Arc::default(),
            server: Mutex::default(),
        }
    }

    /// Migrations go on until they are cancelled or told how to end.
    pub(crate) fn new() -> Self {
        Self::with(Actor {
            can_cancel: true,
            ..Actor::default()
        })
    }

    /// A cancellation is never answered.
    pub(crate) fn that_cannot_cancel() -> Self {
        Self::with(Actor::default())
    }

    fn with(actor: Actor) -> Self {
        let mut stage = Self::empty();
        stage.actor = Arc::new(actor);
        let server = Server::start(stage.path.as_ref(), stage.actor.clone()).unwrap();
        stage.server = Mutex::new(Some(server));
        stage
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// How the migration ends, also one that is still to come.
    pub(crate) fn finish(&self, how: Result<MigrationReport, &'static str>) {
        *self.actor.ending.lock().unwrap() = Some(how);
    }

    /// As if the process had been killed.
    pub(crate) fn vanish(&self) {
        if let Some(server) = self.server.lock().unwrap().take() {
            server.close(Duration::ZERO);
        }
        self.actor.vanished.store(true, Ordering::Release);
    }

    pub(crate) fn is_migrating(&self) -> bool {
        self.actor.migrating.load(Ordering::Acquire)
    }

    pub(crate) fn wait_until_migrating(&self) {
        until("a migration has begun", || self.is_migrating());
    }

    /// `dunlin migrate` of this guest.
    pub(crate) fn command(&self, more: &[&str]) -> Command {
        let fixed = [
            "migrate",
            "--control",
            &self.path,
            "--to",
            "127.0.0.1:7",
            "--strategy",
            "precopy",
        ];
        dunlin(fixed.iter().chain(more))
    }

    pub(crate) fn migrate(&self, more: &[&str]) -> Running {
        Running::start(&mut self.command(more))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Ends a migration that still waits.
        self.actor.vanished.store(true, Ordering::Release);
    }
}

impl Handler for Actor {
    fn status(&self) -> Status {
        Status {
            name: Some("web".into()),
            ..Status::new(Role::Source, State::Running)
        }
    }

    fn migrate(
        &self,
        _: Caller,
        request: MigrateRequest,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<MigrationReport, ControlError> {
        progress(&Progress {
            phase: State::PreCopy,
            round: 2,
            total_pages: 2_000,
            remaining_pages: 1_000,
            remaining_bytes: 4_096_000,
            rate: 32_000_000,
            eta_us: Some(128_000),
            observing_us: None,
        });
        self.migrating.store(true, Ordering::Release);
        let ending = loop {
            if let Some(ending) = self.ending.lock().unwrap().take() {
                break ending;
            }
            if self.cancelled.is_raised() {
                break Ok(MigrationReport::new(request.strategy, Outcome::Cancelled));
            }
            if self.vanished.load(Ordering::Acquire) {
                break Err("gone");
            }
            thread::sleep(Duration::from_millis(1));
        };
        self.migrating.store(false, Ordering::Release);
        ending.map_err(ControlError::refused)
    }

    fn cancel(&self, _: Caller) -> Result<Status, ControlError> {
        while !self.can_cancel && !self.vanished.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(1));
        }
        self.cancelled.raise();
        Ok(self.status())
    }

    fn resolve(&self, _: Caller, resolution: Resolution) -> Result<Status, ControlError> {
        match resolution {
            Resolution::RunHere => Ok(self.status()),
            Resolution::GiveUp => Err(ControlError::refused("nothing to give up: the VM runs here")),
        }
    }

    fn record(&self, _: RecordRequest, _: &mut Subscriber<'_>) -> Result<(), ControlError> {
        Err(ControlError::refused("nothing to record: there is no VM"))
    }
}

/// The command with these arguments, in a quiet environment.
pub(crate) fn dunlin<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin"));
    command.args(arguments).env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the command with these arguments to its end.
pub(crate) fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    Running::start(&mut dunlin(arguments)).wait()
}

/// The only line of stdout.
pub(crate) fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

/// A command that is still running; killed when dropped.
pub(crate) struct Running {
    child: Child,
    /// What it prints may be more than a pipe holds.
    stdout: Option<std::thread::JoinHandle<String>>,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut stdout = child.stdout.take().unwrap();
        let stdout = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).unwrap();
            text
        });
        Self {
            child,
            stdout: Some(stdout),
            stderr,
            said: String::new(),
        }
    }

    /// Reads stderr up to a line with `part`.
    pub(crate) fn wait_for_message(&mut self, part: &str) {
        loop {
            let from = self.said.len();
            assert!(
                self.stderr.read_line(&mut self.said).unwrap() > 0,
                "never said {part:?}: {}",
                self.said
            );
            if self.said[from..].contains(part) {
                return;
            }
        }
    }

    /// Waits for the end. What it says is little enough for the pipe.
    pub(crate) fn wait(mut self) -> Ran {
        until("the command has ended", || self.child.try_wait().unwrap().is_some());
        let stdout = self.stdout.take().unwrap().join().unwrap();
        self.stderr.read_to_string(&mut self.said).unwrap();
        let code = self.child.wait().unwrap().code();
        Ran {
            code,
            stdout,
            stderr: std::mem::take(&mut self.said),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already unless the test fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal.
pub(crate) fn interrupt(running: &Running, signal: Signal) {
    kill_process(Pid::from_child(&running.child), signal).unwrap();
}

/// Everything that the command prints on a terminal of its own.
pub(crate) fn on_terminal(command: &mut Command) -> String {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(OsStr::new(name.to_str().unwrap()))
            .unwrap()
    };
    let mut child = command.stdout(open()).stderr(open()).spawn().unwrap();
    // The command's own copies of the terminal are the last ones then, and reading ends with them.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
    let mut master = File::from(master);
    // When nobody has the terminal open any more, reading from this side is an I/O error.
    while let Ok(read @ 1..) = master.read(&mut piece) {
        seen.extend_from_slice(&piece[..read]);
    }
    assert!(child.wait().unwrap().code().is_some());
    String::from_utf8(seen).unwrap()
}
