//! What every process that holds a VM does: start it, serve its control socket, and end when the VM has ended or moved away.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dunlin_core::message::{SessionId, VmId};

use super::guard::Guard;
use super::node::{Holding, Node};
use super::options::GuestOptions;
use super::recorder::{RecordError, Recorder};
use crate::channel::ChannelError;
use crate::control::{ControlError, Server};
use crate::guest::{AnyGuest, Guest, GuestError, RunState};
use crate::journal::{JournalError, Phase, Role};
use crate::memory::MemoryError;
use crate::report::GuestReport;
use crate::trust::TrustError;

/// How long clients may take to read the last answer.
const LAST_ANSWER: Duration = Duration::from_secs(5);

/// Why a process cannot hold a VM, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The listening socket.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Certificates and keys.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The state directory.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The state directory, or the audit log.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Rights that could not be given up.
    #[error(transparent)]
    Sandbox(#[from] crate::trust::sandbox::SandboxError),
    /// The system gives no random numbers.
    #[error("The system gives no random numbers to name the VM")]
    Random,
    /// Signals cannot be handled.
    #[error("Signals cannot be handled")]
    Signals(#[source] std::io::Error),
    /// Guest RAM could not be written.
    #[error(
        "Guest RAM cannot be written to {path}; check the folder, space and permissions, or choose another with --dump-ram"
    )]
    Dump {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Standard output.
    #[error("Results could not be written to standard output")]
    Output(#[source] std::io::Error),
}

impl NodeError {
    /// 2 for what the caller can mend, 1 for what went wrong while running.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Output(_) | Self::Guest(GuestError::VcpuFailed { .. } | GuestError::Damaged { .. }) => 1,
            _ => 2,
        }
    }
}

/// Ends the process on SIGINT and SIGTERM.
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(super) fn install() -> Result<Self, NodeError> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // The second signal ends the process the hard way.
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))
                .map_err(NodeError::Signals)?;
            signal_hook::flag::register(signal, Arc::clone(&flag)).map_err(NodeError::Signals)?;
        }
        Ok(Self(flag))
    }

    pub(super) fn wanted(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Runs a guest until it has ended or moved away; returns the exit code.
///
/// # Errors
/// [`NodeError`]: what keeps it from running, or went wrong in the end.
pub fn run_guest(options: GuestOptions) -> Result<ExitCode, NodeError> {
    let stop = Stop::install()?;
    check_dump(options.dump_ram.as_deref())?;
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|_| NodeError::Random)?;
    let vm = VmId(u128::from_le_bytes(id));
    let name = options.config.name.clone();
    let control = Some(options.control.display().to_string());
    let guard = Guard::open(&options.trust)?;
    let recorder = Recorder::open(options.state.as_deref(), guard.audit(), &name, vm, control)?;
    super::confine::confine_guest(&options)?;
    let guest = Arc::new(AnyGuest::create_tracked(options.config.clone(), options.tracking)?);
    recorder.write(SessionId::default(), Role::Source, Phase::Running)?;
    let node = Arc::new(Node::new(
        name.clone(),
        vm,
        Holding::Guest(Arc::clone(&guest)),
        recorder,
        guard,
    ));
    let server = Server::start(&options.control, Arc::clone(&node) as Arc<dyn crate::control::Handler>)?;
    guest.resume()?;
    eprintln!("dunlin: VM {name:?} runs; control socket {}", options.control.display());
    // Only the node knows from now on who holds the guest.
    drop(guest);
    let code = loop {
        match end_if_over(&node, options.dump_ram.as_deref(), options.json) {
            Ok(Some(code)) => break Ok(code),
            Ok(None) if stop.wanted() => match stopped(&node) {
                Some(code) => break Ok(code),
                None => node.idle(),
            },
            Ok(None) => node.idle(),
            Err(error) => break Err(error),
        }
    };
    server.close(LAST_ANSWER);
    code.map(ExitCode::from)
}

