//! A session that began well.

use std::time::{Duration, Instant};

use anyhow::ensure;
use dunlin_core::message::{AbortReason, CHUNK_BYTES_MAX, Message, Mode, STATE_BYTES_MAX, SessionId, VmId};
use dunlin_core::units::{Gfn, Pages};
use dunlin_core::wire::{FrameKind, HEADER_BYTES};
use dunlin_tests::scene::PATIENCE;

use super::{Case, case, run};
use crate::chain::{Chain, stays_small, wait_for_words};
use crate::peer::{PAGES, Peer, config, hello};

const FRAME: &str = "a frame that cannot be decoded";
const OUTSIDE: &str = "a page outside the VM's memory";
const UNEXPECTED: &str = "a message that does not belong to this phase";
const STATE: &str = "vCPU state larger than announced, or not contiguous";
const ROUND: &str = "a round out of order";
const BITMAP: &str = "a malformed piece of a bitmap";

/// Says hello and waits for the answer.
fn begin(peer: &mut Peer) -> anyhow::Result<()> {
    peer.say(&Message::Hello(hello(&config().encode())))?;
    peer.wait_for(|message| matches!(message, Message::Welcome { .. }))
}

fn begin_and_say(peer: &mut Peer, message: &Message<'_>) -> anyhow::Result<()> {
    begin(peer)?;
    peer.say(message)
}

fn begin_round(peer: &mut Peer, round: u32, pages: u64) -> anyhow::Result<()> {
    let pages = Pages(pages);
    peer.say(&Message::RoundStart { round, pages })
}

/// All of memory, as zeros.
fn begin_and_fill(peer: &mut Peer) -> anyhow::Result<()> {
    begin(peer)?;
    peer.frame(FrameKind::Zero, 0, PAGES as u32, None)
}

fn hand_over(mode: Mode, state_bytes: u32, dirty: u64) -> Message<'static> {
    Message::HandOver {
        mode,
        state_bytes,
        final_dirty: Pages(dirty),
    }
}

const FRAMES: [Case; 16] = [
    case("garbage", FRAME, "this is no Dunlin frame", |peer| {
        begin(peer)?;
        peer.raw(&[0x5a; 4096])
    }),
    case("truncated header", "closed", "the connection ended", |peer| {
        begin(peer)?;
        peer.raw(b"DNLN")?;
        peer.hang_up()
    }),
    case("truncated pages", "closed", "the connection ended", |peer| {
        begin(peer)?;
        let header = peer.header(FrameKind::Pages, 0, 512, None);
        peer.raw(&header.encode())?;
        peer.raw(&[1; 5000])?;
        peer.hang_up()
    }),
    case("duplicated frame", FRAME, "frame 1 came where 2 was expected", |peer| {
        begin(peer)?;
        let frame = peer.encoded(&Message::RoundStart {
            round: 1,
            pages: Pages(1),
        });
        peer.raw(&[frame.clone(), frame].concat())
    }),
    case(
        "frames out of order",
        FRAME,
        "frame 2 came where 1 was expected",
        |peer| {
            begin(peer)?;
            let first = peer.header(FrameKind::Heartbeat, 0, 0, None).encode();
            let second = peer.header(FrameKind::Heartbeat, 0, 0, None).encode();
            peer.raw(&[second, first].concat())
        },
    ),
    case(
        "oversized message",
        FRAME,
        "frame count 4294967295 is outside",
        |peer| {
            begin(peer)?;
            peer.frame(FrameKind::Control, 0, u32::MAX, Some(1))
        },
    ),
    case("damaged header", FRAME, "frame header damaged", |peer| {
        begin(peer)?;
        let mut bytes = peer.header(FrameKind::Heartbeat, 0, 0, None).encode();
        bytes[HEADER_BYTES - 1] ^= 0x80;
        peer.raw(&bytes)
    }),
    case("damaged message", FRAME, "message damaged", |peer| {
        begin(peer)?;
        let mut bytes = peer.encoded(&Message::RoundEnd { round: 1 });
        bytes[HEADER_BYTES] ^= 1;
        peer.raw(&bytes)
    }),
    case("undecodable message", FRAME, "message cannot be decoded", |peer| {
        begin(peer)?;
        let bytes = peer.control(&[0xee; 1000]);
        peer.raw(&bytes)
    }),
    case(
        "wrong checksum of pages",
        "pages whose checksum does not match",
        "pages 8+2 from",
        |peer| {
            begin(peer)?;
            peer.frame(FrameKind::Pages, 8, 2, Some(1))
        },
    ),
    case("pages outside", OUTSIDE, OUTSIDE, |peer| {
        begin(peer)?;
        peer.frame(FrameKind::Pages, PAGES, 1, None)
    }),
    case("pages half outside", OUTSIDE, OUTSIDE, |peer| {
        begin(peer)?;
        peer.frame(FrameKind::Pages, PAGES - 1, 2, None)
    }),
    case("zeros outside", OUTSIDE, OUTSIDE, |peer| {
        begin(peer)?;
        peer.frame(FrameKind::Zero, 0, 1 << 30, None)
    }),
    case("announcement outside", OUTSIDE, OUTSIDE, |peer| {
        begin(peer)?;
        peer.frame(FrameKind::Announce, 1 << 50, 1 << 30, None)
    }),
    case("request for a page", UNEXPECTED, "does not belong here", |peer| {
        begin(peer)?;
        peer.frame(FrameKind::PageRequest, 0, 1, None)
    }),
    case("gone at once", "closed", "the connection ended", |peer| {
        begin(peer)?;
        peer.hang_up()
    }),
];

