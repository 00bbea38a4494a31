//! The folder of one migration, and what earlier ones left behind.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dunlin_core::message::SessionId;
use dunlin_core::units::Bytes;

use super::{Kind, SealKey, StorageError, Vm};

const PREFIX: &str = "dunlin-";
/// A side writes its state once a second: it does not come in between more often.
const REMOVALS: usize = 3;

/// The folder of one migration in a storage directory.
#[derive(Clone, Debug)]
pub struct SessionDirectory {
    path: PathBuf,
    vm: Vm,
    seal: Option<SealKey>,
}

impl SessionDirectory {
    /// Makes the folder of a migration that begins: the source's part. With a key everything in it is sealed, without one nothing is.
    ///
    /// # Errors
    /// [`StorageError`]; also if it exists, because sessions are never used again.
    pub fn create(storage: &Path, vm: Vm, seal: Option<SealKey>) -> Result<Self, StorageError> {
        let directory = Self::open(storage, vm, seal);
        let made = DirBuilder::new().mode(0o700).create(&directory.path);
        made.map_err(|source| StorageError::io("create", &directory.path, source))?;
        sync(storage)?;
        Ok(directory)
    }

    /// The folder of a migration, whether it is there yet or not: the target's part. What is not sealed with the key, or sealed without
    /// one being given, is refused.
    pub fn open(storage: &Path, vm: Vm, seal: Option<SealKey>) -> Self {
        Self {
            path: storage.join(format!("{PREFIX}{}", vm.session)),
            vm,
            seal,
        }
    }

    /// Whether it can be seen. Lists the directory it is in, since a network file system looks at the server then.
    pub fn appears(&self) -> bool {
        let storage = self.path.parent().and_then(|storage| fs::read_dir(storage).ok());
        storage.is_some_and(|mut entries| entries.any(|entry| entry.is_ok_and(|entry| entry.path() == self.path)))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose pages are in it.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    pub(super) fn seal(&self) -> Option<&SealKey> {
        self.seal.as_ref()
    }

    pub(super) fn segment(&self, kind: Kind, sequence: u32) -> PathBuf {
        self.path.join(format!("{}-{sequence:06}.segment", kind.name()))
    }

    pub(super) fn temporary(&self, kind: Kind, sequence: u32) -> PathBuf {
        self.path.join(format!(".{}-{sequence:06}.unfinished", kind.name()))
    }

    pub(super) fn sync(&self) -> Result<(), StorageError> {
        sync(&self.path)
    }

    /// Removes one segment that is no longer needed, to make room; one that is gone already is no error.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn remove_segment(&self, kind: Kind, sequence: u32) -> Result<(), StorageError> {
        let path = self.segment(kind, sequence);
        gone(fs::remove_file(&path)).map_err(|source| StorageError::io("remove", &path, source))
    }

    /// Removes all that has pages in it, whole or not.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn remove_segments(&self) -> Result<(), StorageError> {
        let entries = fs::read_dir(&self.path).map_err(|source| StorageError::io("read", &self.path, source))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".segment") || name.starts_with('.') {
                gone(fs::remove_file(&path)).map_err(|source| StorageError::io("remove", &path, source))?;
            }
        }
        Ok(())
    }

    /// Removes the folder with all that is in it; one that is gone already is no error.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn remove(self) -> Result<(), StorageError> {
        for _ in 0..REMOVALS {
            match gone(fs::remove_dir_all(&self.path)) {
                // The other side has written its last word meanwhile.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                removed => return removed.map_err(|source| StorageError::io("remove", &self.path, source)),
            }
        }
        gone(fs::remove_dir(&self.path)).map_err(|source| StorageError::io("remove", &self.path, source))
    }

    /// Shows that the migration goes on, though it has nothing to write.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn touch(&self) -> Result<(), StorageError> {
        File::open(&self.path)
            .and_then(|folder| folder.set_modified(SystemTime::now()))
            .map_err(|source| StorageError::io("touch", &self.path, source))
    }
}

/// The folder of a migration that did not end in order, or has not ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leftover {
    /// The folder.
    pub path: PathBuf,
    /// The migration.
    pub session: SessionId,
    /// What its files take.
    pub bytes: Bytes,
    /// Since anything in it was written.
    pub quiet: Duration,
}

impl Leftover {
    /// Removes it.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn remove(&self) -> Result<(), StorageError> {
        gone(fs::remove_dir_all(&self.path)).map_err(|source| StorageError::io("remove", &self.path, source))
    }
}

/// The folders of migrations in a storage directory, those that go on included: what is quiet for long belongs to none that
/// does, since the source [touches](SessionDirectory::touch) its own every few minutes.
///
/// # Errors
/// [`StorageError::Io`] if the directory cannot be read. What vanishes meanwhile is left out.
pub fn leftovers(storage: &Path) -> Result<Vec<Leftover>, StorageError> {
    let entries = fs::read_dir(storage).map_err(|source| StorageError::io("read", storage, source))?;
    let mut found: Vec<Leftover> = entries.flatten().filter_map(|entry| leftover(&entry.path())).collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn leftover(path: &Path) -> Option<Leftover> {
    let name = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    let session = SessionId(u128::from_str_radix(name, 16).ok().filter(|_| name.len() == 32)?);
    let mut latest = fs::metadata(path).ok()?.modified().ok()?;
    let mut bytes = 0;
    for file in fs::read_dir(path).ok()?.flatten() {
        let Ok(about) = file.metadata() else { continue };
        bytes += about.len();
        latest = latest.max(about.modified().unwrap_or(latest));
    }
    Some(Leftover {
        path: path.into(),
        session,
        bytes: Bytes(bytes),
        // The clock of the file server may be ahead of ours.
        quiet: SystemTime::now().duration_since(latest).unwrap_or_default(),
    })
}

pub(super) fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes names in a folder durable.
fn sync(folder: &Path) -> Result<(), StorageError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| StorageError::io("sync", folder, source))
}