/// The exit code of a process that is told to stop; `None` if the VM runs elsewhere and needs what is here.
pub(super) fn stopped(node: &Node) -> Option<u8> {
    let needed = match &*node.holding() {
        Holding::Nothing | Holding::Gone(_) => return Some(0),
        Holding::Outgoing(_, handle) => handle.snapshot().is_some_and(|snapshot| {
            use dunlin_core::migrate::Phase::{Complete, HandOverUnknown, PostCopy, PostCopyPaused};
            matches!(snapshot.phase, HandOverUnknown | PostCopy | PostCopyPaused | Complete)
        }),
        _ => false,
    };
    if needed {
        if node.warns() {
            eprintln!(
                "dunlin: the VM was given up to the target, which may still need this side: the process ends when it does not; \
                 interrupt again to end it now, and the VM with it"
            );
        }
        return None;
    }
    eprintln!("dunlin: stopped by a signal; the VM ends with this process");
    Some(130)
}

/// The exit code, once the VM has halted here by itself, has failed, or runs elsewhere.
pub(super) fn end_if_over(node: &Node, dump: Option<&Path>, json: bool) -> Result<Option<u8>, NodeError> {
    // Looked at while nobody can begin to move it: a guest that has halted here is reported here.
    let (guest, progress) = match &*node.holding() {
        Holding::Guest(guest) => (Arc::clone(guest), guest.progress()),
        Holding::Gone(None) => return Ok(Some(0)),
        Holding::Gone(Some(_)) => return Ok(Some(1)),
        Holding::Nothing | Holding::Incoming(_) | Holding::Outgoing(..) => return Ok(None),
    };
    match progress.state {
        RunState::Failed => {
            let failure = progress.failure.unwrap_or_default();
            eprintln!("dunlin: the VM has failed: {failure}");
            Ok(Some(1))
        }
        RunState::Halted => {
            // Each vCPU halts after its own steps, all after the same number.
            let steps = progress.vcpus.iter().map(|vcpu| vcpu.steps).min().unwrap_or(0);
            let report = GuestReport::new(steps, guest.memory().blake3()?.to_hex().to_string());
            // Whoever reads the report may read the dump next.
            let dumped = dump.map_or(Ok(()), |path| dump_ram(&guest, path));
            let checked = guest.check_workload();
            if json {
                print_json(&report)?;
            } else {
                println!(
                    "halted after {} steps of each vCPU; RAM BLAKE3 {}",
                    report.steps, report.ram_blake3
                );
            }
            dumped?;
            checked?;
            Ok(Some(u8::from(progress.vcpus.iter().any(|vcpu| vcpu.halted != Some(0)))))
        }
        RunState::Paused | RunState::Running => Ok(None),
    }
}

fn dump_ram(guest: &AnyGuest, path: &Path) -> Result<(), NodeError> {
    let mut file = std::fs::File::create(path).map_err(|source| dump_failed(path, source))?;
    guest.memory().dump(&mut file)?;
    file.sync_all().map_err(|source| dump_failed(path, source))
}

fn dump_failed(path: &Path, source: std::io::Error) -> NodeError {
    NodeError::Dump {
        path: path.to_owned(),
        source,
    }
}

/// Sees to it that a guest does not run for hours before its memory turns out to have nowhere to go.
///
/// # Errors
/// [`NodeError::Dump`].
pub(super) fn check_dump(path: Option<&Path>) -> Result<(), NodeError> {
    let Some(path) = path else { return Ok(()) };
    let opened = std::fs::File::options().create(true).append(true).open(path);
    opened.map(drop).map_err(|source| dump_failed(path, source))
}

/// One line of JSON on standard output. A reader that has gone is no error.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), NodeError> {
    let line = serde_json::to_string(value).map_err(|error| NodeError::Output(error.into()))?;
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(NodeError::Output(error)),
        _ => Ok(()),
    }
}
