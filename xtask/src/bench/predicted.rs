//! What `dunlin profile` predicts of a running guest, beside what the migrations that follow really take.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use dunlin_tests::scene::{GuestOptions, Host, Scene};
use serde_json::{Value, json};

use super::Setting;
use super::dunlin::number;
use super::figure::{Figure, Table, Target, significant};
use super::sampling::Samples;

/// Every steady generator, each at half or so of what the link sends.
const STEADY: [&str; 8] = [
    "uniform,rate=3000,ws=12MiB",
    "seq,rate=2000,ws=12MiB",
    "zipf:0.99,rate=4000,ws=16MiB",
    "hotset:0.1,rate=4000,ws=16MiB",
    "lmbench,rate=2000,ws=12MiB",
    "memcached,rate=4000,ws=16MiB",
    "kernel,rate=4000,ws=16MiB",
    "shared:0.5,rate=3000,ws=12MiB",
];
/// One that is now the one and then the other.
const CHANGING: &str = "phases:(uniform,rate=4000,ws=16MiB)*12k+(seq,rate=500,ws=4MiB)*1500";
const STRATEGIES: [&str; 3] = ["precopy", "hybrid:1", "postcopy"];
const LINK: &str = "16MB/s";
const DOWNTIME: &str = "100ms";
const PATIENCE: Duration = Duration::from_secs(120);
/// Downtimes that differ by less are alike, in microseconds.
const ALIKE_US: f64 = 5000.0;

/// A migration, predicted and real.
struct Row {
    workload: &'static str,
    strategy: &'static str,
    time: Pair,
    bytes: Pair,
    downtime: Pair,
}

/// The likely value with what it lies between, and what it was.
struct Pair {
    low: f64,
    likely: f64,
    high: f64,
    actual: f64,
}

impl Pair {
    fn new(costs: &Value, name: &str, actual: f64) -> anyhow::Result<Self> {
        let part = |part| number(costs, &format!("/{name}/{part}"));
        Ok(Self {
            low: part("low")?,
            likely: part("likely")?,
            high: part("high")?,
            actual,
        })
    }

    /// By how much it was wrong, relative to what it was.
    fn error(&self) -> f64 {
        (self.likely - self.actual).abs() / self.actual
    }

    fn is_within(&self, share: f64) -> bool {
        (self.low * (1.0 - share)..=self.high * (1.0 + share)).contains(&self.actual)
    }
}

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let mut rows = vec![];
    for workload in STEADY {
        eprintln!("  {workload}");
        rows.extend(measure(setting, workload, 1, "4s").with_context(|| workload.to_owned())?);
    }
    let changing = measure(setting, CHANGING, 1, "12s").context(CHANGING)?;
    let beside = || format!("{} migrations over {LINK}, of {} workloads", rows.len(), STEADY.len());
    let figure = |name: &str, value, most| {
        Figure::plain(format!("predicted from a profile: {name}"), value, "ratio")
            .target(Target::AtMost(most))
            .beside(beside())
    };
    let errors = |of: fn(&Row) -> f64| Samples::new(rows.iter().map(of).collect());
    let (time, bytes) = (errors(|row| row.time.error()), errors(|row| row.bytes.error()));
    let downtime = errors(|row| match (row.downtime.likely - row.downtime.actual).abs() {
        difference if difference <= ALIKE_US => 0.0,
        _ => row.downtime.error(),
    });
    let inside = changing.iter().flat_map(|row| [&row.time, &row.bytes]);
    let inside: Vec<bool> = inside.map(|pair| pair.is_within(0.05)).collect();
    let share = inside.iter().filter(|inside| **inside).count() as f64 / inside.len() as f64;
    let figures = vec![
        figure("error of the time, median", time.median(), 0.1),
        figure("error of the time, worst", time.range().1, 0.2),
        figure("error of the bytes, median", bytes.median(), 0.1),
        figure("error of the bytes, worst", bytes.range().1, 0.2),
        figure(
            "error of the downtime, worst (alike within 5 ms)",
            downtime.range().1,
            0.2,
        ),
        Figure::plain(
            "predicted from a profile: phases, in the stated interval",
            share,
            "ratio",
        )
        .target(Target::AtLeast(1.0))
        .beside("times and bytes; an interval is taken to be 5 % wider on both sides"),
    ];
    rows.extend(changing);
    setting.tables.lock().expect("no group has panicked").push(table(&rows));
    Ok(figures)
}

