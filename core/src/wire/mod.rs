//! Encoding of frames and messages: versioned, length-checked, allocation-free.
//!
//! Everything on a connection is a frame: a header of [`HEADER_BYTES`] and, for some kinds, a payload. The header says what
//! follows and how long it is before a single byte of it is read, so a host can read pages straight into guest memory, and
//! refuse nonsense without allocating.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `DNLN` |
//! | 4 | 1 | kind, [`FrameKind`] |
//! | 5 | 1 | flags: bit 0, the checksum field holds an XXH3-64 of the pages |
//! | 6 | 2 | stream number |
//! | 8 | 4 | sequence number, from 0 per direction and stream, wrapping |
//! | 12 | 4 | count: pages of a run, or bytes of a message |
//! | 16 | 8 | first frame number of a run, otherwise 0 |
//! | 24 | 8 | checksum: XXH3-64 of the pages, or CRC32C of the message, otherwise 0 |
//! | 32 | 4 | round |
//! | 36 | 4 | CRC32C of the 36 bytes before |
//!
//! All integers are little-endian.

mod frame;
mod payload;

pub use frame::{
    FrameHeader, FrameKind, HEADER_BYTES, MAGIC, RUN_PAGES_MAX, SequenceCheck, ZERO_RUN_PAGES_MAX, checksum_message,
};
pub use payload::{decode_message, encode_message};

use core::fmt;

/// Why bytes are no frame or message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireError {
    /// Not `DNLN`: the other side is no Dunlin, or the stream lost its place.
    Magic,
    /// The header's own checksum does not match.
    HeaderChecksum,
    /// A kind of frame this version does not know.
    Kind(u8),
    /// Flag bits this version does not know, or that do not fit the kind.
    Flags(u8),
    /// A count outside what this kind allows.
    Count {
        /// What the header says.
        found: u32,
        /// The most it may say.
        max: u32,
    },
    /// A field that must be zero for this kind is not.
    Reserved,
    /// A frame is missing, repeated or out of order.
    Sequence {
        /// The number that should have come.
        expected: u32,
        /// The number that came.
        found: u32,
    },
    /// The message's checksum does not match.
    MessageChecksum,
    /// The message cannot be decoded, or has bytes left over.
    Message,
    /// The message does not fit the buffer.
    TooLong,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("this is no Dunlin frame; is the other side a Dunlin of the same release?"),
            Self::HeaderChecksum => f.write_str("frame header damaged on the way (CRC32C differs)"),
            Self::Kind(kind) => write!(f, "unknown frame kind {kind}; use the same release on both hosts"),
            Self::Flags(flags) => write!(
                f,
                "unknown frame flags {flags:#04x}; use the same release on both hosts"
            ),
            Self::Count { found, max } => write!(f, "frame count {found} is outside 1 to {max}"),
            Self::Reserved => f.write_str("a reserved frame field is not zero"),
            Self::Sequence { expected, found } => {
                write!(
                    f,
                    "frame {found} came where {expected} was expected: lost, repeated or out of order"
                )
            }
            Self::MessageChecksum => f.write_str("message damaged on the way (CRC32C differs)"),
            Self::Message => f.write_str("message cannot be decoded"),
            Self::TooLong => f.write_str("message does not fit a frame"),
        }
    }
}

impl core::error::Error for WireError {}
