//! Hand-over records: who may run a VM, on disk, whatever dies when.
//!
//! Each VM has one file, `NAME.record` in the state directory, that the process which holds the VM keeps locked. The
//! file is two slots of 4 KiB. Each record overwrites the older slot and is synced before [`Journal::write`] returns: a
//! write that a crash tears leaves the other slot, and with it the record before. The file is never extended after its
//! creation, so that a directory that fills up later cannot stop a hand-over.
#![forbid(unsafe_code)]

mod file;
mod record;
mod slot;

pub use file::{Journal, Listed, Reading, list, read};
pub use record::{HandOver, Phase, Record, Role};

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

/// The longest name of a VM, in bytes.
pub const NAME_MAX_BYTES: usize = 64;

/// What can go wrong with a record.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A name that could not be a file's.
    #[error(
        "{0:?} is no name for a VM: use 1 to {NAME_MAX_BYTES} letters, digits, dots, dashes and underscores, the first a letter or digit"
    )]
    Name(String),

    /// The state directory is not there.
    #[error("the state directory {} does not exist: create it (mkdir -p), or choose another with --state", .0.display())]
    Missing(PathBuf),

    /// The state directory is something else.
    #[error("{} is not a directory: choose a directory with --state", .0.display())]
    NotADirectory(PathBuf),

    /// The state directory's file system is read-only.
    #[error("the file system of {} is read-only: remount it writable, or choose another state directory with --state", .0.display())]
    ReadOnly(PathBuf),

    /// The state directory's file system, or the user's share of it, is full.
    #[error("there is no space for {}: free some, or choose another state directory with --state", .0.display())]
    Full(PathBuf),

    /// The user may not read or write there.
    #[error("no permission for {}: change its owner or mode, or choose another state directory with --state", .0.display())]
    Permission(PathBuf),

    /// Another process holds this VM.
    #[error(
        "{} is held by {}: end that process, or give this VM another --name or --state", .path.display(),
        .pid.map_or("another process".into(), |pid| format!("process {pid}"))
    )]
    Locked {
        /// The record's file.
        path: PathBuf,
        /// The holder, as far as it can be seen from here.
        pid: Option<u32>,
    },

    /// No record of that VM.
    #[error("there is no record of a VM in {}: check --state and --name", .0.display())]
    NoRecord(PathBuf),

    /// Neither slot holds a record.
    #[error(
        "{} holds no readable record: if no other host has this VM, move the file away; otherwise ask `dunlin status` there first",
        .0.display()
    )]
    Garbage(PathBuf),

    /// A record that a newer program wrote.
    #[error("{} was written by a newer version of dunlin (format {found}): use that version", .path.display())]
    Version {
        /// The record's file.
        path: PathBuf,
        /// The format's number there.
        found: u8,
    },

    /// A record too large for its slot.
    #[error("the record for {} needs {bytes} bytes, more than a slot holds: use shorter addresses and paths", .path.display())]
    TooLarge {
        /// The record's file.
        path: PathBuf,
        /// What it would take.
        bytes: usize,
    },

    /// Whatever else the system refuses.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl JournalError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            ErrorKind::ReadOnlyFilesystem => Self::ReadOnly(path),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full(path),
            ErrorKind::PermissionDenied => Self::Permission(path),
            ErrorKind::NotADirectory => Self::NotADirectory(path),
            _ => Self::Io { action, path, source },
        }
    }
}

/// Checks that `name` can name a VM: it becomes part of a file name.
///
/// # Errors
/// [`JournalError::Name`].
pub fn check_name(name: &str) -> Result<(), JournalError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if starts_well && name.len() <= NAME_MAX_BYTES && name.bytes().all(allowed) {
        Ok(())
    } else {
        Err(JournalError::Name(name.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_plain_files() {
        for good in ["a", "web-1", "db_2.test", "0", &"x".repeat(64)] {
            check_name(good).unwrap();
        }
        for bad in [
            "",
            ".",
            "..",
            "-rf",
            ".hidden",
            "a/b",
            "a b",
            "ä",
            "a\0",
            &"x".repeat(65),
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_system_s_reasons_have_names() {
        use rustix::io::Errno;
        let named = |errno: Errno| JournalError::io("write", Path::new("/s/x"), errno.into());
        assert!(matches!(named(Errno::ROFS), JournalError::ReadOnly(_)));
        assert!(matches!(named(Errno::NOSPC), JournalError::Full(_)));
        assert!(matches!(named(Errno::DQUOT), JournalError::Full(_)));
        assert!(matches!(named(Errno::ACCESS), JournalError::Permission(_)));
        assert!(matches!(named(Errno::PERM), JournalError::Permission(_)));
        assert!(matches!(named(Errno::IO), JournalError::Io { .. }));
        assert_eq!(
            named(Errno::NOSPC).to_string(),
            "there is no space for /s/x: free some, or choose another state directory with --state"
        );
    }
}