/// Profiles a guest, then moves it by each strategy in turn.
fn measure(setting: &Setting, workload: &'static str, vcpus: u32, profile: &str) -> anyhow::Result<Vec<Row>> {
    let scene = setting.dunlin.scene()?;
    let options = GuestOptions::new(setting.dunlin.kind, workload)
        .memory("48MiB")
        .vcpus(vcpus);
    let mut holder = scene.guest("guest", &options.with(["--fill", "random"]))?;
    let prediction = predict(&scene, &holder, profile)?;
    let mut rows = vec![];
    for (index, strategy) in STRATEGIES.into_iter().enumerate() {
        let target = scene.receiver(&format!("hop-{index}"), &[])?;
        let report = scene.migrate(
            &holder,
            &target,
            strategy,
            &["--bandwidth", LINK, "--downtime", DOWNTIME],
        )?;
        let costs = &prediction["links"][0]["strategies"][index]["simulated"];
        let bytes = report["bytes"].as_object().context("bytes by channel")?;
        let bytes: f64 = bytes.values().filter_map(Value::as_f64).sum();
        rows.push(Row {
            workload,
            strategy,
            time: Pair::new(costs, "time_us", number(&report, "/total_time_us")?)?,
            bytes: Pair::new(costs, "bytes", bytes)?,
            downtime: Pair::new(costs, "downtime_us", number(&report, "/downtime_us")?)?,
        });
        holder.moved_away()?;
        holder = target;
    }
    Ok(rows)
}

fn predict(scene: &Scene, guest: &Host, duration: &str) -> anyhow::Result<Value> {
    let control = guest.control.display().to_string();
    let fixed = ["profile", "--control", &control, "--json", "--duration", duration];
    let link = ["--bandwidth", LINK, "--downtime", DOWNTIME];
    let strategies = STRATEGIES.iter().flat_map(|strategy| ["--strategy", strategy]);
    let args = fixed.into_iter().chain(link).chain(strategies);
    let finished = scene.dunlin(args)?.wait(PATIENCE)?;
    ensure!(finished.code.is_some_and(|code| code < 2), "{finished}");
    let line = finished.lines.iter().find(|line| line.contains("dunlin.prediction.v1"));
    Ok(serde_json::from_str(line.context("no prediction")?)?)
}

fn table(rows: &[Row]) -> Table {
    let shown = |pair: &Pair, unit: f64, name: &str| {
        let value = |value: f64| significant(value / unit);
        format!(
            "{} / {} {name} = {} ({} to {})",
            value(pair.likely),
            value(pair.actual),
            significant(pair.likely / pair.actual),
            value(pair.low),
            value(pair.high)
        )
    };
    let cells = |row: &Row| {
        vec![
            row.workload.to_owned(),
            row.strategy.to_owned(),
            shown(&row.time, 1e6, "s"),
            shown(&row.bytes, 1e6, "MB"),
            shown(&row.downtime, 1e3, "ms"),
        ]
    };
    let data = |row: &Row| {
        let pair =
            |pair: &Pair| json!({"low": pair.low, "likely": pair.likely, "high": pair.high, "actual": pair.actual});
        json!({
            "workload": row.workload, "strategy": row.strategy, "time_us": pair(&row.time), "bytes": pair(&row.bytes),
            "downtime_us": pair(&row.downtime),
        })
    };
    Table {
        name: "predicted",
        about: "Predicted from a profile / real = ratio (from the least to the most of the simulated migrations):"
            .into(),
        header: ["workload", "strategy", "time", "bytes", "downtime"]
            .map(str::to_owned)
            .to_vec(),
        rows: rows.iter().map(cells).collect(),
        data: rows.iter().map(data).collect(),
    }
}
