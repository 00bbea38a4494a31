//! Hosts with good certificates, and policies that do not let them: refused in either direction, and on record.

use std::fs;

use anyhow::{Context as _, ensure};
use dunlin_tests::oracle::expect_verified;
use dunlin_tests::process::Finished;
use dunlin_tests::scene::{GuestOptions, Host, Kind, PATIENCE};
use serde_json::Value;

use super::hosts::{Hosts, SOURCE, TARGET, words};

/// Loopback counts as this host, so what is tested here needs policies that say nothing of it.
fn only(peer: &str, guest: &str) -> String {
    format!("[[rule]]\nverdict = \"allow\"\npeer = {peer:?}\nguest = {guest:?}\n")
}

struct Stage {
    source: Host,
    target: Host,
    states: [String; 2],
    policies: [String; 2],
    hosts: Hosts,
}

impl Stage {
    fn new(source_policy: &str, target_policy: &str) -> anyhow::Result<Self> {
        let hosts = Hosts::new()?;
        let scene = &hosts.scene;
        let states = [scene.subfolder("source-state")?, scene.subfolder("target-state")?];
        let policies = [
            scene.file("source.toml", source_policy)?,
            scene.file("target.toml", target_policy)?,
        ];
        let options = GuestOptions::new(Kind::Thread, "idle").memory("8MiB").with([
            "--fill",
            "random",
            "--state",
            &states[0],
            "--policy",
            &policies[0],
        ]);
        Ok(Self {
            source: hosts.guest(&options)?,
            target: hosts.target(&["--state", &states[1], "--policy", &policies[1]])?,
            states,
            policies,
            hosts,
        })
    }

    fn migrate(&self) -> anyhow::Result<Finished> {
        let credentials = self.hosts.as_source(TARGET)?;
        let (scene, to) = (&self.hosts.scene, self.target.listening()?);
        scene
            .start_migration(&self.source, to, "hybrid:1", &words(&credentials, &["--verify"]))?
            .wait(PATIENCE)
    }

    /// It is refused, nothing has moved, and this side's log says who wanted it.
    fn expect_refused(&self, side: usize, peer: &str) -> anyhow::Result<()> {
        let refused = self.migrate()?;
        ensure!(
            refused.code.is_some_and(|code| code == 1 || code == 2) && refused.to_string().contains("policy"),
            "{refused}"
        );
        self.hosts.scene.audited(&self.states[side])?;
        let records = self.hosts.scene.audit_records(&self.states[side])?;
        let last = records
            .iter()
            .rfind(|record: &&Value| record["event"] == "offer")
            .context("no offer is on record")?;
        ensure!(last["decision"] == "refused" && last["peer"] == peer, "{last}");
        ensure!(self.hosts.scene.status(&self.source)?["state"] == "running");
        ensure!(self.hosts.scene.status(&self.target)?["state"] == "waiting");
        Ok(())
    }
}

#[test]
fn a_known_host_without_a_rule_sends_nothing_here() -> anyhow::Result<()> {
    let to_target = only(TARGET, "*");
    for policy in [only("host-c.test", "*"), only(SOURCE, "db-*"), only("local", "db-*")] {
        Stage::new(&to_target, &policy)?.expect_refused(1, SOURCE)?;
    }
    Ok(())
}

#[test]
fn a_known_host_without_a_rule_gets_nothing_from_here() -> anyhow::Result<()> {
    let stage = Stage::new(&only("host-c.test", "*"), &only(SOURCE, "*"))?;
    stage.expect_refused(0, TARGET)?;
    // It was not even connected to.
    let records = stage.hosts.scene.audit_records(&stage.states[1])?;
    ensure!(records.iter().all(|record| record["event"] != "offer"), "{records:?}");
    Ok(())
}

/// As the README has it: one command on each host.
#[test]
fn a_rule_on_either_side_lets_it_move() -> anyhow::Result<()> {
    let mut stage = Stage::new("", "")?;
    let scene = &stage.hosts.scene;
    for (policy, peer) in stage.policies.iter().zip([TARGET, SOURCE]) {
        fs::remove_file(policy)?;
        let added = scene
            .dunlin(["policy", "allow", peer, "--policy", policy])?
            .wait(PATIENCE)?;
        ensure!(added.code == Some(0), "{added}");
    }
    let finished = stage.migrate()?;
    let report = finished.json().with_context(|| finished.to_string())?;
    ensure!(report["outcome"] == "completed", "{finished}");
    expect_verified(&report)?;
    stage.source.moved_away()?;
    Ok(())
}

/// Who is turned away by TLS is on record as well.
#[test]
fn a_stranger_is_on_record() -> anyhow::Result<()> {
    let stage = Stage::new(&only(TARGET, "*"), &only(SOURCE, "*"))?;
    let others = Hosts::new()?;
    let credentials = others.as_source(TARGET)?;
    let to = stage.target.listening()?;
    let refused = stage
        .hosts
        .scene
        .start_migration(&stage.source, to, "hybrid:1", &words(&credentials, &[]))?
        .wait(PATIENCE)?;
    ensure!(refused.code == Some(1), "{refused}");
    stage.hosts.scene.audited(&stage.states[1])?;
    let records = stage.hosts.scene.audit_records(&stage.states[1])?;
    let refusal = records.last().context("nothing is on record")?;
    ensure!(
        refusal["event"] == "offer"
            && refusal["decision"] == "refused"
            && refusal["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains("authority")),
        "{refusal}"
    );
    Ok(())
}
