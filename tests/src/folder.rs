//! What is to be seen in a storage directory from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::scene::PATIENCE;

/// Whether nothing is in it.
///
/// # Errors
/// If it cannot be read.
pub fn is_empty(folder: &Path) -> anyhow::Result<bool> {
    Ok(fs::read_dir(folder)?.next().is_none())
}

/// A file whose name ends so in the folder of any session, if there is one.
pub fn find(storage: &Path, end: &str) -> Option<PathBuf> {
    let sessions = fs::read_dir(storage).into_iter().flatten().flatten();
    let files = sessions.flat_map(|session| fs::read_dir(session.path()).into_iter().flatten().flatten());
    let mut wanted = files.filter(|file| file.file_name().to_string_lossy().ends_with(end));
    wanted.next().map(|file| file.path())
}

/// Waits for a file whose name ends so in the folder of any session.
///
/// # Errors
/// If it does not come.
pub fn wait_for_file(storage: &Path, end: &str) -> anyhow::Result<PathBuf> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(file) = find(storage, end) {
            return Ok(file);
        }
        ensure!(Instant::now() < deadline, "no *{end} in {}", storage.display());
        thread::sleep(Duration::from_millis(1));
    }
}
