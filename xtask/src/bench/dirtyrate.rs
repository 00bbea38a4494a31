//! How fast a guest writes, as `dunlin record` and as stock QEMU's `calc-dirty-rate` say it, beside how fast it really does. It is
//! the same guest in both, byte for byte.

mod recorded;
mod stock;
mod truth;

use std::time::Duration;

use anyhow::Context as _;
use dunlin::guest::{Fill, GuestConfig, GuestKind};
use dunlin_core::units::{Bytes, PAGE_SIZE};
use dunlin_tests::Capability;
use serde_json::json;

use super::Setting;
use super::figure::{Figure, Table, Target, significant};
use super::sampling::Samples;
use dunlin_tests::stock::Stock;
use recorded::Recorded;
use truth::Truth;

/// None is paced: in QEMU nothing would.
const WORKLOADS: [&str; 4] = [
    "uniform,ws=32MiB",
    "seq,ws=16MiB",
    "zipf:0.99,ws=64MiB",
    "hotset:0.1,ws=32MiB",
];
const MEMORY: Bytes = Bytes(128 << 20);
const SEED: u64 = 7;
/// Of each workload by each mode.
const REPETITIONS: usize = 3;
/// The shortest that QEMU measures.
const WINDOW: Duration = Duration::from_secs(1);
const MIB: f64 = (1 << 20) as f64;

/// A rate, as somebody measured it, and as it was; both in bytes per second.
struct Sample {
    measured: f64,
    actual: f64,
}

impl Sample {
    /// By how much it was wrong, relative to what it was.
    fn error(&self) -> f64 {
        (self.measured - self.actual).abs() / self.actual
    }
}

/// A workload, measured repeatedly in one way.
struct Row {
    workload: &'static str,
    by: By,
    samples: Vec<Sample>,
}

/// Who measured, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Qemu(&'static str),
    Dunlin(&'static str),
}

impl By {
    fn name(self) -> String {
        match self {
            Self::Qemu(mode) => format!("QEMU, {mode}"),
            Self::Dunlin(source) => format!("dunlin record --source {source}"),
        }
    }
}

impl Row {
    fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        Samples::new(self.samples.iter().map(of).collect()).median()
    }

    fn error(&self) -> f64 {
        self.median(Sample::error)
    }
}

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    for needed in [Capability::Kvm, Capability::Qemu] {
        if let Err(why) = needed.probe() {
            eprintln!("SKIP dirty rates: {why}");
            return Ok(vec![]);
        }
    }
    let sources = recorded::sources();
    let mut rows = vec![];
    for workload in WORKLOADS {
        eprintln!("  {workload}");
        rows.extend(measure(setting, workload, &sources).context(workload)?);
    }
    let figures = figures(&rows);
    setting.tables.lock().expect("no group has panicked").push(table(&rows));
    Ok(figures)
}

/// One workload, by QEMU and by Dunlin.
fn measure(
    setting: &Setting,
    workload: &'static str,
    sources: &[(&'static str, Vec<&'static str>)],
) -> anyhow::Result<Vec<Row>> {
    let truth = Truth::new(&config(workload))?;
    let row = |by, samples| Row { workload, by, samples };
    let mut rows: Vec<Row> = stock::MODES.map(|mode| row(By::Qemu(mode), vec![])).into();
    let mut stock = Stock::start(&config(workload))?;
    for _ in 0..REPETITIONS {
        for (mode, row) in stock::MODES.into_iter().zip(&mut rows) {
            row.samples
                .push(stock::measure(&mut stock, mode, &truth).context(mode)?);
        }
    }
    drop(stock);
    for (tracking, sources) in sources {
        let guest = Recorded::start(setting, workload, tracking)?;
        for source in sources {
            rows.push(row(By::Dunlin(source), guest.measure(source, &truth)?));
        }
    }
    Ok(rows)
}

