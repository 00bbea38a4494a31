//! Each bad certificate, file and peer: refused in plain words, and the guest stays where it is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::ensure;
use dunlin_tests::process::{comes_true, run};
use dunlin_tests::scene::{GuestOptions, Host, Kind, PATIENCE, Scene};
use rcgen::date_time_ymd;

use super::hosts::{Hosts, SOURCE, TARGET, tls, words};

fn idle_guest() -> GuestOptions {
    GuestOptions::new(Kind::best(), "idle").memory("8MiB")
}

/// The migration does not succeed, somebody says these words, and the guest runs on.
fn is_refused(hosts: &Hosts, source: &Host, target: &Host, arguments: &[String], said: &[&str]) -> anyhow::Result<()> {
    let finished = hosts
        .scene
        .start_migration(source, target.listening()?, "postcopy", &words(arguments, &[]))?
        .wait(PATIENCE)?;
    ensure!(finished.code.is_some_and(|code| code == 1 || code == 2), "{finished}");
    let everything = || format!("{finished}\n{}\n{}", target.process.stderr(), source.process.stderr());
    for words in said {
        let is_said = comes_true(PATIENCE, || everything().contains(words));
        ensure!(is_said, "nobody says `{words}`: {}", everything());
    }
    let status = hosts.scene.status(source)?;
    ensure!(status["state"] == "running", "the guest should run on: {status}");
    Ok(())
}

/// Nothing of all that was in vain: with the right credentials it moves.
fn moves(hosts: &Hosts, source: &mut Host, target: &Host) -> anyhow::Result<()> {
    let arguments = hosts.as_source(TARGET)?;
    hosts
        .scene
        .migrate(source, target, "hybrid:1", &words(&arguments, &["--verify"]))?;
    source.moved_away()?;
    Ok(())
}

#[test]
fn bad_sources() -> anyhow::Result<()> {
    let hosts = Hosts::new()?;
    let others = Hosts::new()?;
    let mut source = hosts.guest(&idle_guest())?;
    let target = hosts.target(&[])?;
    let past = hosts.spoilt(SOURCE, "past", |about| {
        about.not_before = date_time_ymd(2001, 1, 1);
        about.not_after = date_time_ymd(2002, 2, 3);
    })?;
    let future = hosts.spoilt(SOURCE, "future", |about| about.not_before = date_time_ymd(3001, 1, 1))?;
    let nobody = hosts.spoilt(SOURCE, "nobody", |about| about.subject_alt_names.clear())?;
    let open = hosts.copy(SOURCE, "open")?;
    fs::set_permissions(open.join("key.pem"), PermissionsExt::from_mode(0o644))?;
    let mixed = hosts.copy(SOURCE, "mixed")?;
    fs::copy(hosts.directory(TARGET)?.join("key.pem"), mixed.join("key.pem"))?;
    let bare = hosts.copy(SOURCE, "bare")?;
    fs::remove_file(bare.join("cert.pem"))?;
    let broken = hosts.copy(SOURCE, "broken")?;
    fs::write(broken.join("ca.pem"), "no certificate")?;
    let cases: [(&Path, &[&str]); 8] = [
        (&past, &["ended at 2002-02-03T00:00:00Z", "clock"]),
        (&future, &["begins at 3001-01-01T00:00:00Z", "clock"]),
        (&nobody, &["names nobody"]),
        (&open, &["chmod 600"]),
        (&mixed, &["does not belong to the certificate"]),
        (&bare, &["cannot read", "cert.pem"]),
        (&broken, &["ca.pem holds no certificate"]),
        // Good in itself, but of another authority: each side says so in its way.
        (
            &others.directory(SOURCE)?,
            &["not signed by the authority", "another authority has signed it"],
        ),
    ];
    for (credentials, said) in cases {
        is_refused(&hosts, &source, &target, &tls(credentials, TARGET), said)?;
    }
    is_refused(&hosts, &source, &target, &[], &["speaks TLS", "speaks no TLS"])?;
    moves(&hosts, &mut source, &target)
}

#[test]
fn bad_targets() -> anyhow::Result<()> {
    let hosts = Hosts::new()?;
    hosts.issue("host-c.test")?;
    let mut source = hosts.guest(&idle_guest())?;
    let target = hosts.target(&[])?;
    let other = hosts.receiver("other", &hosts.directory("host-c.test")?, &[])?;
    let right = hosts.as_source(TARGET)?;
    is_refused(
        &hosts,
        &source,
        &other,
        &right,
        &["it is host-c.test, and host-b.test was expected"],
    )?;
    // By its address nobody can tell who it is.
    let unnamed = right[..2].to_vec();
    is_refused(
        &hosts,
        &source,
        &target,
        &unnamed,
        &["127.0.0.1 is an address", "--peer"],
    )?;
    let plain = hosts.scene.receiver("plain", &[])?;
    is_refused(&hosts, &source, &plain, &right, &["speaks no TLS", "speaks TLS"])?;
    moves(&hosts, &mut source, &target)
}

#[test]
fn revoked_while_the_receiver_waits() -> anyhow::Result<()> {
    let hosts = Hosts::new()?;
    let mut source = hosts.guest(&idle_guest())?;
    let target = hosts.target(&[])?;
    // The source knows nothing of it yet.
    let unaware = hosts.copy(SOURCE, "unaware")?;
    hosts.revoke(SOURCE)?;
    is_refused(
        &hosts,
        &source,
        &target,
        &tls(&unaware, TARGET),
        &["is revoked by the authority's list", "its authority has revoked it"],
    )?;
    fs::rename(hosts.directory(SOURCE)?, hosts.scene.folder().join("revoked"))?;
    hosts.issue(SOURCE)?;
    moves(&hosts, &mut source, &target)
}

#[test]
fn nothing_leaves_the_host_in_plain_unless_somebody_says_so() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let control = scene.control("target").display().to_string();
    let receive = ["receive", "--listen", "0.0.0.0:0", "--control", &control, "--json"];
    let refused = run(scene.folder(), receive, PATIENCE)?;
    ensure!(refused.code == Some(2), "{refused}");
    for words in ["--tls-dir", "--insecure", "dunlin pki"] {
        ensure!(refused.stderr.contains(words), "{refused}");
    }
    let mut open = scene.dunlin(receive.iter().chain(&["--insecure"]))?;
    open.wait_for_schema("dunlin.receive.v1", PATIENCE)?;
    ensure!(open.stderr().contains("warning: --insecure"), "{}", open.stderr());

    let source = scene.guest("source", &idle_guest())?;
    let finished = scene
        .start_migration(&source, "host-b.test:7000", "precopy", &[])?
        .wait(PATIENCE)?;
    ensure!(
        finished.code == Some(2) && finished.stderr.contains("--insecure"),
        "{finished}"
    );
    Ok(())
}
