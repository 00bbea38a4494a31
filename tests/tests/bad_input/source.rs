//! Malicious targets against `dunlin migrate`.

use std::net::TcpListener;

use anyhow::{Context as _, ensure};
use dunlin_core::message::{AbortReason, Message, Refusal, TargetStanding};
use dunlin_core::wire::{FrameKind, HEADER_BYTES};
use dunlin_tests::scene::PATIENCE;

use crate::chain::{Chain, stays_small};
use crate::peer::{PAGES, Peer};

const BROKE: &str = "aborted: the other side broke the protocol";
const UNEXPECTED: &str = "a message that does not belong to this phase";

/// One attack: what the fake target does, and what both sides hear of it.
struct Case {
    name: &'static str,
    strategy: &'static str,
    /// What the report names.
    reason: &'static str,
    /// What the source says last, or `closed`.
    told: &'static str,
    /// Ends with the connection whose end is looked at.
    attack: fn(&TcpListener) -> anyhow::Result<Peer>,
}

const fn case(
    name: &'static str,
    strategy: &'static str,
    reason: &'static str,
    told: &'static str,
    attack: fn(&TcpListener) -> anyhow::Result<Peer>,
) -> Case {
    Case {
        name,
        strategy,
        reason,
        told,
        attack,
    }
}

/// Each case against a process that holds the guest, which then really moves to the next process.
fn run(cases: &[Case]) {
    let mut chain = Chain::start().expect("a guest runs");
    for case in cases {
        attack(&mut chain, case)
            .with_context(|| format!("case `{}`", case.name))
            .unwrap_or_else(|error| panic!("{error:#}"));
    }
}

fn attack(chain: &mut Chain, case: &Case) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let quick = ["--network-timeout", "2s", "--min-round", "0s"];
    let mut migration = chain
        .scene
        .start_migration(&chain.host, &address, case.strategy, &quick)?;
    let mut peer = (case.attack)(&listener)?;
    let words = peer.last_words()?;
    ensure!(words.contains(case.told), "the source said `{words}`");
    let finished = migration.wait(PATIENCE)?;
    ensure!(finished.code == Some(1), "a failed migration exits with 1: {finished}");
    let report = finished.json()?;
    ensure!(report["outcome"] == "failed", "{report}");
    let reason = report["reason"].as_str().context("no reason")?;
    ensure!(reason.contains(case.reason), "the reason is `{reason}`");
    ensure!(reason.contains("the guest runs on here"), "the reason is `{reason}`");
    stays_small(&mut chain.host)?;
    chain.goes_on()?;
    chain.move_to(chain.receiver()?)
}

/// Takes a connection and waits for its request.
fn asked(listener: &TcpListener) -> anyhow::Result<Peer> {
    let mut peer = Peer::accept(listener)?;
    peer.wait_for(|message| matches!(message, Message::Hello(_)))?;
    Ok(peer)
}

/// The same, and says yes.
fn welcomed(listener: &TcpListener) -> anyhow::Result<Peer> {
    let mut peer = asked(listener)?;
    peer.say(&Message::Welcome { protocol: 1 })?;
    Ok(peer)
}

/// The same for post-copy, with the fault channel.
fn attached(listener: &TcpListener) -> anyhow::Result<(Peer, Peer)> {
    let peer = welcomed(listener)?;
    let mut fault = Peer::accept(listener)?;
    fault.wait_for(|message| matches!(message, Message::Attach { .. }))?;
    fault.say(&Message::Attached)?;
    Ok((peer, fault))
}

/// Answers every round until the hand-over is announced.
fn handed(peer: &mut Peer) -> anyhow::Result<()> {
    let round = |message: &Message<'_>| match message {
        Message::RoundEnd { round } => Some(Some(*round)),
        Message::HandOver { .. } => Some(None),
        _ => None,
    };
    while let Some(round) = peer.hear(round)? {
        peer.say(&Message::RoundReached { round })?;
    }
    Ok(())
}

/// The same, and says that it can run the VM: the source gives it up.
fn committed(peer: &mut Peer) -> anyhow::Result<()> {
    handed(peer)?;
    peer.say(&Message::Ready)?;
    peer.wait_for(|message| matches!(message, Message::Commit))
}

/// Takes the connection of a source that comes back.
fn resumed(listener: &TcpListener) -> anyhow::Result<Peer> {
    let mut peer = Peer::accept(listener)?;
    peer.wait_for(|message| matches!(message, Message::Resume { given_up: true, .. }))?;
    Ok(peer)
}

/// The same, and gives the VM back.
fn returned(listener: &TcpListener) -> anyhow::Result<Peer> {
    let mut peer = resumed(listener)?;
    peer.say(&Message::Resumed(TargetStanding::NeverTaken))?;
    Ok(peer)
}

