//! Who may move what: refused before anything is begun, on both sides, and on record.

use std::fs;
use std::net::TcpListener;

use anyhow::{Context as _, ensure};
use dunlin_tests::netns::Network;
use dunlin_tests::process::Finished;
use dunlin_tests::scene::{GuestOptions, Host, Kind, PATIENCE, Scene};
use dunlin_tests::{Capability, require};
use serde_json::Value;

fn guest() -> GuestOptions {
    GuestOptions::new(Kind::Thread, "idle")
        .memory("16MiB")
        .with(["--fill", "random"])
}

/// A guest and a receiver, each with a policy and a state directory of its own.
struct Stage {
    source: Host,
    target: Host,
    states: [String; 2],
    policies: [String; 2],
    scene: Scene,
}

const EVERYTHING: &str = "[[rule]]\nverdict = \"allow\"\npeer = \"local\"\n";

impl Stage {
    fn new(source_policy: &str, target_policy: &str) -> anyhow::Result<Self> {
        let scene = Scene::new()?;
        let states = [scene.subfolder("source-state")?, scene.subfolder("target-state")?];
        let policies = [
            scene.file("source.toml", source_policy)?,
            scene.file("target.toml", target_policy)?,
        ];
        let options = guest().with(["--state", &states[0], "--policy", &policies[0]]);
        let source = scene.guest("web-1", &options)?;
        let target = scene.receiver("target", &["--state", &states[1], "--policy", &policies[1]])?;
        Ok(Self {
            source,
            target,
            states,
            policies,
            scene,
        })
    }

    fn migrate(&self, extra: &[&str]) -> anyhow::Result<Finished> {
        let to = self.target.listening()?.to_owned();
        self.scene
            .start_migration(&self.source, &to, "precopy", extra)?
            .wait(PATIENCE)
    }

    /// The offers in the log of the source or the target.
    fn offers(&self, side: usize) -> anyhow::Result<Vec<Value>> {
        self.scene.audited(&self.states[side])?;
        let records = self.scene.audit_records(&self.states[side])?;
        Ok(records
            .into_iter()
            .filter(|record| record["event"] == "offer")
            .collect())
    }

    fn expect_both_wait(&self) -> anyhow::Result<()> {
        ensure!(
            self.scene.status(&self.source)?["state"] == "running",
            "the guest should run on"
        );
        ensure!(
            self.scene.status(&self.target)?["state"] == "waiting",
            "the target should wait on"
        );
        Ok(())
    }
}

#[test]
fn a_guest_that_may_not_come_is_refused_and_on_record_on_both_hosts() -> anyhow::Result<()> {
    let deny = "# Not this one.\n[[rule]]\nverdict = \"deny\"\npeer = \"local\"\nguest = \"web-*\"\n";
    let stage = Stage::new(EVERYTHING, &format!("{deny}{EVERYTHING}"))?;
    let refused = stage.migrate(&[])?;
    let report = refused.json()?;
    ensure!(
        refused.code == Some(1) && report["outcome"] == "failed",
        "it should be refused: {refused}"
    );
    let reason = report["reason"].to_string();
    ensure!(
        reason.contains("policy does not allow it") && !reason.contains("rule"),
        "the peer is told that, not why: {reason}"
    );
    stage.expect_both_wait()?;
    let there = stage.offers(1)?;
    assert_eq!(there.len(), 1);
    assert_eq!(
        (&there[0]["decision"], &there[0]["rule"]),
        (&"refused".into(), &"rule 1 (line 2)".into())
    );
    assert_eq!(
        (&there[0]["guest"], &there[0]["place"]),
        (&"web-1".into(), &Value::Null)
    );
    let records = stage.scene.audit_records(&stage.states[0])?;
    let last = records.last().context("an outcome")?;
    assert_eq!((&last["outcome"], &last["place"]), (&"refused".into(), &"here".into()));
    Ok(())
}

