//! The simulator: how many writes of pages it gets through, what it keeps of a page, and that this release build says what the
//! golden table says, which the tests compare with a debug build.

use std::fs::File;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dunlin::sim::{SimSetup, simulate};
use dunlin_core::strategy::Strategy;
use dunlin_core::units::{Bytes, BytesPerSec, Nanos};
use dunlin_tests::golden;

use super::Setting;
use super::figure::{Figure, Target};
use super::sampling::{Arm, cpu_seconds, interleave};
use super::tracking::peak_bytes;

/// What is simulated at full scale.
const MEMORY: Bytes = Bytes(32 << 30);
const RATE: BytesPerSec = BytesPerSec(3_750_000_000);
const REPETITIONS: usize = 3;
/// Writes per second that are asked for where a write is all that happens.
const WRITES_PER_SECOND: f64 = 20e6;
/// Bytes that a simulated page may cost.
const BYTES_PER_PAGE: f64 = 64.0;

const SMALL_GIB: u64 = 1;
const LARGE_GIB: u64 = 8;

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    golden::check().context("a release build does not say what a debug build says")?;
    let mut figures = speeds()?;
    for (name, strategy, options) in [
        ("a round, then post-copy", "hybrid:1", &[][..]),
        ("the same, contents followed", "hybrid:1", &["--verify"]),
        ("both channels, contents followed", "pa-hybrid", &["--verify"]),
        (
            "a filter that looks ahead, contents followed",
            "markov-sdf:0.7",
            &["--verify"],
        ),
    ] {
        let peak = |gib| peak_of_simulation(setting, gib, strategy, options);
        let more_pages = ((LARGE_GIB - SMALL_GIB) << 30) as f64 / 4096.0;
        let growth = peak(LARGE_GIB)?.saturating_sub(peak(SMALL_GIB)?) as f64;
        figures.push(
            Figure::plain(format!("memory per simulated page: {name}"), growth / more_pages, "B")
                .target(Target::AtMost(BYTES_PER_PAGE))
                .beside(format!(
                    "growth of the process from guests of {SMALL_GIB} to {LARGE_GIB} GiB, uniform writes"
                )),
        );
    }
    Ok(figures)
}

/// Whole migrations, with everything around the guest.
fn speeds() -> anyhow::Result<Vec<Figure>> {
    // Nine of ten steps of `memcached` write.
    let workloads = [
        ("uniform", 1.0, true),
        ("seq", 1.0, true),
        ("zipf:0.99", 1.0, false),
        ("memcached", 0.9, false),
        ("uniform,rate=14649", 1.0, false),
    ];
    let mut arms = Vec::new();
    for (workload, share_of_writes, _) in workloads {
        let mut setup = SimSetup::new(workload.parse()?, MEMORY, "precopy".parse::<Strategy>()?, RATE);
        setup.max_rounds = 1;
        // So that a slow writer is simulated for as long as it takes to measure it.
        if workload.contains("rate") {
            setup.warm_up = Nanos::from_secs(2000);
        }
        arms.push(Arm::new(workload, move || {
            let mut steps = 0;
            let mut outcome = Ok(());
            let took = cpu_seconds(|| match simulate(&setup) {
                Ok(result) => steps = result.steps,
                Err(error) => outcome = Err(error),
            });
            outcome?;
            Ok(steps as f64 * share_of_writes / took)
        }));
    }
    let results = interleave(REPETITIONS, arms)?;
    let figures = workloads.iter().map(|(workload, _, has_target)| {
        let samples = results.of(workload);
        let name = format!("simulated page writes per second per core: {workload}");
        let figure = Figure::plain(name, samples.median(), "1/s").beside(format!(
            "a guest of 32 GiB from its first step to the end of its migration, time of the processor, median of {}",
            samples.len()
        ));
        match has_target {
            true => figure.target(Target::AtLeast(WRITES_PER_SECOND)),
            false => figure,
        }
    });
    Ok(figures.collect())
}

/// The most memory that a process held which simulated one migration, in bytes.
fn peak_of_simulation(setting: &Setting, gib: u64, strategy: &str, options: &[&str]) -> anyhow::Result<u64> {
    let mut command = Command::new(setting.dunlin.program());
    command
        .args(["simulate", "--workload", "uniform,rate=100k", "--bandwidth", "1250MB/s"])
        .args(["--memory", &format!("{gib}GiB"), "--strategy", strategy])
        .args(options)
        .stdin(Stdio::null())
        .stdout(File::options().write(true).open("/dev/null")?);
    let (status, peak) = watch(command.spawn().context("cannot start `dunlin`")?)?;
    ensure!(status.success(), "simulating {strategy} ends with {status}");
    Ok(peak)
}

/// Waits for a process, and looks at its memory meanwhile: how it ended, and the most it held.
pub(super) fn watch(mut child: Child) -> anyhow::Result<(ExitStatus, u64)> {
    let mut peak = 0;
    loop {
        // It is read before it is asked whether the process is there, so the last value is one of a living process.
        if let Ok(bytes) = peak_bytes(child.id()) {
            peak = bytes;
        }
        if let Some(status) = child.try_wait()? {
            return Ok((status, peak));
        }
        thread::sleep(Duration::from_millis(1));
    }
}
