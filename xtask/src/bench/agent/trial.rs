//! One migration of a guest that has freed half of its memory.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dunlin_agent::host::EpochEnd;
use dunlin_agent::message::{Notice, Work};
use dunlin_core::units::{Bytes, Pages};
use dunlin_tests::linux::{Linux, LinuxOptions, Role, Workload};
use serde_json::{Value, json};

use super::super::dunlin::{Dunlin, number};
use super::{Arm, MB_PER_S, MEMORY, USED};

/// How long the agent is asked nothing, to see what it costs then.
pub(super) const IDLE: Duration = Duration::from_secs(10);
/// Many times what a migration takes.
const PATIENCE: Duration = Duration::from_secs(300);

/// A migration, and what the agent said and cost before it.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Trial {
    pub(super) arm: Arm,
    /// How long the guest was made small.
    pub(super) preparing_s: f64,
    /// From the first page to the end.
    pub(super) total_s: f64,
    /// How long the whole command took.
    pub(super) command_s: f64,
    pub(super) downtime_ms: f64,
    pub(super) bytes: f64,
    /// What was not sent thanks to the agent, at most.
    pub(super) spared: Bytes,
    /// The guest's processor time for naming its free pages.
    pub(super) epoch_cpu_ms: f64,
    /// From the question to the last answer.
    pub(super) epoch_s: f64,
    pub(super) named: Pages,
    /// What was free then.
    pub(super) free: Bytes,
    /// The agent's memory.
    pub(super) rss: Bytes,
    /// The agent's share of the processor while it is asked nothing.
    pub(super) idle_percent: f64,
}

impl Trial {
    /// Nothing was measured.
    pub(super) const fn nothing(arm: Arm) -> Self {
        Self {
            arm,
            preparing_s: 0.0,
            total_s: 0.0,
            command_s: 0.0,
            downtime_ms: 0.0,
            bytes: 0.0,
            spared: Bytes::ZERO,
            epoch_cpu_ms: 0.0,
            epoch_s: 0.0,
            named: Pages::ZERO,
            free: Bytes::ZERO,
            rss: Bytes::ZERO,
            idle_percent: 0.0,
        }
    }

    /// Boots the guest, asks what is to be known, moves it, and has it check that it lives.
    ///
    /// # Errors
    /// If it is not moved, or something is not as it should be.
    pub(super) fn run(dunlin: &Dunlin, arm: Arm) -> anyhow::Result<Self> {
        let options = LinuxOptions {
            used: USED,
            free_page_hints: arm.is_precopy(),
            ..LinuxOptions::new(Workload::Idle).with_memory(MEMORY).with_agent()
        };
        let mut target = Linux::start(&options, Role::Target)?;
        let mut source = Linux::start(&options, Role::Source)?;
        source.wait_until_ready()?;
        let mut trial = Self::nothing(arm);
        trial.ask(&source)?;
        ensure!(trial.free >= USED, "only {} bytes are free", trial.free);
        let report = trial.migrate(dunlin, &source, &target)?;
        let steps = source.last_beat().context("it beat")?.beat.steps;
        target.wait_for_steps(steps + 1).with_context(|| report.to_string())?;
        target.check().with_context(|| report.to_string())?;
        let facts = target.agent()?.facts()?;
        ensure!(facts.total.0 >= MEMORY.0 / 10 * 8, "the guest is small: {facts:?}");
        Ok(trial)
    }

    fn ask(&mut self, guest: &Linux) -> anyhow::Result<()> {
        let mut agent = guest.agent()?;
        self.free = agent.facts()?.free;
        let epoch = agent.epoch()?;
        let EpochEnd::Complete { cpu_us } = epoch.end else {
            bail!("the agent names no pages: {:?}", epoch.end);
        };
        (self.epoch_cpu_ms, self.epoch_s) = (f64::from(cpu_us) / 1e3, epoch.took.as_secs_f64());
        self.named = epoch.free();
        // The hook says on the console what the agent has cost so far.
        agent.notify(Notice::MigrationGivenUp, Work::HOOKS)?;
        drop(agent);
        sleep(IDLE);
        guest.agent()?.notify(Notice::MigrationGivenUp, Work::HOOKS)?;
        let told = guest.wait_until_told(2)?;
        let [first, last] = [&told[0], &told[1]];
        self.rss = last.rss;
        self.idle_percent = (last.cpu_s - first.cpu_s) / (last.uptime_s - first.uptime_s) * 100.0;
        Ok(())
    }

