//! The driver is killed, and another one takes over.

use std::time::Duration;

use anyhow::ensure;
use dunlin_tests::wire::Mode;
use serde_json::json;

use super::pair::{PATIENCE, Pair, can_run, config, endless, expected};

/// Kills the driver when the source is in this state, and has the next one bring it to its end.
fn taken_over(strategy: &str, more: &[&str], status: &str) -> anyhow::Result<()> {
    let mut pair = Pair::new(&config())?;
    let before = pair.settings()?;
    let mut migration = pair.start("migrate", strategy, more)?;
    pair.wait_for(status)?;
    migration.kill()?;
    std::thread::sleep(Duration::from_millis(300));
    let finished = pair.start("resume", strategy, more)?.wait(PATIENCE)?;
    ensure!(finished.code == Some(0), "{status}: {finished}");
    let report = finished.json()?;
    ensure!(
        report["outcome"] == "completed" && report["guest_is_on"] == "target",
        "{status}: {report}"
    );
    ensure!(
        pair.target.result()? == expected()?,
        "{status}: the memory differs: {report}"
    );
    ensure!(before == pair.settings()?, "{status}: settings were not put back");
    Ok(())
}

#[test]
fn a_driver_may_be_killed_in_pre_copy() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    taken_over("rounds:3", &["--bandwidth", "30MB/s", "--downtime", "1ms"], "active")
}

#[test]
fn a_driver_may_be_killed_in_post_copy() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    taken_over("postcopy", &["--postcopy-bandwidth", "20MB/s"], "postcopy-active")
}

#[test]
fn a_driver_may_be_killed_while_the_connection_is_broken() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut pair = Pair::new(&config())?;
    let more = ["--postcopy-bandwidth", "6MB/s"];
    let mut migration = pair.start("migrate", "postcopy", &more)?;
    pair.wait_until_it_runs_on_the_target()?;
    pair.wire.set(Mode::Cut)?;
    pair.wait_for("postcopy-paused")?;
    migration.kill()?;
    pair.wire.set(Mode::Whole)?;
    // Told nothing but which QEMUs it is about.
    let [source, target] = [0, 1].map(|side: usize| pair.sockets[side].display().to_string());
    let state = pair.scene.folder().join("state").display().to_string();
    let arguments = [
        "qemu", "resume", "--source", &source, "--target", &target, "--state", &state, "--json",
    ];
    let finished = pair.scene.dunlin(arguments)?.wait(PATIENCE)?;
    ensure!(finished.code == Some(0), "{finished}");
    let report = finished.json()?;
    ensure!(
        report["postcopy"]["recoveries"] == 1 && report["rule"] == "rounds:0",
        "{report}"
    );
    ensure!(pair.target.result()? == expected()?, "the memory differs: {report}");
    Ok(())
}

#[test]
fn where_nothing_goes_on_nothing_is_taken_over() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut pair = Pair::new(&endless())?;
    let finished = pair.start("resume", "optimal", &[])?.wait(PATIENCE)?;
    ensure!(finished.code == Some(2), "{finished}");
    ensure!(finished.to_string().contains("no migration is going on"), "{finished}");
    let status = pair.source.qmp.execute("query-status", &json!({}))?;
    ensure!(status["running"] == true, "{status}");
    Ok(())
}
