//! Whatever is cut or ends: the guest runs on one side, or can be recovered, and it is said which.

use std::time::Duration;

use anyhow::ensure;
use dunlin_tests::wire::{Mode, Wire};
use rustix::process::Signal;
use serde_json::json;

use super::pair::{PATIENCE, Pair, can_run, config, endless, expected, report};

/// Some seconds for what is to be disturbed.
const SLOW: [&str; 2] = ["--bandwidth", "10MB/s"];
const SLOW_POST_COPY: [&str; 2] = ["--postcopy-bandwidth", "6MB/s"];

#[test]
fn a_cut_in_pre_copy_leaves_the_guest_where_it_is() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut pair = Pair::new(&endless())?;
    let mut migration = pair.start("migrate", "optimal", &SLOW)?;
    pair.wait_for("active")?;
    pair.wire.set(Mode::Cut)?;
    let report = report(&migration.wait(PATIENCE)?)?;
    ensure!(
        report["outcome"] == "failed" && report["guest_is_on"] == "source" && report["reason"].is_string(),
        "{report}"
    );
    Pair::lives_on(&mut pair.source)?;
    let limit = pair.source.qmp.execute("query-migrate-parameters", &json!({}))?;
    ensure!(limit["downtime-limit"] == 300, "settings were not put back: {limit}");
    Ok(())
}

#[test]
fn a_cut_in_post_copy_is_mended() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    for mode in [Mode::Cut, Mode::Silent] {
        let mut pair = Pair::new(&config())?;
        let more = ["--postcopy-bandwidth", "12MB/s", "--network-timeout", "2s"];
        let mut migration = pair.start("migrate", "postcopy", &more)?;
        pair.wait_until_it_runs_on_the_target()?;
        pair.wire.set(mode)?;
        pair.wait_for("postcopy-paused")?;
        // The first attempts fail.
        std::thread::sleep(Duration::from_millis(1500));
        pair.wire.set(Mode::Whole)?;
        let finished = migration.wait(PATIENCE)?;
        ensure!(finished.code == Some(0), "{mode:?}: {finished}");
        let report = finished.json()?;
        ensure!(
            report["outcome"] == "completed" && report["postcopy"]["recoveries"].as_u64() >= Some(1),
            "{mode:?}: {report}"
        );
        ensure!(
            pair.target.result()? == expected()?,
            "{mode:?}: the memory differs: {report}"
        );
    }
    Ok(())
}

#[test]
fn a_target_that_ends_in_pre_copy_takes_nothing_with_it() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut pair = Pair::new(&endless())?;
    let mut migration = pair.start("migrate", "optimal", &SLOW)?;
    pair.wait_for("active")?;
    pair.target.kill()?;
    let report = report(&migration.wait(PATIENCE)?)?;
    ensure!(
        report["outcome"] == "failed" && report["guest_is_on"] == "source",
        "{report}"
    );
    Pair::lives_on(&mut pair.source)
}

#[test]
fn a_side_that_ends_in_post_copy_takes_the_guest_with_it_and_that_is_said() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    for is_source in [false, true] {
        let mut pair = Pair::new(&endless())?;
        let mut migration = pair.start("migrate", "postcopy", &SLOW_POST_COPY)?;
        pair.wait_until_it_runs_on_the_target()?;
        let side = if is_source { &mut pair.source } else { &mut pair.target };
        side.kill()?;
        let report = report(&migration.wait(PATIENCE)?)?;
        ensure!(
            report["outcome"] == "failed" && report["guest_is_on"] == "nobody",
            "source: {is_source}: {report}"
        );
        if !is_source {
            let status = pair.source.qmp.execute("query-status", &json!({}))?;
            ensure!(status["running"] == false, "stale memory runs at the source: {status}");
        }
    }
    Ok(())
}

#[test]
fn a_source_that_ends_in_pre_copy_is_said() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut pair = Pair::new(&endless())?;
    let mut migration = pair.start("migrate", "optimal", &SLOW)?;
    pair.wait_for("active")?;
    pair.source.kill()?;
    let report = report(&migration.wait(PATIENCE)?)?;
    ensure!(
        report["outcome"] == "failed" && report["guest_is_on"] == "nobody",
        "{report}"
    );
    Ok(())
}

#[test]
fn a_lost_monitor_is_found_again() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut pair = Pair::new(&config())?;
    let monitor = pair.scene.folder().join("monitor");
    let wire = Wire::new(&monitor, &pair.sockets[0])?;
    pair.sockets[0] = monitor;
    let more = ["--bandwidth", "20MB/s", "--downtime", "1ms"];
    let mut migration = pair.start("migrate", "rounds:1", &more)?;
    pair.wait_for("active")?;
    wire.set(Mode::Cut)?;
    std::thread::sleep(Duration::from_millis(500));
    wire.set(Mode::Whole)?;
    let finished = migration.wait(PATIENCE)?;
    ensure!(finished.code == Some(0), "{finished}");
    let report = finished.json()?;
    ensure!(report["guest_is_on"] == "target", "{report}");
    ensure!(pair.target.result()? == expected()?, "the memory differs: {report}");
    Ok(())
}

#[test]
fn an_interrupt_cancels_before_the_switch_and_not_after() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut pair = Pair::new(&endless())?;
    let mut migration = pair.start("migrate", "optimal", &SLOW)?;
    pair.wait_for("active")?;
    migration.signal(Signal::INT)?;
    let cancelled = report(&migration.wait(PATIENCE)?)?;
    ensure!(
        cancelled["outcome"] == "cancelled" && cancelled["guest_is_on"] == "source",
        "{cancelled}"
    );
    Pair::lives_on(&mut pair.source)?;

    let mut pair = Pair::new(&config())?;
    let mut migration = pair.start("migrate", "postcopy", &["--postcopy-bandwidth", "20MB/s"])?;
    pair.wait_for("postcopy-active")?;
    migration.signal(Signal::INT)?;
    let finished = migration.wait(PATIENCE)?;
    ensure!(finished.code == Some(0), "{finished}");
    ensure!(finished.to_string().contains("too late to cancel"), "{finished}");
    ensure!(pair.target.result()? == expected()?, "the memory differs");
    Ok(())
}

#[test]
fn no_switch_while_the_rest_would_take_too_long() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut pair = Pair::new(&endless())?;
    let more = [
        "--bandwidth",
        "60MB/s",
        "--downtime",
        "1ms",
        "--drain",
        "50ms",
        "--max-rounds",
        "3",
    ];
    let mut migration = pair.start("migrate", "rounds:1", &more)?;
    pair.wait_for("active")?;
    migration.wait_for_words("at most 0.0 s are allowed", PATIENCE)?;
    let answer = pair.source.qmp.execute("query-migrate", &json!({}))?;
    ensure!(answer["status"] == "active", "it switched: {answer}");
    migration.signal(Signal::INT)?;
    let report = report(&migration.wait(PATIENCE)?)?;
    ensure!(report["rounds"][0]["refused"].is_string(), "{report}");
    Pair::lives_on(&mut pair.source)
}
