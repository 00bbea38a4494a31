//! Messages as bytes on a line that may begin, end and lose some at any time.
//!
//! A frame is a version byte, a message in postcard's format and the CRC32C of both, encoded by COBS so that it has no zero byte, and a
//! zero byte. Whoever comes in the middle, or after something was lost, is in step again at the next zero.

use crc::{CRC_32_ISCSI, Crc, Table};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes of a frame before it is encoded.
pub const FRAME_MAX: usize = 512;
/// Most bytes of a frame on the line, its zero byte included.
pub const ENCODED_MAX: usize = cobs::max_encoding_length(FRAME_MAX) + 1;

/// Of the frames, not of what is in them.
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
/// CRC32C, the polynomial of iSCSI (RFC 3720), as on the migration channel.
const CRC32C: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISCSI);

/// Why a message cannot be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// It takes more than [`FRAME_MAX`] bytes.
    TooLong,
}

impl core::fmt::Display for FrameError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::TooLong => write!(f, "a message takes more than {FRAME_MAX} bytes"),
        }
    }
}

impl core::error::Error for FrameError {}

/// A message as it goes on the line.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn encode<'a>(message: &impl Serialize, buffer: &'a mut [u8; ENCODED_MAX]) -> Result<&'a [u8], FrameError> {
    let mut frame = [0; FRAME_MAX];
    frame[0] = VERSION;
    let used =
        postcard::to_slice(message, &mut frame[1..FRAME_MAX - CHECKSUM_BYTES]).map_err(|_| FrameError::TooLong)?;
    let end = 1 + used.len();
    let checksum = CRC32C.checksum(&frame[..end]).to_le_bytes();
    frame[end..end + CHECKSUM_BYTES].copy_from_slice(&checksum);
    let encoded = cobs::try_encode(&frame[..end + CHECKSUM_BYTES], &mut buffer[..ENCODED_MAX - 1])
        .map_err(|_| FrameError::TooLong)?;
    buffer[encoded] = 0;
    Ok(&buffer[..=encoded])
}

/// What a decoder has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LineStatistics {
    /// Frames whose message was understood.
    pub messages: u64,
    /// Whole frames of another version, or with a message that is not known here.
    pub unknown: u64,
    /// Frames that were damaged, too long, or whose beginning was missed.
    pub damaged: u64,
}

/// Takes bytes as they come, in pieces of any size, and makes messages of them. 520 bytes.
#[derive(Debug)]
pub struct Decoder {
    buffer: [u8; ENCODED_MAX],
    length: usize,
    /// What comes until the next zero is too long.
    overflow: bool,
    statistics: LineStatistics,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// Before the first byte.
    pub const fn new() -> Self {
        Self {
            buffer: [0; ENCODED_MAX],
            length: 0,
            overflow: false,
            statistics: LineStatistics {
                messages: 0,
                unknown: 0,
                damaged: 0,
            },
        }
    }

    /// What was seen so far.
    pub const fn statistics(&self) -> LineStatistics {
        self.statistics
    }

    /// Takes bytes up to the end of a message: the message, if one was understood, and how many bytes were taken, which is all of them if
    /// there is none. O(bytes).
    pub fn take<M: DeserializeOwned>(&mut self, bytes: &[u8]) -> (Option<M>, usize) {
        for (byte, taken) in bytes.iter().zip(1..) {
            if *byte == 0 {
                if let Some(message) = self.end() {
                    return (Some(message), taken);
                }
            } else if self.length < ENCODED_MAX - 1 {
                self.buffer[self.length] = *byte;
                self.length += 1;
            } else {
                self.overflow = true;
            }
        }
        (None, bytes.len())
    }

    fn end<M: DeserializeOwned>(&mut self) -> Option<M> {
        let (length, overflow) = (self.length, self.overflow);
        (self.length, self.overflow) = (0, false);
        // Zeros may be sent to be in step for certain.
        if length == 0 && !overflow {
            return None;
        }
        let whole = (!overflow).then(|| whole_frame(&mut self.buffer[..length])).flatten();
        let Some(frame) = whole else {
            self.statistics.damaged += 1;
            return None;
        };
        let message = match frame {
            [VERSION, message @ ..] => postcard::take_from_bytes(message).ok(),
            _ => None,
        };
        match message {
            Some((message, [])) => {
                self.statistics.messages += 1;
                Some(message)
            }
            _ => {
                self.statistics.unknown += 1;
                None
            }
        }
    }
}

