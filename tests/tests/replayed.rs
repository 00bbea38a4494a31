//! What a migration decided live is what a replay of its rounds decides.

use anyhow::{Context as _, ensure};
use dunlin::replay::{HEADER_WITH_ZEROS, RoundLog, Trial};
use dunlin_core::strategy::Strategy;
use dunlin_core::switch::SwitchSetting;
use dunlin_core::units::{Nanos, Pages};
use dunlin_tests::scene::{GuestOptions, Kind, Scene};
use serde_json::Value;

/// What the hand-over is taken to cost live; the downtime is wanted without it.
const HANDOVER_COST: Nanos = Nanos::from_millis(2);

/// The report as a round log: what README shows with jq.
fn log_of(report: &Value) -> anyhow::Result<String> {
    let mut log = String::new();
    if let Some(round) = report["static_done_after"].as_u64() {
        log += &format!("# static_done_after={round}\n");
    }
    log += HEADER_WITH_ZEROS;
    log.push('\n');
    for round in report["rounds"].as_array().context("rounds")? {
        let columns = ["round", "duration_us", "sent_pages", "dirty_pages", "zero_pages"];
        let values = columns.map(|column| round[column].to_string());
        log += &(values.join(",") + "\n");
    }
    Ok(log)
}

/// The round and the words of the decision when the log is replayed.
fn replayed(report: &Value, strategy: &Strategy, downtime: Nanos) -> anyhow::Result<(u32, String)> {
    let total = Pages(report["total_pages"].as_u64().context("total pages")?);
    let text = log_of(report)?;
    let log = RoundLog::open(text.as_bytes(), total)?;
    let setting = SwitchSetting {
        downtime: Nanos(downtime.0 - HANDOVER_COST.0),
        handover_cost: HANDOVER_COST,
        static_done_after: log.static_done_after(),
        ..SwitchSetting::new(total)
    };
    let mut trial = Trial::new(strategy.switch, setting);
    for end in log {
        trial.on_round(&end?);
    }
    let ending = trial
        .ending()
        .with_context(|| format!("the replay decides nothing about\n{text}"))?;
    Ok((ending.end.round, ending.verdict.reason.to_string()))
}

/// The same words, and numbers that differ by no more than what a log that counts in microseconds leaves open.
fn says_the_same(live: &str, replayed: &str) -> bool {
    let is_of_number = |letter: char| letter.is_ascii_digit() || ".-".contains(letter);
    let number = |word: &str| word.trim_matches(|letter| !is_of_number(letter)).parse::<f64>();
    let rest = |word: &str| word.replace(is_of_number, "");
    let alike = |(live, replayed): (&str, &str)| match (number(live), number(replayed)) {
        (Ok(one), Ok(other)) => rest(live) == rest(replayed) && (one - other).abs() <= 0.002 * one.abs().max(1.0),
        _ => live == replayed,
    };
    let words = |text: &str| text.split(' ').count();
    words(live) == words(replayed) && live.split(' ').zip(replayed.split(' ')).all(alike)
}

#[test]
fn replays_decide_as_the_migration_did() -> anyhow::Result<()> {
    let kind = Kind::best();
    for (strategy, workload, fill) in [
        // Half of the guest is zero: those pages are no part of what round 1 had to send.
        ("switch=sdf:0.5", "uniform,rate=9000,ws=16MiB", "zero"),
        ("switch=sdf:auto", "uniform,rate=9000,ws=16MiB", "zero"),
        ("as-hybrid", "uniform,rate=6000", "random"),
        ("switch=optimal", "uniform,rate=6000", "random"),
        ("hybrid:2", "seq,rate=6000", "zero"),
        ("pa-hybrid,cut=reconnect", "uniform,rate=6000", "random"),
    ] {
        let scene = Scene::new()?;
        let storage = scene.subfolder("storage")?;
        let storage = ["--storage", &storage];
        let source = scene.guest("source", &GuestOptions::new(kind, workload).with(["--fill", fill]))?;
        let target = scene.receiver("target", &storage)?;
        let mut arguments = vec!["--bandwidth", "32MB/s", "--downtime", "10ms"];
        if strategy.starts_with("pa-") {
            arguments.extend(storage);
            arguments.extend(["--storage-bandwidth", "64MB/s"]);
        }
        let report = scene.migrate(&source, &target, strategy, &arguments)?;
        let live = &report["switch"];
        let (round, reason) = replayed(&report, &strategy.parse()?, Nanos::from_millis(10))?;
        ensure!(
            live["round"] == round && says_the_same(live["reason"].as_str().unwrap_or_default(), &reason),
            "{strategy}: replayed, round {round}: {reason}; live: {report}"
        );
    }
    Ok(())
}
