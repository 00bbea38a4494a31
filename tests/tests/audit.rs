//! The audit logs of both hosts: whatever is killed when, they are whole and agree with the hand-over records about where the
//! guest is; whatever is done to them shows.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dunlin::trust::pki;
use dunlin_tests::process::{Dunlin, Finished};
use dunlin_tests::relay::{Deed, Place, Random, Relay, Side, Trigger};
use dunlin_tests::scene::{GuestOptions, Host, Kind, PATIENCE, Scene};
use serde_json::Value;

/// A guest that never halts and changes something all the time.
fn guest() -> GuestOptions {
    GuestOptions::new(Kind::best(), "uniform,rate=2000")
        .memory("16MiB")
        .with(["--fill", "random"])
}

/// A guest and a receiver with a state directory each.
struct Stage {
    source: Host,
    target: Host,
    source_state: String,
    target_state: String,
    /// What a migration by TLS needs to know; nothing in plain.
    credentials: Vec<String>,
    // Last: its folder holds the files of the others.
    scene: Scene,
}

impl Stage {
    fn new() -> anyhow::Result<Self> {
        Self::with_tls(false)
    }

    /// By TLS both sides sign what is handed over.
    fn with_tls(secured: bool) -> anyhow::Result<Self> {
        let scene = Scene::new()?;
        let (mut credentials, mut receiver) = (Vec::new(), Vec::new());
        if secured {
            let authority = scene.folder().join("authority");
            pki::init(&authority)?;
            let [source, target] = ["host-a.test", "host-b.test"].map(|host| {
                let made = pki::issue(&authority, &host.parse()?, 1)?;
                anyhow::Ok(made.display().to_string())
            });
            credentials = vec!["--tls-dir".into(), source?, "--peer".into(), "host-b.test".into()];
            receiver = vec!["--tls-dir".into(), target?];
        }
        receiver.push("--state".to_owned());
        let (source_state, target_state) = (scene.subfolder("source-state")?, scene.subfolder("target-state")?);
        let source = scene.guest("vm", &guest().with(["--state", &source_state]))?;
        receiver.push(target_state.clone());
        let target = scene.receiver("target", &receiver.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(Self {
            source,
            target,
            source_state,
            target_state,
            credentials,
            scene,
        })
    }

    fn state(&self, side: Side) -> &str {
        match side {
            Side::Source => &self.source_state,
            Side::Target => &self.target_state,
        }
    }

    fn log(&self, side: Side) -> PathBuf {
        PathBuf::from(self.state(side)).join("audit.jsonl")
    }

    fn verify(&self, side: Side, extra: &[&str]) -> anyhow::Result<Finished> {
        let log = self.log(side).display().to_string();
        let arguments = [&["audit", "verify", &log, "--json"], extra].concat();
        self.scene.dunlin(arguments)?.wait(PATIENCE)
    }

    fn both_agree(&self) -> anyhow::Result<()> {
        for side in [Side::Source, Side::Target] {
            let found = self.scene.audited(self.state(side))?;
            ensure!(found["whole"] == true, "{side:?}: {found}");
        }
        Ok(())
    }
}

fn words<'a>(records: &'a [Value], key: &str) -> Vec<&'a str> {
    records.iter().filter_map(|record| record[key].as_str()).collect()
}

