//! Two QEMUs, and `dunlin qemu` between them.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dunlin::guest::{Fill, GuestConfig, GuestKind};
use dunlin_core::units::Bytes;
use dunlin_tests::process::{Dunlin, Finished};
use dunlin_tests::scene::Scene;
use dunlin_tests::stock::Stock;
use dunlin_tests::wire::Wire;
use dunlin_tests::{Capability, require};
use serde_json::{Value, json};

/// Longer than a migration takes on a machine that does much else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
const PERIOD: Duration = Duration::from_millis(5);

pub(crate) fn can_run() -> bool {
    require(Capability::Kvm) && require(Capability::Qemu) && require(Capability::Uffd)
}

/// A guest that writes as fast as it can for some seconds, and halts.
pub(crate) fn config() -> GuestConfig {
    GuestConfig {
        name: "stock".into(),
        kind: GuestKind::Kvm,
        memory: Bytes(64 << 20),
        vcpus: 1,
        workload: "uniform,ws=16MiB".into(),
        seed: 11,
        steps: Some(100_000),
        fill: Fill::Random,
        irqchip: false,
    }
}

/// What the memory of [`config`]'s guest is when it never moves.
pub(crate) fn expected() -> anyhow::Result<&'static str> {
    static EXPECTED: OnceLock<Result<String, String>> = OnceLock::new();
    let result = EXPECTED.get_or_init(|| {
        let result = Stock::start(&config()).and_then(|mut stock| stock.result());
        result.map_err(|error| format!("{error:#}"))
    });
    result.as_deref().map_err(|error| anyhow::anyhow!("{error}"))
}

/// Two QEMUs whose migration goes by a wire.
pub(crate) struct Pair {
    pub(crate) source: Stock,
    pub(crate) target: Stock,
    pub(crate) wire: Wire,
    /// Where the source is told that it reaches the target.
    pub(crate) to: String,
    /// Where the target is told to listen.
    pub(crate) listen: String,
    /// Where the commands of tests are told that QEMU serves.
    pub(crate) sockets: [PathBuf; 2],
    pub(crate) scene: Scene,
}

impl Pair {
    pub(crate) fn new(config: &GuestConfig) -> anyhow::Result<Self> {
        Self::with(config, [&[], &[]])
    }

    /// With further arguments of the source's and the target's QEMU.
    pub(crate) fn with(config: &GuestConfig, extra: [&[&str]; 2]) -> anyhow::Result<Self> {
        let scene = Scene::new()?;
        let [near, far] = ["near", "far"].map(|name| scene.folder().join(name));
        let target = Stock::wait_with(config, extra[1])?;
        let source = Stock::start_with(config, extra[0])?;
        Ok(Self {
            wire: Wire::new(&near, &far)?,
            to: format!("unix:{}", near.display()),
            listen: format!("unix:{}", far.display()),
            sockets: [source.socket(), target.socket()],
            target,
            source,
            scene,
        })
    }

    pub(crate) fn start(&self, command: &str, strategy: &str, more: &[&str]) -> anyhow::Result<Dunlin> {
        let text = |path: &Path| path.display().to_string();
        let mut arguments: Vec<String> = [
            "qemu",
            command,
            "--source",
            &text(&self.sockets[0]),
            "--target",
            &text(&self.sockets[1]),
            "--to",
            &self.to,
            "--listen",
            &self.listen,
            "--state",
            &text(&self.scene.folder().join("state")),
            "--strategy",
            strategy,
            "--json",
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        self.scene.dunlin(arguments)
    }

    /// To its end, whatever that is.
    pub(crate) fn finish(&self, strategy: &str, more: &[&str]) -> anyhow::Result<Finished> {
        self.start("migrate", strategy, more)?.wait(PATIENCE)
    }

    pub(crate) fn migrate(&self, strategy: &str, more: &[&str]) -> anyhow::Result<Value> {
        let finished = self.finish(strategy, more)?;
        ensure!(finished.code == Some(0), "{finished}");
        finished.json()
    }

    /// Waits until the source says that its migration is so.
    pub(crate) fn wait_for(&mut self, status: &str) -> anyhow::Result<()> {
        self.wait_closely_for(status, PERIOD)
    }

    /// The same, asking so often.
    pub(crate) fn wait_closely_for(&mut self, status: &str, period: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.source.qmp.execute("query-migrate", &json!({}))?;
            if answer["status"] == status {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not {status}: {answer}");
            sleep(period);
        }
    }

    /// Waits until the guest runs on the target: before that, QEMU 7.2 ends there when the connection breaks.
    pub(crate) fn wait_until_it_runs_on_the_target(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.target.qmp.execute("query-status", &json!({}))?;
            if answer["running"] == true {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "it does not run on the target: {answer}");
            sleep(PERIOD);
        }
    }

    /// Whether the guest runs on the source and on the target; of a QEMU that has ended, nothing.
    ///
    /// The target is asked first: a guest that runs there must not run on the source afterwards.
    pub(crate) fn running(&mut self) -> [Option<bool>; 2] {
        let ask = |stock: &mut Stock| {
            let status = stock.qmp.execute("query-status", &json!({})).ok()?;
            status["running"].as_bool()
        };
        let target = ask(&mut self.target);
        [ask(&mut self.source), target]
    }

    /// The capabilities and parameters of both.
    pub(crate) fn settings(&mut self) -> anyhow::Result<Vec<Value>> {
        let source = Self::settings_of(&mut self.source)?;
        Ok([source, Self::settings_of(&mut self.target)?].concat())
    }

    pub(crate) fn settings_of(stock: &mut Stock) -> anyhow::Result<Vec<Value>> {
        let commands = ["query-migrate-capabilities", "query-migrate-parameters"];
        let answers = commands.map(|command| stock.qmp.execute(command, &json!({})));
        Ok(answers.into_iter().collect::<Result<_, _>>()?)
    }

    /// That the guest gets on, and finds its pages as it left them.
    pub(crate) fn lives_on(stock: &mut Stock) -> anyhow::Result<()> {
        let status = stock.qmp.execute("query-status", &json!({}))?;
        ensure!(status["running"] == true, "the guest does not run: {status}");
        let before = stock.steps()?;
        let deadline = Instant::now() + PATIENCE;
        while stock.steps()? <= before {
            ensure!(Instant::now() < deadline, "the guest stands still after {before} steps");
            sleep(PERIOD);
        }
        Ok(())
    }
}

/// The same guest, that never halts.
pub(crate) fn endless() -> GuestConfig {
    GuestConfig {
        steps: None,
        ..config()
    }
}

/// What a command that came to no good end says.
pub(crate) fn report(finished: &Finished) -> anyhow::Result<Value> {
    ensure!(finished.code == Some(1), "{finished}");
    finished.json().with_context(|| finished.to_string())
}