#[test]
fn bad_frames_end_the_attempt_by_name() {
    run(&FRAMES);
}

const MESSAGES: [Case; 22] = [
    case("hello again", UNEXPECTED, UNEXPECTED, |peer| {
        begin(peer)?;
        peer.say(&Message::Hello(hello(&config().encode())))
    }),
    case("commit without ready", UNEXPECTED, UNEXPECTED, |peer| {
        begin_and_say(peer, &Message::Commit)
    }),
    case("goodbye before the end", UNEXPECTED, UNEXPECTED, |peer| {
        begin_and_say(peer, &Message::Bye)
    }),
    case("a message of the target", UNEXPECTED, UNEXPECTED, |peer| {
        begin_and_say(peer, &Message::Ready)
    }),
    case("end of another round", UNEXPECTED, UNEXPECTED, |peer| {
        begin_and_say(peer, &Message::RoundEnd { round: 5 })
    }),
    case("a round that goes back", ROUND, ROUND, |peer| {
        begin(peer)?;
        begin_round(peer, 1, 0)?;
        peer.say(&Message::RoundEnd { round: 1 })?;
        begin_round(peer, 1, 0)
    }),
    case("a round within a round", UNEXPECTED, UNEXPECTED, |peer| {
        begin(peer)?;
        begin_round(peer, 1, 0)?;
        begin_round(peer, 2, 0)
    }),
    case("a round of more pages than there are", ROUND, ROUND, |peer| {
        begin(peer)?;
        begin_round(peer, 1, u64::MAX)
    }),
    case("hand-over within a round", UNEXPECTED, UNEXPECTED, |peer| {
        begin_and_fill(peer)?;
        begin_round(peer, 1, 0)?;
        peer.say(&hand_over(Mode::StopCopy, 0, 0))
    }),
    case("hashes before the end", UNEXPECTED, UNEXPECTED, |peer| {
        let bytes = &[0; 64];
        begin_and_say(
            peer,
            &Message::Hashes {
                first: Gfn(u64::MAX),
                bytes,
            },
        )
    }),
    case("oversized state", STATE, STATE, |peer| {
        begin(peer)?;
        let bytes = [0; CHUNK_BYTES_MAX];
        for offset in (0..=STATE_BYTES_MAX).step_by(CHUNK_BYTES_MAX) {
            peer.say(&Message::State { offset, bytes: &bytes })?;
        }
        Ok(())
    }),
    case("state with a gap", STATE, STATE, |peer| {
        begin_and_say(peer, &Message::State { offset: 1, bytes: &[1] })
    }),
    case("state whose end overflows", STATE, STATE, |peer| {
        let offset = u32::MAX;
        begin_and_say(peer, &Message::State { offset, bytes: &[1, 2] })
    }),
    case("final set outside", BITMAP, BITMAP, |peer| {
        let (first_word, words) = (PAGES / 64, &[0xff; 8][..]);
        begin_and_say(peer, &Message::FinalSet { first_word, words })
    }),
    case("final set far outside", BITMAP, BITMAP, |peer| {
        let (first_word, words) = (u64::MAX, &[0xff; 16][..]);
        begin_and_say(peer, &Message::FinalSet { first_word, words })
    }),
    case("final set of half words", BITMAP, BITMAP, |peer| {
        let (first_word, words) = (0, &[0xff; 7][..]);
        begin_and_say(peer, &Message::FinalSet { first_word, words })
    }),
    case("hand-over of other state", STATE, STATE, |peer| {
        begin_and_fill(peer)?;
        peer.say(&hand_over(Mode::StopCopy, 100, 0))
    }),
    case(
        "hand-over of other dirty pages",
        "another number of dirty pages",
        "another number of dirty pages",
        |peer| {
            begin_and_fill(peer)?;
            peer.say(&hand_over(Mode::StopCopy, 0, 3))
        },
    ),
    case(
        "hand-over with pages missing",
        "pages were never sent",
        "pages were never sent",
        |peer| {
            begin(peer)?;
            peer.frame(FrameKind::Zero, 1, PAGES as u32 - 1, None)?;
            peer.say(&hand_over(Mode::StopCopy, 0, 0))
        },
    ),
    case(
        "hand-over of nonsense state",
        "could not be built, restored or run",
        "could not be built, restored",
        |peer| {
            begin_and_fill(peer)?;
            peer.say(&Message::State {
                offset: 0,
                bytes: &[0xff; 100],
            })?;
            peer.say(&hand_over(Mode::StopCopy, 100, 0))
        },
    ),
    case(
        "post-copy unannounced",
        "could not be built, restored or run",
        "did not announce it",
        |peer| {
            begin_and_fill(peer)?;
            peer.say(&hand_over(Mode::PostCopy, 0, 0))
        },
    ),
    case("aborted by the source", "", "did not come", |peer| {
        begin_and_say(peer, &Message::Abort(AbortReason::Internal))
    }),
];

