//! Whole migrations in a few lines: guests, receivers and the files they need, in a folder of their own.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::process::{self, Dunlin, Finished};
use crate::{Capability, require};

/// Longest wait for anything that has no reason to take long, on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What executes the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A KVM virtual machine.
    Kvm,
    /// Threads of the process, for machines without KVM.
    Thread,
}

impl Kind {
    /// A virtual machine where there are any; elsewhere a test says that it makes do with threads.
    pub fn best() -> Self {
        if require(Capability::Kvm) && require(Capability::Uffd) {
            Self::Kvm
        } else {
            Self::Thread
        }
    }

    /// The value of `--kind`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Thread => "thread",
        }
    }
}

/// The options of one `dunlin guest`, without those that name files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestOptions {
    /// What executes the guest.
    pub kind: Kind,
    /// Size of its memory, e.g. `32MiB`.
    pub memory: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// What it does, in the grammar of `--workload`.
    pub workload: String,
    /// Seed of the workload.
    pub seed: u64,
    /// Steps of each vCPU after which it halts; without, it runs for ever.
    pub steps: Option<u64>,
    /// Further arguments.
    pub extra: Vec<String>,
}

impl GuestOptions {
    /// A 32 MiB guest with one vCPU that runs `workload` for ever.
    pub fn new(kind: Kind, workload: impl Into<String>) -> Self {
        let workload = workload.into();
        Self {
            kind,
            memory: "32MiB".into(),
            vcpus: 1,
            workload,
            seed: 7,
            steps: None,
            extra: vec![],
        }
    }

    /// With another memory size.
    pub fn memory(mut self, memory: &str) -> Self {
        self.memory = memory.into();
        self
    }

    /// With `vcpus` vCPUs.
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = vcpus;
        self
    }

    /// Halts after `steps` of each vCPU.
    pub fn steps(mut self, steps: u64) -> Self {
        self.steps = Some(steps);
        self
    }

    /// With more arguments.
    pub fn with<'a>(mut self, extra: impl IntoIterator<Item = &'a str>) -> Self {
        self.extra.extend(extra.into_iter().map(str::to_owned));
        self
    }

    /// The arguments from `guest` on: all that decides what memory holds in the end.
    pub fn args(&self) -> Vec<String> {
        let mut args: Vec<String> = vec!["guest".into()];
        let mut option = |name: &str, value: String| args.extend([format!("--{name}"), value]);
        option("kind", self.kind.name().into());
        option("memory", self.memory.clone());
        option("vcpus", self.vcpus.to_string());
        option("workload", self.workload.clone());
        option("seed", self.seed.to_string());
        if let Some(steps) = self.steps {
            option("steps", steps.to_string());
        }
        args.extend(self.extra.iter().cloned());
        args
    }
}

/// A folder with everything one test or run needs; gone at the end, as are the processes started in it.
pub struct Scene {
    folder: tempfile::TempDir,
    program: PathBuf,
}

impl Scene {
    /// A new scene for the `dunlin` built with the running program's profile.
    pub fn new() -> anyhow::Result<Self> {
        Self::with_program(process::binary()?)
    }

    /// A new scene for the executable `program`.
    pub fn with_program(program: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("dunlin-")
            .tempdir()
            .context("cannot make a folder")?;
        Ok(Self {
            folder,
            program: program.to_owned(),
        })
    }

    /// The scene's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts `dunlin` with `args`.
    pub fn dunlin<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> anyhow::Result<Dunlin> {
        Dunlin::start_program(&self.program, self.folder(), args)
    }

    /// The same in a network namespace, if one is named.
    fn dunlin_in(&self, namespace: Option<&str>, args: Vec<String>) -> anyhow::Result<Dunlin> {
        let Some(namespace) = namespace else {
            return self.dunlin(args);
        };
        let words = ["netns", "exec", namespace].map(str::to_owned).into_iter();
        let words = words.chain([display(&self.program)]).chain(args);
        Dunlin::start_program(Path::new("ip"), self.folder(), words)
    }

    /// Options by which peers of other hosts may do what they like, for processes in a network namespace.
    fn open_policy(&self, namespace: Option<&str>) -> anyhow::Result<Vec<String>> {
        if namespace.is_none() {
            return Ok(Vec::new());
        }
        let policy = self.file("anyone.toml", "[[rule]]\nverdict = \"allow\"\npeer = \"anyone\"\n")?;
        Ok(vec!["--policy".into(), policy])
    }

