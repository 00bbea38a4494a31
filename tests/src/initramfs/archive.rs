//! The archive that the kernel unpacks into its first file system (Documentation/driver-api/early-userspace/
//! buffer-format.rst of Linux).

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Component, Path};

use anyhow::{Context as _, ensure};
use cpio::newc::{Builder, ModeFileType, trailer};

/// An archive that is being written. Paths are absolute, as they will be inside; folders are made as files need them.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    paths: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An archive with nothing in it yet, written to `out` as it grows.
    pub const fn new(out: W) -> Self {
        Self {
            out,
            paths: BTreeSet::new(),
        }
    }

    /// Whether something is there already.
    pub fn has(&self, path: &Path) -> bool {
        inside(path).is_ok_and(|path| self.paths.contains(&path))
    }

    /// Adds a folder, unless it is there.
    ///
    /// # Errors
    /// If it cannot be written, or the path is not absolute; so with all that is added.
    pub fn folder(&mut self, path: &Path) -> anyhow::Result<()> {
        if path.parent().is_none() || self.has(path) {
            return Ok(());
        }
        self.entry(path, 0o755, ModeFileType::Directory, (0, 0), &[])
    }

    /// Adds a file that everybody may read and run.
    ///
    /// # Errors
    /// As [`folder`](Self::folder), and if something is there already.
    pub fn file(&mut self, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        self.entry(path, 0o755, ModeFileType::Regular, (0, 0), bytes)
    }

    /// As [`file`](Self::file), with the bytes of a file of this machine.
    ///
    /// # Errors
    /// As [`file`](Self::file), and if the file cannot be read.
    pub fn copy(&mut self, from: &Path, to: &Path) -> anyhow::Result<()> {
        let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(to, &bytes)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// As [`file`](Self::file).
    pub fn link(&mut self, path: &Path, target: &str) -> anyhow::Result<()> {
        self.entry(path, 0o777, ModeFileType::Symlink, (0, 0), target.as_bytes())
    }

    /// Adds a character device that only root may use.
    ///
    /// # Errors
    /// As [`file`](Self::file).
    pub fn character_device(&mut self, path: &Path, major: u32, minor: u32) -> anyhow::Result<()> {
        self.entry(path, 0o600, ModeFileType::Char, (major, minor), &[])
    }

    fn entry(
        &mut self,
        path: &Path,
        permissions: u32,
        kind: ModeFileType,
        (major, minor): (u32, u32),
        bytes: &[u8],
    ) -> anyhow::Result<()> {
        if let Some(parent) = path.parent() {
            self.folder(parent)?;
        }
        let name = inside(path)?;
        ensure!(self.paths.insert(name.clone()), "{} is there already", path.display());
        // A number of its own for each: equal ones mean hard links.
        let number = u32::try_from(self.paths.len())?;
        let length = u32::try_from(bytes.len()).with_context(|| format!("{} is too large", path.display()))?;
        let entry = Builder::new(&name)
            .ino(number)
            .mode(permissions)
            .set_mode_file_type(kind);
        let mut writer = entry.rdev_major(major).rdev_minor(minor).write(&mut self.out, length);
        writer.write_all(bytes)?;
        writer.finish()?;
        Ok(())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(self) -> anyhow::Result<()> {
        trailer(self.out)?.flush()?;
        Ok(())
    }
}

/// A path as the archive writes it: relative to the root.
fn inside(path: &Path) -> anyhow::Result<String> {
    ensure!(
        path.components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_))),
        "{} is not absolute",
        path.display()
    );
    let path = path
        .strip_prefix("/")
        .with_context(|| format!("{} is not absolute", path.display()))?;
    path.to_str().map(str::to_owned).context("paths are text")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use cpio::newc::Reader;

    use super::*;

    #[test]
    fn what_is_put_in_comes_out_with_its_folders() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file(Path::new("/bin/tool"), b"code").expect("written");
        archive.link(Path::new("/bin/other"), "tool").expect("written");
        archive
            .character_device(Path::new("/dev/console"), 5, 1)
            .expect("written");
        assert!(archive.has(Path::new("/bin")) && !archive.has(Path::new("/lib")));
        assert!(archive.file(Path::new("/bin/tool"), b"twice").is_err());
        assert!(archive.file(Path::new("../tool"), b"outside").is_err());
        archive.finish().expect("ends");

        let mut rest = bytes.as_slice();
        let mut found = Vec::new();
        loop {
            let mut reader = Reader::new(rest).expect("an entry");
            if reader.entry().is_trailer() {
                break;
            }
            let mut contents = Vec::new();
            reader.read_to_end(&mut contents).expect("its bytes");
            let entry = reader.entry();
            let device = (entry.rdev_major(), entry.rdev_minor());
            found.push((entry.name().to_owned(), entry.mode(), device, contents));
            rest = reader.finish().expect("ends");
        }
        let entry =
            |name: &str, mode, device, contents: &str| (name.to_owned(), mode, device, contents.as_bytes().to_vec());
        let expected = [
            entry("bin", 0o040_755, (0, 0), ""),
            entry("bin/tool", 0o100_755, (0, 0), "code"),
            entry("bin/other", 0o120_777, (0, 0), "tool"),
            entry("dev", 0o040_755, (0, 0), ""),
            entry("dev/console", 0o020_600, (5, 1), ""),
        ];
        assert_eq!(found, expected);
    }
}
