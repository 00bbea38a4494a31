//! The attempt's folder in the storage directory: made when something is first written to it, removed in the end.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::storage::{SessionDirectory, StorageError, Vm, leftovers};

/// A folder in which nothing was written for this long belongs to no migration that goes on.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Where the attempt's files go, whichever thread writes the first of them.
pub(super) struct Folder {
    storage: PathBuf,
    vm: Vm,
    made: Mutex<bool>,
}

impl Folder {
    pub(super) fn new(storage: PathBuf, vm: Vm) -> Self {
        Self {
            storage,
            vm,
            made: Mutex::new(false),
        }
    }

    /// The folder, made by the first who asks. What abandoned migrations left in the directory is then removed.
    ///
    /// # Errors
    /// [`StorageError`] if there is no place to write to.
    pub(super) fn directory(&self) -> Result<SessionDirectory, StorageError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if *made {
            return Ok(SessionDirectory::open(&self.storage, self.vm.clone()));
        }
        for leftover in leftovers(&self.storage)? {
            if leftover.quiet >= ABANDONED && leftover.remove().is_ok() {
                eprintln!(
                    "dunlin: removed {}, left behind by a migration",
                    leftover.path.display()
                );
            }
        }
        let directory = SessionDirectory::create(&self.storage, self.vm.clone())?;
        *made = true;
        Ok(directory)
    }

    /// Removes it with all that was written: nobody reads it any more.
    pub(super) fn remove(&self) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut *made)
            && let Err(error) = SessionDirectory::open(&self.storage, self.vm.clone()).remove()
        {
            eprintln!("dunlin: {}", crate::run::chain(&error));
        }
    }
}
