//! One who was let in, and then does what nobody needs to.

use anyhow::ensure;
use dunlin_core::message::{AbortReason, Capabilities, Hello, Message, Mode};
use dunlin_core::units::Pages;
use dunlin_core::wire::FrameKind;

use crate::chain::{Chain, stays_small, wait_for_words};
use crate::peer::{PAGES, Peer, config, hello};

/// Frames sent at a stretch.
const BATCH: u32 = 1000;

/// A session that began, in which `attack` does what it wants until it is aborted; then a guest comes to the same process.
fn then_a_guest_comes(
    capabilities: Capabilities,
    attack: impl FnOnce(&mut Peer) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut chain = Chain::start()?;
    let mut receiver = chain.receiver()?;
    let mut peer = Peer::connect(receiver.listening()?)?;
    let encoded = config().encode();
    peer.say(&Message::Hello(Hello {
        capabilities: Capabilities::CHECKSUM | capabilities,
        ..hello(&encoded)
    }))?;
    peer.wait_for(|message| matches!(message, Message::Welcome { .. }))?;
    attack(&mut peer)?;
    stays_small(&mut receiver)?;
    // It still listens.
    chain.scene.status(&receiver)?;
    peer.say(&Message::Abort(AbortReason::Cancelled))?;
    wait_for_words(&mut receiver, 0, "did not come: cancelled")?;
    stays_small(&mut receiver)?;
    chain.move_to(receiver)
}

/// So many frames without payload, all of them for all of memory.
fn flood(peer: &mut Peer, kind: FrameKind, batches: u32) -> anyhow::Result<()> {
    for _ in 0..batches {
        let frames: Vec<u8> = (0..BATCH)
            .flat_map(|_| peer.header(kind, 0, PAGES as u32, None).encode())
            .collect();
        peer.raw(&frames)?;
    }
    // Everything before it has been read when this is answered.
    let round = 1;
    peer.say(&Message::RoundStart { round, pages: Pages(0) })?;
    peer.say(&Message::RoundEnd { round })?;
    peer.wait_for(|message| matches!(message, Message::RoundReached { .. }))
}

#[test]
fn announcements_without_end_are_not_remembered() -> anyhow::Result<()> {
    then_a_guest_comes(Capabilities::empty(), |peer| flood(peer, FrameKind::Announce, 2000))
}

/// Forty bytes say that all of memory is zero, again and again, where each page's hash is kept.
#[test]
fn runs_of_zeros_without_end_are_got_over() -> anyhow::Result<()> {
    then_a_guest_comes(Capabilities::VERIFY, |peer| {
        peer.frame(FrameKind::Pages, 0, 512, None)?;
        flood(peer, FrameKind::Zero, 20)
    })
}

#[test]
fn runs_of_zeros_of_more_than_there_is_are_none() -> anyhow::Result<()> {
    let mut chain = Chain::start()?;
    let mut receiver = chain.receiver()?;
    let mut peer = Peer::connect(receiver.listening()?)?;
    peer.say(&Message::Hello(hello(&config().encode())))?;
    peer.wait_for(|message| matches!(message, Message::Welcome { .. }))?;
    peer.frame(FrameKind::Zero, 0, 1 << 30, None)?;
    let words = peer.last_words()?;
    ensure!(words.contains("a page outside the VM's memory"), "{words}");
    stays_small(&mut receiver)?;
    chain.move_to(receiver)
}

/// A commit that comes with the hand-over, before this side can be ready, and one that comes twice.
#[test]
fn nobody_commits_for_the_target() -> anyhow::Result<()> {
    let mut chain = Chain::start()?;
    for commits in [1, 2] {
        let mut receiver = chain.receiver()?;
        let mut peer = Peer::connect(receiver.listening()?)?;
        peer.say(&Message::Hello(hello(&config().encode())))?;
        peer.wait_for(|message| matches!(message, Message::Welcome { .. }))?;
        peer.frame(FrameKind::Zero, 0, PAGES as u32, None)?;
        let mut bytes = Vec::new();
        for message in [
            Message::State { offset: 0, bytes: &[1] },
            Message::HandOver {
                mode: Mode::StopCopy,
                state_bytes: 1,
                final_dirty: Pages(0),
            },
        ] {
            bytes.extend(peer.encoded(&message));
        }
        for _ in 0..commits {
            bytes.extend(peer.encoded(&Message::Commit));
        }
        peer.raw(&bytes)?;
        let words = peer.last_words()?;
        ensure!(words.contains("aborted"), "the target said `{words}`");
        wait_for_words(&mut receiver, 0, "did not come")?;
        ensure!(!receiver.process.stderr().contains("runs here"), "it ran");
        stays_small(&mut receiver)?;
        chain.move_to(receiver)?;
    }
    Ok(())
}
