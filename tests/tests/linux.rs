//! Linux guests in stock QEMU, and that what they say of themselves can be believed.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dunlin_core::units::Bytes;
use dunlin_tests::linux::{Linux, LinuxOptions, PATIENCE, Role, Workload, longest_gap};
use dunlin_tests::{Capability, require};
use serde_json::json;

/// Small, so that tests are quick.
fn checked() -> LinuxOptions {
    LinuxOptions::new(Workload::pages("uniform,rate=4000,ws=16MiB")).with_memory(Bytes(128 << 20))
}

#[test]
fn a_guest_beats_and_finds_what_is_wrong_with_its_memory() -> anyhow::Result<()> {
    if !require(Capability::Lab) {
        return Ok(());
    }
    let mut guest = Linux::start(&checked(), Role::Source)?;
    let first = guest.wait_until_ready()?.beat;
    let intact = guest.check()?;
    ensure!(
        intact.steps >= first.steps && (1..=4096).contains(&intact.pages),
        "{intact:?} after {first:?}"
    );
    let next = guest.wait_for_beat()?.beat;
    ensure!(
        next.seq > first.seq && next.monotonic_ms > first.monotonic_ms,
        "{next:?} after {first:?}"
    );
    guest.spoil()?;
    let why = guest.check().err().context("a spoilt page is not found")?.to_string();
    ensure!(why.contains("CORRUPT page=0x"), "{why}");
    Ok(())
}

/// QEMU's own pre-copy, with nothing of ours but the guest.
#[test]
fn a_guest_goes_on_where_it_is_moved_to() -> anyhow::Result<()> {
    if !require(Capability::Lab) {
        return Ok(());
    }
    let mut source = Linux::start(&checked(), Role::Source)?;
    let mut target = Linux::start(&checked(), Role::Target)?;
    source.wait_for_steps(5000)?;
    ensure!(target.beats().is_empty(), "a guest that never started beats");

    migrate(&mut source, &mut target)?;
    let after = target.wait_for_beat()?.beat;
    let before = source.last_beat().context("the source has beaten")?.beat;
    ensure!(
        after.seq > before.seq && after.steps >= before.steps && after.monotonic_ms >= before.monotonic_ms,
        "{after:?} after {before:?}"
    );
    let intact = target.check()?;
    ensure!(intact.steps >= after.steps && intact.pages > 1000, "{intact:?}");
    target.wait_for_steps(intact.steps + 1000)?;
    target.check()?;
    let [here, there] = [source.beats().to_vec(), target.beats().to_vec()];
    let gap = longest_gap(here.iter().chain(&there)).context("there are beats")?;
    ensure!(gap < PATIENCE, "{gap:?} without a beat");
    Ok(())
}

/// Moves the guest, whatever becomes of it.
fn migrate(source: &mut Linux, target: &mut Linux) -> anyhow::Result<()> {
    let anywhere = json!({ "uri": "tcp:127.0.0.1:0" });
    target.qmp.execute("migrate-incoming", &anywhere)?;
    let listening = target.qmp.execute("query-migrate", &json!({}))?;
    let port = listening["socket-address"][0]["port"].as_str().context("a port")?;
    let there = json!({ "uri": format!("tcp:127.0.0.1:{port}") });
    source.qmp.execute("migrate", &there)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = source.qmp.execute("query-migrate", &json!({}))?;
        match status["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => bail!("QEMU does not migrate: {status}"),
            _ => ensure!(Instant::now() < deadline, "the migration does not end: {status}"),
        }
        sleep(Duration::from_millis(20));
    }
}

/// What is measured in benchmarks works, and can be checked. One after the other: each has the processor for itself.
#[test]
fn guests_with_programs_of_others_work() -> anyhow::Result<()> {
    if !require(Capability::LinuxGuests) {
        return Ok(());
    }
    for workload in [
        Workload::Idle,
        Workload::memcached(),
        Workload::Compile,
        Workload::stress_vm(),
    ] {
        let options = LinuxOptions::new(workload);
        works(&options).with_context(|| format!("{:?}", options.workload))?;
    }
    Ok(())
}

fn works(options: &LinuxOptions) -> anyhow::Result<()> {
    let mut guest = Linux::start(options, Role::Source)?;
    let first = guest.wait_until_ready()?.beat;
    let later = guest.wait_for_steps(first.steps + 1)?.beat;
    let intact = guest.check()?;
    ensure!(intact.steps >= later.steps, "{intact:?} after {later:?}");
    let is_idle = options.workload == Workload::Idle;
    ensure!(is_idle == (intact.pages == 0), "{intact:?}");
    guest.wait_for_steps(intact.steps + 1)?;
    Ok(())
}
