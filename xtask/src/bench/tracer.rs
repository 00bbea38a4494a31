//! What looking at a guest's writes costs the guest and the host: programs in the kernel against none, the dirty log on in both.

use std::fs::{self, File};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dunlin::guest::{AnyGuest, Fill, Guest, GuestConfig, GuestKind, Tracking};
use dunlin::trace::ebpf::{Config, Hooks, Mode, Tracer};
use dunlin::track::pagemap::PagemapTracker;
use dunlin_core::units::Bytes;
use dunlin_tests::scene::GuestOptions;
use serde_json::Value;

use super::Setting;
use super::dunlin::number;
use super::figure::{Figure, Target};
use super::sampling::{Arm, interleave};
use super::sim::watch;

const REPETITIONS: usize = 9;
/// One measurement.
const SLICE: Duration = Duration::from_millis(1000);
/// How often the buffer is emptied, as a recording does it.
const DRAIN: Duration = Duration::from_millis(10);
/// How often the pages are harvested and protected anew.
const WINDOW: Duration = Duration::from_millis(50);
/// What a recording takes.
const BUFFER: Bytes = Bytes(16 << 20);

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    if setting.dunlin.kind != dunlin_tests::scene::Kind::Kvm {
        return Ok(vec![]);
    }
    let mut figures = vec![];
    // As fast as the guest can, to learn how many pushes a step makes; then a rate that makes fifty thousand of them.
    let fast = ring_arm("all that a vCPU can", 1, "seq,ws=16MiB", 0.08, &mut figures)?;
    let steps = (50_000.0 / fast.pushes_per_step).round();
    ring_arm(
        "fifty thousand a second or more",
        1,
        &format!("seq,ws=16MiB,rate={steps}"),
        0.03,
        &mut figures,
    )?;
    ring_arm("all that two vCPUs can", 2, "seq,ws=16MiB", 0.08, &mut figures)?;
    figures.extend(faults()?);
    figures.extend(recording(setting, steps)?);
    Ok(figures)
}

/// What `dunlin record` takes of disk and memory at fifty thousand events a second, which does not depend on how long it goes on.
fn recording(setting: &Setting, steps: f64) -> anyhow::Result<Vec<Figure>> {
    const HOUR_EVENTS: f64 = 50_000.0 * 3600.0;
    let scene = setting.dunlin.scene()?;
    let options = GuestOptions::new(setting.dunlin.kind, format!("zipf:0.99,ws=64MiB,rate={steps}"));
    let guest = scene.guest("recorded", &options.memory("96MiB").with(["--tracking", "ring"]))?;
    let output = scene.folder().join("hour.dtrace");
    let report = scene.folder().join("hour.json");
    let process = Command::new(setting.dunlin.program())
        .args([
            "record",
            "--source",
            "ebpf:ring",
            "--duration",
            "10s",
            "--json",
            "--control",
        ])
        .arg(&guest.control)
        .arg("--output")
        .arg(&output)
        .stdout(File::create(&report)?)
        .spawn()
        .context("dunlin record does not start")?;
    let (status, peak) = watch(process)?;
    let report: Value = serde_json::from_str(&fs::read_to_string(&report)?)?;
    ensure!(status.success(), "dunlin record ended with {status}");
    let (events, bytes) = (number(&report, "/events")?, number(&report, "/file_bytes")?);
    let rate = events / (number(&report, "/duration_us")? / 1e6);
    let lost = &report["lost_events"];
    Ok(vec![
        Figure::plain(
            "recording: disk for an hour at 50,000 events/s",
            bytes / events * HOUR_EVENTS / 1e9,
            "GB",
        )
        .target(Target::AtMost(2.0))
        .beside(format!(
            "{:.2} B an event over 10 s of zipf:0.99 at {rate:.0} events/s, {lost} lost",
            bytes / events
        )),
        Figure::plain(
            "recording: memory of the recorder",
            peak as f64 / f64::from(1 << 20),
            "MiB",
        )
        .target(Target::AtMost(64.0))
        .beside("most of 10 s; the programs' buffer of 16 MiB is in it"),
        Figure::plain(
            "recording: CPU time an event",
            number(&report, "/overhead/cpu_us")? * 1000.0 / events,
            "ns",
        )
        .beside("of the recorder, the harvesting threads and the programs together"),
    ])
}

struct Seen {
    pushes_per_step: f64,
}