    /// Starts a guest whose control socket is called `name`, and waits until it runs.
    pub fn guest(&self, name: &str, options: &GuestOptions) -> anyhow::Result<Host> {
        self.guest_in(None, name, options)
    }

    /// The same in a network namespace, if one is named.
    pub fn guest_in(&self, namespace: Option<&str>, name: &str, options: &GuestOptions) -> anyhow::Result<Host> {
        let control = self.control(name);
        let mut args = options.args();
        args.extend([
            "--name".into(),
            name.into(),
            "--control".into(),
            display(&control),
            "--json".into(),
        ]);
        args.extend(self.open_policy(namespace)?);
        let host = Host {
            process: self.dunlin_in(namespace, args)?,
            control,
            listening: None,
        };
        self.wait_status(host, |status| status["state"] != "waiting")
    }

    /// Starts a receiver that listens on a free loopback port, and waits until it does.
    pub fn receiver(&self, name: &str, extra: &[&str]) -> anyhow::Result<Host> {
        self.receiver_at(name, "127.0.0.1:0", extra)
    }

    /// Starts a receiver at `address`, and waits until it listens.
    pub fn receiver_at(&self, name: &str, address: &str, extra: &[&str]) -> anyhow::Result<Host> {
        self.receiver_in(None, name, address, extra)
    }

    /// The same in a network namespace, if one is named.
    pub fn receiver_in(
        &self,
        namespace: Option<&str>,
        name: &str,
        address: &str,
        extra: &[&str],
    ) -> anyhow::Result<Host> {
        let control = self.control(name);
        let control_word = display(&control);
        let args = ["receive", "--listen", address, "--control", &control_word, "--json"];
        let args = args.iter().chain(extra).chain(in_plain(address, extra));
        let args = args.map(|&word| word.to_owned());
        let args = args.chain(self.open_policy(namespace)?).collect();
        let mut process = self.dunlin_in(namespace, args)?;
        let first = process.wait_for_schema("dunlin.receive.v1", PATIENCE)?;
        let listening = first["listening"]
            .as_str()
            .context("`listening` names no address")?
            .to_owned();
        Ok(Host {
            process,
            control,
            listening: Some(listening),
        })
    }

    /// Starts `dunlin migrate` of the guest at `from` to `to`.
    pub fn start_migration(&self, from: &Host, to: &str, strategy: &str, extra: &[&str]) -> anyhow::Result<Dunlin> {
        let control = display(&from.control);
        let args = [
            "migrate",
            "--control",
            &control,
            "--to",
            to,
            "--strategy",
            strategy,
            "--json",
        ];
        self.dunlin(args.iter().chain(extra).chain(in_plain(to, extra)))
    }

    /// Moves the guest at `from` to `to` and returns the report of a migration that completed.
    pub fn migrate(&self, from: &Host, to: &Host, strategy: &str, extra: &[&str]) -> anyhow::Result<Value> {
        let mut migration = self.start_migration(from, to.listening()?, strategy, extra)?;
        let finished = migration.wait(2 * PATIENCE)?;
        let context = || format!("migration by {strategy}: {finished}");
        let report = finished.json().with_context(context)?;
        ensure!(
            report["outcome"] == "completed",
            "migration by {strategy} did not complete: {finished}"
        );
        let expected = i32::from(report["goal_met"] != true);
        ensure!(
            finished.code == Some(expected),
            "a completed migration exits with 0, or with 1 where the downtime was missed, not so: {finished}"
        );
        Ok(report)
    }

    /// What `dunlin status` says about `host`.
    pub fn status(&self, host: &Host) -> anyhow::Result<Value> {
        let control = display(&host.control);
        let finished = self
            .dunlin(["status", "--control", &control, "--json"])?
            .wait(PATIENCE)?;
        ensure!(finished.code == Some(0), "status of {}: {finished}", host.process);
        finished.json()
    }

    /// Runs a guest from start to halt without any migration; its report.
    pub fn run_undisturbed(&self, options: &GuestOptions) -> anyhow::Result<Value> {
        ensure!(options.steps.is_some(), "a guest without a number of steps never halts");
        self.guest("undisturbed", options)?.final_report()
    }

