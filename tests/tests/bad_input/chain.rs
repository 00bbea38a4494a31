//! A guest that is really moved, with verification, from process to process, each of which was attacked before.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dunlin_tests::scene::{GuestOptions, Host, Kind, PATIENCE, Scene};

/// The most a process may ever have resident: itself, one 4 MiB guest, buffers.
const RESIDENT_KIB: u64 = 64 << 10;
/// The most private memory it may have mapped for writing, touched or not.
const DATA_KIB: u64 = 256 << 10;

/// A guest and the process that holds it at present.
pub(crate) struct Chain {
    /// Its folder.
    pub(crate) scene: Scene,
    /// Who holds the guest.
    pub(crate) host: Host,
    moves: u32,
}

impl Chain {
    /// Starts a guest that writes all the time.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let scene = Scene::new()?;
        let options = GuestOptions::new(Kind::Thread, "uniform,rate=20000").memory("4MiB");
        let host = scene.guest("first", &options)?;
        Ok(Self { scene, host, moves: 0 })
    }

    /// A fresh receiver, which takes guests of this size and not much larger ones.
    pub(crate) fn receiver(&self) -> anyhow::Result<Host> {
        let name = format!("receiver{}", self.moves + 1);
        self.scene.receiver(&name, &["--max-memory", "8MiB"])
    }

    /// Moves the guest to `receiver`.
    pub(crate) fn move_to(&mut self, receiver: Host) -> anyhow::Result<()> {
        let quick = ["--verify", "--min-round", "0s"];
        let report = self.scene.migrate(&self.host, &receiver, "precopy", &quick)?;
        let verified = &report["verified"];
        ensure!(
            verified["pages"].as_u64().is_some_and(|pages| pages > 0) && verified["mismatches"] == 0,
            "the real migration did not verify: {report}"
        );
        self.host.moved_away()?;
        self.host = receiver;
        self.moves += 1;
        Ok(())
    }

    /// Checks that the guest runs at its present process, and gets on.
    pub(crate) fn goes_on(&self) -> anyhow::Result<()> {
        let before = self.running_steps()?;
        let deadline = Instant::now() + PATIENCE / 4;
        while self.running_steps()? <= before {
            ensure!(Instant::now() < deadline, "no step since the failure");
        }
        Ok(())
    }

    fn running_steps(&self) -> anyhow::Result<u64> {
        let status = self.scene.status(&self.host)?;
        ensure!(status["state"] == "running", "the guest does not run on: {status}");
        status["steps"]
            .as_u64()
            .with_context(|| format!("no steps in {status}"))
    }
}

/// Waits until `host` has written `words` to stderr; after `from`, in bytes.
pub(crate) fn wait_for_words(host: &mut Host, from: usize, words: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE / 4;
    loop {
        let written = host.process.stderr();
        if written.get(from..).is_some_and(|text| text.contains(words)) {
            return Ok(());
        }
        ensure!(host.process.is_running(), "the process ended: {written}");
        ensure!(Instant::now() < deadline, "`{words}` never stood on stderr: {written}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Checks that `host` lives, never panicked, and never had more memory than a guest of this size needs.
pub(crate) fn stays_small(host: &mut Host) -> anyhow::Result<()> {
    ensure!(
        host.process.is_running(),
        "the process ended: {}",
        host.process.stderr()
    );
    ensure!(!host.process.stderr().contains("panicked"), "{}", host.process.stderr());
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.process.id()))?;
    for (name, most) in [("VmHWM:", RESIDENT_KIB), ("VmData:", DATA_KIB)] {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let words = line.with_context(|| format!("no {name} in {status}"))?;
        let found: u64 = words.trim().trim_end_matches(" kB").parse()?;
        ensure!(found <= most, "{name} {found} KiB are more than {most}");
    }
    Ok(())
}
