//! Faults on the way, live: whatever dies before the guest has been given up, it runs on at the source, is still right,
//! and can be moved again.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dunlin::channel::{Direction, FaultProxy};
use dunlin_tests::mount::SmallFolder;
use dunlin_tests::oracle::{Verdict, expect_same_memory, expect_verified, with_enough_steps};
use dunlin_tests::process::{Dunlin, Finished};
use dunlin_tests::scene::{GuestOptions, Host, Kind, PATIENCE, Scene};
use dunlin_tests::{Capability, require};
use rustix::process::Signal;

/// A guest that dirties its memory for some seconds.
const WORKLOAD: &str = "uniform,rate=6000";
const STEPS: u64 = 30_000;
/// A link on which the first copy of 32 MiB takes seconds, so that whatever is done after a few MiB falls into it.
const SLOW: [&str; 2] = ["--bandwidth", "16MB/s"];
/// Bytes after which the first copy is under way but far from its end.
const MIDDLE: u64 = 6 << 20;

/// A guest at its source, and a receiver behind a proxy that can break the connection.
struct Story {
    source: Host,
    target: Host,
    proxy: FaultProxy,
    // Last: its folder holds the sockets of the others.
    scene: Scene,
}

impl Story {
    fn new(options: &GuestOptions, receiver: &[&str]) -> anyhow::Result<Self> {
        let scene = Scene::new()?;
        let source = scene.guest("source", options)?;
        let target = scene.receiver("first", receiver)?;
        let proxy = FaultProxy::start(&"127.0.0.1:0".parse()?, &target.listening()?.parse()?, vec![])?;
        Ok(Self {
            source,
            target,
            proxy,
            scene,
        })
    }

    /// The guest has moved to the receiver and comes to its end there, with the memory it should have.
    fn ends_at_target(&mut self, options: &GuestOptions) -> anyhow::Result<Verdict> {
        self.source.moved_away()?;
        expect_same_memory(options, &self.target.final_report()?)?;
        Ok(Verdict::InTime)
    }

    /// Starts a migration over the slow link and returns once its first copy is under way.
    fn start(&self, strategy: &str, extra: &[&str]) -> anyhow::Result<Dunlin> {
        let to = self.proxy.address().to_string();
        let migration = self
            .scene
            .start_migration(&self.source, &to, strategy, &[&SLOW, extra].concat())?;
        self.wait_passed(MIDDLE)?;
        Ok(migration)
    }

