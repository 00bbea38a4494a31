//! A run of the matrix and what must be true in the end.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dunlin_core::message::Mode;
use dunlin_tests::folder::find;
use dunlin_tests::oracle::{expect_same_memory, expect_verified};
use dunlin_tests::process::{Dunlin, Finished};
use dunlin_tests::relay::{Relay, Side, Trigger};
use dunlin_tests::scene::{GuestOptions, Host, PATIENCE, Scene};
use serde_json::Value;

use crate::case::Case;
use crate::pool::Ending;

const POLL: Duration = Duration::from_millis(10);
/// All that so small a guest can lack fits into one segment.
const PB_DATA: &str = "pbdata-000000.segment";

/// The processes of a run, and where they keep what survives them.
pub(crate) struct Stage {
    pub(crate) source: Host,
    pub(crate) target: Host,
    /// The guest as the run without a migration has it.
    pub(crate) guest: GuestOptions,
    pub(crate) storage: String,
    source_state: String,
    target_state: String,
    // Last: its folder holds the files of the others.
    pub(crate) scene: Scene,
}

impl Stage {
    pub(crate) fn new(guest: GuestOptions) -> anyhow::Result<Self> {
        let scene = Scene::new()?;
        let storage = scene.subfolder("storage")?;
        Self::in_scene(scene, guest, storage)
    }

    /// With a storage directory that is somewhere else, or not as it should be.
    pub(crate) fn in_scene(scene: Scene, guest: GuestOptions, storage: String) -> anyhow::Result<Self> {
        let (source_state, target_state) = (scene.subfolder("source")?, scene.subfolder("target")?);
        let source = scene.guest("vm", &guest.clone().with(["--state", &source_state]))?;
        let target = scene.receiver("target", &["--storage", &storage, "--state", &target_state])?;
        Ok(Self {
            source,
            target,
            guest,
            storage,
            source_state,
            target_state,
            scene,
        })
    }

    /// The guest has moved and comes to its end at the target.
    pub(crate) fn arrived(&mut self, finished: &Finished) -> anyhow::Result<()> {
        let report = finished.json()?;
        // A source that hears of the end by the directory alone has nobody to compare with.
        if report["verified"].is_object() || report["postcopy"]["stored"].as_u64().unwrap_or(0) == 0 {
            expect_verified(&report)?;
        }
        self.source.moved_away()?;
        expect_same_memory(&self.guest, &self.target.final_report()?)
    }

    /// The guest was not moved: it runs at the source, the target has nothing of it, and it can be moved to `next`, or to the same.
    pub(crate) fn stayed(&mut self, finished: &Finished, next: Option<&mut Host>) -> anyhow::Result<()> {
        let report = finished.json()?;
        let reason = report["reason"].as_str().unwrap_or_default();
        ensure!(!reason.is_empty() && finished.code == Some(1), "no reason: {finished}");
        if next.is_none() && !self.is_told()? {
            // The guest has come to its end before the target was reached, which only a person can tell now.
            expect_same_memory(&self.guest, &self.source.final_report()?)?;
            let dropped = self.resolve(&self.target, &["--give-up"])?;
            ensure!(dropped.code == Some(0), "{dropped}");
            return self.scene.poll_status(&mut self.target, is_free).map(drop);
        }
        let (scene, next) = (&self.scene, next.unwrap_or(&mut self.target));
        scene.poll_status(next, is_free)?;
        // Nothing is done to this one; a machine that has no time for it for some seconds is no fault.
        let second = ["--verify", "--storage", &self.storage, "--network-timeout", "30s"];
        let deadline = Instant::now() + PATIENCE;
        let again = loop {
            let mut again = scene.start_migration(&self.source, next.listening()?, "hybrid:1", &second)?;
            let again = again.wait(2 * PATIENCE)?;
            // The first attempt may come to the target after the source has ended it.
            if !again.lines.iter().any(|line| line.contains("is receiving one")) || Instant::now() > deadline {
                break again;
            }
            thread::sleep(POLL);
        };
        match again.json() {
            Ok(report) => {
                ensure!(report["outcome"] == "completed", "the second attempt: {again}");
                expect_verified(&report)?;
                self.source.moved_away()?;
                expect_same_memory(&self.guest, &next.final_report()?)
            }
            // Nobody answered, or its guest is none to move any more: it has come to its end.
            Err(_) => {
                let over = ["has halted", "no process answers", "ended before it answered"];
                ensure!(
                    over.iter().any(|text| again.stderr.contains(text)),
                    "the second attempt: {again}\n{}",
                    next.process.stderr()
                );
                let ended = self.source.final_report().with_context(|| format!("after {again}"))?;
                expect_same_memory(&self.guest, &ended)
            }
        }
    }

