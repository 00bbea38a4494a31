//! Linux guests in stock QEMU, emulated, which say themselves that they live and that their memory is right: what QEMU says of a guest
//! that it has moved is not to be believed.
//!
//! A guest boots the distribution's kernel with a first file system made here (see [`lab`] for where the kernel is
//! from) and runs `dunlin-guest-check`, which does a [`Workload`], beats on the second serial port, and checks everything when told
//! so. To move a guest, start one with the same options as [`Role::Source`] and [`Role::Target`], and connect to their
//! [free QMP sockets](Linux::socket); from then on the target beats.

pub mod agent;
mod image;
pub mod line;
pub mod packages;
mod workload;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dunlin::trace::foreign::Qmp;
use dunlin_core::units::Bytes;

use crate::lab::{self, Parts};
use crate::qemu::Qemu;
use agent::{AgentLine, Told};
pub use line::{Beat, Intact};
use line::{CHECK, Line, SPOIL};
pub use workload::Workload;

/// The longest that anything may take which a guest does: many times what it does take.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The longest that it may take to boot, on a machine that has other things to do.
const BOOT_PATIENCE: Duration = Duration::from_secs(180);
/// How often somebody who waits looks whether QEMU still runs.
const TICK: Duration = Duration::from_millis(100);

const PROCESSOR: &str = "Nehalem";
/// What a guest has beside its memory: under TCG, QEMU 7.2 loses what a guest writes during pre-copy of more than one pass, and says that all
/// is well, wherever memory is a multiple of 64 pages (it reads the dirty log a word at a time then, and forgets to have stores noticed again:
/// `cpu_physical_memory_sync_dirty_bitmap` of include/exec/ram_addr.h). Seen with every processor and machine type; never with this.
const ODD: u64 = 8192;
/// No mitigations: they cost an emulated processor much and protect nobody. No checks of timers and no watchdog: on a busy machine
/// nothing is in time. A panic ends the machine.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet mitigations=off no_timer_check nowatchdog panic=-1";

/// How a guest is made. Source and target of a migration need the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinuxOptions {
    /// The guest's memory: whole MiB, at least 96 and what the workload needs.
    pub memory: Bytes,
    /// How many processors.
    pub vcpus: u32,
    /// What the guest does.
    pub workload: Workload,
    /// Whether it has a balloon, and an agent that can be asked; see [`Linux::agent`].
    pub agent: bool,
    /// Whether that balloon can be asked for free pages by QEMU while it copies.
    pub free_page_hints: bool,
    /// How much of its memory was in use before its work begins, and is free again: the contents are still there.
    pub used: Bytes,
    /// More parameters of its kernel.
    pub parameters: String,
}

impl LinuxOptions {
    /// A guest with one processor and 256 MiB.
    pub const fn new(workload: Workload) -> Self {
        Self {
            memory: Bytes(256 << 20),
            vcpus: 1,
            workload,
            agent: false,
            free_page_hints: false,
            used: Bytes::ZERO,
            parameters: String::new(),
        }
    }

    /// The same with other memory.
    pub const fn with_memory(mut self, memory: Bytes) -> Self {
        self.memory = memory;
        self
    }

    /// The same with an agent.
    pub const fn with_agent(mut self) -> Self {
        self.agent = true;
        self
    }

    /// The same with an agent, and a balloon that QEMU asks for free pages.
    pub const fn with_free_page_hints(mut self) -> Self {
        (self.agent, self.free_page_hints) = (true, true);
        self
    }

    /// All of its memory, with what it has beside that which was asked for.
    pub const fn all_memory(&self) -> Bytes {
        Bytes(self.memory.0 + ODD)
    }
}

/// Which end of a migration a guest is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It boots and runs.
    Source,
    /// It waits for `migrate-incoming` (`-incoming defer`).
    Target,
}

/// A beat, and when it was heard on this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    /// What the guest said.
    pub beat: Beat,
    /// When it came.
    pub at: Instant,
}

/// A Linux guest, ended with this.
pub struct Linux {
    /// A connection of its own to QEMU.
    pub qmp: Qmp,
    qemu: Qemu,
    memory: Bytes,
    port: UnixStream,
    lines: Receiver<(Instant, Line)>,
    beats: Vec<Heard>,
    /// Why the guest does nothing any more.
    stopped: Option<String>,
}

