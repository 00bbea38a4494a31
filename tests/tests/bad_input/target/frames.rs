//! What is no frame, or not the first one.

use dunlin_core::message::{CONTROL_PAYLOAD_MAX, Message};
use dunlin_core::wire::{FrameHeader, FrameKind, HEADER_BYTES};

use super::{Case, case, run};
use crate::peer::{Peer, config, hello};

const NOT_HELLO: &str = "did not begin with a request to migrate";

const FIRST_FRAMES: [Case; 14] = [
    case("garbage", NOT_HELLO, "this is no Dunlin frame", |peer| {
        let mut word = 1u32;
        let noise = std::iter::repeat_with(|| {
            word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (word >> 24) as u8
        });
        peer.raw(&noise.take(4096).collect::<Vec<_>>())
    }),
    case("another protocol", NOT_HELLO, "this is no Dunlin frame", |peer| {
        peer.raw(b"GET / HTTP/1.1\r\nHost: example.org\r\nUser-Agent: none\r\n\r\n")
    }),
    case("nothing at all", NOT_HELLO, "closed the connection", Peer::hang_up),
    case("truncated header", NOT_HELLO, "closed the connection", |peer| {
        let bytes = say_hello(peer);
        peer.raw(&bytes[..HEADER_BYTES / 2])?;
        peer.hang_up()
    }),
    case("truncated payload", NOT_HELLO, "closed the connection", |peer| {
        let bytes = say_hello(peer);
        peer.raw(&bytes[..bytes.len() - 1])?;
        peer.hang_up()
    }),
    case("oversized message", NOT_HELLO, "frame count 65537 is outside", |peer| {
        peer.frame(FrameKind::Control, 0, CONTROL_PAYLOAD_MAX as u32 + 1, Some(0))
    }),
    case(
        "oversized run",
        NOT_HELLO,
        "frame count 4294967295 is outside",
        |peer| {
            let header = peer.header(FrameKind::Pages, 0, u32::MAX, None);
            peer.raw(&header.encode())
        },
    ),
    case("damaged header", NOT_HELLO, "frame header damaged", |peer| {
        let mut bytes = say_hello(peer);
        bytes[9] ^= 1;
        peer.raw(&bytes)
    }),
    case("damaged message", NOT_HELLO, "message damaged", |peer| {
        let mut bytes = say_hello(peer);
        *bytes.last_mut().expect("a hello has bytes") ^= 1;
        peer.raw(&bytes)
    }),
    case("undecodable message", NOT_HELLO, "message cannot be decoded", |peer| {
        let bytes = peer.control(&[0xff; 64]);
        peer.raw(&bytes)
    }),
    case(
        "bytes behind the message",
        NOT_HELLO,
        "message cannot be decoded",
        |peer| {
            let bytes = say_hello(peer);
            peer.sequence = 0;
            let longer = [&bytes[HEADER_BYTES..], &[0]].concat();
            let bytes = peer.control(&longer);
            peer.raw(&bytes)
        },
    ),
    case(
        "first frame out of order",
        NOT_HELLO,
        "frame 3 came where 0 was expected",
        |peer| {
            peer.sequence = 3;
            let bytes = say_hello(peer);
            peer.raw(&bytes)
        },
    ),
    case("pages first", NOT_HELLO, "does not belong here", |peer| {
        peer.frame(FrameKind::Pages, 0, 1, None)
    }),
    case(
        "a message of the target first",
        NOT_HELLO,
        "does not belong here",
        |peer| peer.say(&Message::Welcome { protocol: 1 }),
    ),
];

fn say_hello(peer: &mut Peer) -> Vec<u8> {
    peer.encoded(&Message::Hello(hello(&config().encode())))
}

#[test]
fn what_is_no_first_message_is_refused_by_name() {
    run(&FIRST_FRAMES);
}

/// Sends a header with one thing wrong and a checksum that says it is right.
fn forged(peer: &mut Peer, at: usize, value: u8) -> anyhow::Result<()> {
    let header: FrameHeader = peer.header(FrameKind::Heartbeat, 0, 0, None);
    let mut bytes = header.encode();
    bytes[at] = value;
    let crc = dunlin_core::wire::checksum_message(&bytes[..36]) as u32;
    bytes[36..].copy_from_slice(&crc.to_le_bytes());
    peer.raw(&bytes)
}

#[test]
fn headers_of_another_release_are_refused_by_name() {
    run(&[
        case("unknown kind", NOT_HELLO, "unknown frame kind 99", |peer| {
            forged(peer, 4, 99)
        }),
        case("unknown flags", NOT_HELLO, "unknown frame flags 0x80", |peer| {
            forged(peer, 5, 0x80)
        }),
        case("reserved field", NOT_HELLO, "reserved frame field", |peer| {
            forged(peer, 16, 1)
        }),
    ]);
}
