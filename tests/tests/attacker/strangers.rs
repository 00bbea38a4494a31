//! Others who reach the target: with a good certificate, or with what they heard.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dunlin::channel::{Cancel, ChannelError, Stream, Wait, connect};
use dunlin::trust::{Files, TrustError, Visit};
use dunlin_core::message::SessionId;
use dunlin_tests::oracle::expect_verified;
use dunlin_tests::process::{Dunlin, comes_true};
use dunlin_tests::scene::{GuestOptions, Host, Kind, PATIENCE};
use dunlin_tests::tap::Tap;
use serde_json::Value;

use super::hosts::{Hosts, SOURCE, TARGET, words};

/// A guest in post-copy, over a link so slow that it stays there for a while.
struct Story {
    migration: Dunlin,
    source: Host,
    target: Host,
    session: SessionId,
    hosts: Hosts,
}

impl Story {
    fn new() -> anyhow::Result<Self> {
        let hosts = Hosts::new()?;
        let options = GuestOptions::new(Kind::best(), "idle")
            .memory("16MiB")
            .with(["--fill", "random"]);
        let source = hosts.guest(&options)?;
        let mut target = hosts.target(&[])?;
        let credentials = hosts.as_source(TARGET)?;
        let arguments = words(&credentials, &["--verify", "--bandwidth", "4MB/s"]);
        let migration = hosts
            .scene
            .start_migration(&source, target.listening()?, "postcopy", &arguments)?;
        let status = hosts
            .scene
            .poll_status(&mut target, |status| status["state"] == "post-copy")?;
        Ok(Self {
            session: session(&status)?,
            migration,
            source,
            target,
            hosts,
        })
    }

    /// Somebody with these credentials says to be of the session.
    fn visit(&self, credentials: &Path) -> anyhow::Result<Result<Stream, ChannelError>> {
        let cancel = Cancel::new();
        let wait = Wait::within(PATIENCE, &cancel);
        let stream = connect(&self.target.listening()?.parse()?, wait)?;
        let visit = Visit::new(Files::new(credentials), TARGET.parse()?, self.session);
        Ok(visit.enter(stream, wait))
    }

    /// All that went on beside it did the guest no harm.
    fn arrives(mut self) -> anyhow::Result<String> {
        let finished = self.migration.wait(2 * PATIENCE)?;
        let report = finished.json()?;
        ensure!(report["outcome"] == "completed", "{finished}");
        expect_verified(&report)?;
        self.source.moved_away()?;
        let status = self.hosts.scene.status(&self.target)?;
        ensure!(status["state"] == "running", "{status}");
        Ok(self.target.process.stderr())
    }
}

fn session(status: &Value) -> anyhow::Result<SessionId> {
    let text = status["session"].as_str().context("the status names no session")?;
    Ok(SessionId(u128::from_str_radix(text, 16)?))
}

fn turned_away(end: Result<Stream, ChannelError>) -> anyhow::Result<()> {
    match end {
        Err(ChannelError::Trust { source, .. }) if matches!(*source, TrustError::TurnedAway) => Ok(()),
        other => bail!("should be turned away: {other:?}"),
    }
}

/// A process with the right certificate, at the right address, but without the memory of the session: it is told nothing, and gets
/// nothing.
#[test]
fn a_target_that_lost_its_memory_gets_no_pages() -> anyhow::Result<()> {
    let Story {
        migration: _migration,
        mut source,
        mut target,
        hosts,
        ..
    } = Story::new()?;
    let address = target.listening()?.to_owned();
    target.process.kill()?;
    hosts
        .scene
        .poll_status(&mut source, |status| status["state"] == "post-copy-paused")?;
    let credentials = hosts.directory(TARGET)?.display().to_string();
    let again = hosts
        .scene
        .receiver_at("again", &address, &["--tls-dir", &credentials])?;
    let has_come = || again.process.stderr().matches("came back").count() >= 2;
    ensure!(
        comes_true(PATIENCE, has_come),
        "nobody comes: {}",
        again.process.stderr()
    );
    let status = hosts.scene.status(&source)?;
    ensure!(status["state"] == "post-copy-paused", "{status}");
    let status = hosts.scene.status(&again)?;
    ensure!(status["state"] == "waiting", "{status}");
    Ok(())
}