/// For each way of Dunlin's, how wrong it is beside the least wrong of QEMU's, where it compares worst.
fn figures(rows: &[Row]) -> Vec<Figure> {
    let mut ways: Vec<By> = vec![];
    for row in rows {
        if !ways.contains(&row.by) {
            ways.push(row.by);
        }
    }
    let of = |by: By| rows.iter().filter(move |row| row.by == by);
    let figure = |by: By| match by {
        By::Qemu(_) => {
            let errors = of(by).flat_map(|row| &row.samples).map(Sample::error).collect();
            let errors = Samples::new(errors);
            let (least, most) = errors.range();
            let name = format!("dirty rate by {}: relative error", by.name());
            Figure::plain(name, errors.median(), "ratio").beside(format!(
                "median of {} of {} workloads, {} to {}",
                errors.len(),
                WORKLOADS.len(),
                percent(least),
                percent(most)
            ))
        }
        By::Dunlin(_) => {
            let compared = of(by).map(|row| (row, best_of_qemu(rows, row.workload)));
            let worst = compared.max_by(|one, other| ratio(one.0, one.1).total_cmp(&ratio(other.0, other.1)));
            let (row, qemu) = worst.expect("every way has rows");
            Figure::plain(
                format!("dirty rate by {}: error beside QEMU's", by.name()),
                ratio(row, qemu),
                "ratio",
            )
            .target(Target::AtMost(1.0))
            .beside(format!(
                "where it is most: {}, {}; {} of {}",
                row.workload,
                percent(row.error()),
                percent(qemu.error()),
                qemu.by.name()
            ))
        }
    };
    ways.into_iter().map(figure).collect()
}

/// QEMU's least wrong mode with this workload.
fn best_of_qemu<'a>(rows: &'a [Row], workload: &str) -> &'a Row {
    let modes = rows
        .iter()
        .filter(|row| row.workload == workload && matches!(row.by, By::Qemu(_)));
    let best = modes.min_by(|one, other| one.error().total_cmp(&other.error()));
    best.expect("QEMU measures every workload")
}

/// How wrong the one is beside the other.
fn ratio(row: &Row, other: &Row) -> f64 {
    match (row.error(), other.error()) {
        (0.0, 0.0) => 1.0,
        (error, other) => error / other,
    }
}

fn percent(ratio: f64) -> String {
    format!("{} %", significant(ratio * 100.0))
}

fn table(rows: &[Row]) -> Table {
    let cells = |row: &Row| {
        vec![
            row.workload.to_owned(),
            row.by.name(),
            significant(row.median(|sample| sample.measured / MIB)),
            significant(row.median(|sample| sample.actual / MIB)),
            percent(row.error()),
        ]
    };
    let data = |row: &Row| {
        let samples = row.samples.iter();
        let samples =
            samples.map(|sample| json!({ "bytes_per_s": sample.measured, "true_bytes_per_s": sample.actual }));
        json!({
            "workload": row.workload, "by": row.by.name(), "error": row.error(), "samples": samples.collect::<Vec<_>>(),
        })
    };
    Table {
        name: "dirtyrate",
        about: "Dirty rates of one guest, each beside the true one of its own windows of 1 s; medians. True is what follows from the \
                guest's own count of its steps. QEMU tells whole MiB/s; its mode dirty-ring is left out, because it makes a guest that \
                KVM emulates stand still."
            .into(),
        header: ["workload", "measured by", "MiB/s", "true MiB/s", "relative error"]
            .map(str::to_owned)
            .to_vec(),
        rows: rows.iter().map(cells).collect(),
        data: rows.iter().map(data).collect(),
    }
}

/// Bytes per second of so many pages.
fn rate(pages: u64, seconds: f64) -> f64 {
    (pages * PAGE_SIZE) as f64 / seconds
}

fn config(workload: &str) -> GuestConfig {
    GuestConfig {
        name: String::new(),
        kind: GuestKind::Kvm,
        memory: MEMORY,
        vcpus: 1,
        workload: workload.into(),
        seed: SEED,
        steps: None,
        fill: Fill::Zero,
        irqchip: false,
    }
}
