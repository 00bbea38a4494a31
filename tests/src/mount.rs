//! File systems of a test's own, for what cannot be had otherwise: no room, no right to write.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

/// A small file system in memory; gone at the end. Needs root.
pub struct SmallFolder {
    folder: tempfile::TempDir,
}

impl SmallFolder {
    /// One that holds so many bytes.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn new(bytes: u64) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        mount(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"], folder.path())?;
        Ok(Self { folder })
    }

    /// One in which there is no byte left.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn full() -> anyhow::Result<Self> {
        let full = Self::new(16 << 10)?;
        // Written until nothing fits: the last write fails, as it should.
        let _ = fs::write(full.path().join("filler"), vec![1; 1 << 20]);
        Ok(full)
    }

    /// Takes the right to write away from everybody, root included.
    ///
    /// # Errors
    /// If it cannot be mounted anew.
    pub fn make_read_only(&self) -> anyhow::Result<()> {
        mount(["-o", "remount,ro"], self.path())
    }

    /// Makes room for so many bytes.
    ///
    /// # Errors
    /// If it cannot be mounted anew.
    pub fn grow(&self, bytes: u64) -> anyhow::Result<()> {
        mount(["-o", &format!("remount,size={bytes}")], self.path())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for SmallFolder {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.folder.path()).status();
    }
}

fn mount<const N: usize>(arguments: [&str; N], at: &Path) -> anyhow::Result<()> {
    let status = Command::new("mount").args(arguments).arg(at).status();
    ensure!(
        status.context("cannot start mount")?.success(),
        "cannot mount at {}",
        at.display()
    );
    Ok(())
}
