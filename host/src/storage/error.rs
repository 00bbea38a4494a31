//! What can go wrong with files of pages.

use std::io;
use std::path::{Path, PathBuf};

use crate::memory::MemoryError;

/// Why a storage directory or a segment in it is of no use. Whatever it is, the migration can go on over its other channel.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The file system has no room.
    #[error("{} is full: make room there, or leave out --storage", .0.display())]
    Full(PathBuf),

    /// Nothing may be written there.
    #[error("{} cannot be written to: mount it read-write and give this user the right to write", .0.display())]
    ReadOnly(PathBuf),

    /// What the other side has made there cannot be seen.
    #[error(
        "{} was made by the source and does not appear here: give the same directory, mounted on both hosts, to `dunlin receive --storage` and to `dunlin migrate --storage`",
        .0.display()
    )]
    Elsewhere(PathBuf),

    /// Anything else the system says.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// In words, such as `write`.
        what: &'static str,
        /// Of what.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },

    /// The bytes are not those that were written.
    #[error("{} is damaged ({what}): it is of no use, and the storage should be checked", path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },

    /// Complete, but of a newer version of the format.
    #[error("{} has format version {found}, which this version of Dunlin does not read: use the same version on both hosts", path.display())]
    Newer {
        /// The segment.
        path: PathBuf,
        /// Its version.
        found: u8,
    },

    /// Of another migration, VM or kind.
    #[error("{} belongs to another {of}: it is left alone", path.display())]
    Foreign {
        /// The segment.
        path: PathBuf,
        /// `migration`, `VM`, `memory layout`, `kind` or `place in the order`.
        of: &'static str,
    },

    /// Guest memory did not take or give a page.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl StorageError {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(path.into()),
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied if what != "read" => {
                Self::ReadOnly(path.into())
            }
            _ => Self::Io {
                what,
                path: path.into(),
                source,
            },
        }
    }
}