/// Version and message, if the checksum says that it is as it was sent.
fn whole_frame(encoded: &mut [u8]) -> Option<&[u8]> {
    let length = cobs::decode_in_place(encoded).ok()?;
    let (frame, checksum) = encoded.get(..length)?.split_last_chunk::<CHECKSUM_BYTES>()?;
    (CRC32C.checksum(frame) == u32::from_le_bytes(*checksum)).then_some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{SoftKind, SoftRun, ToGuest, ToHost};
    use dunlin_core::units::{Gfn, Pages};
    use proptest::prelude::*;
    use std::vec::Vec;

    fn all(decoder: &mut Decoder, bytes: &[u8], piece: usize) -> Vec<ToHost> {
        let mut messages = Vec::new();
        for mut piece in bytes.chunks(piece.max(1)) {
            while !piece.is_empty() {
                let (message, taken) = decoder.take(piece);
                messages.extend(message);
                piece = &piece[taken..];
            }
        }
        messages
    }

    fn soft(firsts: &[u64]) -> ToHost {
        ToHost::Soft {
            epoch: 7,
            runs: firsts
                .iter()
                .map(|&first| SoftRun {
                    first: Gfn(first),
                    pages: Pages(first % 513 + 1),
                    kind: SoftKind::Free,
                })
                .collect(),
        }
    }

    fn encoded(message: &impl Serialize) -> Vec<u8> {
        encode(message, &mut [0; ENCODED_MAX]).expect("fits").to_vec()
    }

    #[test]
    fn the_longest_message_fits() {
        let bytes = encoded(&soft(&[u64::MAX; 32]));
        assert!(bytes.len() <= ENCODED_MAX && bytes.iter().filter(|byte| **byte == 0).count() == 1);
        let mut decoder = Decoder::new();
        assert_eq!(all(&mut decoder, &bytes, 100), [soft(&[u64::MAX; 32])]);
    }

    #[test]
    fn too_long_a_message_is_not_sent_and_too_long_a_frame_not_kept() {
        assert_eq!(
            encode(&[7u8; 600].as_slice(), &mut [0; ENCODED_MAX]),
            Err(FrameError::TooLong)
        );
        let mut decoder = Decoder::new();
        let mut bytes = std::vec![1; 5000];
        bytes.push(0);
        bytes.extend(encoded(&soft(&[3])));
        assert_eq!(all(&mut decoder, &bytes, 64), [soft(&[3])]);
        assert_eq!((decoder.statistics().damaged, decoder.statistics().messages), (1, 1));
    }

    #[test]
    fn what_is_not_known_is_counted_and_passed_over() {
        let mut decoder = Decoder::new();
        let bytes = [encoded(&200u8), encoded(&(soft(&[1]), 5u8)), encoded(&soft(&[2]))].concat();
        assert_eq!(all(&mut decoder, &bytes, 1), [soft(&[2])]);
        assert_eq!(
            decoder.statistics().unknown,
            2,
            "another message, and one with something after it"
        );
    }

    #[test]
    fn both_ways_are_the_same_line() {
        let hello = ToGuest::Hello {
            min: 1,
            max: 3,
            nonce: 9,
        };
        let (message, _) = Decoder::new().take::<ToGuest>(&encoded(&hello));
        assert_eq!(message, Some(hello));
    }

    proptest! {
        /// Messages come back whatever pieces they come in, whatever was on the line before.
        #[test]
        fn messages_come_back(
            messages in prop::collection::vec(prop::collection::vec(any::<u64>(), 0..32), 0..10),
            noise in prop::collection::vec(any::<u8>(), 0..2000),
            piece in 1..700_usize,
        ) {
            let messages: Vec<ToHost> = messages.iter().map(|firsts| soft(firsts)).collect();
            let mut bytes = noise;
            bytes.push(0);
            messages.iter().for_each(|message| bytes.extend(encoded(message)));
            let mut decoder = Decoder::new();
            prop_assert!(all(&mut decoder, &bytes, piece).ends_with(&messages));
        }

        /// A byte that changed on the way makes no other message of it.
        #[test]
        fn a_changed_byte_is_noticed(firsts in prop::collection::vec(any::<u64>(), 0..32), at in any::<usize>(), flip in 1..=255u8) {
            let mut bytes = encoded(&soft(&firsts));
            let at = at % bytes.len();
            bytes[at] ^= flip;
            bytes.push(0);
            let mut decoder = Decoder::new();
            prop_assert_eq!(all(&mut decoder, &bytes, 9), []);
        }

        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..3000), piece in 1..100_usize) {
            let mut decoder = Decoder::new();
            all(&mut decoder, &bytes, piece);
        }
    }
}
