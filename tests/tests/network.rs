//! Between two network namespaces over a shaped link: a network that is neither loopback nor a proxy.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dunlin_tests::netns::Network;
use dunlin_tests::oracle::{Verdict, expect_same_memory, expect_verified, with_enough_steps};
use dunlin_tests::scene::{GuestOptions, Host, Kind, PATIENCE, Scene};
use dunlin_tests::{Capability, require};

const WORKLOAD: &str = "uniform,rate=6000";
const STEPS: u64 = 20_000;

fn can() -> bool {
    require(Capability::Netns) && require(Capability::Kvm) && require(Capability::Uffd)
}

fn busy_guest() -> GuestOptions {
    GuestOptions::new(Kind::Kvm, WORKLOAD).with(["--fill", "random"])
}

/// A guest at one end of the link and a receiver at the other.
fn hosts(network: &Network, guest: &GuestOptions, receiver: &[&str]) -> anyhow::Result<(Scene, Host, Host)> {
    let scene = Scene::new()?;
    let source = scene.guest_in(Some(network.source()), "source", guest)?;
    let address = network.target_address();
    let target = scene.receiver_in(Some(network.target()), "target", &address, receiver)?;
    Ok((scene, source, target))
}

/// The link, not a limit of ours, decides how fast a round goes; the memory goes beside it.
#[test]
fn a_static_copy_goes_past_a_slow_link() -> anyhow::Result<()> {
    if !can() {
        return Ok(());
    }
    let network = Network::new("100mbit")?;
    let options = GuestOptions::new(Kind::Kvm, "uniform,rate=1500").with(["--fill", "random"]);
    with_enough_steps(&options, STEPS / 4, |options| {
        let storage = tempfile::tempdir()?;
        let storage = storage.path().to_string_lossy();
        let storage = ["--storage", &*storage];
        let (scene, mut source, mut target) = hosts(&network, options, &storage)?;
        let arguments = [&storage[..], &["--storage-bandwidth", "32MB/s", "--verify"]].concat();
        let report = scene.migrate(&source, &target, "par-migrate", &arguments)?;
        expect_verified(&report)?;
        let bytes = &report["bytes"];
        ensure!(
            bytes["storage"].as_u64() > Some(28 << 20) && bytes["migration"].as_u64() < Some(28 << 20),
            "the memory went over the link: {report}"
        );
        source.moved_away()?;
        expect_same_memory(options, &target.final_report()?)?;
        Ok(Verdict::InTime)
    })
}

/// Longer than any timeout, in the midst of post-copy: both sides keep what they have and find each other again.
#[test]
fn a_link_that_is_down_for_seconds_stops_post_copy_and_no_more() -> anyhow::Result<()> {
    if !can() {
        return Ok(());
    }
    let network = Network::new("200mbit")?;
    with_enough_steps(&busy_guest(), STEPS, |options| {
        let (scene, mut source, mut target) = hosts(&network, options, &[])?;
        let to = target.listening()?.to_owned();
        let arguments = ["--bandwidth", "8MB/s", "--network-timeout", "1s", "--verify"];
        let mut migration = scene.start_migration(&source, &to, "postcopy", &arguments)?;
        scene.poll_status(&mut target, |status| status["state"] == "post-copy")?;
        network.cut()?;
        scene.poll_status(&mut target, |status| status["state"] == "post-copy-paused")?;
        // Some attempts to connect anew are in vain.
        thread::sleep(Duration::from_millis(1500));
        network.mend()?;
        let finished = migration.wait(2 * PATIENCE)?;
        expect_verified(&finished.json()?)?;
        source.moved_away()?;
        expect_same_memory(options, &target.final_report()?)?;
        Ok(Verdict::InTime)
    })
}

fn halted_meanwhile(error: &str) -> bool {
    ["the VM has halted", "ended before it answered"]
        .iter()
        .any(|words| error.contains(words))
}

/// Before the hand-over it costs the attempt, and nothing else.
#[test]
fn a_link_that_goes_down_during_the_copy_costs_the_attempt() -> anyhow::Result<()> {
    if !can() {
        return Ok(());
    }
    let network = Network::new("100mbit")?;
    with_enough_steps(&busy_guest(), STEPS, |options| {
        let (scene, mut source, mut target) = hosts(&network, options, &[])?;
        let to = target.listening()?.to_owned();
        let mut migration = scene.start_migration(&source, &to, "precopy", &["--network-timeout", "1s"])?;
        scene.poll_status(&mut target, |status| status["state"] == "pre-copy")?;
        network.cut()?;
        let failed = migration.wait(PATIENCE)?;
        ensure!(failed.json()?["outcome"] == "failed", "{failed}");
        network.mend()?;
        scene.poll_status(&mut target, |status| status["state"] == "waiting")?;
        if scene.status(&source).is_err() {
            return Ok(Verdict::HaltedBefore);
        }
        match scene.migrate(&source, &target, "hybrid:1", &["--verify"]) {
            // It may also halt between the question and the migration, and then its process ends as it should.
            Err(error) if halted_meanwhile(&format!("{error:#}")) => {
                source.final_report().context(error)?;
                return Ok(Verdict::HaltedBefore);
            }
            report => expect_verified(&report?)?,
        }
        source.moved_away()?;
        expect_same_memory(options, &target.final_report()?)?;
        Ok(Verdict::InTime)
    })
}
