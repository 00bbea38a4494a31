use crate::{Numbers, format};
use dunlin_core::message::{Capabilities, Hello, Message, Refusal, Region, Regions, SessionId, VmId};
use dunlin_core::units::{Bytes, Gfn, Nanos, Pages};
use dunlin_core::wire::{
    FrameHeader, FrameKind, HEADER_BYTES, SequenceCheck, checksum_message, decode_message, encode_message,
};
use std::hint::black_box;

pub(crate) fn drive(_scratch: &mut [u64]) {
    let mut regions = Regions::new();
    regions
        .push(Region {
            first: Gfn(0),
            pages: Pages(1 << 20),
        })
        .expect("room for a region");
    let hello = Hello {
        protocol_min: 1,
        protocol_max: 1,
        capabilities: Capabilities::all(),
        session: SessionId(1),
        vm: VmId(2),
        page_size: 4096,
        regions,
        vcpus: 2,
        tsc_khz: 1_000_000,
        state_version: 1,
        network_timeout: Nanos(3),
        cpuid: &[1; 28],
        config: &[2; 100],
    };
    let refused = Refusal::Memory {
        asked: Bytes(2),
        max: Bytes(1),
    };
    format(refused);
    let mut sequence = SequenceCheck::default();
    let messages = [
        Message::Hello(hello),
        Message::Refused(refused),
        Message::RoundStart {
            round: 1,
            pages: Pages(7),
        },
        Message::FinalSet {
            first_word: 3,
            words: &[0xff; 64],
        },
        Message::Bye,
    ];
    for (number, message) in (0..).zip(&messages) {
        there_and_back(number, message, &mut sequence);
    }
    garbage_is_refused();
}

fn there_and_back(number: u32, message: &Message<'_>, sequence: &mut SequenceCheck) {
    let mut buffer = [0; 1024];
    let length = encode_message(message, &mut buffer).expect("room for the message");
    let header = FrameHeader {
        kind: FrameKind::Control,
        stream: 0,
        sequence: number,
        count: length as u32,
        first: Gfn(0),
        checksum: Some(checksum_message(&buffer[..length])),
        round: 0,
    };
    let header = FrameHeader::decode(&header.encode()).expect("what was encoded");
    sequence.accept(&header).expect("the next number");
    format(sequence.accept(&header).expect_err("the same number again"));
    assert_eq!(&decode_message(&buffer[..length]).expect("what was encoded"), message);
    format(encode_message(message, &mut []).expect_err("no room"));
}

fn garbage_is_refused() {
    let mut numbers = Numbers(1);
    for _ in 0..1000 {
        let mut bytes = [0; 64];
        bytes.fill_with(|| numbers.next() as u8);
        // Small first bytes are kinds of messages that exist.
        bytes[0] %= 24;
        if let Err(error) = decode_message(&bytes) {
            format(error);
        }
        let header = bytes.first_chunk::<HEADER_BYTES>().expect("enough bytes");
        format(black_box(FrameHeader::decode(header)).expect_err("no header"));
    }
}
