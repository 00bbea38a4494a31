//! One migration of an arm, from starting the guest to the numbers of its report.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dunlin::report::{MigrationReport, Outcome};
use dunlin_core::strategy::{Cut, First, Strategy};
use dunlin_tests::process::{Dunlin, Finished};
use dunlin_tests::scene::{GuestOptions, Host, Kind, Scene};

use super::catalogue::Arm;
use super::cut;
use super::setup::Setup;
use super::values::{self, Values};

const FIRST_SEED: u64 = 7;
/// How often a process is looked at that is waited for.
const GLANCE: Duration = Duration::from_millis(10);

/// Of the guest: all arms of a repetition move the same.
pub(super) const fn seed(repetition: usize) -> u64 {
    FIRST_SEED + repetition as u64
}

/// What all runs need.
pub(super) struct Stage {
    pub(super) program: PathBuf,
    pub(super) kind: Kind,
    /// Where static copies are written: in memory, if this machine has such a file system.
    pub(super) storage: PathBuf,
    /// Raised when the command is to end.
    pub(super) stop: Arc<AtomicBool>,
}

/// The processes of one run; gone at the end, with all they wrote.
pub(super) struct Hosts {
    pub(super) scene: Scene,
    pub(super) source: Host,
    pub(super) target: Host,
    /// Arguments of `migrate` that do not depend on how the network behaves.
    pub(super) arguments: Vec<String>,
    _storage: tempfile::TempDir,
}

impl Stage {
    /// Runs `arm` once; no longer than `limit`.
    pub(super) fn run(&self, setup: &Setup, arm: &Arm, repetition: usize, limit: Duration) -> anyhow::Result<Values> {
        let guest = self.guest(setup, repetition);
        if let Some(network) = arm.cut {
            return cut::run(self, setup, arm, network, &guest, repetition, limit);
        }
        let mut hosts = self.hosts(setup, arm, &guest)?;
        let measured = self.migrate(&mut hosts, setup, arm, repetition, limit);
        let report = measured.map_err(|error| hosts.explain(&error))?;
        values::of_report(&report, setup)
    }

    fn guest(&self, setup: &Setup, repetition: usize) -> GuestOptions {
        let mut guest = GuestOptions::new(self.kind, setup.workload.clone())
            .memory(&format!("{}MiB", setup.memory_mib))
            .with(["--fill", "random"]);
        guest.seed = seed(repetition);
        guest
    }

    /// Starts both sides.
    pub(super) fn hosts(&self, setup: &Setup, arm: &Arm, guest: &GuestOptions) -> anyhow::Result<Hosts> {
        let scene = Scene::with_program(&self.program)?;
        let storage = tempfile::Builder::new().prefix("dunlin-").tempdir_in(&self.storage)?;
        let folder = storage.path().display().to_string();
        let with_storage = needs_storage(&arm.strategy)?;
        let receiver: &[&str] = if with_storage { &["--storage", &folder] } else { &[] };
        let target = scene.receiver("target", receiver)?;
        let source = scene.guest("source", guest)?;
        Ok(Hosts {
            scene,
            source,
            target,
            arguments: arguments(setup, with_storage.then_some(storage.path())),
            _storage: storage,
        })
    }

    fn migrate(
        &self,
        hosts: &mut Hosts,
        setup: &Setup,
        arm: &Arm,
        repetition: usize,
        limit: Duration,
    ) -> anyhow::Result<MigrationReport> {
        self.reach(hosts, setup, repetition)?;
        let to = hosts.target.listening()?.to_owned();
        let mut arguments: Vec<&str> = hosts.arguments.iter().map(String::as_str).collect();
        arguments.push("--verify");
        let mut migration = hosts
            .scene
            .start_migration(&hosts.source, &to, &arm.strategy, &arguments)?;
        let finished = self.wait(&mut migration, limit)?;
        let report = report(&finished)?;
        ensure!(report.outcome == Outcome::Completed, "it did not complete: {finished}");
        let verified = report.verified.context("nothing was verified")?;
        ensure!(
            verified.mismatches == 0 && verified.pages > 0,
            "memory differs: {finished}"
        );
        Ok(report)
    }