#[test]
fn a_guest_that_may_not_leave_is_refused_before_anybody_is_connected_to() -> anyhow::Result<()> {
    let stage = Stage::new(
        "[[rule]]\nverdict = \"allow\"\npeer = \"local\"\ndirection = \"in\"\n",
        EVERYTHING,
    )?;
    let nobody = TcpListener::bind("127.0.0.1:0")?;
    nobody.set_nonblocking(true)?;
    let to = nobody.local_addr()?.to_string();
    let refused = stage
        .scene
        .start_migration(&stage.source, &to, "precopy", &[])?
        .wait(PATIENCE)?;
    ensure!(
        refused.code == Some(2) && refused.stderr.contains("no rule of the policy fits"),
        "{refused}"
    );
    ensure!(nobody.accept().is_err(), "it was connected to");
    stage.expect_both_wait()?;
    let here = stage.offers(0)?;
    assert_eq!(here.len(), 1);
    assert_eq!(here[0]["decision"], "refused");
    assert_eq!(here[0]["uid"], rustix::process::getuid().as_raw());
    Ok(())
}

#[test]
fn a_broken_policy_refuses_everything_until_it_is_mended() -> anyhow::Result<()> {
    let stage = Stage::new(EVERYTHING, "[[rule]]\nverdict = \"allow\"\npeer = \"lo*cal\"\n")?;
    let place = format!("{}:3:8: a * may stand once", stage.policies[1]);
    let said = stage.target.process.stderr();
    ensure!(said.contains(&place), "said at once: {said}");
    let refused = stage.migrate(&[])?;
    ensure!(refused.code == Some(1), "{refused}");
    ensure!(!refused.json()?["reason"].to_string().contains("toml"), "{refused}");
    let there = stage.offers(1)?;
    let reason = there[0]["reason"].as_str().context("a reason")?;
    ensure!(reason.contains(&place), "{reason}");
    stage.expect_both_wait()?;

    // The source's, too, without a restart; then both again.
    fs::write(&stage.policies[0], "rule = 3")?;
    let refused = stage.migrate(&[])?;
    ensure!(
        refused.code == Some(2) && refused.stderr.contains("source.toml:1:8"),
        "{refused}"
    );
    fs::remove_file(&stage.policies[0])?;
    ensure!(
        stage.migrate(&[])?.code == Some(2),
        "a policy that is gone allows nothing"
    );
    for policy in &stage.policies {
        fs::write(policy, EVERYTHING)?;
    }
    let moved = stage.migrate(&[])?;
    ensure!(moved.code == Some(0), "{moved}");
    let decisions: Vec<Value> = stage.offers(0)?.iter().map(|offer| offer["decision"].clone()).collect();
    assert_eq!(decisions, ["accepted", "refused", "refused", "accepted"]);
    Ok(())
}

#[test]
fn limits_of_memory_and_bandwidth_hold_on_either_side() -> anyhow::Result<()> {
    let small = "[[rule]]\nverdict = \"allow\"\npeer = \"local\"\nmemory = \"15MiB\"\n";
    let stage = Stage::new(EVERYTHING, small)?;
    ensure!(stage.migrate(&[])?.code == Some(1));
    ensure!(stage.offers(1)?[0]["reason"].to_string().contains("15.0 MiB"));
    let slow = "[[rule]]\nverdict = \"allow\"\npeer = \"local\"\nbandwidth = \"16MB/s\"\n";
    for (source, target) in [(slow, EVERYTHING), (EVERYTHING, slow)] {
        let stage = Stage::new(source, target)?;
        let moved = stage.migrate(&["--bandwidth", "1GB/s"])?;
        let report = moved.json()?;
        ensure!(report["outcome"] == "completed", "{moved}");
        // 16 MiB at 16 MB/s take a second; what may come at once does not make up for half of it.
        let time = report["total_time_us"].as_u64().context("a time")?;
        ensure!(time > 500_000, "the limit did not hold: {report}");
    }
    Ok(())
}

