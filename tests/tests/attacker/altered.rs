//! Bytes of every kind that are altered or lost on the way: always noticed, and the guest is whole where it is in the end.

use anyhow::{Context as _, ensure};
use dunlin::channel::{Direction, Fault, FaultKind, FaultProxy};
use dunlin_tests::oracle::{expect_same_memory, expect_verified};
use dunlin_tests::process::comes_true;
use dunlin_tests::scene::{GuestOptions, Host, Kind, PATIENCE};
use serde_json::Value;

use super::hosts::{Hosts, TARGET, words};

/// Says so on either side that something is wrong with the connection.
const NOTICED: [&str; 10] = [
    "was altered on the way",
    "speaks no TLS",
    "speaks TLS",
    "another TLS",
    "hung up in the middle",
    "TLS: ",
    "not the one that the migration began with",
    "refuses this host's certificate",
    "is no dunlin",
    "certificate cannot be read",
];

/// One that is there as long as it takes.
fn idle() -> GuestOptions {
    GuestOptions::new(Kind::Thread, "idle")
        .memory("8MiB")
        .with(["--fill", "random"])
}

/// One that writes, whose memory is known in the end.
fn busy() -> GuestOptions {
    GuestOptions::new(Kind::Thread, "uniform,rate=2000")
        .memory("8MiB")
        .steps(4000)
        .with(["--fill", "random"])
}

/// A byte of the stream, by what it is.
struct Place {
    name: &'static str,
    direction: Direction,
    after_bytes: u64,
}

/// The bytes of the first connection, from the first one on: what TLS is made of, what it carries, and what comes back.
const PLACES: [Place; 14] = [
    place("type of the first record", Direction::Forward, 0),
    place("version of the first record", Direction::Forward, 1),
    place("length of the first record", Direction::Forward, 4),
    place("first message of the handshake", Direction::Forward, 5),
    place("random number of the client", Direction::Forward, 20),
    place("key share of the client", Direction::Forward, 150),
    place("certificate of the source", Direction::Forward, 500),
    place("pages", Direction::Forward, 100_000),
    place("more pages", Direction::Forward, 3_000_001),
    place("type of the first record back", Direction::Back, 0),
    place("length of the first record back", Direction::Back, 3),
    place("random number of the server", Direction::Back, 30),
    place("certificate of the target", Direction::Back, 500),
    place("key share of the server", Direction::Back, 90),
];

const fn place(name: &'static str, direction: Direction, after_bytes: u64) -> Place {
    Place {
        name,
        direction,
        after_bytes,
    }
}

/// What became of a migration over a network with this fault on the connection of this number.
struct End {
    report: Value,
    said: String,
    /// Whether somebody said that something was wrong.
    has_noticed: bool,
    source: Host,
    target: Host,
    hosts: Hosts,
    /// Whether so much went over the network that the fault came to pass.
    was_met: bool,
}

fn migrate(
    guest: &GuestOptions,
    place: &Place,
    connection: usize,
    kind: FaultKind,
    strategy: &str,
) -> anyhow::Result<End> {
    let hosts = Hosts::new()?;
    let source = hosts.guest(guest)?;
    let target = hosts.target(&[])?;
    let fault = Fault {
        connection,
        direction: place.direction,
        after_bytes: place.after_bytes,
        kind,
    };
    let proxy = FaultProxy::start(&"127.0.0.1:0".parse()?, &target.listening()?.parse()?, vec![fault])?;
    let credentials = hosts.as_source(TARGET)?;
    let arguments = words(&credentials, &["--verify", "--network-timeout", "3s"]);
    let to = proxy.address().to_string();
    let finished = hosts
        .scene
        .start_migration(&source, &to, strategy, &arguments)?
        .wait(2 * PATIENCE)?;
    let said = || format!("{finished}\n{}\n{}", source.process.stderr(), target.process.stderr());
    let has_noticed = comes_true(PATIENCE, || {
        let said = said();
        NOTICED.iter().any(|words| said.contains(words))
    });
    let (report, said) = (finished.json().unwrap_or_default(), said());
    Ok(End {
        report,
        said,
        has_noticed,
        source,
        target,
        hosts,
        was_met: proxy.passed(place.direction) > place.after_bytes,
    })
}

impl End {
    fn expect_noticed(&self) -> anyhow::Result<()> {
        ensure!(self.was_met, "the fault never came to pass: {}", self.said);
        ensure!(self.has_noticed, "nobody notices: {}", self.said);
        Ok(())
    }

    /// The guest did not move; it does when nobody alters anything.
    fn expect_guest_stayed(mut self) -> anyhow::Result<()> {
        ensure!(
            self.report["outcome"] != "completed",
            "it should not have moved: {}",
            self.said
        );
        let credentials = self.hosts.as_source(TARGET)?;
        let arguments = words(&credentials, &["--verify"]);
        let report = self
            .hosts
            .scene
            .migrate(&self.source, &self.target, "hybrid:1", &arguments)?;
        expect_verified(&report)?;
        self.source.moved_away()?;
        Ok(())
    }

    /// It moved in spite of it, and is the same.
    fn expect_guest_moved(mut self) -> anyhow::Result<()> {
        ensure!(
            self.report["outcome"] == "completed",
            "it should have moved: {}",
            self.said
        );
        self.source.moved_away()?;
        expect_same_memory(&busy(), &self.target.final_report()?)
    }
}

#[test]
fn whatever_is_altered_before_the_switch_ends_the_attempt() -> anyhow::Result<()> {
    for place in &PLACES {
        let end = migrate(&idle(), place, 0, FaultKind::Corrupt(0x41), "precopy")?;
        end.expect_noticed()
            .and_then(|()| end.expect_guest_stayed())
            .with_context(|| place.name)?;
    }
    Ok(())
}

/// What is missing comes over connections that are made anew.
#[test]
fn whatever_is_altered_after_the_switch_is_mended() -> anyhow::Result<()> {
    for kind in [FaultKind::Corrupt(1), FaultKind::Swallow(3)] {
        let place = place("pushed pages", Direction::Forward, 2_000_000);
        let end = migrate(&busy(), &place, 0, kind, "postcopy")?;
        end.expect_noticed().with_context(|| place.name)?;
        end.expect_guest_moved().with_context(|| place.name)?;
    }
    Ok(())
}

/// The fault channel is made before the hand-over: without it nothing is handed over.
#[test]
fn whatever_is_altered_while_the_fault_channel_is_made_ends_the_attempt() -> anyhow::Result<()> {
    for place in [
        place("handshake of the fault channel", Direction::Forward, 40),
        place("certificate on the fault channel", Direction::Back, 500),
    ] {
        let end = migrate(&idle(), &place, 1, FaultKind::Corrupt(1), "postcopy")?;
        end.expect_noticed().with_context(|| place.name)?;
        end.expect_guest_stayed().with_context(|| place.name)?;
    }
    Ok(())
}

/// A record that is left out is noticed like one that is altered.
#[test]
fn what_is_left_out_is_missed() -> anyhow::Result<()> {
    for (after_bytes, bytes) in [(200_000, 1), (400_000, 16_406), (1_000_000, 65_536)] {
        let place = place("some records", Direction::Forward, after_bytes);
        let end = migrate(&idle(), &place, 0, FaultKind::Swallow(bytes), "precopy")?;
        end.expect_noticed()?;
        end.expect_guest_stayed().with_context(|| format!("{bytes} bytes"))?;
    }
    Ok(())
}
