//! The folders that a process may use.

use super::SandboxError;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The newest version whose rights are used; where the kernel has an older one, its rights are.
const VERSION: ABI = ABI::V6;

/// Read by the C library to find hosts and times, and by Dunlin to know the machine.
const SYSTEM: [&str; 7] = ["/etc", "/usr", "/lib", "/lib64", "/proc", "/sys", "/nix/store"];

/// Devices.
const DEVICES: [&str; 6] = [
    "/dev/kvm",
    "/dev/userfaultfd",
    "/dev/null",
    "/dev/urandom",
    "/dev/random",
    "/dev/tty",
];

/// Where shared directories are mounted, by the file system hierarchy standard.
const SHARED: [&str; 3] = ["/mnt", "/media", "/srv"];

/// What this process may use since it was confined; nothing was if there is none.
static ALLOWED: OnceLock<Folders> = OnceLock::new();

/// Folders, with all in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folders {
    written: Vec<PathBuf>,
    read: Vec<PathBuf>,
}

/// A path that the process may not use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the process that holds the VM confined itself and may not use {}: start it with --allow {}, or use a folder below {}",
    .path.display(), .folder.display(), .allowed
)]
pub struct NotAllowed {
    path: PathBuf,
    folder: PathBuf,
    allowed: String,
}

impl Folders {
    /// Those that a migration may name later: where shared directories are mounted, and temporary files.
    pub fn usual() -> Self {
        let mut folders = Self::default();
        folders.write(&std::env::temp_dir());
        SHARED.iter().for_each(|folder| folders.write(Path::new(folder)));
        folders
    }

    /// Adds a folder to write in.
    pub fn write(&mut self, folder: &Path) {
        self.written.push(real(folder));
    }

    /// Adds a folder to read in.
    pub fn read(&mut self, folder: &Path) {
        self.read.push(real(folder));
    }

    /// Adds the folder that a file to be written is in: it may be replaced by another.
    pub fn write_file(&mut self, file: &Path) {
        self.write(folder_of(file));
    }

    /// The same for a file that is read.
    pub fn read_file(&mut self, file: &Path) {
        self.read(folder_of(file));
    }

    fn allows(&self, path: &Path) -> Result<(), NotAllowed> {
        let path = real(path);
        if self.written.iter().any(|folder| path.starts_with(folder)) {
            return Ok(());
        }
        Err(self.refuse(path, &[]))
    }

    fn allows_reading(&self, path: &Path) -> Result<(), NotAllowed> {
        let path = real(path);
        let read = self.written.iter().chain(&self.read).map(PathBuf::as_path);
        if read.chain(SYSTEM.map(Path::new)).any(|folder| path.starts_with(folder)) {
            return Ok(());
        }
        Err(self.refuse(path, &["/etc"]))
    }

    fn refuse(&self, path: PathBuf, besides: &[&str]) -> NotAllowed {
        let mut shown: Vec<&Path> = besides.iter().map(Path::new).collect();
        for folder in &self.written {
            let is_below = |other: &Path| folder.starts_with(other);
            if !shown.iter().any(|other| is_below(other)) {
                shown.push(folder);
            }
        }
        let shown: Vec<_> = shown.iter().map(|folder| folder.display().to_string()).collect();
        NotAllowed {
            folder: path.clone(),
            path,
            allowed: shown.join(", "),
        }
    }

    /// Whether this process may write in the folder at `path`; one that is not confined may do what its user may.
    ///
    /// # Errors
    /// [`NotAllowed`].
    pub fn check(path: &Path) -> Result<(), NotAllowed> {
        ALLOWED.get().map_or(Ok(()), |allowed| allowed.allows(path))
    }

    /// Whether it may read there.
    ///
    /// # Errors
    /// [`NotAllowed`].
    pub fn check_reading(path: &Path) -> Result<(), NotAllowed> {
        ALLOWED.get().map_or(Ok(()), |allowed| allowed.allows_reading(path))
    }

    /// The same as [`check`](Self::check) for the folder that a file is in.
    ///
    /// # Errors
    /// [`NotAllowed`].
    pub fn check_file(path: &Path) -> Result<(), NotAllowed> {
        Self::check(folder_of(path))
    }
}

/// As the kernel sees it: Landlock goes by what is there, not by its name.
fn real(folder: &Path) -> PathBuf {
    folder
        .canonicalize()
        .or_else(|_| std::path::absolute(folder))
        .unwrap_or_else(|_| folder.into())
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// How much of the folders' part of the sandbox this kernel offers: tried by a thread that ends with it.
pub fn offered() -> Result<Offered, SandboxError> {
    let tried = std::thread::spawn(|| enforce(&Folders::default())).join();
    // A panic in there has been printed.
    tried.unwrap_or(Ok(Offered::Nothing))
}

/// What a kernel offers of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// All.
    Everything,
    /// Its Landlock is older than that of Linux 6.12.
    Part,
    /// It has none, or has it turned off.
    Nothing,
}

/// Limits this thread, and those that it begins, to `folders`; what this kernel lacks for that, in words.
pub(super) fn enter(folders: &Folders) -> Result<Option<&'static str>, SandboxError> {
    let offered = enforce(folders)?;
    // Nobody else confines the process.
    let _ = ALLOWED.set(folders.clone());
    Ok(match offered {
        Offered::Everything => None,
        Offered::Part => {
            Some("the kernel's Landlock is older than that of Linux 6.12: parts of the sandbox are missing")
        }
        Offered::Nothing => Some(
            "the kernel has no Landlock, or it is off (add landlock to its lsm= option): the process may open all files of its user",
        ),
    })
}

fn enforce(folders: &Folders) -> Result<Offered, SandboxError> {
    let all = AccessFs::from_all(VERSION);
    let written = all & !AccessFs::Execute & !AccessFs::MakeBlock & !AccessFs::MakeChar & !AccessFs::IoctlDev;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::AbstractUnixSocket)?
        .scope(Scope::Signal)?
        .create()?;
    let written = folders.written.iter().map(|path| (path.as_path(), written));
    let readable = folders
        .read
        .iter()
        .map(PathBuf::as_path)
        .chain(SYSTEM.iter().map(Path::new));
    let readable = readable.map(|path| (path, read));
    let devices = DEVICES.iter().map(|path| (Path::new(path), device));
    for (path, access) in written.chain(readable).chain(devices) {
        // What is not there needs no right.
        if let Ok(opened) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(opened, access))?;
        }
    }
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Offered::Everything,
        RulesetStatus::PartiallyEnforced => Offered::Part,
        RulesetStatus::NotEnforced => Offered::Nothing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_allowed_below_their_folders() {
        let dir = tempfile::tempdir().unwrap();
        let mut folders = Folders::default();
        folders.write(dir.path());
        folders.read(Path::new("/etc"));
        let storage = dir.path().join("storage");
        std::fs::create_dir(&storage).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        folders.allows(&storage).unwrap();
        folders.allows(dir.path()).unwrap();
        for read in [storage.as_path(), Path::new("/etc/dunlin"), Path::new("/usr")] {
            folders.allows_reading(read).unwrap();
        }
        assert!(folders.allows_reading(Path::new("/opt")).is_err());
        for other in [Path::new("/etc"), &dir.path().join("link"), &dir.path().join("..")] {
            let error = folders.allows(other).unwrap_err().to_string();
            assert!(error.contains("--allow"), "{error}");
        }
    }
}