    /// The target holds nothing of the guest any more; false if the source has ended and can tell it no more.
    fn is_told(&mut self) -> anyhow::Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.scene.status(&self.target)?;
            if is_free(&status) {
                return Ok(true);
            }
            if status["state"] == "handover-unknown" && !self.source.process.is_running() {
                return Ok(false);
            }
            ensure!(Instant::now() < deadline, "the target was not told: {status}");
            thread::sleep(POLL);
        }
    }

    /// `dunlin status` of a process that is dead, by its records.
    fn recorded(&self, side: Side) -> anyhow::Result<Value> {
        let directory = match side {
            Side::Source => &self.source_state,
            Side::Target => &self.target_state,
        };
        let status = self.scene.dunlin(["status", "--state", directory, "--json"])?;
        let mut status = status;
        let finished = status.wait(PATIENCE)?;
        match finished.json() {
            Ok(status) => Ok(status),
            // A target that had not got so far.
            Err(_) if side == Side::Target && finished.stderr.contains("no record") => Ok(Value::Null),
            Err(error) => Err(error),
        }
    }

    /// Both audit logs are whole, and say the same as the hand-over records about where the guest is.
    pub(crate) fn audited(&self) -> anyhow::Result<()> {
        for state in [&self.source_state, &self.target_state] {
            self.scene.audited(state)?;
        }
        Ok(())
    }

    fn resolve(&self, host: &Host, how: &[&str]) -> anyhow::Result<Finished> {
        let control = host.control.to_string_lossy();
        let arguments = [&["resolve", "--control", &control], how].concat();
        self.scene.dunlin(arguments)?.wait(PATIENCE)
    }

    fn run_here(&self, host: &Host) -> anyhow::Result<Finished> {
        self.resolve(host, &["--run-here", "--other-side-is-dead"])
    }
}

/// One run: a migration to which the deed is done, and the verdict on what came of it.
pub(crate) fn run(case: &Case) -> anyhow::Result<Ending> {
    attempt(case).with_context(|| case.to_string())
}

fn attempt(case: &Case) -> anyhow::Result<Ending> {
    let mut stage = Stage::new(case.guest())?;
    let mut random = case.random();
    let trigger = Trigger::new(case.place, random.next());
    let relay = Relay::start(stage.target.listening()?, case.deed, trigger, random)?;
    relay.between(stage.source.process.id(), stage.target.process.id());
    let arguments = [&case.limits()[..], &["--storage", &stage.storage]].concat();
    let to = relay.address().to_string();
    let mut migration = stage
        .scene
        .start_migration(&stage.source, &to, case.strategy, &arguments)?;
    relay.waited_for_by(migration.id());
    let killed = wait_for_the_end(&relay, case, &mut migration)?;
    relay.check()?;
    let ending = match killed {
        None => both_live(&mut stage, case, &mut migration),
        Some(Side::Target) => without_target(&mut stage, &mut migration),
        Some(Side::Source) => {
            let recorded = stage.recorded(Side::Source)?;
            // What is said must be on record before.
            let on_record = !relay.committed() || recorded["state"] != "ended";
            ensure!(on_record, "given up, but the source has on record {recorded}");
            without_source(&mut stage, relay.handed_over())
        }
    }?;
    relay.check()?;
    stage.audited()?;
    Ok(if relay.has_struck() { ending } else { NEVER_STRUCK })
}

/// The migration was over before the place came.
pub(crate) const NEVER_STRUCK: Ending = "never struck";

/// Which side was killed, or that the migration has ended without.
fn wait_for_the_end(relay: &Relay, case: &Case, migration: &mut Dunlin) -> anyhow::Result<Option<Side>> {
    let deadline = Instant::now() + 2 * PATIENCE;
    loop {
        let running = migration.is_running();
        match case.deed.kills() {
            Some(side) if relay.has_struck() => return Ok(Some(side)),
            Some(_) if relay.strikes() => {}
            _ if !running => return Ok(None),
            _ => {}
        }
        ensure!(Instant::now() < deadline, "it comes to no end: {migration}");
        thread::sleep(POLL);
    }
}

/// Nobody died: the guest lives on one side, and the migration says on which.
fn both_live(stage: &mut Stage, case: &Case, migration: &mut Dunlin) -> anyhow::Result<Ending> {
    let finished = migration.wait(2 * PATIENCE)?;
    let report = finished.json()?;
    if report["outcome"] == "completed" {
        stage.arrived(&finished)?;
        return Ok("arrived");
    }
    ensure!(!case.deed.is_gentle(), "that was nothing to fail from: {finished}");
    stage
        .stayed(&finished, None)
        .with_context(|| format!("after {finished}"))?;
    Ok("stayed")
}

