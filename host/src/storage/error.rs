//! What can go wrong with files of pages.

use std::io;
use std::path::{Path, PathBuf};

use dunlin_core::pageset::Run;

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

    /// Sealed once, perhaps, but not so by this migration: a part of it does not open.
    #[error(
        "{} is not as this migration's source sealed it ({place}): it was altered, damaged or put there by somebody else; nothing of that is \
         used, and who can write to the storage should be looked into",
        path.display()
    )]
    Altered {
        /// The file.
        path: PathBuf,
        /// What of it.
        place: Place,
    },

    /// Plain, where everything is sealed.
    #[error(
        "{} is not sealed, though this migration seals all that it stores: somebody else put it there; it is left alone",
        .0.display()
    )]
    NotSealed(PathBuf),

    /// Sealed, where nothing is: this side has no key.
    #[error(
        "{} is sealed, and this side has no key: migrate over an encrypted connection, or over none on both sides",
        .0.display()
    )]
    NoKey(PathBuf),

    /// Nobody has said yet whether files are to be sealed.
    #[error("nothing can be stored in {} before the first connection to the target is made", .0.display())]
    NotConnected(PathBuf),

    /// No random numbers for a file's key.
    #[error("the system gives no random numbers to seal {} with", .0.display())]
    Random(PathBuf),

    /// A link, a pipe or whatever else pages cannot be in.
    #[error("{} is no regular file: somebody else put it there; it is left alone", .0.display())]
    NoFile(PathBuf),

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

/// A part of a sealed file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The first block.
    Header,
    /// The list of its pages.
    Index,
    /// These pages.
    Pages(Run),
    /// All there is to it.
    Content,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header => f.write_str("its header"),
            Self::Index => f.write_str("its index"),
            Self::Pages(run) => write!(f, "its pages {} to {}", run.first, run.end().0.saturating_sub(1)),
            Self::Content => f.write_str("its content"),
        }
    }
}

impl StorageError {
    pub(super) fn altered(path: &Path, place: Place) -> Self {
        Self::Altered {
            path: path.into(),
            place,
        }
    }

    /// True if the bytes are there, and wrong: no other attempt to read them brings anything else, but for a file that is written anew.
    pub fn is_content(&self) -> bool {
        match self {
            Self::Damaged { .. }
            | Self::Altered { .. }
            | Self::NotSealed(_)
            | Self::NoKey(_)
            | Self::NoFile(_)
            | Self::Newer { .. }
            | Self::Foreign { .. } => true,
            Self::Full(_)
            | Self::ReadOnly(_)
            | Self::Elsewhere(_)
            | Self::Io { .. }
            | Self::NotConnected(_)
            | Self::Random(_)
            | Self::Memory(_) => false,
        }
    }

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