/// A guest with rings, with and without programs at them.
fn ring_arm(name: &str, vcpus: u32, workload: &str, most: f64, figures: &mut Vec<Figure>) -> anyhow::Result<Seen> {
    let entries = Tracking::RING_ENTRIES;
    let guest = AnyGuest::create_tracked(config(workload, vcpus), Tracking::Ring { entries })?;
    guest.start_tracking()?;
    guest.resume()?;
    let mut words = vec![0; guest.memory().layout().words()];
    let (mut events, mut seconds, mut steps, mut lost, mut reading) = (0, 0.0, 0, 0, 0);
    let (mut kernel_ns, mut runs) = (0, 0);
    let results = {
        let mut slice = |tracer: Option<&mut Tracer>| {
            slice(&guest, tracer, &mut |guest| {
                words.fill(0);
                Ok(guest.harvest(&mut words)?)
            })
        };
        // The arms take turns, so that both can have the one closure.
        let slice = std::cell::RefCell::new(&mut slice);
        let off = Arm::new("off", || Ok((slice.borrow_mut())(None)?.steps_per_s));
        let on = Arm::new("on", || {
            let mut tracer = Tracer::attach(traced(&guest, Hooks::DirtyRing, false))?;
            let done = (slice.borrow_mut())(Some(&mut tracer))?;
            let counters = tracer.counters()?;
            events += counters.all_events();
            lost += counters.lost();
            seconds += done.seconds;
            steps += done.steps;
            reading += tracer.overhead()?.reader.0;
            Ok(done.steps_per_s)
        });
        let measured = Arm::new("measured", || {
            let mut tracer = Tracer::attach(traced(&guest, Hooks::DirtyRing, true))?;
            let done = (slice.borrow_mut())(Some(&mut tracer))?;
            for program in tracer.overhead()?.programs {
                kernel_ns += program.time.0;
                runs += program.runs;
            }
            Ok(done.steps_per_s)
        });
        interleave(REPETITIONS, vec![off, on, measured])?
    };
    ensure!(events > 0, "the programs at the ring saw nothing");
    let rate = events as f64 / seconds;
    let (on, off) = (results.of("on").median(), results.of("off").median());
    figures.push(
        Figure::plain(
            format!("tracing a dirty ring, {name}: loss of throughput"),
            1.0 - on / off,
            "ratio",
        )
        .target(Target::AtMost(most))
        .beside(format!(
            "without programs: {off:.0} steps/s; {rate:.0} events/s, {lost} lost, {vcpus} vCPUs"
        )),
    );
    figures.push(
        Figure::plain(
            format!("tracing a dirty ring, {name}: kernel time an event"),
            kernel_ns as f64 / runs as f64,
            "ns",
        )
        .target(Target::AtMost(200.0))
        .beside(format!("{runs} runs; what measuring takes, about 50 ns, is in it")),
    );
    figures.push(
        Figure::plain(
            format!("tracing a dirty ring, {name}: reader's time an event"),
            reading as f64 / events as f64,
            "ns",
        )
        .target(Target::AtMost(100.0))
        .beside("CPU time from the buffer to items of a trace"),
    );
    Ok(Seen {
        pushes_per_step: events as f64 / steps as f64,
    })
}

/// A guest whose pages are write-protected, beside one of which KVM keeps the log alone.
fn faults() -> anyhow::Result<Vec<Figure>> {
    let guest = AnyGuest::create_tracked(config("uniform,ws=64MiB", 1), Tracking::Bitmap)?;
    guest.start_tracking()?;
    guest.resume()?;
    let words = guest.memory().layout().words();
    let (mut events, mut seconds) = (0, 0.0);
    let results = {
        let mut log = vec![0; words];
        let off = Arm::new("off", || {
            let done = slice(&guest, None, &mut |guest| {
                log.fill(0);
                Ok(guest.harvest(&mut log)?)
            })?;
            Ok(done.steps_per_s)
        });
        let (mut log, mut found) = (vec![0; words], vec![0; words]);
        let on = Arm::new("on", || {
            let mut tracer = Tracer::attach(traced(&guest, Hooks::Faults, false))?;
            let pages = PagemapTracker::start(guest.memory().clone())?;
            let done = slice(&guest, Some(&mut tracer), &mut |guest| {
                log.fill(0);
                found.fill(0);
                guest.harvest(&mut log)?;
                Ok(pages.harvest(&mut found)?)
            })?;
            events += tracer.counters()?.all_events();
            seconds += done.seconds;
            Ok(done.steps_per_s)
        });
        interleave(REPETITIONS, vec![off, on])?
    };
    let (on, off) = (results.of("on").median(), results.of("off").median());
    let rate = events as f64 / seconds;
    ensure!(events > 0, "no page fault was seen");
    Ok(vec![
        Figure::plain(
            "tracing write-protection faults: the guest's wait at a first write",
            (1.0 - on / off) / rate * 1e6,
            "us",
        )
        .target(Target::AtMost(8.0))
        .beside(format!(
            "without programs and protection: {off:.0} steps/s, with {on:.0}; {rate:.0} first writes/s"
        )),
    ])
}

/// How a slice of time went.
struct Done {
    steps: u64,
    seconds: f64,
    steps_per_s: f64,
}

/// Lets the guest run on for a while, with harvests, and with somebody who empties the programs' buffer.
fn slice(
    guest: &AnyGuest,
    mut tracer: Option<&mut Tracer>,
    harvest: &mut dyn FnMut(&AnyGuest) -> anyhow::Result<()>,
) -> anyhow::Result<Done> {
    let steps = || guest.progress().vcpus.iter().map(|vcpu| vcpu.steps).sum::<u64>();
    let (before, began) = (steps(), Instant::now());
    let mut window = began + WINDOW;
    while began.elapsed() < SLICE {
        sleep(DRAIN);
        if let Some(tracer) = tracer.as_deref_mut() {
            tracer.drain(|item| {
                std::hint::black_box(item);
            })?;
        }
        if Instant::now() >= window {
            window += WINDOW;
            harvest(guest)?;
        }
    }
    let (steps, seconds) = (steps() - before, began.elapsed().as_secs_f64());
    ensure!(steps > 0, "the guest stands still");
    Ok(Done {
        steps,
        seconds,
        steps_per_s: steps as f64 / seconds,
    })
}

fn config(workload: &str, vcpus: u32) -> GuestConfig {
    GuestConfig {
        name: "traced".into(),
        kind: GuestKind::Kvm,
        memory: Bytes(96 << 20),
        vcpus,
        workload: workload.into(),
        seed: 1,
        steps: None,
        fill: Fill::Zero,
        irqchip: false,
    }
}

fn traced(guest: &AnyGuest, hooks: Hooks, measure: bool) -> Config {
    Config {
        process: std::process::id(),
        hooks: vec![hooks],
        regions: Config::regions_of(guest.memory()),
        vcpus: guest.vcpu_threads().into_iter().zip(0..).collect(),
        mode: Mode::Stream { buffer: BUFFER },
        repeats: false,
        measure,
    }
}
