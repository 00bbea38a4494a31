//! Reports of long traces: how long 10⁸ events take, in a guest of 4 GiB, and whether memory depends on the guest's size only.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use dunlin::trace::TraceWriter;
use dunlin_core::message::{Region, Regions};
use dunlin_core::tracefile::{Head, Item, Source};
use dunlin_core::units::{Gfn, Nanos, Pages};
use dunlin_core::workload::{Generator, Spec};

use super::Setting;
use super::figure::{Figure, Target};
use super::sim::watch;

const EVENTS: u64 = 100_000_000;
/// The memory of a report of a thousandth of that is what the guest's size costs.
const FEW: u64 = EVENTS / 1000;
const PAGES: Pages = Pages(1 << 20);
const VCPUS: u32 = 4;
/// 50 000 events a second, so that they are half an hour.
const INTERVAL: Nanos = Nanos(20_000);
/// What a report may take, and by how much its memory may grow with a thousand times as many events: by some words for each page that is
/// written then and was not before, twice.
const SECONDS: f64 = 60.0;
const GROWTH_MIB: f64 = 24.0;

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let mut figures = Vec::new();
    for spec in ["zipf:0.99", "seq"] {
        let [few, many] = [FEW, EVENTS].map(|events| folder.path().join(format!("{events}.dtrace")));
        write(&few, spec, FEW)?;
        write(&many, spec, EVENTS)?;
        let (_, few_peak) = report(setting, &few)?;
        let (seconds, peak) = report(setting, &many)?;
        let size = std::fs::metadata(&many)?.len() as f64;
        let of = format!("{EVENTS} events of {spec}, 4 vCPUs, 4 GiB, with a page of HTML");
        figures.extend([
            Figure::plain(format!("report: {spec}"), seconds, "s")
                .target(Target::AtMost(SECONDS))
                .beside(of),
            Figure::plain(format!("report, by event: {spec}"), seconds * 1e9 / EVENTS as f64, "ns"),
            Figure::plain(format!("trace, by event: {spec}"), size / EVENTS as f64, "B"),
            Figure::plain(
                format!("memory of a report: {spec}"),
                (peak as f64 - few_peak as f64) / f64::from(1 << 20),
                "MiB",
            )
            .target(Target::AtMost(GROWTH_MIB))
            .beside(format!(
                "growth from {FEW} events, whose report takes {} MiB",
                few_peak >> 20
            )),
        ]);
        std::fs::remove_file(many)?;
    }
    Ok(figures)
}

/// The report's time in seconds, and the most memory it took.
fn report(setting: &Setting, trace: &Path) -> anyhow::Result<(f64, u64)> {
    let page = trace.with_extension("html");
    let started = Instant::now();
    let process = Command::new(setting.dunlin.program())
        .args(["report", "--json"])
        .arg(trace)
        .arg("-o")
        .arg(&page)
        .stdout(Stdio::from(File::create(trace.with_extension("json"))?))
        .spawn()
        .context("dunlin report does not start")?;
    let (status, peak) = watch(process)?;
    ensure!(status.success(), "dunlin report ended with {status}");
    Ok((started.elapsed().as_secs_f64(), peak))
}

/// A trace of so many writes of this workload.
fn write(path: &Path, spec: &str, events: u64) -> anyhow::Result<()> {
    let spec: Spec = spec.parse().context("a workload")?;
    let mut regions = Regions::new();
    let region = Region {
        first: Gfn(0),
        pages: PAGES,
    };
    ensure!(regions.push(region).is_ok(), "there is room for a region");
    let head = Head {
        source: Source::Generator,
        regions,
        used: PAGES,
        vcpus: VCPUS,
        window: Nanos::ZERO,
        started_unix_ns: 0,
        guest: Default::default(),
    };
    let mut generators = (0..VCPUS)
        .map(|vcpu| Generator::new(&spec, PAGES, VCPUS, vcpu, 1))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut writer = TraceWriter::create(path, &head)?;
    for event in 0..events {
        let vcpu = (event % u64::from(VCPUS)) as u32;
        let step = generators[vcpu as usize].next().context("generators do not end")?;
        writer.push(&Item::Write {
            at: Nanos(event * INTERVAL.0),
            vcpu,
            gfn: Gfn(step.page),
        })?;
    }
    writer.push(&Item::End {
        at: Nanos(events * INTERVAL.0),
        overhead: Nanos::ZERO,
    })?;
    writer.finish()?;
    Ok(())
}