    /// Polls `dunlin status` until it pleases `is_right`.
    pub fn wait_status(&self, mut host: Host, is_right: impl Fn(&Value) -> bool) -> anyhow::Result<Host> {
        self.poll_status(&mut host, is_right)?;
        Ok(host)
    }

    /// Polls `dunlin status` until it pleases `is_right`; the status that did.
    pub fn poll_status(&self, host: &mut Host, is_right: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let failure = match self.status(host) {
                Ok(status) if is_right(&status) => return Ok(status),
                Ok(status) => format!("status is still {status}"),
                Err(error) => format!("{error:#}"),
            };
            if !host.process.is_running() {
                let finished = host.process.wait(PATIENCE)?;
                anyhow::bail!("{} ended: {finished}", host.process);
            }
            ensure!(Instant::now() < deadline, "{}: {failure}", host.process);
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// A folder of this name in the scene's, made if it is not there, as an argument.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn subfolder(&self, name: &str) -> anyhow::Result<String> {
        let path = self.folder().join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path.display().to_string())
    }

    /// A file of this name in the scene's folder with these contents, as an argument.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn file(&self, name: &str, contents: &str) -> anyhow::Result<String> {
        let path = self.folder().join(name);
        std::fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path.display().to_string())
    }

    /// What `dunlin audit verify` says of the log in a state directory, compared with the hand-over records there.
    ///
    /// # Errors
    /// If the log is not whole, or says something else.
    pub fn audited(&self, state: &str) -> anyhow::Result<Value> {
        let log = format!("{state}/audit.jsonl");
        let checked = self
            .dunlin(["audit", "verify", &log, "--state", state, "--json"])?
            .wait(PATIENCE)?;
        ensure!(checked.code == Some(0), "the audit log in {state}: {checked}");
        checked.json()
    }

    /// The records of the audit log in a state directory.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn audit_records(&self, state: &str) -> anyhow::Result<Vec<Value>> {
        let log = format!("{state}/audit.jsonl");
        let shown = self.dunlin(["audit", "show", &log, "--json"])?.wait(PATIENCE)?;
        ensure!(shown.code == Some(0), "the audit log in {state}: {shown}");
        let lines = shown.lines.iter();
        lines
            .map(|line| serde_json::from_str(line).with_context(|| line.clone()))
            .collect()
    }

    /// A path for a control socket.
    pub fn control(&self, name: &str) -> PathBuf {
        self.folder().join(format!("{name}.sock"))
    }
}

/// A process that holds a guest, or waits for one.
pub struct Host {
    /// The process.
    pub process: Dunlin,
    /// Its control socket.
    pub control: PathBuf,
    listening: Option<String>,
}

impl Host {
    /// Where a receiver listens.
    pub fn listening(&self) -> anyhow::Result<&str> {
        self.listening
            .as_deref()
            .context("only a receiver listens for migrations")
    }

    /// Waits for the guest's end in this process; its report, with `ram_blake3`.
    pub fn final_report(&mut self) -> anyhow::Result<Value> {
        let report = self.process.wait_for_schema("dunlin.guest.v1", 2 * PATIENCE)?;
        let finished = self.process.wait(PATIENCE)?;
        ensure!(
            finished.code == Some(0),
            "{} reported {report}, but then: {finished}",
            self.process
        );
        ensure!(
            report["ram_blake3"].is_string(),
            "the report has no memory hash: {report}"
        );
        Ok(report)
    }

    /// Waits for the end of a process whose guest has moved away: exit code 0 and no report of a guest.
    pub fn moved_away(&mut self) -> anyhow::Result<Finished> {
        let finished = self.process.wait(PATIENCE)?;
        ensure!(
            finished.code == Some(0),
            "{} after its guest moved away: {finished}",
            self.process
        );
        let reports = finished.lines.iter().any(|line| line.contains("dunlin.guest.v1"));
        ensure!(
            !reports,
            "{} gave up its guest and yet reports one: {finished}",
            self.process
        );
        Ok(finished)
    }
}

/// What a test needs to say that uses no TLS between network namespaces: for `dunlin` those are different hosts.
fn in_plain(address: &str, extra: &[&str]) -> &'static [&'static str] {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let is_elsewhere = host.parse().is_ok_and(|host: std::net::IpAddr| !host.is_loopback());
    if is_elsewhere && !extra.contains(&"--tls-dir") {
        &["--insecure"]
    } else {
        &[]
    }
}

fn display(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