impl Linux {
    /// Starts QEMU. A source is booting then; a target waits for `migrate-incoming`.
    ///
    /// # Errors
    /// If something is missing ([`Capability::Lab`](crate::Capability::Lab), for most workloads
    /// [`Capability::LinuxGuests`](crate::Capability::LinuxGuests)), or QEMU does not start, with what it says.
    pub fn start(options: &LinuxOptions, role: Role) -> anyhow::Result<Self> {
        let parts = Parts::find(&lab::packages_folder()?).map_err(anyhow::Error::msg)?;
        let image = image::image(&parts, options.workload.program(), options.agent)?;
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let port = folder.path().join("port");
        let arguments = arguments(options, role, &parts.kernel, &image, folder.path());
        let (qemu, qmp) = Qemu::start(folder, arguments)?;
        // It listens: this socket was made before that of QMP.
        let port = UnixStream::connect(&port).context("cannot connect to the guest's serial port")?;
        let (sender, lines) = mpsc::channel();
        let reader = port.try_clone()?;
        thread::spawn(move || {
            // Ends with QEMU. A receiver that is gone has heard enough.
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                if let Some(line) = Line::parse(&String::from_utf8_lossy(&line)) {
                    let _ = sender.send((Instant::now(), line));
                }
            }
        });
        Ok(Self {
            qmp,
            qemu,
            memory: options.all_memory(),
            port,
            lines,
            beats: vec![],
            stopped: None,
        })
    }

    /// QEMU's process.
    pub fn id(&self) -> u32 {
        self.qemu.id()
    }

    /// A QMP socket that nobody uses: QEMU serves one client at each.
    pub fn socket(&self) -> PathBuf {
        self.qemu.socket()
    }

    /// The socket of the port of its agent, of guests that have one: QEMU serves one client at a time there.
    pub fn agent_socket(&self) -> PathBuf {
        agent_socket(self.qemu.folder())
    }

    /// A conversation with the guest's agent.
    ///
    /// # Errors
    /// As [`AgentLine::connect`].
    pub fn agent(&self) -> anyhow::Result<AgentLine> {
        AgentLine::connect(&self.agent_socket(), self.memory).with_context(|| format!("the console:{}", self.console()))
    }

    /// What its agent was told so far, as the console says.
    pub fn told(&self) -> Vec<Told> {
        let bytes = fs::read(console(self.qemu.folder())).unwrap_or_default();
        String::from_utf8_lossy(&bytes)
            .lines()
            .filter_map(Told::parse)
            .collect()
    }

    /// Waits until its agent was told something so many times: what an agent has answered is not on the console yet.
    ///
    /// # Errors
    /// If that is not so within [`PATIENCE`].
    pub fn wait_until_told(&self, times: usize) -> anyhow::Result<Vec<Told>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let told = self.told();
            if told.len() >= times {
                return Ok(told);
            }
            ensure!(
                Instant::now() < deadline,
                "{} of {times} notices; the console:{}",
                told.len(),
                self.console()
            );
            thread::sleep(TICK);
        }
    }

    /// All heartbeats so far, in order. Of a guest that was moved, source and target have a part each.
    pub fn beats(&mut self) -> &[Heard] {
        while let Ok((at, line)) = self.lines.try_recv() {
            self.take(at, line);
        }
        &self.beats
    }

    /// The last heartbeat so far.
    pub fn last_beat(&mut self) -> Option<Heard> {
        self.beats().last().copied()
    }

    /// Waits until the guest is at work: for a heartbeat after which it has done something.
    ///
    /// # Errors
    /// As [`check`](Self::check); a guest that boots is given three minutes.
    pub fn wait_until_ready(&mut self) -> anyhow::Result<Heard> {
        self.beats();
        self.wait("its first steps", BOOT_PATIENCE, |linux, _| linux.with_steps(1))
    }

    /// Waits for a heartbeat that was not heard before this call.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn wait_for_beat(&mut self) -> anyhow::Result<Heard> {
        let before = self.beats().len();
        self.wait("a heartbeat", PATIENCE, |linux, _| linux.beats.get(before).copied())
    }

    /// Waits for a heartbeat after which the guest has done at least so many [steps](Beat::steps).
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn wait_for_steps(&mut self, steps: u64) -> anyhow::Result<Heard> {
        let what = format!("{steps} steps");
        self.beats();
        self.wait(&what, PATIENCE, |linux, _| linux.with_steps(steps))
    }

    /// Makes the guest check all that it ever wrote.
    ///
    /// # Errors
    /// If something is not as it should be, with what the guest says; if the guest does not answer within [`PATIENCE`], with the end
    /// of its console; or if QEMU has ended, with what it said.
    pub fn check(&mut self) -> anyhow::Result<Intact> {
        self.beats();
        self.command(CHECK)?;
        self.wait("the result of a check", PATIENCE, |_, line| match line {
            Some(Line::Intact(intact)) => Some(*intact),
            _ => None,
        })
    }

    /// Makes the guest spoil a byte of what it checks, for tests of checks: the next one fails. Guests with [`Workload::Pages`] only.
    ///
    /// # Errors
    /// If the guest cannot be told.
    pub fn spoil(&mut self) -> anyhow::Result<()> {
        self.command(SPOIL)
    }

    /// The end of what kernel and programs of the guest said.
    pub fn console(&self) -> String {
        const SHOWN: usize = 20;
        let bytes = fs::read(console(self.qemu.folder())).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let hidden = text.lines().count().saturating_sub(SHOWN);
        text.lines().skip(hidden).map(|line| format!("\n  {line}")).collect()
    }

    fn command(&mut self, command: &str) -> anyhow::Result<()> {
        let sent = self.port.write_all(format!("{command}\n").as_bytes());
        sent.context("cannot write to the guest's serial port")
    }

    /// Waits until `found` finds something, at first without a line, then after each.
    fn wait<T>(
        &mut self,
        what: &str,
        patience: Duration,
        found: impl Fn(&Self, Option<&Line>) -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + patience;
        let mut result = found(self, None);
        loop {
            if let Some(result) = result {
                return Ok(result);
            }
            if let Some(why) = &self.stopped {
                bail!("waited for {what}, but the guest says: {why}{}", self.console());
            }
            result = match self.lines.recv_timeout(TICK) {
                Ok((at, line)) => {
                    self.take(at, line.clone());
                    found(self, Some(&line))
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => None,
                Err(error) => {
                    let gone = matches!(error, RecvTimeoutError::Disconnected);
                    let ended = self.qemu.check_running().err();
                    let why = match ended {
                        Some(ended) => format!("{ended:#}"),
                        None if gone => "its serial port is closed".to_owned(),
                        None => format!("nothing within {} s; last: {:?}", patience.as_secs(), self.beats.last()),
                    };
                    bail!("waited for {what} of the guest: {why}; its console:{}", self.console());
                }
            };
        }
    }

    /// The last heartbeat, if it is one after so many steps.
    fn with_steps(&self, steps: u64) -> Option<Heard> {
        self.beats.last().copied().filter(|last| last.beat.steps >= steps)
    }

    fn take(&mut self, at: Instant, line: Line) {
        match line {
            Line::Beat(beat) => self.beats.push(Heard { beat, at }),
            Line::Intact(_) => {}
            Line::Corrupt(_) | Line::Failed(_) => self.stopped = Some(line.to_string()),
        }
    }
}

