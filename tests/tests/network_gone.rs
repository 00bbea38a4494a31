//! The migration network dies in post-copy for good: the shared directory brings the rest.

use std::path::Path;

use anyhow::ensure;
use dunlin_tests::folder::{is_empty, wait_for_file};
use dunlin_tests::mount::SmallFolder;
use dunlin_tests::netns::Network;
use dunlin_tests::oracle::{Verdict, expect_same_memory, with_enough_steps};
use dunlin_tests::scene::{GuestOptions, Host, Kind, PATIENCE, Scene};
use dunlin_tests::{Capability, require};
use rustix::process::Signal;
use serde_json::Value;

const STEPS: u64 = 20_000;
/// Bytes of the 32 MiB that are not zero are at least so many.
const MOST_OF_MEMORY: u64 = 30 << 20;
/// Slow enough for a cut in the midst of it.
const SLOW: [&str; 4] = ["--bandwidth", "4MB/s", "--network-timeout", "1s"];
/// Slow enough for a look at those who wait for it.
const SLOW_STORAGE: [&str; 2] = ["--storage-bandwidth", "4MB/s"];

fn can() -> bool {
    require(Capability::Netns) && require(Capability::Kvm) && require(Capability::Uffd) && require(Capability::Root)
}

fn busy_guest() -> GuestOptions {
    GuestOptions::new(Kind::Kvm, "uniform,rate=6000").with(["--fill", "random"])
}

/// Both hosts mount `storage`; only the link is between them.
fn hosts(network: &Network, guest: &GuestOptions, storage: &str) -> anyhow::Result<(Scene, Host, Host)> {
    let scene = Scene::new()?;
    let source = scene.guest_in(Some(network.source()), "source", guest)?;
    let target = scene.receiver_in(
        Some(network.target()),
        "target",
        &network.target_address(),
        &["--storage", storage],
    )?;
    Ok((scene, source, target))
}

/// Moves a guest, cuts the link for good in post-copy, and lets something happen then.
fn without_a_network(
    strategy: &str,
    storage: &Path,
    meanwhile: impl Fn(&Scene, &mut Host, &mut Host, &Network) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    with_enough_steps(&busy_guest(), STEPS, |options| {
        let network = Network::new("200mbit")?;
        let path = storage.to_string_lossy();
        let (scene, mut source, mut target) = hosts(&network, options, &path)?;
        let to = target.listening()?.to_owned();
        let arguments = [&SLOW[..], &SLOW_STORAGE, &["--storage", &path]].concat();
        let mut migration = scene.start_migration(&source, &to, strategy, &arguments)?;
        scene.poll_status(&mut target, |status| status["state"] == "post-copy")?;
        network.cut()?;
        meanwhile(&scene, &mut source, &mut target, &network)?;
        let finished = migration.wait(2 * PATIENCE)?;
        let report = finished.json()?;
        ensure!(report["outcome"] == "completed", "{finished}");
        source.moved_away()?;
        expect_same_memory(options, &target.final_report()?)?;
        ensure!(is_empty(storage)?, "something is left in {path}");
        expect_from_storage(&report)?;
        Ok(Verdict::InTime)
    })
}

/// Nothing is hidden: what went through the directory is counted, and so are the pages that came from there.
fn expect_from_storage(report: &Value) -> anyhow::Result<()> {
    let postcopy = &report["postcopy"];
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    ensure!(number(&report["bytes"]["storage"]) >= MOST_OF_MEMORY, "{report}");
    ensure!(number(&postcopy["stored"]) > 0, "{report}");
    let all = ["stored", "pushed", "faults"]
        .iter()
        .map(|key| number(&postcopy[key]))
        .sum::<u64>();
    ensure!(all >= MOST_OF_MEMORY / 4096, "{report}");
    Ok(())
}

#[test]
fn the_directory_brings_the_rest() -> anyhow::Result<()> {
    if !can() {
        return Ok(());
    }
    for strategy in ["postcopy", "postcopy,cut=pbdata"] {
        let storage = tempfile::tempdir()?;
        without_a_network(strategy, storage.path(), |scene, source, target, _| {
            for host in [source, target] {
                let status = scene.poll_status(host, |status| status["state"] == "post-copy-paused")?;
                ensure!(
                    status["reason"]
                        .as_str()
                        .is_some_and(|reason| reason.contains("storage directory")),
                    "{status}"
                );
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The directory was full: the vCPUs wait until there is room.
#[test]
fn room_that_comes_late_is_used() -> anyhow::Result<()> {
    if !can() {
        return Ok(());
    }
    let storage = SmallFolder::new(12 << 20)?;
    without_a_network("postcopy,cut=pbdata", storage.path(), |scene, source, _, _| {
        scene.poll_status(source, |status| status["state"] == "post-copy-paused")?;
        source
            .process
            .wait_for_words("depends on the network for now", PATIENCE)?;
        storage.grow(64 << 20)
    })
}

/// The directory is of no use; then even `cut=pbdata` waits for the network.
#[test]
fn a_full_directory_leaves_the_network() -> anyhow::Result<()> {
    if !can() {
        return Ok(());
    }
    let storage = SmallFolder::new(4 << 20)?;
    with_enough_steps(&busy_guest(), STEPS, |options| {
        let network = Network::new("200mbit")?;
        let path = storage.path().to_string_lossy();
        let (scene, mut source, mut target) = hosts(&network, options, &path)?;
        let to = target.listening()?.to_owned();
        let arguments = [&SLOW[..], &["--storage", &path, "--verify"]].concat();
        let mut migration = scene.start_migration(&source, &to, "postcopy,cut=pbdata", &arguments)?;
        scene.poll_status(&mut target, |status| status["state"] == "post-copy")?;
        source
            .process
            .wait_for_words("depends on the network for now", PATIENCE)?;
        network.cut()?;
        let paused = scene.poll_status(&mut target, |status| status["state"] == "post-copy-paused")?;
        ensure!(paused["missing_pages"].as_u64() > Some(0), "{paused}");
        network.mend()?;
        let report = migration.wait(2 * PATIENCE)?.json()?;
        dunlin_tests::oracle::expect_verified(&report)?;
        source.moved_away()?;
        expect_same_memory(options, &target.final_report()?)?;
        Ok(Verdict::InTime)
    })
}

/// Once all is written the source may die.
#[test]
fn a_source_that_dies_is_not_needed_any_more() -> anyhow::Result<()> {
    if !(require(Capability::Kvm) && require(Capability::Uffd)) {
        return Ok(());
    }
    with_enough_steps(&busy_guest(), STEPS, |options| {
        let scene = Scene::new()?;
        let storage = scene.subfolder("storage")?;
        let mut source = scene.guest("source", options)?;
        let mut target = scene.receiver("target", &["--storage", &storage])?;
        let to = target.listening()?.to_owned();
        let arguments = [&SLOW[..], &["--storage", &storage]].concat();
        let _migration = scene.start_migration(&source, &to, "postcopy", &arguments)?;
        // 32 MiB in segments of 8.
        wait_for_file(Path::new(&storage), "pbdata-000003.segment")?;
        source.process.signal(Signal::KILL)?;
        source.process.wait(PATIENCE)?;
        expect_same_memory(options, &target.final_report()?)?;
        Ok(Verdict::InTime)
    })
}