#[test]
fn a_migration_is_on_record_on_both_hosts() -> anyhow::Result<()> {
    let mut stage = Stage::new()?;
    stage.scene.migrate(&stage.source, &stage.target, "hybrid:1", &[])?;
    stage.source.moved_away()?;
    stage.both_agree()?;
    let source = stage.scene.audit_records(&stage.source_state)?;
    let target = stage.scene.audit_records(&stage.target_state)?;
    assert_eq!(
        words(&source, "event"),
        ["started", "offer", "hand-over", "commit", "outcome"]
    );
    assert_eq!(words(&target, "event"), ["offer", "hand-over", "commit", "outcome"]);
    assert_eq!(
        words(&source, "place"),
        ["here", "here", "between", "between", "elsewhere"]
    );
    assert_eq!(words(&target, "place"), ["elsewhere", "between", "here", "here"]);
    for records in [&source[1..], &target[..]] {
        assert_eq!(records[0]["decision"], "accepted");
        assert_eq!(records[0]["peer"], "local");
        assert_eq!(records[0]["memory"], 16 << 20);
        assert_eq!(records.last().context("an outcome")?["outcome"], "completed");
    }
    assert_eq!(source[1]["strategy"], "hybrid:1");
    assert_eq!(source[1]["uid"], rustix::process::getuid().as_raw());
    // What was handed over is the same for both, down to the state of the vCPUs.
    let commits = [&source[3]["commit"], &target[2]["commit"]];
    assert_eq!(commits[0], commits[1]);
    assert_eq!(commits[0]["guest"], "vm");
    assert_eq!(commits[0]["state"].as_str().map(str::len), Some(64));
    assert_eq!(words(&source[1..], "session")[0], words(&target, "session")[0]);
    Ok(())
}

#[test]
fn cancelling_is_on_record_with_who_did_it() -> anyhow::Result<()> {
    let stage = Stage::new()?;
    let control = stage.source.control.display().to_string();
    let to = stage.target.listening()?.to_owned();
    let mut migration = stage
        .scene
        .start_migration(&stage.source, &to, "precopy", &["--bandwidth", "2MB/s"])?;
    let mut source = stage
        .scene
        .wait_status(stage.source, |status| status["state"] == "pre-copy")?;
    let cancelled = stage.scene.dunlin(["cancel", "--control", &control])?.wait(PATIENCE)?;
    ensure!(cancelled.code == Some(0), "{cancelled}");
    migration.wait(PATIENCE)?;
    stage
        .scene
        .poll_status(&mut source, |status| status["state"] == "running")?;
    let records = stage.scene.audit_records(&stage.source_state)?;
    assert_eq!(words(&records, "event"), ["started", "offer", "decision", "outcome"]);
    assert_eq!(records[2]["uid"], rustix::process::getuid().as_raw());
    assert_eq!(
        (&records[3]["outcome"], &records[3]["place"]),
        (&"aborted".into(), &"here".into())
    );
    Ok(())
}

/// Runs a migration of which one side dies, and checks the logs of both, at once and after the dead side's next process.
fn killed(stage: &mut Stage, side: Side, migration: &mut Dunlin, is_dead: impl Fn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + 2 * PATIENCE;
    while !is_dead() && migration.is_running() {
        ensure!(Instant::now() < deadline, "nothing was killed: {migration}");
        thread::sleep(Duration::from_millis(1));
    }
    stage.both_agree().context("when it had died")?;
    let victim = match side {
        Side::Source => &mut stage.source,
        Side::Target => &mut stage.target,
    };
    // Also if the migration was over before.
    victim.process.kill()?;
    stage.both_agree().context("with one side dead")?;
    // What comes next on that host finds what the dead one left, and says it.
    let again = stage.state(side).to_owned();
    let next = match side {
        Side::Source => stage.scene.guest("vm", &guest().with(["--state", &again])),
        Side::Target => stage.scene.receiver("again", &["--state", &again]),
    };
    let next = next.context("the next process")?;
    stage.both_agree().context("with the next process")?;
    if side == Side::Source {
        let places = stage.scene.audit_records(&again)?;
        let last = places.last().context("records")?;
        ensure!(last["event"] == "started" && last["place"] == "here", "{last}");
        // The VM before is another; nothing is left open of it that the record knew.
        let vm = &last["vm"];
        let before = places
            .iter()
            .rev()
            .find(|record| record["vm"] != *vm && record["place"].is_string());
        let before = before.context("the VM before")?;
        let recorded = places.iter().any(|record| record["event"] == "found");
        ensure!(
            before["place"] != "between" || before["event"] == "commit" || !recorded,
            "what its record says is not said: {before}"
        );
    }
    drop(next);
    Ok(())
}

