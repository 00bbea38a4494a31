//! Many connections, before any of them is anybody's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dunlin_core::message::{Hello, Message, SessionId, VmId};
use dunlin_core::wire::FrameKind;
use dunlin_tests::scene::PATIENCE;

use crate::chain::{Chain, stays_small, wait_for_words};
use crate::peer::{Peer, config, hello};

/// Connections that are held at a time, more than a receiver hears.
const HELD: usize = 100;

/// A guest comes while `attack` goes on, which is given the receiver's address and what tells it to end.
fn amid(attack: impl Fn(&str, &AtomicBool) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    let mut chain = Chain::start()?;
    let mut receiver = chain.receiver()?;
    let (address, over) = (receiver.listening()?.to_owned(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let attacking = scope.spawn(|| attack(&address, &over));
        let came = wait_for_words(&mut receiver, 0, "refused a connection")
            .and_then(|()| stays_small(&mut receiver))
            .and_then(|()| chain.move_to(receiver))
            .and_then(|()| stays_small(&mut chain.host));
        over.store(true, Ordering::Release);
        let attacked = attacking.join().expect("an attacker does not panic");
        came.and(attacked)
    })?;
    chain.goes_on()
}

/// Half-open: whoever holds connections and says nothing gives way to who says something.
#[test]
fn a_guest_comes_amid_callers_that_say_nothing() -> anyhow::Result<()> {
    amid(|address, over| {
        let mut held = std::collections::VecDeque::new();
        while !over.load(Ordering::Acquire) {
            // What the receiver has closed leaves room for others.
            held.push_back(Peer::connect(address)?);
            if held.len() > HELD {
                held.pop_front();
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    })
}

/// Slow: a byte now and then of a frame that is as it should be, and the last one never.
#[test]
fn a_guest_comes_amid_callers_that_never_end_their_first_word() -> anyhow::Result<()> {
    amid(|address, over| {
        let connect = |_| Peer::connect(address);
        let mut held = (0..HELD).map(connect).collect::<Result<Vec<_>, _>>()?;
        let word = held[0].encoded(&Message::Hello(hello(&config().encode())));
        for byte in &word[..word.len() - 1] {
            if over.load(Ordering::Acquire) {
                break;
            }
            for peer in &mut held {
                peer.raw(&[*byte])?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        while !over.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    })
}

/// Each of them says something that must be looked at, and is turned away.
#[test]
fn a_guest_comes_amid_requests_that_are_turned_away() -> anyhow::Result<()> {
    amid(|address, over| {
        let encoded = config().encode();
        let old = Hello {
            protocol_min: 0,
            protocol_max: 0,
            ..hello(&encoded)
        };
        let mut held = std::collections::VecDeque::new();
        let mut round = 0u32;
        while !over.load(Ordering::Acquire) {
            let mut peer = Peer::connect(address)?;
            round += 1;
            let (session, vm) = (SessionId(round.into()), VmId(7));
            match round % 4 {
                0 => peer.say(&Message::Hello(old.clone()))?,
                1 => peer.say(&Message::Attach { session })?,
                2 => {
                    let given_up = true;
                    peer.say(&Message::Resume { session, vm, given_up })?;
                }
                // Not what a conversation begins with.
                _ => peer.say(&Message::Commit)?,
            }
            held.push_back(peer);
            if held.len() > HELD {
                held.pop_front();
            }
        }
        Ok(())
    })
}

/// A frame of a size that is not allowed, or that never comes, costs nothing: it is not made room for.
#[test]
fn a_guest_comes_after_frames_that_are_too_large() -> anyhow::Result<()> {
    let mut chain = Chain::start()?;
    let mut receiver = chain.receiver()?;
    let address = receiver.listening()?.to_owned();
    let mut peers = Vec::new();
    for (kind, count) in [
        (FrameKind::Control, u32::MAX),
        (FrameKind::Control, 64 * 1024),
        (FrameKind::Pages, 512),
        (FrameKind::Pages, u32::MAX),
    ] {
        for _ in 0..8 {
            let mut peer = Peer::connect(&address)?;
            let header = peer.header(kind, 0, count, Some(7));
            peer.raw(&header.encode())?;
            peers.push(peer);
        }
    }
    stays_small(&mut receiver)?;
    let deadline = Instant::now() + PATIENCE;
    for mut peer in peers {
        // It says what it does not take, or gives up waiting for the rest.
        peer.last_words().context("the receiver closes")?;
        ensure!(Instant::now() < deadline, "one after the other, not all at once");
    }
    stays_small(&mut receiver)?;
    chain.move_to(receiver)
}