fn aborted(mut peer: Peer) -> anyhow::Result<Peer> {
    peer.say(&Message::Abort(AbortReason::TargetGuest))?;
    Ok(peer)
}

const FAILED: &str = "the guest could not be built, restored or run on the target";
const FRAME: &str = "a frame that cannot be decoded";
const LOST: &str = "the connection was lost";

const ANSWERS: [Case; 10] = [
    case("garbage", "precopy", "this is no Dunlin frame", "closed", |listener| {
        let mut peer = asked(listener)?;
        peer.raw(&[0xa5; 4096])?;
        Ok(peer)
    }),
    case("gone at once", "precopy", LOST, "closed", |listener| {
        let mut peer = Peer::accept(listener)?;
        peer.hang_up()?;
        Ok(peer)
    }),
    case(
        "refused",
        "precopy",
        "already holds a VM or is receiving one",
        "closed",
        |listener| {
            let mut peer = asked(listener)?;
            peer.say(&Message::Refused(Refusal::Busy))?;
            Ok(peer)
        },
    ),
    case("truncated answer", "precopy", LOST, "closed", |listener| {
        let mut peer = asked(listener)?;
        let bytes = peer.encoded(&Message::Welcome { protocol: 1 });
        peer.raw(&bytes[..HEADER_BYTES])?;
        peer.hang_up()?;
        Ok(peer)
    }),
    case(
        "damaged header",
        "precopy",
        "frame header damaged",
        "closed",
        |listener| {
            let mut peer = asked(listener)?;
            let mut bytes = peer.encoded(&Message::Welcome { protocol: 1 });
            bytes[20] ^= 4;
            peer.raw(&bytes)?;
            Ok(peer)
        },
    ),
    case("damaged message", "precopy", "message damaged", "closed", |listener| {
        let mut peer = asked(listener)?;
        let mut bytes = peer.encoded(&Message::Welcome { protocol: 1 });
        bytes[HEADER_BYTES + 1] ^= 4;
        peer.raw(&bytes)?;
        Ok(peer)
    }),
    case(
        "oversized answer",
        "precopy",
        "frame count 4294967295 is outside",
        "closed",
        |listener| {
            let mut peer = asked(listener)?;
            peer.frame(FrameKind::Control, 0, u32::MAX, Some(3))?;
            Ok(peer)
        },
    ),
    case(
        "undecodable answer",
        "precopy",
        "message cannot be decoded",
        "closed",
        |listener| {
            let mut peer = asked(listener)?;
            let bytes = peer.control(&[0xff; 70]);
            peer.raw(&bytes)?;
            Ok(peer)
        },
    ),
    case("ready at once", "precopy", UNEXPECTED, "closed", |listener| {
        let mut peer = asked(listener)?;
        peer.say(&Message::Ready)?;
        Ok(peer)
    }),
    case("abort at once", "precopy", FAILED, "", |listener| {
        aborted(asked(listener)?)
    }),
];

#[test]
fn bad_answers_leave_the_guest_running() {
    run(&ANSWERS);
}

const ROUNDS: [Case; 12] = [
    case(
        "silence",
        "precopy",
        "nothing was heard",
        "aborted: nothing was heard",
        welcomed,
    ),
    case(
        "garbage after the welcome",
        "precopy",
        "this is no Dunlin frame",
        BROKE,
        |listener| {
            let mut peer = welcomed(listener)?;
            peer.raw(&[0; 100])?;
            Ok(peer)
        },
    ),
    case("welcome twice", "precopy", UNEXPECTED, BROKE, |listener| {
        let mut peer = welcomed(listener)?;
        peer.say(&Message::Welcome { protocol: 1 })?;
        Ok(peer)
    }),
    case(
        "duplicated frame",
        "precopy",
        "frame 0 came where 1 was expected",
        BROKE,
        |listener| {
            let mut peer = welcomed(listener)?;
            peer.sequence = 0;
            peer.frame(FrameKind::Heartbeat, 0, 0, None)?;
            Ok(peer)
        },
    ),
    case("frames out of order", "precopy", FRAME, BROKE, |listener| {
        let mut peer = welcomed(listener)?;
        peer.sequence = 2;
        peer.frame(FrameKind::Heartbeat, 0, 0, None)?;
        Ok(peer)
    }),
    case("ready too early", "precopy", UNEXPECTED, BROKE, |listener| {
        let mut peer = welcomed(listener)?;
        peer.say(&Message::Ready)?;
        Ok(peer)
    }),
    case("running too early", "precopy", UNEXPECTED, BROKE, |listener| {
        let mut peer = welcomed(listener)?;
        peer.say(&Message::Running)?;
        Ok(peer)
    }),
    case("pages from the target", "precopy", UNEXPECTED, BROKE, |listener| {
        let mut peer = welcomed(listener)?;
        peer.frame(FrameKind::Pages, 0, 1, None)?;
        Ok(peer)
    }),
    case("another round", "precopy", UNEXPECTED, BROKE, |listener| {
        let mut peer = welcomed(listener)?;
        peer.wait_for(|message| matches!(message, Message::RoundEnd { .. }))?;
        peer.say(&Message::RoundReached { round: 77 })?;
        Ok(peer)
    }),
    case("abort in a round", "precopy", FAILED, "", |listener| {
        let mut peer = welcomed(listener)?;
        peer.wait_for(|message| matches!(message, Message::RoundStart { .. }))?;
        aborted(peer)
    }),
    case("abort after a round", "precopy", FAILED, "", |listener| {
        let mut peer = welcomed(listener)?;
        peer.wait_for(|message| matches!(message, Message::RoundEnd { .. }))?;
        aborted(peer)
    }),
    case("gone after a round", "precopy", LOST, "", |listener| {
        let mut peer = welcomed(listener)?;
        peer.wait_for(|message| matches!(message, Message::RoundEnd { .. }))?;
        peer.hang_up()?;
        Ok(peer)
    }),
];