    fn migrate(&mut self, dunlin: &Dunlin, source: &Linux, target: &Linux) -> anyhow::Result<Value> {
        let scene = dunlin.scene()?;
        let path = |name: &str| scene.folder().join(name).display().to_string();
        let rate = format!("{MB_PER_S}MB/s");
        let mut arguments = vec![
            ("--source", source.socket().display().to_string()),
            ("--target", target.socket().display().to_string()),
            ("--to", format!("unix:{}", path("migration"))),
            ("--state", path("state")),
            ("--bandwidth", rate.clone()),
            ("--postcopy-bandwidth", rate),
        ];
        if self.arm.is_precopy() {
            arguments.push(("--strategy", "precopy".to_owned()));
        }
        if self.arm.asks() {
            arguments.push(("--agent", source.agent_socket().display().to_string()));
            arguments.push(("--target-agent", target.agent_socket().display().to_string()));
        }
        let words = arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        let fixed = ["qemu", "migrate", "--json"].map(str::to_owned);
        let began = Instant::now();
        let finished = scene.dunlin(fixed.into_iter().chain(words))?.wait(PATIENCE)?;
        self.command_s = began.elapsed().as_secs_f64();
        ensure!(finished.code == Some(0), "{finished}");
        let report = finished.json()?;
        ensure!(report["warnings"] == json!([]), "{report}");
        self.total_s = number(&report, "/total_time_us")? / 1e6;
        self.downtime_ms = number(&report, "/downtime_us")? / 1e3;
        self.bytes = number(&report, "/bytes/total")?;
        let guest = &report["guest"];
        if self.arm.asks() {
            self.preparing_s = number(&report, "/guest/preparing_us")? / 1e6;
            let spared = guest["spared"].as_array().into_iter().flatten();
            let spared = spared.map(|saving| saving["bytes_at_most"].as_u64().unwrap_or(0));
            self.spared = Bytes(spared.sum());
        }
        if self.arm == Arm::Hinting {
            ensure!(guest["by_free_page_hints"] == true, "{report}");
        }
        if self.arm == Arm::Asked {
            ensure!(guest["restored"] == true && guest["was_short"] == false, "{report}");
        }
        Ok(report)
    }

    /// All that was sent.
    pub(super) fn megabytes(&self) -> f64 {
        self.bytes / 1e6
    }

    /// Until the guest was elsewhere.
    pub(super) fn seconds(&self) -> f64 {
        self.preparing_s + self.total_s
    }

    /// Of what is free.
    pub(super) fn named_share(&self) -> f64 {
        self.named.bytes().0 as f64 / self.free.0 as f64
    }

    /// Every number by its name.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "agent": self.arm.name(),
            "preparing_s": self.preparing_s,
            "total_time_s": self.total_s,
            "command_s": self.command_s,
            "downtime_ms": self.downtime_ms,
            "bytes": self.bytes,
            "spared_bytes_at_most": self.spared.0,
            "epoch_cpu_ms": self.epoch_cpu_ms,
            "epoch_s": self.epoch_s,
            "named_pages": self.named.0,
            "free_bytes": self.free.0,
            "agent_rss_bytes": self.rss.0,
            "agent_idle_percent": self.idle_percent,
        })
    }
}

/// For whoever waits.
impl std::fmt::Display for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "agent {}: {:.2} s and {:.2} s before, {:.1} MB, downtime {:.1} ms, {} MiB spared; an epoch of {:.3} s, {:.1} ms of the processor, {} of {} MiB \
             named; the agent has {} KiB and {:.2} % of the processor",
            self.arm.name(),
            self.total_s,
            self.preparing_s,
            self.megabytes(),
            self.downtime_ms,
            self.spared.0 >> 20,
            self.epoch_s,
            self.epoch_cpu_ms,
            self.named.bytes().0 >> 20,
            self.free.0 >> 20,
            self.rss.0 >> 10,
            self.idle_percent,
        )
    }
}
