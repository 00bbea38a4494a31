//! A running guest is profiled, then moved: what was predicted is what it takes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dunlin_tests::process::Finished;
use dunlin_tests::scene::{GuestOptions, Host, Kind, PATIENCE, Scene};
use rustix::process::Signal;
use serde_json::Value;

/// Profiles a guest; its report and the prediction.
fn profile(scene: &Scene, guest: &Host, extra: &[&str]) -> anyhow::Result<(Value, Value, Finished)> {
    let control = guest.control.to_string_lossy();
    let args = ["profile", "--control", &control, "--json", "--starts", "3"];
    let finished = scene.dunlin(args.iter().chain(extra))?.wait(2 * PATIENCE)?;
    ensure!(finished.code.is_some_and(|code| code < 2), "{finished}");
    let line = |schema: &str| {
        let found = finished.lines.iter().find(|line| line.contains(schema));
        let line = found.with_context(|| format!("no {schema}: {finished}"))?;
        serde_json::from_str::<Value>(line).context("a line of JSON")
    };
    Ok((line("dunlin.report.v1")?, line("dunlin.prediction.v1")?, finished))
}

#[test]
fn a_guest_is_profiled_and_what_is_predicted_comes() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let options = GuestOptions::new(Kind::best(), "uniform,rate=4000,ws=8MiB")
        .memory("48MiB")
        .with(["--fill", "random"]);
    let source = scene.guest("source", &options)?;
    let page = scene.folder().join("report.html");
    let page_arg = page.to_string_lossy();
    let link = ["--bandwidth", "16MB/s", "--downtime", "100ms", "--strategy", "hybrid:1"];
    let (report, prediction, _) = profile(
        &scene,
        &source,
        &[&link[..], &["--duration", "2s", "-o", &page_arg]].concat(),
    )?;
    ensure!(report["lost_events"] == 0 && report["complete"] == true, "{report}");
    ensure!(report["guest"]["name"] == "source", "{report}");
    let written = report["guest"]["written_pages"].as_u64().context("a number")?;
    ensure!((1500..=2200).contains(&written), "2048 pages and a few: {written}");
    let steps = report["steps"]["steps"].as_u64().context("the guest counts")?;
    ensure!(steps > 0, "{report}");
    let text = std::fs::read_to_string(&page)?;
    ensure!(
        text.contains("What a migration would cost") && text.contains("Where and when it writes"),
        "{}",
        text.len()
    );
    let expected = &prediction["links"][0]["strategies"][0]["simulated"];
    ensure!(expected["time_us"]["likely"].is_u64(), "{prediction}");
    let target = scene.receiver("target", &[])?;
    let actual = scene.migrate(
        &source,
        &target,
        "hybrid:1",
        &["--bandwidth", "16MB/s", "--downtime", "100ms"],
    )?;
    // Bytes do not depend on how busy the machine is, as long as the guest keeps its rate.
    let predicted = expected["bytes"]["likely"].as_u64().context("a number")?;
    let bytes = &actual["bytes"];
    let sent = ["migration", "fault", "control"]
        .iter()
        .filter_map(|channel| bytes[*channel].as_u64())
        .sum::<u64>();
    ensure!(
        predicted.abs_diff(sent) * 4 < sent,
        "{predicted} bytes were predicted and {sent} sent: {actual}"
    );
    Ok(())
}

#[test]
fn an_interrupt_ends_a_profile_in_order_and_nothing_is_left() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let source = scene.guest("source", &GuestOptions::new(Kind::Thread, "uniform,rate=2000"))?;
    let control = source.control.to_string_lossy();
    let trace = scene.folder().join("kept.dtrace");
    let trace_arg = trace.to_string_lossy();
    let args = [
        "profile",
        "--control",
        &control,
        "--duration",
        "1h",
        "--trace",
        &trace_arg,
        "--bandwidth",
        "100MB/s",
        "--starts",
        "1",
    ];
    let mut profiling = scene.dunlin(args)?;
    let deadline = Instant::now() + PATIENCE;
    while !profiling.stderr().contains(" pages/s, ") {
        ensure!(
            Instant::now() < deadline && profiling.is_running(),
            "{}",
            profiling.stderr()
        );
        thread::sleep(Duration::from_millis(5));
    }
    profiling.signal(Signal::INT)?;
    let finished = profiling.wait(PATIENCE)?;
    ensure!(finished.code.is_some_and(|code| code < 2), "{finished}");
    ensure!(
        finished.lines.iter().any(|line| line.contains("Working set by window")),
        "{finished}"
    );
    let again = scene.dunlin(["report", &trace_arg, "--json"])?.wait(PATIENCE)?.json()?;
    ensure!(again["complete"] == true, "{again}");
    // Whoever was recorded can be recorded again.
    let (report, ..) = profile(&scene, &source, &["--duration", "300ms", "--bandwidth", "1GB/s"])?;
    ensure!(report["complete"] == true, "{report}");
    Ok(())
}
