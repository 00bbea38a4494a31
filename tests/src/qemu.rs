//! A stock QEMU as a child process, whatever runs in it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dunlin::trace::foreign::Qmp;

const PROGRAM: &str = "qemu-system-x86_64";
/// How long QEMU may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is tried whether it does.
const PERIOD: Duration = Duration::from_millis(5);

/// A running QEMU with a folder for its files. Ended with this, and the folder removed.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    folder: tempfile::TempDir,
}

impl Qemu {
    /// Starts QEMU with these arguments and two QMP sockets in `folder`: one for the connection that is returned, and one that is
    /// [free](Self::socket).
    ///
    /// # Errors
    /// If QEMU does not start, or does not listen within a minute, with what it says.
    pub fn start<S: AsRef<OsStr>>(
        folder: tempfile::TempDir,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<(Self, Qmp)> {
        Self::start_by(Command::new(PROGRAM), folder, arguments)
    }

    /// The same, without the right to take page faults of others: as a process of a user's is.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_without_faults<S: AsRef<OsStr>>(
        folder: tempfile::TempDir,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<(Self, Qmp)> {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-sys_ptrace", PROGRAM]);
        Self::start_by(command, folder, arguments)
    }

    fn start_by<S: AsRef<OsStr>>(
        mut command: Command,
        folder: tempfile::TempDir,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<(Self, Qmp)> {
        let own = folder.path().join("qmp");
        for socket in [&own, &free_socket(folder.path())] {
            command.args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        }
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(messages(folder.path()))?);
        let child = command.spawn().context("qemu-system-x86_64 does not start")?;
        let mut qemu = Self { child, folder };
        let qmp = qemu.connect(&own)?;
        Ok((qemu, qmp))
    }

    /// QEMU's process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A QMP socket that nobody uses: QEMU serves one client at each.
    pub fn socket(&self) -> PathBuf {
        free_socket(self.folder.path())
    }

    /// What it said on its error output.
    pub fn messages(&self) -> String {
        let bytes = fs::read(messages(self.folder.path())).unwrap_or_default();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    /// Fails if the process has ended, with what it said.
    ///
    /// # Errors
    /// That it has ended.
    pub fn check_running(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("QEMU has ended ({status}); it said: {}", self.messages()),
        }
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// If it cannot be ended.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// It takes a while until QEMU listens.
    fn connect(&mut self, socket: &Path) -> anyhow::Result<Qmp> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Qmp::connect(socket) {
                Ok(qmp) => return Ok(qmp),
                Err(error) => {
                    self.check_running()?;
                    ensure!(Instant::now() < deadline, "QEMU does not listen: {error}");
                }
            }
            sleep(PERIOD);
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_socket(folder: &Path) -> PathBuf {
    folder.join("qmp-free")
}

/// What QEMU says on its error output, which is of interest only when something goes wrong.
fn messages(folder: &Path) -> PathBuf {
    folder.join("messages")
}