#[test]
fn messages_that_do_not_belong_end_the_attempt_by_name() {
    run(&MESSAGES);
}

#[test]
fn sessions_that_nobody_knows_are_turned_away() {
    run(&[
        case("fault channel of nobody", "closed", "", |peer| {
            peer.say(&Message::Attach { session: SessionId(3) })
        }),
        case(
            "resumption of nothing",
            "resumed: Unknown",
            "answering Unknown",
            |peer| {
                peer.say(&Message::Resume {
                    session: SessionId(3),
                    vm: VmId(4),
                    given_up: true,
                })?;
                peer.hang_up()
            },
        ),
    ]);
}

#[test]
fn a_second_request_is_turned_away_and_the_first_goes_on() -> anyhow::Result<()> {
    let mut chain = Chain::start()?;
    let mut receiver = chain.receiver()?;
    let mut first = Peer::connect(receiver.listening()?)?;
    begin(&mut first)?;
    for _ in 0..3 {
        let mut second = Peer::connect(receiver.listening()?)?;
        second.say(&Message::Hello(hello(&config().encode())))?;
        let words = second.last_words()?;
        ensure!(words.contains("already holds a VM or is receiving one"), "{words}");
    }
    first.say(&Message::RoundStart {
        round: 1,
        pages: Pages(1),
    })?;
    first.frame(FrameKind::Pages, 7, 1, None)?;
    first.say(&Message::RoundEnd { round: 1 })?;
    first.wait_for(|message| matches!(message, Message::RoundReached { round: 1 }))?;
    first.say(&Message::Abort(AbortReason::Cancelled))?;
    wait_for_words(&mut receiver, 0, "did not come: cancelled")?;
    stays_small(&mut receiver)?;
    chain.move_to(receiver)
}

#[test]
fn callers_that_say_nothing_cost_no_more_than_a_few_threads() -> anyhow::Result<()> {
    let mut chain = Chain::start()?;
    let mut receiver = chain.receiver()?;
    let address = receiver.listening()?.to_owned();
    let silent = (0..200)
        .map(|_| Peer::connect(&address))
        .collect::<Result<Vec<_>, _>>()?;
    wait_for_words(&mut receiver, 0, "have not said what they want")?;
    let threads = std::fs::read_dir(format!("/proc/{}/task", receiver.process.id()))?.count();
    ensure!(threads < 60, "{threads} threads for callers that say nothing");
    stays_small(&mut receiver)?;
    drop(silent);
    // Each of them is forgotten by name.
    let deadline = Instant::now() + PATIENCE / 4;
    while receiver.process.stderr().matches("refused a connection").count() < 200 {
        ensure!(Instant::now() < deadline, "{}", receiver.process.stderr());
        std::thread::sleep(Duration::from_millis(2));
    }
    chain.move_to(receiver)
}