#[test]
fn trouble_in_the_rounds_leaves_the_guest_running() {
    run(&ROUNDS);
}

const HAND_OVERS: [Case; 12] = [
    case("abort at the hand-over", "precopy", FAILED, "", |listener| {
        let mut peer = welcomed(listener)?;
        handed(&mut peer)?;
        aborted(peer)
    }),
    case(
        "garbage at the hand-over",
        "precopy",
        "this is no Dunlin frame",
        BROKE,
        |listener| {
            let mut peer = welcomed(listener)?;
            handed(&mut peer)?;
            peer.raw(&[0; 100])?;
            Ok(peer)
        },
    ),
    case("gone at the hand-over", "precopy", LOST, "", |listener| {
        let mut peer = welcomed(listener)?;
        handed(&mut peer)?;
        peer.hang_up()?;
        Ok(peer)
    }),
    case("running without commit", "precopy", UNEXPECTED, BROKE, |listener| {
        let mut peer = welcomed(listener)?;
        handed(&mut peer)?;
        peer.say(&Message::Running)?;
        Ok(peer)
    }),
    case("abort after the commit", "precopy", FAILED, "", |listener| {
        let mut peer = welcomed(listener)?;
        committed(&mut peer)?;
        aborted(peer)
    }),
    case("ready twice", "precopy", "never ran the VM", "closed", |listener| {
        let mut peer = welcomed(listener)?;
        committed(&mut peer)?;
        peer.say(&Message::Ready)?;
        returned(listener)
    }),
    case(
        "garbage after the commit",
        "precopy",
        "never ran the VM",
        "closed",
        |listener| {
            let mut peer = welcomed(listener)?;
            committed(&mut peer)?;
            peer.raw(&[0; 100])?;
            let mut again = resumed(listener)?;
            again.raw(&[0; 100])?;
            returned(listener)
        },
    ),
    case(
        "fault channel not attached",
        "postcopy",
        UNEXPECTED,
        BROKE,
        |listener| {
            let peer = welcomed(listener)?;
            let mut fault = Peer::accept(listener)?;
            fault.wait_for(|message| matches!(message, Message::Attach { .. }))?;
            fault.say(&Message::Ready)?;
            Ok(peer)
        },
    ),
    case(
        "fault channel of garbage",
        "hybrid:1",
        "this is no Dunlin frame",
        "",
        |listener| {
            let (peer, mut fault) = attached(listener)?;
            fault.raw(&[0; 100])?;
            Ok(peer)
        },
    ),
    case("page asked for too early", "hybrid:1", UNEXPECTED, BROKE, |listener| {
        let (peer, mut fault) = attached(listener)?;
        fault.frame(FrameKind::PageRequest, 0, 1, None)?;
        Ok(peer)
    }),
    case(
        "page outside asked for before the hand-over",
        "postcopy",
        UNEXPECTED,
        BROKE,
        |listener| {
            let (mut peer, mut fault) = attached(listener)?;
            handed(&mut peer)?;
            fault.frame(FrameKind::PageRequest, PAGES, 1, None)?;
            Ok(peer)
        },
    ),
    case(
        "page outside asked for after the commit",
        "postcopy",
        "never ran the VM",
        "closed",
        |listener| {
            let (mut peer, mut fault) = attached(listener)?;
            committed(&mut peer)?;
            fault.frame(FrameKind::PageRequest, u64::MAX - 1, 1, None)?;
            returned(listener)
        },
    ),
];

#[test]
fn trouble_in_the_hand_over_leaves_the_guest_running() {
    run(&HAND_OVERS);
}