/// Connections that never begin a handshake, and such that never end it, keep nobody out.
#[test]
fn half_open_handshakes_keep_nobody_out() -> anyhow::Result<()> {
    /// More than a receiver hears at a time.
    const HELD: usize = 100;
    /// The beginning of a record, with a handshake message of which no more comes.
    const BEGINNING: [u8; 11] = [22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3];
    let hosts = Hosts::new()?;
    let options = GuestOptions::new(Kind::best(), "idle")
        .memory("8MiB")
        .with(["--fill", "random"]);
    let mut source = hosts.guest(&options)?;
    let target = hosts.target(&[])?;
    let (address, over) = (target.listening()?.to_owned(), AtomicBool::new(false));
    thread::scope(|scope| {
        let attacking = scope.spawn(|| -> anyhow::Result<()> {
            let mut held = VecDeque::new();
            for number in 0.. {
                if over.load(Ordering::Acquire) {
                    break;
                }
                let mut stream = TcpStream::connect(&address)?;
                if number % 2 == 0 {
                    // It may have been closed already.
                    let _ = stream.write_all(&BEGINNING);
                }
                held.push_back(stream);
                if held.len() > HELD {
                    held.pop_front();
                    thread::sleep(Duration::from_millis(1));
                }
            }
            Ok(())
        });
        let deadline = Instant::now() + PATIENCE;
        let moved = loop {
            if target.process.stderr().contains("refused a connection") {
                let credentials = hosts.as_source(TARGET)?;
                let arguments = words(&credentials, &["--verify"]);
                break hosts.scene.migrate(&source, &target, "hybrid:1", &arguments);
            }
            if Instant::now() > deadline {
                break Err(anyhow::anyhow!("nobody is refused"));
            }
            thread::sleep(Duration::from_millis(5));
        };
        over.store(true, Ordering::Release);
        attacking.join().expect("an attacker does not panic")?;
        expect_verified(&moved?)
    })?;
    source.moved_away()?;
    Ok(())
}

/// Everybody knows the session's name, and no certificate helps.
#[test]
fn a_second_client_cannot_join() -> anyhow::Result<()> {
    let story = Story::new()?;
    story.hosts.issue("host-m.test")?;
    for name in ["host-m.test", SOURCE] {
        turned_away(story.visit(&story.hosts.directory(name)?)?)?;
    }
    let log = story.arrives()?;
    ensure!(
        log.contains("host-m.test wanted to begin a session that is there already"),
        "{log}"
    );
    Ok(())
}

/// What went to the target once means nothing the second time.
#[test]
fn a_recorded_session_cannot_be_replayed() -> anyhow::Result<()> {
    let hosts = Hosts::new()?;
    let options = GuestOptions::new(Kind::best(), "idle")
        .memory("8MiB")
        .with(["--fill", "random"]);
    let source = hosts.guest(&options)?;
    let target = hosts.target(&[])?;
    let tap = Tap::start(target.listening()?)?;
    let credentials = hosts.as_source(TARGET)?;
    let finished = hosts
        .scene
        .start_migration(
            &source,
            &tap.address().to_string(),
            "postcopy",
            &words(&credentials, &[]),
        )?
        .wait(PATIENCE)?;
    ensure!(finished.json()?["outcome"] == "completed", "{finished}");

    let mut second = hosts.receiver("second", &hosts.directory(TARGET)?, &[])?;
    let heard = tap.heard();
    ensure!(heard.len() >= 2, "two channels were to be heard, not {}", heard.len());
    let cancel = Cancel::new();
    let wait = Wait::within(PATIENCE, &cancel);
    for [there, _] in &heard {
        let stream = connect(&second.listening()?.parse()?, wait)?;
        // The end may come in the middle.
        let _ = stream.write_all(there, wait);
        stream.finish();
        let mut answer = vec![0; 64 << 10];
        while matches!(stream.read_some(&mut answer, wait), Ok(1..)) {}
    }
    let status = hosts
        .scene
        .poll_status(&mut second, |status| status["state"] == "waiting")?;
    ensure!(status["session"].is_null(), "{status}");
    let refused = || second.process.stderr().matches("refused a connection").count();
    comes_true(PATIENCE, || refused() >= heard.len());
    ensure!(refused() == heard.len(), "{}", second.process.stderr());
    Ok(())
}