#[test]
fn no_more_migrations_at_once_than_the_rule_says() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let counted = scene.subfolder("count")?;
    let policy = format!("count-in = \"{counted}\"\n{EVERYTHING}direction = \"in\"\nmigrations = 1\n");
    let policy = scene.file("policy.toml", &policy)?;
    let mut pairs = Vec::new();
    for index in 0..2 {
        let source = scene.guest(&format!("guest-{index}"), &guest())?;
        let target = scene.receiver(&format!("target-{index}"), &["--policy", &policy])?;
        pairs.push((source, target));
    }
    let begin = |pair: &(Host, Host), extra: &[&str]| {
        let to = pair.1.listening()?.to_owned();
        scene.start_migration(&pair.0, &to, "precopy", extra)
    };
    let mut slow = begin(&pairs[0], &["--bandwidth", "2MB/s"])?;
    scene.poll_status(&mut pairs[0].1, |status| status["state"] == "pre-copy")?;
    let refused = begin(&pairs[1], &[])?.wait(PATIENCE)?;
    ensure!(refused.code == Some(1), "two at once: {refused}");
    // A process that dies counts no more.
    pairs[0].1.process.kill()?;
    slow.wait(PATIENCE)?;
    let moved = begin(&pairs[1], &[])?.wait(PATIENCE)?;
    ensure!(moved.code == Some(0), "{moved}");
    Ok(())
}

#[test]
fn strangers_from_other_hosts_need_a_rule() -> anyhow::Result<()> {
    if !require(Capability::Netns) {
        return Ok(());
    }
    let network = Network::new("1gbit")?;
    let scene = Scene::new()?;
    let local = scene.file("local.toml", EVERYTHING)?;
    let source = scene.guest_in(Some(network.source()), "source", &guest())?;
    // The last --policy would be one too many: this one starts its own.
    let address = network.target_address();
    let control = scene.control("strict").display().to_string();
    let (namespace, dunlin) = (network.target(), dunlin_tests::process::binary()?.display().to_string());
    let words = [
        "netns",
        "exec",
        namespace,
        &dunlin,
        "receive",
        "--listen",
        &address,
        "--control",
        &control,
        "--json",
        "--policy",
        &local,
        "--insecure",
    ];
    let mut strict = dunlin_tests::process::Dunlin::start_program("ip".as_ref(), scene.folder(), words)?;
    let listening = strict.wait_for_schema("dunlin.receive.v1", PATIENCE)?["listening"]
        .as_str()
        .context("an address")?
        .to_owned();
    let refused = scene
        .start_migration(&source, &listening, "precopy", &[])?
        .wait(PATIENCE)?;
    ensure!(
        refused.code == Some(1) && refused.json()?["reason"].to_string().contains("policy"),
        "{refused}"
    );
    let target = scene.receiver_in(Some(network.target()), "open", &address, &[])?;
    scene.migrate(&source, &target, "precopy", &[])?;
    Ok(())
}

#[test]
fn a_policy_can_be_asked_beforehand() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let text = format!(
        "{EVERYTHING}[[rule]]\nverdict = \"allow\"\npeer = \"*.example.org\"\nguest = \"web-*\"\nmemory = \"1GiB\"\n"
    );
    let policy = scene.file("policy.toml", &text)?;
    let check = |extra: &[&str]| {
        let words = [&["policy", "check", &policy, "--json"], extra].concat();
        scene.dunlin(words)?.wait(PATIENCE)
    };
    let ask = |peer: &str, guest: &str, memory: &str| {
        check(&[
            "--peer",
            peer,
            "--guest",
            guest,
            "--memory",
            memory,
            "--direction",
            "out",
        ])
    };
    ensure!(check(&[])?.json()?["rules"] == 2);
    for (peer, guest, memory, code, rule) in [
        ("local", "db", "64GiB", 0, Value::from(1)),
        ("a.example.org", "web-1", "1GiB", 0, Value::from(2)),
        ("a.example.org", "web-1", "2GiB", 1, Value::from(2)),
        ("a.example.org", "db", "1GiB", 1, Value::Null),
        ("unknown", "web-1", "1GiB", 1, Value::Null),
    ] {
        let answer = ask(peer, guest, memory)?;
        let json = answer.json()?;
        ensure!(
            answer.code == Some(code) && json["allowed"] == (code == 0) && json["rule"] == rule,
            "{peer} {guest} {memory}: {answer}"
        );
    }
    fs::write(&policy, "[[rule]]\npeer = 3\n")?;
    let broken = check(&[])?;
    ensure!(
        broken.code == Some(2) && broken.stderr.contains("policy.toml:"),
        "{broken}"
    );
    Ok(())
}
