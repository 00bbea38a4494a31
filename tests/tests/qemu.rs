//! `dunlin qemu` between two stock QEMUs whose guest checks every page that it writes, and whose memory is compared with that of a guest
//! that never moved.

#[path = "qemu/certificates.rs"]
mod certificates;
#[path = "qemu/fake.rs"]
mod fake;
#[path = "qemu/faults.rs"]
mod faults;
#[path = "qemu/linux.rs"]
mod linux;
#[path = "qemu/pair.rs"]
mod pair;
#[path = "qemu/preflight.rs"]
mod preflight;
#[path = "qemu/recovery.rs"]
mod recovery;
#[path = "qemu/switching.rs"]
mod switching;
#[path = "qemu/takeover.rs"]
mod takeover;
#[path = "qemu/tls.rs"]
mod tls;
#[path = "qemu/watching.rs"]
mod watching;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use pair::{Pair, can_run, config, expected};

#[test]
fn memory_is_the_same_by_every_way() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    for (strategy, more) in [
        ("postcopy", &["--postcopy-bandwidth", "40MB/s"][..]),
        ("postcopy", &["--preempt", "--postcopy-bandwidth", "40MB/s"]),
        ("rounds:1", &["--bandwidth", "60MB/s", "--downtime", "1ms"]),
        ("optimal", &["--bandwidth", "60MB/s"]),
        ("precopy", &[]),
        ("precopy", &["--multifd", "2"]),
        ("qemu,slow=auto-converge", &["--bandwidth", "200MB/s"]),
    ] {
        let strategy = match strategy {
            "qemu,slow=auto-converge" => "precopy,switch=qemu,slow=auto-converge",
            other => other,
        };
        let what = format!("{strategy} {more:?}");
        let mut pair = Pair::new(&config())?;
        let before = pair.settings()?;
        let report = pair.migrate(strategy, more).with_context(|| what.clone())?;
        ensure!(
            report["outcome"] == "completed" && report["guest_is_on"] == "target",
            "{what}: {report}"
        );
        ensure!(report["downtime_us"].as_u64() > Some(0), "{what}: {report}");
        let post_copies = strategy == "postcopy" || strategy == "rounds:1";
        ensure!(report["postcopy"].is_object() == post_copies, "{what}: {report}");
        let result = pair.target.result().with_context(|| what.clone())?;
        ensure!(result == expected()?, "{what}: the memory differs: {report}");
        ensure!(before == pair.settings()?, "{what}: settings were not put back");
    }
    Ok(())
}

/// What is told of rounds is a log that other rules can be tried on.
#[test]
fn rounds_add_up() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut endless = config();
    endless.steps = None;
    let mut pair = Pair::new(&endless)?;
    let more = ["--bandwidth", "40MB/s", "--downtime", "1ms"];
    let report = pair.migrate("rounds:3", &more)?;
    let rounds = report["rounds"].as_array().context("rounds")?;
    ensure!(rounds.len() >= 3, "{report}");
    let number = |round: &Value, name: &str| round[name].as_u64().unwrap_or(0);
    for (index, round) in rounds.iter().enumerate() {
        ensure!(number(round, "round") == index as u64 + 1, "{report}");
    }
    // The whole guest goes in round 1: 64 MiB, and what a PC has besides.
    let first = number(&rounds[0], "sent_pages") + number(&rounds[0], "zero_pages");
    ensure!((16_384..17_500).contains(&first), "{first} pages: {report}");
    // At no more than 40 MB/s, as told.
    let rate = number(&rounds[0], "sent_pages") * 4096 * 1000 / (number(&rounds[0], "duration_us") / 1000).max(1);
    ensure!((1..48_000_000).contains(&rate), "{rate} B/s: {report}");
    ensure!(pair.target.steps()? > 0, "the guest does not run");
    Ok(())
}
