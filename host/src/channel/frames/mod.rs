//! Frames over streams: messages by copy, pages straight between socket and guest memory.

mod receive;
mod send;
#[cfg(test)]
mod tests;

pub use receive::{FrameReceiver, first_message};
pub use send::{FrameSender, classify};

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dunlin_core::message::{CONTROL_PAYLOAD_MAX, Message};
use dunlin_core::pageset::Run;
use dunlin_core::units::{BytesPerSec, Gfn, PAGE_SIZE, Pages};
use dunlin_core::wire::{
    FrameHeader, FrameKind, HEADER_BYTES, RUN_PAGES_MAX, SequenceCheck, WireError, ZERO_RUN_PAGES_MAX,
    checksum_message, decode_message, encode_message,
};
use twox_hash::XxHash3_64;

use super::{Cancel, ChannelError, Stream, TokenBucket, Wait, outgoing::Outgoing};
use crate::memory::{GuestMemory, MemoryError, Part, RunClass};

/// Pages of one frame while the guest may write: what is hashed or encrypted is copied first, and the copy should stay in the cache.
const COPIED_PAGES: u64 = 64;
/// A shaped sender sends at most this long at a stretch, so that whatever else shares the link gets its turn.
const SHAPED_PIECE: Duration = Duration::from_millis(5);
/// Pages of a frame are taken from an encrypted stream in pieces of this size: still in the cache when they are moved on.
const DECRYPTED_BYTES: usize = 64 * 1024;
/// Bytes read ahead of small frames.
const READ_AHEAD: usize = 128 * 1024;

/// How many pages a link of `rate` carries in a piece of a shaped stream; without a limit, the most of a frame.
pub fn piece_pages(rate: Option<BytesPerSec>) -> Pages {
    let most = u64::from(RUN_PAGES_MAX);
    Pages(rate.map_or(most, |rate| {
        let bytes = u128::from(rate.0) * SHAPED_PIECE.as_millis() / 1000;
        u64::try_from(bytes / u128::from(PAGE_SIZE)).map_or(most, |pages| pages.clamp(1, most))
    }))
}

/// Why a frame could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// What came is no frame of this protocol.
    #[error("{peer} sent something that is no valid frame")]
    Wire {
        /// The other end.
        peer: String,
        /// What is wrong with it.
        source: WireError,
    },
    /// A valid frame that has no place here.
    #[error("{peer} sent something that does not belong here; use the same release on both hosts")]
    Unexpected {
        /// The other end.
        peer: String,
    },
    /// Pages were damaged on the way.
    #[error("pages {first}+{count} from {peer} were damaged on the way (XXH3-64 differs); migrate again")]
    PageChecksum {
        /// The other end.
        peer: String,
        /// First page.
        first: Gfn,
        /// How many.
        count: u32,
    },
    /// Pages outside the VM.
    #[error("pages are outside the VM's memory")]
    Memory(#[from] MemoryError),
}

/// How page runs are protected on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checksum {
    /// Not at all: the channel does it, or nobody.
    None,
    /// XXH3-64 over a copy, because the guest may write while it is computed.
    Copy,
    /// XXH3-64 over guest memory itself: nothing writes to it.
    InPlace,
}

/// Bytes that went over a channel, by what they were.
#[derive(Debug, Default)]
pub struct ByteCounts {
    /// Page data with its headers, zero runs included.
    pub pages: AtomicU64,
    /// Messages and heartbeats with their headers, and what TLS adds to everything.
    pub control: AtomicU64,
}

impl FrameError {
    /// A frame or message that has no place on this channel.
    pub fn unexpected(peer: &str) -> Self {
        Self::Unexpected { peer: peer.to_owned() }
    }

    /// True if the connection, not its content, failed.
    pub fn is_link(&self) -> bool {
        matches!(self, Self::Channel(_))
    }

    /// True if only a deadline passed.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Channel(ChannelError::TimedOut { .. }))
    }

    /// True if the operation was cancelled on this side.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Channel(ChannelError::Cancelled))
    }
}
