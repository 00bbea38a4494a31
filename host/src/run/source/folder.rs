//! The attempt's folder in the storage directory: made when something is first written to it, removed in the end.

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::storage::{SealKey, SessionDirectory, SourceState, StorageError, Vm, leftovers};

/// A folder in which nothing was written for this long belongs to no migration that goes on.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Where the attempt's files go, whichever thread writes the first of them.
pub(super) struct Folder {
    storage: PathBuf,
    vm: Vm,
    /// Known once there was a connection: what its session gives to seal with; nothing in plain.
    seal: OnceLock<Option<SealKey>>,
    made: Mutex<bool>,
    /// Held by whoever says something in the name of this side.
    turn: Mutex<()>,
}

impl Folder {
    pub(super) fn new(storage: PathBuf, vm: Vm) -> Self {
        Self {
            storage,
            vm,
            seal: OnceLock::new(),
            made: Mutex::new(false),
            turn: Mutex::new(()),
        }
    }

    /// The first connection is there: with what everything is sealed from now on, if with anything. Later ones change nothing, since what
    /// is stored outlives a connection.
    pub(super) fn connected(&self, seal: Option<SealKey>) {
        self.seal.get_or_init(|| seal);
    }

    /// The folder to write to, made by the first who asks.
    ///
    /// # Errors
    /// [`StorageError`] if there is no place to write to, or no connection yet.
    pub(super) fn directory(&self) -> Result<SessionDirectory, StorageError> {
        self.make()?;
        self.sealed()
    }

    /// Makes the folder if nobody has. What abandoned migrations left in the directory is then removed.
    ///
    /// # Errors
    /// [`StorageError`] if it cannot be made.
    pub(super) fn make(&self) -> Result<(), StorageError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = self.place();
        // One that was there and is gone is made anew.
        if *made && directory.path().is_dir() {
            return Ok(());
        }
        for leftover in leftovers(&self.storage)? {
            if leftover.quiet >= ABANDONED && leftover.remove().is_ok() {
                eprintln!(
                    "dunlin: removed {}, left behind by a migration",
                    leftover.path.display()
                );
            }
        }
        // Also if only what follows its making fails.
        *made = true;
        SessionDirectory::create(&self.storage, self.vm.clone(), None).map(drop)
    }

    fn sealed(&self) -> Result<SessionDirectory, StorageError> {
        match self.seal.get() {
            Some(seal) => Ok(SessionDirectory::open(&self.storage, self.vm.clone(), seal.clone())),
            None => Err(StorageError::NotConnected(self.place().path().into())),
        }
    }

    /// Where it is: not to be written to.
    fn place(&self) -> SessionDirectory {
        SessionDirectory::open(&self.storage, self.vm.clone(), None)
    }

    /// Shows others that it is in use.
    pub(super) fn touch(&self) {
        if let Some(directory) = self.made() {
            // Who removed it, or cannot be reached, is heard of when something is written.
            let _ = directory.touch();
        }
    }

    /// Writes what this side says, if it has something to say: nobody else says something meanwhile.
    pub(super) fn say(&self, word: impl FnOnce() -> Option<SourceState>) -> Result<(), StorageError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        match word() {
            Some(word) => self.directory()?.write_state(word),
            None => Ok(()),
        }
    }

    /// Takes back what was said, if something was.
    pub(super) fn take_back(&self) -> Result<(), StorageError> {
        let said =
            |directory: &SessionDirectory| Ok::<_, StorageError>(directory.read_state::<SourceState>()?.is_some());
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        match self.made().map(|_| self.sealed()).transpose()? {
            Some(directory) if said(&directory)? => directory.write_state(SourceState::RunsHere),
            _ => Ok(()),
        }
    }

    fn made(&self) -> Option<SessionDirectory> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.then(|| self.place())
    }

    /// Removes it with all that was written: nobody reads it any more.
    pub(super) fn remove(&self) -> Result<(), StorageError> {
        self.made().map_or(Ok(()), SessionDirectory::remove)
    }

    /// The same, but for a last word to a target that could not be told otherwise.
    pub(super) fn keep_word(&self, word: SourceState) -> Result<(), StorageError> {
        let directory = self.directory()?;
        directory.write_state(word)?;
        directory.remove_segments()
    }

    /// Leaves everything to the target.
    pub(super) fn keep(&self) {
        if let Some(directory) = self.made() {
            eprintln!(
                "dunlin: {} stays for the target; it can be removed when the VM is whole there",
                directory.path().display()
            );
        }
    }
}
