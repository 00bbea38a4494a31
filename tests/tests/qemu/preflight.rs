//! What stands in the way is said before anything is changed, all of it.

use anyhow::ensure;
use dunlin::guest::GuestConfig;
use dunlin_core::units::Bytes;
use dunlin_tests::stock::Stock;
use dunlin_tests::{Capability, require};

use super::pair::{Pair, can_run, endless};

#[test]
fn everything_that_differs_is_found_at_once() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut pair = Pair::new(&endless())?;
    let larger = GuestConfig {
        memory: Bytes(96 << 20),
        ..endless()
    };
    // No QEMU that waits for a guest, and a larger one.
    pair.target = Stock::start(&larger)?;
    pair.sockets[1] = pair.target.socket();
    let before = pair.settings()?;
    let finished = pair.finish("optimal", &["--multifd", "4"])?;
    let said = finished.to_string();
    ensure!(finished.code == Some(2), "{said}");
    for text in [
        "nothing was changed",
        "memory in bytes differs, 67108864 and 100663296",
        "-incoming defer",
        "--multifd and post-copy exclude each other before QEMU 10.1",
    ] {
        ensure!(said.contains(text), "not said: {text}: {said}");
    }
    ensure!(before == pair.settings()?, "settings were changed");
    Pair::lives_on(&mut pair.source)
}

#[test]
fn an_address_that_nobody_can_use_is_no_end_of_the_guest() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut pair = Pair::new(&endless())?;
    let before = pair.settings()?;
    pair.listen = "unix:/nowhere/at/all".into();
    let finished = pair.finish("optimal", &[])?;
    let said = finished.to_string();
    ensure!(finished.code == Some(2) && said.contains("/nowhere/at/all"), "{said}");
    ensure!(before == pair.settings()?, "settings were not put back");
    Pair::lives_on(&mut pair.source)
}

#[test]
fn mixed_up_sides_are_found() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut pair = Pair::new(&endless())?;
    pair.sockets.reverse();
    let finished = pair.finish("optimal", &[])?;
    let said = finished.to_string();
    ensure!(finished.code == Some(2) && said.contains("mixed up"), "{said}");
    pair.sockets.reverse();
    Pair::lives_on(&mut pair.source)
}

/// With what can be done about it; a strategy without post-copy needs no such right.
#[test]
fn a_target_that_cannot_take_page_faults_is_found() -> anyhow::Result<()> {
    if !can_run() || !require(Capability::Root) {
        return Ok(());
    }
    if std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd")?.trim() != "0" {
        eprintln!("SKIP a_target_that_cannot_take_page_faults_is_found: here everybody may take page faults");
        return Ok(());
    }
    let mut pair = Pair::new(&endless())?;
    pair.target = Stock::wait_without_faults_for(&endless())?;
    pair.sockets[1] = pair.target.socket();
    let before = pair.settings()?;
    let finished = pair.finish("optimal", &[])?;
    let said = finished.to_string();
    ensure!(finished.code == Some(2), "{said}");
    ensure!(
        said.contains("the target cannot do post-copy") && said.contains("CAP_SYS_PTRACE"),
        "{said}"
    );
    ensure!(before == pair.settings()?, "settings were changed");
    let report = pair.migrate("precopy", &["--downtime", "5s"])?;
    ensure!(report["guest_is_on"] == "target", "{report}");
    Pair::lives_on(&mut pair.target)
}