/// The longest time on this machine between two heartbeats of one guest, wherever they were heard: of source and target of its
/// migration in a row. Nothing for less than two.
pub fn longest_gap<'a>(beats: impl IntoIterator<Item = &'a Heard>) -> Option<Duration> {
    let mut times: Vec<Instant> = beats.into_iter().map(|heard| heard.at).collect();
    times.sort_unstable();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max()
}

/// How many steps a second the guest did between the first and the last of these heartbeats of one guest, by this machine's clock.
/// Nothing for less than two.
pub fn steps_per_s(beats: &[Heard]) -> Option<f64> {
    let (first, last) = (beats.first()?, beats.last()?);
    let elapsed = last.at.saturating_duration_since(first.at);
    let steps = last.beat.steps.saturating_sub(first.beat.steps);
    (!elapsed.is_zero()).then(|| steps as f64 / elapsed.as_secs_f64())
}

/// What kernel and programs say.
fn console(folder: &Path) -> PathBuf {
    folder.join("console")
}

fn agent_socket(folder: &Path) -> PathBuf {
    folder.join("agent")
}

/// The arguments of QEMU.
fn arguments(options: &LinuxOptions, role: Role, kernel: &Path, image: &Path, folder: &Path) -> Vec<String> {
    let mut arguments = vec![];
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["-accel", "tcg", "-cpu", PROCESSOR, "-smp", &options.vcpus.to_string()]);
    add(&["-m", &format!("{}B", options.all_memory().0)]);
    add(&["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    add(&["-kernel", &kernel.display().to_string()]);
    add(&["-initrd", &image.display().to_string()]);
    let words = options.workload.arguments().join(" ");
    let mut parameters = format!("{KERNEL_ARGUMENTS} {}", options.parameters);
    if options.used > Bytes::ZERO {
        parameters += &format!(" used_mib={}", options.used.0 >> 20);
    }
    add(&["-append", &format!("{parameters} -- {words}")]);
    add(&["-serial", &format!("file:{}", console(folder).display())]);
    let port = folder.join("port");
    add(&["-serial", &format!("unix:{},server=on,wait=off", port.display())]);
    if options.agent {
        let socket = agent_socket(folder);
        let balloon = match options.free_page_hints {
            true => "virtio-balloon-pci,free-page-hint=on,iothread=hints",
            false => "virtio-balloon-pci",
        };
        if options.free_page_hints {
            add(&["-object", "iothread,id=hints"]);
        }
        add(&["-device", "virtio-serial-pci", "-device", balloon]);
        add(&[
            "-chardev",
            &format!("socket,id=agent,path={},server=on,wait=off", socket.display()),
        ]);
        add(&["-device", "virtserialport,chardev=agent,name=org.dunlin.agent.0"]);
    }
    if role == Role::Target {
        add(&["-incoming", "defer"]);
    }
    arguments
}
