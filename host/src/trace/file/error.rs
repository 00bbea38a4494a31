//! What can go wrong with a trace file.

use std::io;
use std::path::{Path, PathBuf};

use dunlin_core::tracefile::{EncodeError, TracefileError};
use dunlin_core::units::Nanos;

use crate::trace::text::TextError;

/// Why a trace file cannot be read or written, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file itself.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// In words, such as `read`.
        what: &'static str,
        /// Of what.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },

    /// It is no trace, or one that this version does not read.
    #[error("{}: {fault}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with its start or head.
        fault: TracefileError,
    },

    /// It ends before its head does: whatever recorded it had just begun.
    #[error("{} ends within its head, so that there is nothing to read: record again", path.display())]
    NoHead {
        /// The file.
        path: PathBuf,
    },

    /// A part of it is of no use. What follows is read nevertheless.
    #[error(
        "{}: {bytes} bytes from byte {offset} on, after {} s of the trace, are of no use: {fault}",
        path.display(), seconds(*after)
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the file the part begins.
        offset: u64,
        /// Its length.
        bytes: u64,
        /// Time of the last good item before.
        after: Nanos,
        /// What is wrong with it.
        fault: TracefileError,
    },

    /// A text that is no trace, or not from there on.
    #[error("{}, {fault}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        fault: TextError,
    },

    /// A text that has to be read twice, and cannot be.
    #[error(
        "{} does not say what memory and vCPUs the guest has, and can be read only once: say it with --memory and --vcpus, or give a file",
        path.display()
    )]
    SaysTooLittle {
        /// Where the text comes from.
        path: PathBuf,
    },

    /// An item that no trace of this head can have, or not in this place.
    #[error("{}: {fault}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with the item.
        fault: EncodeError,
    },
}

impl TraceError {
    pub(in crate::trace) fn text(path: &Path, fault: TextError) -> Self {
        match fault {
            TextError::Io(source) => Self::io("read", path, source),
            fault => Self::Text {
                path: path.into(),
                fault,
            },
        }
    }

    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            what,
            path: path.into(),
            source,
        }
    }
}

/// Seconds with milliseconds, rounded down.
pub(super) fn seconds(time: Nanos) -> String {
    let millis = time.0 / 1_000_000;
    format!("{}.{:03}", millis / 1000, millis % 1000)
}
