//! The `dunlin` command as a child process: built when needed, read as JSON lines, never waited for without a limit,
//! killed when dropped.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Environment variable naming a `dunlin` executable to use instead of building one.
pub const BINARY: &str = "DUNLIN_BIN";

/// The workspace's root folder.
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies inside the workspace")
}

/// The `dunlin` executable with the profile of the running program, so that a test under `--release` drives a release
/// build. Built at most once per process.
pub fn binary() -> anyhow::Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let release = cfg!(not(debug_assertions));
    let built = BUILT.get_or_init(|| build(release).map_err(|error| format!("{error:#}")));
    built.as_deref().map_err(|error| anyhow::anyhow!("{error}"))
}

/// Builds `dunlin` and returns where it is; [`BINARY`] in the environment wins.
pub fn build(release: bool) -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "{BINARY} names {}, which is no file", path.display());
        return Ok(path);
    }
    build_program("dunlin", release)
}

/// Builds a program of the workspace's default members and returns where it is.
///
/// # Errors
/// If it does not build.
pub fn build_program(name: &str, release: bool) -> anyhow::Result<PathBuf> {
    let mut command = cargo_build(name);
    // No `-p`: the same features as in a build of all default members, so that nothing is compiled twice.
    if release {
        command.arg("--release");
    }
    executable(command, name)
}

/// The agent of Linux guests.
const AGENT: &str = "dunlin-agent";
/// For a program without shared libraries, the target must be named: what runs while it is built has some.
const AGENT_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds `dunlin-agent` as a static program for any Linux guest, small, and returns where it is. Built at most once per process, and apart from
/// everything else, of which nothing is built again.
///
/// # Errors
/// If it does not build.
pub fn build_agent() -> anyhow::Result<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || {
        let mut command = cargo_build(AGENT);
        command.args(["--package", AGENT, "--profile", "agent", "--target", AGENT_TARGET]);
        command.arg("--target-dir").arg(target_folder()?.join("static"));
        command.env_remove("RUSTFLAGS");
        command.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
        executable(command, AGENT)
    };
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.as_deref().map_err(|error| anyhow::anyhow!("{error}"))
}

/// Whether something comes true within a time.
pub fn comes_true(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A `cargo` command, the one by which this program was started if it was.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    forget_package(&mut command);
    command
}

/// Takes from a command's environment what cargo says there of the package whose program this is: build scripts that look at it (that of
/// `ring` does) would run again each time another program builds, and everything that depends on them would be built anew.
pub fn forget_package(command: &mut Command) {
    let is_of_package = |name: &str| {
        let prefixes = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];
        prefixes.iter().any(|prefix| name.starts_with(prefix))
            || ["CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"].contains(&name)
    };
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_package) {
            command.env_remove(name);
        }
    }
}

/// A command that builds a program, for [`executable`].
fn cargo_build(name: &str) -> Command {
    let mut command = cargo();
    command.args([
        "build",
        "--quiet",
        "--bin",
        name,
        "--message-format=json-render-diagnostics",
    ]);
    command
}

/// Runs such a command, and returns where it put the program.
fn executable(mut command: Command, name: &str) -> anyhow::Result<PathBuf> {
    let output = command
        .current_dir(workspace_root())
        .stderr(Stdio::inherit())
        .output()
        .context("cargo starts")?;
    ensure!(output.status.success(), "`{name}` does not build");
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = messages.lines().rev().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == name).then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    executable.with_context(|| format!("cargo did not say where it put `{name}`"))
}

/// What a finished command left behind.
#[derive(Debug)]
pub struct Finished {
    /// The exit code, or nothing after a signal.
    pub code: Option<i32>,
    /// Every line of stdout that had not been read before.
    pub lines: Vec<String>,
    /// All of stderr.
    pub stderr: String,
}

impl Finished {
    /// The last line of stdout as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        let line = self
            .lines
            .last()
            .with_context(|| format!("nothing on stdout; {self}"))?;
        serde_json::from_str(line).with_context(|| format!("`{line}` is no JSON; {self}"))
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "exit code {code}")?,
            None => f.write_str("ended by a signal")?,
        }
        for line in &self.lines {
            write!(f, "\n  stdout: {line}")?;
        }
        f.write_str(&last_lines(&self.stderr))
    }
}