#[test]
fn killing_either_side_at_any_place_leaves_logs_that_say_what_the_records_say() -> anyhow::Result<()> {
    let places = [
        Place::Hello,
        Place::Copy,
        Place::Pause,
        Place::HandOver,
        Place::Ready,
        Place::Commit,
        Place::Committed,
        Place::Running,
        Place::Complete,
    ];
    for (strategy, side) in [
        ("precopy", Side::Source),
        ("hybrid:1", Side::Target),
        ("precopy", Side::Target),
        ("hybrid:1", Side::Source),
    ] {
        for place in places {
            let mut stage = Stage::new()?;
            let trigger = Trigger::new(place, 1);
            let relay = Relay::start(stage.target.listening()?, Deed::Kill(side), trigger, Random::new(1))?;
            relay.between(stage.source.process.id(), stage.target.process.id());
            let to = relay.address().to_string();
            let mut migration =
                stage
                    .scene
                    .start_migration(&stage.source, &to, strategy, &["--network-timeout", "1s"])?;
            killed(&mut stage, side, &mut migration, || relay.has_struck())
                .with_context(|| format!("{side:?} killed at {place:?} of {strategy}"))?;
            relay.check()?;
            ensure!(relay.has_struck(), "{strategy} never came to {place:?}");
        }
    }
    Ok(())
}

#[test]
fn killing_either_side_at_any_time_leaves_logs_that_say_what_the_records_say() -> anyhow::Result<()> {
    let mut random = Random::new(11);
    for run in 0..24 {
        let mut stage = Stage::with_tls(run % 4 >= 2)?;
        let side = if run % 2 == 0 { Side::Source } else { Side::Target };
        // Most of it is over the hand-over: a fast link, and a guest that is moved at once.
        let moment = Duration::from_micros(random.next() % 60_000);
        let to = stage.target.listening()?.to_owned();
        let credentials = stage.credentials.iter().map(String::as_str);
        let arguments = ["--min-round", "1ms", "--network-timeout", "1s"].into_iter();
        let arguments: Vec<&str> = arguments.chain(credentials).collect();
        let mut migration = stage
            .scene
            .start_migration(&stage.source, &to, "hybrid:1", &arguments)?;
        let pid = match side {
            Side::Source => stage.source.process.id(),
            Side::Target => stage.target.process.id(),
        };
        thread::sleep(moment);
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).context("a process")?;
        // It may have ended by itself.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        killed(&mut stage, side, &mut migration, || true)
            .with_context(|| format!("run {run}: {side:?} killed after {moment:?}"))?;
    }
    Ok(())
}