    fn wait_passed(&self, bytes: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.proxy.passed(Direction::Forward) < bytes {
            ensure!(Instant::now() < deadline, "the migration sends nothing");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Runs `attempt`, a migration that must not succeed, then moves the guest to another receiver and compares its memory.
fn survives(attempt: impl Fn(&mut Story) -> anyhow::Result<()>) -> anyhow::Result<()> {
    survives_with(&[], attempt)
}

fn survives_with(receiver: &[&str], attempt: impl Fn(&mut Story) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let options = GuestOptions::new(Kind::best(), WORKLOAD).with(["--fill", "random"]);
    with_enough_steps(&options, STEPS, |options| {
        let mut story = Story::new(options, receiver)?;
        attempt(&mut story)?;
        let Ok(status) = story.scene.status(&story.source) else {
            return Ok(Verdict::HaltedBefore);
        };
        ensure!(status["state"] == "running", "the source should run on, but: {status}");
        arrives(&story.scene, &mut story.source, options)
    })
}

/// Moves the guest to a new receiver, lets it come to its end there, and compares its memory.
fn arrives(scene: &Scene, source: &mut Host, options: &GuestOptions) -> anyhow::Result<Verdict> {
    let mut target = scene.receiver("second", &[])?;
    let report = scene
        .migrate(source, &target, "hybrid:1", &["--verify"])
        .context("moving it after the failure")?;
    expect_verified(&report)?;
    source.moved_away()?;
    expect_same_memory(options, &target.final_report()?)?;
    Ok(Verdict::InTime)
}

/// Checks that `migrate` said what happened and why, and did not exit with success.
fn expect_outcome(finished: &Finished, outcome: &str) -> anyhow::Result<()> {
    let report = finished.json()?;
    ensure!(
        report["outcome"] == outcome,
        "the outcome should be `{outcome}`: {finished}"
    );
    ensure!(
        report["reason"].as_str().is_some_and(|reason| !reason.is_empty()),
        "no reason: {finished}"
    );
    ensure!(finished.code == Some(1), "the exit code says otherwise: {finished}");
    Ok(())
}

#[test]
fn target_killed_during_the_copy() -> anyhow::Result<()> {
    survives(|story| {
        let mut migration = story.start("precopy", &[])?;
        story.target.process.kill()?;
        expect_outcome(&migration.wait(PATIENCE)?, "failed")
    })
}

#[test]
fn connection_cut_during_the_copy_and_the_receiver_listens_on() -> anyhow::Result<()> {
    survives(|story| {
        let mut migration = story.start("hybrid:1", &[])?;
        story.proxy.cut();
        expect_outcome(&migration.wait(PATIENCE)?, "failed")?;
        let target = &mut story.target;
        let status = story.scene.poll_status(target, |status| status["state"] == "waiting")?;
        ensure!(
            status["missing_pages"].as_u64().is_none_or(|missing| missing == 0),
            "still half a guest: {status}"
        );
        Ok(())
    })
}

#[test]
fn connection_that_passes_nothing_is_given_up() -> anyhow::Result<()> {
    survives(|story| {
        let mut migration = story.start("precopy", &["--network-timeout", "1s"])?;
        story.proxy.hold(true);
        expect_outcome(&migration.wait(PATIENCE)?, "failed")
    })
}

#[test]
fn cancelled_by_command() -> anyhow::Result<()> {
    survives(|story| {
        let mut migration = story.start("precopy", &[])?;
        let control = story.source.control.to_string_lossy().into_owned();
        let cancel = story.scene.dunlin(["cancel", "--control", &control])?.wait(PATIENCE)?;
        ensure!(cancel.code == Some(0), "cancel: {cancel}");
        expect_outcome(&migration.wait(PATIENCE)?, "cancelled")
    })
}

#[test]
fn cancelled_by_interrupt_while_the_send_is_blocked() -> anyhow::Result<()> {
    // Nothing passes, and without the interrupt nothing would end before the test loses patience.
    survives(|story| {
        let mut migration = story.start("precopy", &["--network-timeout", "10m"])?;
        story.proxy.hold(true);
        migration.signal(Signal::INT)?;
        expect_outcome(&migration.wait(PATIENCE)?, "cancelled")
    })
}

#[test]
fn target_with_too_little_memory_refuses() -> anyhow::Result<()> {
    survives_with(&["--max-memory", "16MiB"], |story| {
        let to = story.target.listening()?.to_owned();
        let finished = story
            .scene
            .start_migration(&story.source, &to, "precopy", &[])?
            .wait(PATIENCE)?;
        expect_outcome(&finished, "failed")?;
        ensure!(
            finished.json()?["reason"].to_string().contains("memory"),
            "the reason names no memory: {finished}"
        );
        ensure!(story.target.process.is_running(), "the receiver should listen on");
        Ok(())
    })
}

#[test]
fn state_directory_of_the_target_is_full() -> anyhow::Result<()> {
    if !require(Capability::Root) {
        return Ok(());
    }
    let full = SmallFolder::full()?;
    let state = full.path().to_string_lossy().into_owned();
    let options = GuestOptions::new(Kind::best(), WORKLOAD).with(["--fill", "random"]);
    with_enough_steps(&options, STEPS, |options| {
        let scene = Scene::new()?;
        let mut source = scene.guest("source", options)?;
        // A receiver may notice at once, or when a guest comes.
        if let Ok(target) = scene.receiver("first", &["--state", &state]) {
            let to = target.listening()?.to_owned();
            let finished = scene.start_migration(&source, &to, "precopy", &[])?.wait(PATIENCE)?;
            expect_outcome(&finished, "failed")?;
        }
        arrives(&scene, &mut source, options)
    })
}

#[test]
fn client_killed_and_the_migration_goes_on() -> anyhow::Result<()> {
    let options = GuestOptions::new(Kind::best(), WORKLOAD).with(["--fill", "random"]);
    with_enough_steps(&options, STEPS, |options| {
        let mut story = Story::new(options, &[])?;
        story.start("hybrid:1", &[])?.kill()?;
        let arrived = story
            .scene
            .poll_status(&mut story.target, |status| status["state"] == "running");
        if arrived.is_err() && !story.target.process.is_running() {
            return Ok(Verdict::HaltedBefore);
        }
        arrived?;
        story.ends_at_target(options)
    })
}

#[test]
fn connection_cut_during_post_copy_is_made_again() -> anyhow::Result<()> {
    let options = GuestOptions::new(Kind::best(), WORKLOAD).with(["--fill", "random"]);
    with_enough_steps(&options, STEPS, |options| {
        let mut story = Story::new(options, &[])?;
        let mut migration = story.start("postcopy", &["--verify"])?;
        story
            .scene
            .poll_status(&mut story.target, |status| status["state"] == "post-copy")?;
        story.proxy.cut();
        let finished = migration.wait(2 * PATIENCE)?;
        let report = finished.json()?;
        ensure!(report["outcome"] == "completed", "the cut should be mended: {finished}");
        expect_verified(&report)?;
        story.ends_at_target(options)
    })
}

/// Demanded pages do not wait for the rate, so a guest that touches all its memory at once leaves the push seconds to make
/// up for; the target must hear of the source all that time.
#[test]
fn a_push_that_makes_up_for_demanded_pages_keeps_the_link() -> anyhow::Result<()> {
    let options = GuestOptions::new(Kind::best(), "seq")
        .memory("16MiB")
        .with(["--fill", "random"]);
    let scene = Scene::new()?;
    let mut source = scene.guest("source", &options)?;
    let target = scene.receiver("target", &[])?;
    let arguments = ["--bandwidth", "2MB/s", "--network-timeout", "3s", "--verify"];
    let finished = scene
        .start_migration(&source, target.listening()?, "postcopy", &arguments)?
        .wait(PATIENCE)?;
    expect_verified(&finished.json()?)?;
    ensure!(
        !finished.stderr.contains("post-copy-paused"),
        "the link was taken for dead: {finished}"
    );
    source.moved_away()?;
    Ok(())
}

#[test]
fn receiver_told_to_stop_during_the_copy() -> anyhow::Result<()> {
    survives(|story| {
        let mut migration = story.start("precopy", &[])?;
        story.target.process.signal(Signal::TERM)?;
        expect_outcome(&migration.wait(PATIENCE)?, "failed")?;
        let ended = story.target.process.wait(PATIENCE)?;
        ensure!(ended.code == Some(0), "nothing was here to lose: {ended}");
        Ok(())
    })
}

/// A guest in post-copy whose other side is killed: the scene, and the side that is left.
fn left_alone_in_post_copy(kill_source: bool) -> anyhow::Result<(Scene, Host, Dunlin)> {
    let scene = Scene::new()?;
    let state = scene.subfolder("state")?;
    let options = GuestOptions::new(Kind::best(), "idle").with(["--fill", "random", "--state", &state]);
    let mut source = scene.guest("source", &options)?;
    let mut target = scene.receiver("target", &[])?;
    let to = target.listening()?.to_owned();
    let migration = scene.start_migration(&source, &to, "postcopy", &["--bandwidth", "2MB/s"])?;
    scene.poll_status(&mut target, |status| status["state"] == "post-copy")?;
    scene.poll_status(&mut source, |status| status["state"] == "post-copy")?;
    let (mut left, mut killed) = if kill_source {
        (target, source)
    } else {
        (source, target)
    };
    killed.process.kill()?;
    scene.poll_status(&mut left, |status| status["state"] == "post-copy-paused")?;
    Ok((scene, left, migration))
}

#[test]
fn receiver_whose_source_died_in_post_copy_says_what_it_waits_for() -> anyhow::Result<()> {
    let (_scene, mut target, _) = left_alone_in_post_copy(true)?;
    target.process.signal(Signal::TERM)?;
    target
        .process
        .wait_for_words("interrupt again to end it now", PATIENCE)?;
    ensure!(
        target.process.is_running(),
        "the guest was not to end at the first signal"
    );
    target.process.signal(Signal::TERM)?;
    let ended = target.process.wait(PATIENCE)?;
    ensure!(ended.code == Some(130), "{ended}");
    Ok(())
}

#[test]
fn source_given_up_by_hand_is_recorded_as_moved_away() -> anyhow::Result<()> {
    let (scene, mut source, _migration) = left_alone_in_post_copy(false)?;
    let control = source.control.to_string_lossy().into_owned();
    let resolved = scene
        .dunlin(["resolve", "--give-up", "--control", &control])?
        .wait(PATIENCE)?;
    ensure!(resolved.code == Some(0), "{resolved}");
    let ended = source.process.wait(PATIENCE)?;
    ensure!(ended.code == Some(1), "the guest was lost, so not 0: {ended}");
    let state = scene.subfolder("state")?;
    let status = scene.dunlin(["status", "--json", "--state", &state])?.wait(PATIENCE)?;
    ensure!(status.json()?["state"] == "moved-away", "{status}");
    Ok(())
}
