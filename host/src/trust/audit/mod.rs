//! The audit log: what was asked of this host, by whom, what was decided, and where each VM is by that.
//!
//! A file of JSON lines that is only ever appended to. Each line ends in the BLAKE3 of everything before in it, and names the one
//! of the line before: nothing in between can be changed without changing all that follows. The first line is a [`Header`],
//! each other a [`Record`]. Several processes may write one log; each takes its turn by a lock on the file.
//!
//! What it says of where a VM is never contradicts the hand-over records (`journal`), whatever is killed when: before a VM's
//! place changes the log says [`Place::Between`], then the record is written, then the log says what the record says. A process that
//! died in between is caught up with by the next ([`Event::Found`]). A line that was not written to its end does not count; the next
//! to write ends it and says so ([`Event::Torn`]).
//!
//! The chain has no secret. Whoever may write the file can write another from the beginning, or leave the end away; only a
//! hash that was kept elsewhere shows that ([`verify()`] with a `head`), and the signatures in commit records.
#![forbid(unsafe_code)]

mod line;
mod log;
mod record;
mod verify;

pub use log::AuditLog;
pub use record::{Decision, Entry, Event, Header, Outcome, Place, Record, TornLine};
pub use verify::{Disagreement, Flaw, Problem, Report, Signatures, against_journals, read, verify};

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

/// The log's name in a state directory.
pub const FILE_NAME: &str = "audit.jsonl";

/// What can go wrong with an audit log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The log is not whole: nothing is added to it.
    #[error(
        "the audit log {} is not whole: {problem}; look at it with `dunlin audit verify`, keep it, and move it away: a new one begins then",
        .path.display()
    )]
    Broken {
        /// The log.
        path: PathBuf,
        /// The first thing that is wrong.
        problem: Problem,
    },

    /// Somebody has shortened it since.
    #[error("the audit log {} has become shorter while it was written: find out who did that; start again with a new --audit file", .0.display())]
    Shortened(PathBuf),

    /// No log there.
    #[error("there is no audit log {}: name the file that --audit wrote, or {FILE_NAME} in the state directory", .0.display())]
    Missing(PathBuf),

    /// The folder it should be in is not there.
    #[error("there is no folder for the audit log {}: make it (mkdir -p), or choose another with --audit", .0.display())]
    NoFolder(PathBuf),

    /// Something else than a plain file.
    #[error("{} is no plain file: an audit log cannot be there, choose another with --audit", .0.display())]
    NotAFile(PathBuf),

    /// No space, or no share of it.
    #[error("there is no space for the audit log {}: free some, or choose another place with --audit", .0.display())]
    Full(PathBuf),

    /// The user may not.
    #[error("no permission for the audit log {}: change its owner or mode, or choose another place with --audit", .0.display())]
    Permission(PathBuf),

    /// Another process keeps the lock.
    #[error("the audit log {} is locked by another process for more than {LOCK_SECONDS} s: find it with `fuser`, and end it", .0.display())]
    Locked(PathBuf),

    /// The system gives no random numbers.
    #[error("The system gives no random numbers to name the audit log")]
    Random,

    /// Whatever else the system refuses.
    #[error("cannot {action} the audit log {}", .path.display())]
    Io {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// The log.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Longest wait for the lock, in seconds: others hold it while they write one line.
const LOCK_SECONDS: u64 = 2;

impl AuditError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
            return Self::NotAFile(path);
        }
        match source.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Self::NoFolder(path),
            ErrorKind::IsADirectory => Self::NotAFile(path),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full(path),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Self::Permission(path),
            _ => Self::Io { action, path, source },
        }
    }
}

#[cfg(test)]
mod tests;
