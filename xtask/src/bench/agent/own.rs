//! The same of Dunlin's own guests, under KVM: the payload says which of its pages are free, and the target never asks for them.

use anyhow::{Context as _, ensure};
use dunlin_core::units::Bytes;
use dunlin_tests::Capability;
use dunlin_tests::scene::{GuestOptions, Kind};
use serde_json::{Value, json};

use super::super::dunlin::{Dunlin, number};
use super::super::figure::{Figure, Table, Target, significant};
use super::super::sampling::Samples;
use super::{MB_PER_S, REPETITIONS};

/// One page after the other is used, freed and used again. Not at random: where KVM emulates the guest's every instruction, to name thousands of
/// scattered pages takes as long as to copy them.
const WORKLOAD: &str = "seq,rate=2000,life=3";
/// A third of the pages.
const USED_AFTER_STEPS: u64 = 6_000;
const MEMORY: &str = "64MiB";
const STRATEGIES: [&str; 2] = ["precopy", "postcopy"];

/// A migration.
struct Trial {
    strategy: &'static str,
    is_asked: bool,
    seconds: f64,
    bytes: f64,
    downtime_ms: f64,
    /// Pages that the guest waited for in post-copy.
    faults: f64,
    /// Pages that did not move, and how often one was asked for.
    hinted: f64,
    requests: f64,
    /// How long the guest was asked.
    asking_ms: f64,
}

impl Trial {
    fn run(dunlin: &Dunlin, strategy: &'static str, is_asked: bool) -> anyhow::Result<Self> {
        let guest = GuestOptions::new(Kind::Kvm, WORKLOAD)
            .memory(MEMORY)
            .with(["--fill", "random"]);
        let scene = dunlin.scene()?;
        let target = scene.receiver("target", &[])?;
        let source = scene.guest("source", &guest)?;
        let has_used = |status: &Value| status["steps"].as_u64() >= Some(USED_AFTER_STEPS);
        let source = scene.wait_status(source, has_used)?;
        let rate = format!("{MB_PER_S}MB/s");
        let patience = if is_asked { "2s" } else { "0s" };
        let limits = ["--bandwidth", &rate, "--verify", "--hint-timeout", patience];
        let report = scene.migrate(&source, &target, strategy, &limits)?;
        ensure!(report["verified"]["mismatches"] == 0, "{report}");
        ensure!(
            !is_asked || report["hints"]["end"] == "complete",
            "the guest was not heard: {report}"
        );
        let of = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0);
        Ok(Self {
            strategy,
            is_asked,
            seconds: number(&report, "/total_time_us")? / 1e6,
            bytes: report["bytes"]
                .as_object()
                .context("no bytes")?
                .values()
                .filter_map(Value::as_f64)
                .sum(),
            downtime_ms: number(&report, "/downtime_us")? / 1e3,
            faults: of("/postcopy/faults"),
            hinted: of("/hints/pages"),
            requests: of("/hints/requests"),
            asking_ms: of("/hints/took_us") / 1e3,
        })
    }

    const fn arm(&self) -> &'static str {
        if self.is_asked { "asked" } else { "not asked" }
    }
}

/// Without KVM, nothing.
pub(super) fn run(dunlin: &Dunlin) -> anyhow::Result<Option<(Vec<Figure>, Table)>> {
    for needed in [Capability::Kvm, Capability::Uffd] {
        if let Err(why) = needed.probe() {
            eprintln!("SKIP agents of own guests: {why}");
            return Ok(None);
        }
    }
    let mut trials = vec![];
    for repetition in 0..REPETITIONS {
        for strategy in STRATEGIES {
            for turn in 0..2 {
                let is_asked = (turn + repetition) % 2 == 1;
                let context = || format!("{strategy}, asked: {is_asked}, repetition {}", repetition + 1);
                trials.push(Trial::run(dunlin, strategy, is_asked).with_context(context)?);
            }
        }
    }
    Ok(Some((figures(&trials), table(&trials))))
}

fn median(trials: &[Trial], strategy: &str, is_asked: bool, value: impl Fn(&Trial) -> f64) -> f64 {
    let of = |trial: &&Trial| trial.strategy == strategy && trial.is_asked == is_asked;
    Samples::new(trials.iter().filter(of).map(value).collect()).median()
}

fn figures(trials: &[Trial]) -> Vec<Figure> {
    let ratio = |strategy: &str, value: fn(&Trial) -> f64| {
        median(trials, strategy, true, value) / median(trials, strategy, false, value)
    };
    let hinted: f64 = trials.iter().map(|trial| trial.hinted).sum();
    let requests: f64 = trials.iter().map(|trial| trial.requests).sum();
    let mut figures = vec![
        Figure::plain(
            "own guest: hinted pages that the target asked for over the network, all migrations",
            requests,
            "pages",
        )
        .target(Target::AtMost(0.0))
        .beside(format!("{} pages hinted", significant(hinted))),
    ];
    for strategy in STRATEGIES {
        for (what, value) in [
            ("bytes", (|trial| trial.bytes) as fn(&Trial) -> f64),
            ("time", |trial| trial.seconds),
        ] {
            figures.push(Figure::plain(
                format!("own guest, {strategy}: {what} with hints beside those without"),
                ratio(strategy, value),
                "ratio",
            ));
        }
    }
    figures
}

fn table(trials: &[Trial]) -> Table {
    let arms = STRATEGIES
        .into_iter()
        .flat_map(|strategy| [(strategy, false), (strategy, true)]);
    let row = |(strategy, is_asked): (&str, bool)| {
        let text = |value: fn(&Trial) -> f64| significant(median(trials, strategy, is_asked, value));
        vec![
            strategy.to_owned(),
            if is_asked { "asked" } else { "not asked" }.to_owned(),
            text(|trial| trial.asking_ms),
            text(|trial| trial.seconds),
            text(|trial| trial.bytes / 1e6),
            text(|trial| trial.downtime_ms),
            text(|trial| trial.faults),
            text(|trial| Bytes((trial.hinted * 4096.0) as u64).0 as f64 / f64::from(1 << 20)),
            text(|trial| trial.requests),
        ]
    };
    let data = trials.iter().map(|trial| {
        json!({
            "strategy": trial.strategy,
            "agent": trial.arm(),
            "total_time_s": trial.seconds,
            "bytes": trial.bytes,
            "downtime_ms": trial.downtime_ms,
            "postcopy_faults": trial.faults,
            "hinted_pages": trial.hinted,
            "hinted_requests": trial.requests,
            "asking_ms": trial.asking_ms,
        })
    });
    Table {
        name: "agent-own",
        about: format!(
            "One of Dunlin's own guests under KVM, {MEMORY} and `{WORKLOAD}`, moved at {MB_PER_S} MB/s by `dunlin migrate`, its agent asked or not \
             (`--hint-timeout 0s`); medians of {REPETITIONS}, every page compared."
        ),
        header: [
            "strategy",
            "agent",
            "asking, ms",
            "moving, s",
            "MB",
            "downtime, ms",
            "faults",
            "not moved, MiB",
            "of these asked for",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows: arms.map(row).collect(),
        data: data.collect::<Vec<Value>>().into(),
    }
}