#[test]
fn whatever_is_done_to_a_log_shows() -> anyhow::Result<()> {
    let mut stage = Stage::new()?;
    stage.scene.migrate(&stage.source, &stage.target, "precopy", &[])?;
    stage.source.moved_away()?;
    let path = stage.log(Side::Source);
    let whole = fs::read_to_string(&path)?;
    let head = stage.verify(Side::Source, &[])?.json()?["head"]
        .as_str()
        .context("a head")?
        .to_owned();
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    assert_eq!(lines.len(), 6);
    let expect = |what: &str, text: &str, extra: &[&str], line: u64, kind: &str| -> anyhow::Result<()> {
        fs::write(&path, text)?;
        let found = stage.verify(Side::Source, extra)?;
        ensure!(found.code == Some(1), "{what}: {found}");
        let problem = found.json()?["problem"].clone();
        ensure!(problem["line"] == line && problem["kind"] == kind, "{what}: {found}");
        Ok(())
    };
    // One byte of each class: keys, values, numbers, times, hashes, quotes, braces, commas, spaces added, ends of lines.
    let third = lines[..2].concat();
    for (what, old, new) in [
        ("a key", "\"event\"", "\"evemt\""),
        ("an event", "\"offer\"", "\"offep\""),
        ("the user", "\"uid\":", "\"uid\":1"),
        ("a number", "\"number\":2", "\"number\":3"),
        ("the time", "\"time\":\"2", "\"time\":\"1"),
        ("the decision", "accepted", "refused"),
        ("the session", "\"session\":\"", "\"session\":\"0"),
        ("the chain", "\"previous\":\"", "\"previous\":\"0"),
        ("the hash", "\"hash\":\"", "\"hash\":\"0"),
        ("a quote", "\"role\"", "'role'"),
        ("a brace", "{", "["),
        ("a comma", ",\"time\"", ";\"time\""),
        ("a space", ",\"time\"", ", \"time\""),
        ("the end of the line", "\n", ""),
    ] {
        let edited = format!("{third}{}{}", lines[2].replacen(old, new, 1), lines[3..].concat());
        ensure!(edited != whole, "{what} is not there: {}", lines[2]);
        expect(what, &edited, &[], 3, "edited")?;
    }
    expect("no header", &lines[1..].concat(), &[], 1, "no-header")?;
    expect(
        "a line removed",
        &[lines[0], lines[1], lines[3]].concat(),
        &[],
        3,
        "removed",
    )?;
    expect(
        "lines swapped",
        &[lines[0], lines[2], lines[1], lines[3]].concat(),
        &[],
        2,
        "reordered",
    )?;
    expect(
        "a line repeated",
        &[lines[0], lines[1], lines[1], lines[2]].concat(),
        &[],
        3,
        "repeated",
    )?;
    expect(
        "the end cut off",
        &lines[..4].concat(),
        &["--head", &head],
        4,
        "head-missing",
    )?;
    // A process refuses to add to it, and says what to do.
    let edited = whole.replacen("accepted", "refused", 1);
    fs::write(&path, &edited)?;
    let control = stage.scene.control("late").display().to_string();
    let arguments = guest()
        .with(["--state", &stage.source_state, "--control", &control])
        .args();
    let refused = stage.scene.dunlin(arguments)?.wait(PATIENCE)?;
    ensure!(
        refused.code == Some(2) && refused.stderr.contains("line 3 was edited"),
        "{refused}"
    );
    ensure!(fs::read_to_string(&path)? == edited, "the evidence was changed");
    Ok(())
}

#[test]
fn a_line_torn_by_a_crash_is_ended_and_said() -> anyhow::Result<()> {
    let stage = Stage::new()?;
    let Stage { mut source, scene, .. } = stage;
    source.process.kill()?;
    let path = PathBuf::from(&stage.source_state).join("audit.jsonl");
    let mut torn = fs::read(&path)?;
    torn.extend_from_slice(b"{\"number\":2,\"previous\":\"0");
    fs::write(&path, &torn)?;
    let found = scene.audited(&stage.source_state)?;
    assert_eq!(found["unfinished_bytes"], 25);
    let again = scene.guest("vm", &guest().with(["--state", &stage.source_state]))?;
    ensure!(
        again.process.stderr().contains("was not written to its end"),
        "nothing is said: {}",
        again.process.stderr()
    );
    let found = scene.audited(&stage.source_state)?;
    assert_eq!(
        (&found["torn_lines"], &found["unfinished_bytes"]),
        (&1.into(), &0.into())
    );
    let records = scene.audit_records(&stage.source_state)?;
    assert_eq!(words(&records, "event"), ["started", "torn", "started"]);
    ensure!(fs::read(&path)?.starts_with(&torn), "what was torn is kept");
    Ok(())
}

#[test]
fn a_dead_process_s_guest_that_is_given_up_by_hand_is_on_record() -> anyhow::Result<()> {
    let mut stage = Stage::new()?;
    stage.scene.migrate(&stage.source, &stage.target, "precopy", &[])?;
    stage.target.process.kill()?;
    let resolved = stage
        .scene
        .dunlin(["resolve", "--give-up", "--state", &stage.target_state])?
        .wait(PATIENCE)?;
    ensure!(resolved.code == Some(0), "{resolved}");
    stage.both_agree()?;
    let records = stage.scene.audit_records(&stage.target_state)?;
    let last = records.last().context("records")?;
    assert_eq!(
        (&last["outcome"], &last["place"]),
        (&"given-up".into(), &"elsewhere".into())
    );
    Ok(())
}