/// The end of what was written to stderr: progress before it is of no interest.
fn last_lines(stderr: &str) -> String {
    const SHOWN: usize = 20;
    let hidden = stderr.lines().count().saturating_sub(SHOWN);
    let lines = stderr.lines().skip(hidden).map(|line| format!("\n  stderr: {line}"));
    lines.collect()
}

/// A running `dunlin` command.
pub struct Dunlin {
    child: Child,
    lines: Receiver<String>,
    stderr: PathBuf,
    words: String,
}

impl Dunlin {
    /// Starts `dunlin` with `args`; its stderr goes to a file in `folder`.
    pub fn start<S: AsRef<OsStr>>(folder: &Path, args: impl IntoIterator<Item = S>) -> anyhow::Result<Self> {
        Self::start_program(binary()?, folder, args)
    }

    /// Starts `program`, some build of `dunlin` or a wrapper around it, with `args`.
    pub fn start_program<S: AsRef<OsStr>>(
        program: &Path,
        folder: &Path,
        args: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<Self> {
        let args: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let words = args
            .iter()
            .map(|arg| arg.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        let stderr = tempfile::Builder::new().prefix("stderr-").tempfile_in(folder)?;
        let (file, stderr) = stderr.keep()?;
        let mut child = Command::new(program)
            .args(&args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // Ends with the pipe; an invalid line is the reader's problem, as is a receiver that is gone.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Ok(Self {
            child,
            lines,
            stderr,
            words,
        })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// True until the process has ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        fs::read(&self.stderr)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until it has written `words` to stderr.
    pub fn wait_for_words(&self, words: &str, limit: Duration) -> anyhow::Result<()> {
        ensure!(
            comes_true(limit, || self.stderr().contains(words)),
            "{self} said nothing of `{words}` within {limit:?}:\n{}",
            self.stderr()
        );
        Ok(())
    }

    /// The next line of stdout as JSON.
    pub fn next_json(&mut self, limit: Duration) -> anyhow::Result<Value> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => serde_json::from_str(&line).with_context(|| format!("{self} printed `{line}`: no JSON")),
            Err(RecvTimeoutError::Timeout) => bail!("{self} printed nothing within {limit:?}"),
            Err(RecvTimeoutError::Disconnected) => {
                let finished = self.wait(limit)?;
                bail!("{self} ended before it printed what was waited for: {finished}")
            }
        }
    }

    /// Skips lines until one whose `schema` is `schema`.
    pub fn wait_for_schema(&mut self, schema: &str, limit: Duration) -> anyhow::Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            let line = self.next_json(deadline.saturating_duration_since(Instant::now()))?;
            if line["schema"] == schema {
                return Ok(line);
            }
        }
    }

    /// Waits for the end.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<Finished> {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(
                Instant::now() < deadline,
                "{self} did not end within {limit:?}{}",
                last_lines(&self.stderr())
            );
            thread::sleep(Duration::from_millis(2));
        };
        // The reading thread ends with the pipe, so this ends too, unless a grandchild holds the pipe open.
        let mut lines = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(5)) {
            lines.push(line);
        }
        Ok(Finished {
            code: status.code(),
            lines,
            stderr: self.stderr(),
        })
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), signal).with_context(|| format!("cannot signal {self}"))
    }

    /// Ends the process the hard way, as a crash would, and waits until it is gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl fmt::Display for Dunlin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`dunlin {}` (process {})", self.words, self.child.id())
    }
}

impl Drop for Dunlin {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Runs `dunlin` with `args` to its end.
pub fn run<S: AsRef<OsStr>>(
    folder: &Path,
    args: impl IntoIterator<Item = S>,
    limit: Duration,
) -> anyhow::Result<Finished> {
    Dunlin::start(folder, args)?.wait(limit)
}

/// Where the running program's target directory is, for caches.
pub fn target_folder() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    // <target>/<profile>/xtask or <target>/<profile>/deps/<test>
    let profile = program.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    let target = profile
        .and_then(Path::parent)
        .context("the running program lies in no target directory")?;
    // Only a folder that can be written serves as a cache.
    File::open(target).with_context(|| format!("cannot open {}", target.display()))?;
    Ok(target.to_owned())
}
