//! `dunlin qemu` between two stock QEMUs whose guest checks every page that it writes, and whose memory is compared with that of a guest
//! that never moved.

use anyhow::{Context as _, ensure};
use dunlin::guest::{Fill, GuestConfig, GuestKind};
use dunlin_core::units::Bytes;
use dunlin_tests::scene::{PATIENCE, Scene};
use dunlin_tests::stock::Stock;
use dunlin_tests::{Capability, require};
use serde_json::Value;

fn config(workload: &str, steps: Option<u64>) -> GuestConfig {
    GuestConfig {
        name: "stock".into(),
        kind: GuestKind::Kvm,
        memory: Bytes(64 << 20),
        vcpus: 1,
        workload: workload.into(),
        seed: 11,
        steps,
        fill: Fill::Random,
        irqchip: false,
    }
}

fn can_run() -> bool {
    require(Capability::Kvm) && require(Capability::Qemu) && require(Capability::Uffd)
}

/// Two QEMUs, and a folder for their sockets.
struct Pair {
    scene: Scene,
    source: Stock,
    target: Stock,
}

impl Pair {
    fn new(config: &GuestConfig) -> anyhow::Result<Self> {
        Ok(Self {
            scene: Scene::new()?,
            target: Stock::wait_for(config)?,
            source: Stock::start(config)?,
        })
    }

    fn arguments(&self, command: &str) -> Vec<String> {
        let uri = format!("unix:{}", self.scene.folder().join("migration").display());
        let text = |path: std::path::PathBuf| path.display().to_string();
        [
            "qemu",
            command,
            "--source",
            &text(self.source.socket()),
            "--target",
            &text(self.target.socket()),
            "--to",
            &uri,
            "--state",
            &text(self.scene.folder().join("state")),
            "--json",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    fn migrate(&self, strategy: &str, more: &[&str]) -> anyhow::Result<Value> {
        let mut arguments = self.arguments("migrate");
        arguments.extend(["--strategy", strategy].map(str::to_owned));
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        let finished = self.scene.dunlin(arguments)?.wait(PATIENCE)?;
        ensure!(finished.code == Some(0), "{finished}");
        finished.json()
    }
}

#[test]
fn memory_is_the_same_by_every_way() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let config = config("uniform,ws=16MiB", Some(60_000));
    let expected = Stock::start(&config)?.result()?;
    for (strategy, more) in [
        ("postcopy", &["--bandwidth", "40MB/s"][..]),
        ("rounds:2", &["--bandwidth", "40MB/s"]),
        ("optimal", &["--bandwidth", "40MB/s"]),
        ("precopy", &[]),
    ] {
        let mut pair = Pair::new(&config)?;
        let report = pair.migrate(strategy, more).context(strategy)?;
        eprintln!("{report:#}");
        ensure!(
            report["outcome"] == "completed" && report["guest_is_on"] == "target",
            "{strategy}: {report}"
        );
        let result = pair.target.result().context(strategy)?;
        ensure!(result == expected, "{strategy}: the memory differs: {report}");
    }
    Ok(())
}
