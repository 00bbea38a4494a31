//! A stream of frames as a peer may send it: decoding never panics, and what decodes encodes to the same bytes.

use dunlin_core::message::CONTROL_PAYLOAD_MAX;
use dunlin_core::wire::{
    FrameHeader, FrameKind, HEADER_BYTES, SequenceCheck, checksum_message, decode_message, encode_message,
};

/// The check.
pub(crate) fn check(input: &[u8]) {
    let mut rest = input;
    let mut sequence = SequenceCheck::default();
    while let Some((bytes, after)) = rest.split_first_chunk::<HEADER_BYTES>() {
        rest = after;
        let header = FrameHeader::decode(&with_valid_checksum(*bytes)).or_else(|_| FrameHeader::decode(bytes));
        let Ok(header) = header else { continue };
        assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
        let _ = sequence.accept(&header);
        if header.kind == FrameKind::Control {
            let (payload, after) = rest.split_at(rest.len().min(header.count as usize));
            rest = after;
            check_message(payload);
        }
    }
    check_message(input);
}

/// A fuzzer does not guess checksums, so they are put right for it.
fn with_valid_checksum(mut bytes: [u8; HEADER_BYTES]) -> [u8; HEADER_BYTES] {
    let crc = u32::try_from(checksum_message(&bytes[..HEADER_BYTES - 4])).expect("CRC32C has 32 bits");
    bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn check_message(payload: &[u8]) {
    let Ok(message) = decode_message(payload) else { return };
    let mut buffer = [0; CONTROL_PAYLOAD_MAX];
    let length = encode_message(&message, &mut buffer).expect("what was decoded fits");
    assert_eq!(decode_message(&buffer[..length]), Ok(message));
}
