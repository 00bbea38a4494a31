//! Linux guests, of which one checks its memory itself and another one re-reads what was put into its memcached.

use anyhow::{Context as _, ensure};
use dunlin_core::units::Bytes;
use dunlin_tests::linux::{Linux, LinuxOptions, Role, Workload};
use dunlin_tests::scene::Scene;
use dunlin_tests::{Capability, require};

use super::pair::PATIENCE;

fn moved(options: &LinuxOptions, strategy: &str, more: &[&str]) -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let mut target = Linux::start(options, Role::Target)?;
    let mut source = Linux::start(options, Role::Source)?;
    source.wait_until_ready()?;
    let uri = format!("unix:{}", scene.folder().join("migration").display());
    let [from, to] = [&source, &target].map(|linux| linux.socket().display().to_string());
    let state = scene.folder().join("state").display().to_string();
    let arguments = [
        "qemu",
        "migrate",
        "--source",
        &from,
        "--target",
        &to,
        "--to",
        &uri,
        "--state",
        &state,
        "--strategy",
        strategy,
        "--json",
    ];
    let arguments = arguments.iter().chain(more);
    let finished = scene.dunlin(arguments)?.wait(PATIENCE)?;
    ensure!(finished.code == Some(0), "{finished}");
    let report = finished.json()?;
    ensure!(report["guest_is_on"] == "target", "{report}");
    let steps = source.last_beat().context("it beat")?.beat.steps;
    target.wait_for_steps(steps + 1).with_context(|| report.to_string())?;
    let intact = target.check().with_context(|| report.to_string())?;
    ensure!(intact.pages > 0 && intact.steps >= steps, "{intact:?}: {report}");
    Ok(())
}

fn small(workload: Workload) -> LinuxOptions {
    LinuxOptions::new(workload).with_memory(Bytes(128 << 20))
}

#[test]
fn a_linux_guest_finds_its_memory_as_it_left_it() -> anyhow::Result<()> {
    if !require(Capability::Lab) || !require(Capability::Uffd) {
        return Ok(());
    }
    let options = small(Workload::pages("uniform,rate=4000,ws=16MiB"));
    for (strategy, more) in [
        ("precopy", &[][..]),
        (
            "rounds:1",
            &[
                "--bandwidth",
                "30MB/s",
                "--postcopy-bandwidth",
                "30MB/s",
                "--downtime",
                "1ms",
            ],
        ),
    ] {
        moved(&options, strategy, more).context(strategy)?;
    }
    Ok(())
}

#[test]
fn a_memcached_has_what_was_put_into_it() -> anyhow::Result<()> {
    if !require(Capability::LinuxGuests) || !require(Capability::Uffd) {
        return Ok(());
    }
    let options = LinuxOptions::new(Workload::memcached());
    moved(
        &options,
        "optimal",
        &["--bandwidth", "60MB/s", "--postcopy-bandwidth", "60MB/s"],
    )
}