    /// Waits until the guest has done what it does before this repetition.
    pub(super) fn reach(&self, hosts: &mut Hosts, setup: &Setup, repetition: usize) -> anyhow::Result<()> {
        let ready = Instant::now() + Duration::from_secs_f64(setup.seconds_before(repetition));
        while Instant::now() < ready {
            ensure!(!self.is_stopped(), "interrupted");
            thread::sleep(GLANCE);
        }
        let steps = setup.steps_before(repetition);
        hosts
            .scene
            .poll_status(&mut hosts.source, |status| status["steps"].as_u64() >= Some(steps))?;
        Ok(())
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits for the end of a command, no longer than `limit`.
    pub(super) fn wait(&self, process: &mut Dunlin, limit: Duration) -> anyhow::Result<Finished> {
        let deadline = Instant::now() + limit;
        while process.is_running() {
            ensure!(!self.is_stopped(), "interrupted");
            if Instant::now() >= deadline {
                bail!("{process} did not end within {limit:.0?}: {}", process.stderr().trim());
            }
            thread::sleep(GLANCE);
        }
        process.wait(Duration::from_secs(5))
    }
}

impl Hosts {
    /// An error with what both sides wrote to stderr.
    pub(super) fn explain(&self, error: &anyhow::Error) -> anyhow::Error {
        let of = |name: &str, host: &Host| match host.process.stderr().trim() {
            "" => format!("{name}: nothing on stderr"),
            text => format!("{name}: {text}"),
        };
        let (source, target) = (of("source", &self.source), of("target", &self.target));
        anyhow::anyhow!("{error:#}\n{source}\n{target}")
    }
}

/// The report that `migrate --json` printed.
pub(super) fn report(finished: &Finished) -> anyhow::Result<MigrationReport> {
    let value = finished.json()?;
    serde_json::from_value(value).with_context(|| format!("not the report of a migration: {finished}"))
}

/// Whether pages go through the directory that both sides share, at first or when the network is cut.
fn needs_storage(strategy: &str) -> anyhow::Result<bool> {
    let strategy: Result<Strategy, _> = strategy.parse();
    let strategy = strategy.map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(strategy.first == First::Parallel || matches!(strategy.cut, Cut::Pbdata | Cut::Both))
}

fn arguments(setup: &Setup, storage: Option<&Path>) -> Vec<String> {
    let mut words = vec![
        "--bandwidth".into(),
        format!("{}MB/s", setup.bandwidth_mb),
        "--downtime".into(),
        format!("{}us", setup.downtime_us),
        "--min-round".into(),
        format!("{}us", setup.min_round_us),
    ];
    if let Some(folder) = storage {
        words.extend(["--storage".into(), folder.display().to_string()]);
        words.extend(["--storage-bandwidth".into(), format!("{}MB/s", setup.storage_mb)]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::super::catalogue;
    use super::*;

    #[test]
    fn a_directory_is_given_to_those_who_use_it() {
        let needs = |strategy: &str| needs_storage(strategy).expect("a strategy");
        for strategy in [
            "par-migrate",
            "pa-hybrid,cut=reconnect",
            "hybrid:1,cut=pbdata",
            "postcopy,cut=both",
        ] {
            assert!(needs(strategy), "{strategy}");
        }
        for strategy in ["precopy", "hybrid:1", "hybrid:1,cut=fail", "postcopy,push=bubble"] {
            assert!(!needs(strategy), "{strategy}");
        }
        assert!(needs_storage("nothing").is_err());
    }

    #[test]
    fn links_and_limits_are_those_of_the_setup() {
        let all = catalogue::all().expect("every workload can be had");
        let r10 = all
            .iter()
            .find(|experiment| experiment.id == "R10")
            .expect("there is one");
        let without = "--bandwidth 8MB/s --downtime 11224us --min-round 3741us";
        assert_eq!(arguments(&r10.setup, None).join(" "), without);
        let with = arguments(&r10.setup, Some(Path::new("/d"))).join(" ");
        assert_eq!(with, format!("{without} --storage /d --storage-bandwidth 200MB/s"));
    }

    #[test]
    fn what_is_no_report_is_shown_with_what_was_said() {
        let finished = |line: &str| Finished {
            code: Some(2),
            lines: vec![line.into()],
            stderr: "no such strategy".into(),
        };
        let error = report(&finished("{}")).expect_err("an empty object");
        assert!(format!("{error:#}").contains("no such strategy"), "{error:#}");
        let text = serde_json::to_string(&MigrationReport::new("precopy", Outcome::Failed)).expect("has a form");
        assert_eq!(report(&finished(&text)).expect("a report").outcome, Outcome::Failed);
    }
}
