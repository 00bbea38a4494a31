//! The stream goes by TLS where it is to, and nowhere else than to whom it is meant for.

use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context as _, ensure};
use dunlin::guest::GuestConfig;
use dunlin_tests::wire::Mode;

use super::certificates::{Authority, NAME};
use super::pair::{PATIENCE, Pair, can_run, config, endless, expected, report};

/// What a TLS connection begins with (RFC 8446 5.1, a handshake), and what QEMU's own stream does (`QEVM`).
const HANDSHAKE: u8 = 0x16;
const QEVM: u8 = b'Q';

const TLS: [&str; 4] = ["--tls-creds", "tls0", "--tls-hostname", NAME];

/// Two QEMUs with these credentials under the id `tls0`.
fn pair(config: &GuestConfig, client: &Path, server: &Path) -> anyhow::Result<Pair> {
    let object = |folder: &Path, endpoint: &str| {
        let folder = folder.display();
        format!("tls-creds-x509,id=tls0,dir={folder},endpoint={endpoint},verify-peer=on")
    };
    let (client, server) = (object(client, "client"), object(server, "server"));
    Pair::with(config, [&["-object", &client], &["-object", &server]])
}

#[test]
fn memory_is_the_same_by_tls() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let authority = Authority::new("authority")?;
    let (client, server) = (authority.client()?, authority.server()?);
    for (strategy, more, connections) in [
        ("postcopy", &["--postcopy-bandwidth", "40MB/s"][..], 1),
        ("postcopy", &["--preempt", "--postcopy-bandwidth", "40MB/s"], 2),
        ("precopy", &["--multifd", "2"], 3),
    ] {
        let what = format!("{strategy} {more:?}");
        let mut pair = pair(&config(), client.path(), server.path())?;
        let before = pair.settings()?;
        let report = pair
            .migrate(strategy, &[&TLS[..], more].concat())
            .context(what.clone())?;
        ensure!(report["guest_is_on"] == "target", "{what}: {report}");
        let first = pair.wire.first_bytes();
        ensure!(first == vec![HANDSHAKE; connections], "{what}: not by TLS: {first:x?}");
        ensure!(
            pair.target.result()? == expected()?,
            "{what}: the memory differs: {report}"
        );
        ensure!(before == pair.settings()?, "{what}: settings were not put back");
    }
    Ok(())
}

/// Also after a cut: by TLS again.
#[test]
fn a_cut_in_post_copy_is_mended_by_tls() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let authority = Authority::new("authority")?;
    let (client, server) = (authority.client()?, authority.server()?);
    let mut pair = pair(&config(), client.path(), server.path())?;
    let more = [&TLS[..], &["--postcopy-bandwidth", "12MB/s"]].concat();
    let mut migration = pair.start("migrate", "postcopy", &more)?;
    pair.wait_until_it_runs_on_the_target()?;
    pair.wire.set(Mode::Cut)?;
    pair.wait_for("postcopy-paused")?;
    pair.wire.set(Mode::Whole)?;
    let finished = migration.wait(PATIENCE)?;
    ensure!(finished.code == Some(0), "{finished}");
    let first = pair.wire.first_bytes();
    ensure!(first == [HANDSHAKE; 2], "not by TLS: {first:x?}");
    ensure!(pair.target.result()? == expected()?, "the memory differs: {finished}");
    Ok(())
}

/// By the name in the address, with nothing said of it.
#[test]
fn the_certificate_s_name_is_the_host_s() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let authority = Authority::new("authority")?;
    let (client, server) = (authority.client()?, authority.server()?);
    let mut pair = pair(&config(), client.path(), server.path())?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    (pair.to, pair.listen) = (format!("tcp:localhost:{port}"), format!("tcp:127.0.0.1:{port}"));
    let report = pair.migrate("optimal", &["--tls-creds", "tls0"])?;
    ensure!(report["guest_is_on"] == "target", "{report}");
    ensure!(pair.target.result()? == expected()?, "the memory differs: {report}");
    Ok(())
}

#[test]
fn without_credentials_the_stream_is_qemu_s_own() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let pair = Pair::new(&config())?;
    pair.migrate("optimal", &[])?;
    let first = pair.wire.first_bytes();
    ensure!(first == [QEVM], "{first:x?}");
    Ok(())
}

/// Fails, says why, and leaves the source as it was. QEMU 7.2 ends on the target, unless it has noticed by itself.
fn refused(pair: &mut Pair, more: &[&str], why: &str) -> anyhow::Result<()> {
    let before = Pair::settings_of(&mut pair.source)?;
    let report = report(&pair.finish("optimal", more)?)?;
    let reason = report["reason"].as_str().unwrap_or_default();
    ensure!(
        report["outcome"] == "failed" && report["guest_is_on"] == "source" && reason.contains(why),
        "{report}"
    );
    let after = Pair::settings_of(&mut pair.source)?;
    ensure!(before == after, "settings were not put back: {after:?}");
    ensure!(pair.running()[1] != Some(true), "the guest runs twice");
    Pair::lives_on(&mut pair.source)
}

#[test]
fn a_target_of_another_authority_gets_nothing() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (client, server) = (Authority::new("one")?.client()?, Authority::new("other")?.server()?);
    let mut pair = pair(&endless(), client.path(), server.path())?;
    refused(&mut pair, &TLS, "certificate")
}

#[test]
fn a_target_of_another_name_gets_nothing() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let authority = Authority::new("authority")?;
    let (client, server) = (authority.client()?, authority.server()?);
    let mut pair = pair(&endless(), client.path(), server.path())?;
    let more = ["--tls-creds", "tls0", "--tls-hostname", "other.test"];
    refused(&mut pair, &more, "other.test")
}

#[test]
fn credentials_that_are_not_there_are_found_before() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut pair = Pair::new(&endless())?;
    let finished = pair.finish("optimal", &TLS)?;
    let said = finished.to_string();
    ensure!(finished.code == Some(2), "{said}");
    for side in ["source", "target"] {
        ensure!(
            said.contains(&format!("the {side} has no TLS credentials tls0")),
            "{said}"
        );
    }
    Pair::lives_on(&mut pair.source)
}
