//! Counting migrations over all processes of a host: each holds the lock of one of a rule's places, as long as it lives.

use rustix::{
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
};
use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Nobody can count.
#[derive(Debug, thiserror::Error)]
#[error(
    "migrations cannot be counted in {}: make that folder writable for this user, or name another with count-in in the policy",
    .path.display()
)]
pub struct CountError {
    path: PathBuf,
    source: io::Error,
}

/// A migration that counts, until it is dropped or its process ends.
#[derive(Debug)]
pub struct Turn {
    /// Closing it releases the lock.
    _locked: File,
}

/// Takes one of the `most` places of `key`.
pub(super) fn take(folder: Option<&Path>, key: &str, most: u32) -> Result<Option<Turn>, CountError> {
    let folder = folder.map_or_else(usual_folder, Path::to_path_buf);
    let failed = |path: &Path, source| CountError {
        path: path.into(),
        source,
    };
    make(&folder).map_err(|error| failed(&folder, error))?;
    let key = blake3::hash(key.as_bytes()).to_hex();
    for place in 0..most {
        let path = folder.join(format!("migration-{}.{place}", &key[..16]));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(&path)
            .map_err(|source| failed(&path, source))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(Turn { _locked: file })),
            Err(Errno::WOULDBLOCK) => {}
            Err(errno) => return Err(failed(&path, errno.into())),
        }
    }
    Ok(None)
}

/// Makes the folder if it is not there.
pub(super) fn make(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists || folder.is_dir() => Ok(()),
        made => made,
    }
}

/// Where processes of one user leave such things.
pub(super) fn usual_folder() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| Path::new(folder).is_absolute());
    runtime
        .map_or_else(|| PathBuf::from("/run"), PathBuf::from)
        .join("dunlin")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_until_they_are_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("count");
        let take = |key: &str, most| take(Some(&folder), key, most).unwrap();
        let (first, second) = (take("a", 2), take("a", 2));
        assert!(first.is_some() && second.is_some());
        assert!(take("a", 2).is_none());
        assert!(take("b", 1).is_some(), "another rule counts for itself");
        drop(first);
        assert!(take("a", 2).is_some());
    }

    #[test]
    fn who_cannot_count_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let error = take(Some(&dir.path().join("absent/folder")), "a", 1).unwrap_err();
        assert!(error.to_string().contains("count-in"), "{error}");
    }
}
