//! Linux guests in stock QEMU, and that what they say of themselves can be believed.

use anyhow::{Context as _, ensure};
use dunlin_core::units::Bytes;
use dunlin_tests::linux::{Linux, LinuxOptions, Role, Workload};
use dunlin_tests::{Capability, require};

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