/// The target is dead.
pub(crate) fn without_target(stage: &mut Stage, migration: &mut Dunlin) -> anyhow::Result<Ending> {
    let recorded = stage.recorded(Side::Target)?;
    let has_run = says(&recorded, "ran here and ended with its process");
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if !migration.is_running() {
            break None;
        }
        let status = stage.scene.status(&stage.source);
        match status {
            Ok(status) if status["state"] == "handover-unknown" || status["state"] == "post-copy-paused" => {
                break Some(status);
            }
            _ => ensure!(Instant::now() < deadline, "no state to stay in: {status:?}"),
        }
        thread::sleep(POLL);
    };
    let Some(status) = status else {
        let finished = migration.wait(PATIENCE)?;
        if finished.json()?["outcome"] == "completed" {
            ensure!(has_run, "completed, but the target has on record: {recorded}");
            stage.source.moved_away()?;
            return Ok("ended with the target, complete");
        }
        ensure!(
            !has_run,
            "it runs at the source, but the target has on record: {recorded}"
        );
        let mut next = stage.scene.receiver("next", &["--storage", &stage.storage])?;
        stage.stayed(&finished, Some(&mut next))?;
        return Ok("stayed, the target dead");
    };
    ensure!(status["reason"].is_string(), "no reason: {status}");
    if status["state"] == "post-copy-paused" {
        ensure!(has_run, "given up to a target that has on record: {recorded}");
        let refused = stage.run_here(&stage.source)?;
        ensure!(refused.code == Some(1), "old memory must not run: {refused}");
        let given_up = stage.resolve(&stage.source, &["--give-up"])?;
        ensure!(given_up.code == Some(0), "{given_up}");
        let ended = stage.source.process.wait(PATIENCE)?;
        ensure!(ended.code == Some(1), "the guest was lost, so not 0: {ended}");
        let after = stage.recorded(Side::Source)?;
        ensure!(after["state"] == "moved-away", "{after}");
        return Ok("lost with the target");
    }
    // A new process with the records of the old one may know that it never had the guest.
    let listening = stage.target.listening()?.to_owned();
    let again = ["--storage", &stage.storage, "--state", &stage.target_state];
    let mut restarted = stage.scene.receiver_at("restarted", &listening, &again)?;
    if has_run {
        restarted.process.wait_for_words("answering Unknown", PATIENCE)?;
        let resolved = stage.run_here(&stage.source)?;
        ensure!(resolved.code == Some(0), "all memory is here: {resolved}");
    }
    let finished = migration.wait(2 * PATIENCE)?;
    stage.stayed(&finished, Some(&mut restarted))?;
    Ok(if has_run {
        "run by hand at the source"
    } else {
        "taken back from the target's records"
    })
}

/// The source is dead. If it had come to hand the guest over it is known how, and with how many dirty pages.
pub(crate) fn without_source(stage: &mut Stage, handed_over: Option<(Mode, u64)>) -> anyhow::Result<Ending> {
    let recorded = stage.recorded(Side::Source)?;
    let given_up = recorded["state"] != "ended";
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        let status = stage.scene.status(&stage.target);
        match &status {
            Ok(status) => {
                let state = status["state"].as_str().unwrap_or_default();
                if matches!(
                    state,
                    "waiting" | "handover-unknown" | "post-copy-paused" | "running" | "ended"
                ) {
                    break status.clone();
                }
            }
            Err(_) if !stage.target.process.is_running() => break Value::Null,
            Err(_) => {}
        }
        ensure!(Instant::now() < deadline, "no state to stay in: {status:?}");
        thread::sleep(POLL);
    };
    match status["state"].as_str() {
        Some("waiting") => {
            ensure!(
                !given_up,
                "the last copy is dropped: the source has on record {recorded}"
            );
            ensure!(says(&recorded, "before it was handed over"), "{recorded}");
            Ok("lost with the source")
        }
        Some("handover-unknown") => {
            ensure!(status["reason"].is_string(), "no reason: {status}");
            let resolved = stage.run_here(&stage.target)?;
            if resolved.code == Some(0) {
                expect_same_memory(&stage.guest, &stage.target.final_report()?)?;
                return Ok("run by hand at the target");
            }
            let missing = handed_over.is_some_and(|(_, dirty)| dirty > 0);
            let said = resolved.stderr.contains("pages of the VM are still at the source only");
            ensure!(missing && said, "it could run: {resolved}");
            ensure!(
                status["missing_pages"].as_u64() > Some(0),
                "nothing of missing pages: {status}"
            );
            let dropped = stage.resolve(&stage.target, &["--give-up"])?;
            ensure!(dropped.code == Some(0), "{dropped}");
            stage
                .scene
                .poll_status(&mut stage.target, |status| status["state"] == "waiting")?;
            Ok("lost with the source, pages missing")
        }
        Some("post-copy-paused") => {
            ensure!(
                given_up,
                "it runs at the target, but the source has on record {recorded}"
            );
            if find(Path::new(&stage.storage), PB_DATA).is_some() {
                expect_same_memory(&stage.guest, &stage.target.final_report()?)?;
                return Ok("completed from the directory, without the source");
            }
            let missing = status["missing_pages"].as_u64().unwrap_or(0);
            ensure!(
                missing > 0 && status["reason"].is_string(),
                "paused for nothing: {status}"
            );
            Ok("lost with the source in post-copy")
        }
        Some("running" | "ended") | None => {
            ensure!(
                given_up,
                "it runs at the target, but the source has on record {recorded}"
            );
            expect_same_memory(&stage.guest, &stage.target.final_report()?)?;
            Ok("arrived without the source")
        }
        Some(state) => bail!("an unknown state {state}"),
    }
}

fn is_free(status: &Value) -> bool {
    status["state"] == "waiting" && status["missing_pages"].as_u64().unwrap_or(0) == 0
}

fn says(status: &Value, what: &str) -> bool {
    status["reason"].as_str().is_some_and(|reason| reason.contains(what))
}
