//! Byte streams between hosts: addresses, listeners, streams, shaping.
//!
//! Everything blocks, and everything that blocks takes a [`Wait`]: a deadline, and a [`Cancel`] flag that another
//! thread may raise. Sockets are non-blocking inside; a raised flag is noticed within [`CANCEL_LATENCY`], also in the
//! middle of a large write to a peer that reads nothing.
#![forbid(unsafe_code)]

mod address;
mod connect;
mod fault;
mod frames;
mod listener;
mod outgoing;
pub(crate) mod secured;
mod shaping;
mod socket;
mod stream;
mod wait;

pub use address::{Address, AddressError};
pub use connect::connect;
pub use fault::{Direction, Fault, FaultKind, FaultProxy};
pub use frames::{ByteCounts, Checksum, FrameError, FrameReceiver, FrameSender, classify, first_message, piece_pages};
pub use listener::Listener;
pub(crate) use shaping::{BURST, FRESH, PAUSE};
pub use shaping::{Schedule, TokenBucket};
pub use stream::Stream;
pub use wait::{CANCEL_LATENCY, Cancel, Wait};

use std::{io, path::PathBuf, time::Duration};

/// What can go wrong with a channel.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The [`Cancel`] flag was raised before the operation was complete.
    #[error("cancelled")]
    Cancelled,

    /// The deadline passed before the operation was complete.
    #[error("no answer from {peer} within {}: check that the other side runs and that the network carries data", humantime::format_duration(*.after))]
    TimedOut {
        /// The other end.
        peer: String,
        /// How long this end waited.
        after: Duration,
    },

    /// The other side ended the stream in the middle of a read, or refused a write.
    #[error("{peer} closed the connection: see its own messages for the reason")]
    Closed {
        /// The other end.
        peer: String,
    },

    /// A stream by TLS ended, but its peer did not say that it ends it: something on the way may have.
    #[error(
        "the connection to {peer} was cut: it ended without its end being announced; see the other side's messages, and check the network"
    )]
    Cut {
        /// The other end.
        peer: String,
    },

    /// Nobody who is trusted is at the other end.
    #[error("no secure connection with {peer}")]
    Trust {
        /// The other end.
        peer: String,
        /// Why not, and what to do.
        source: Box<crate::trust::TrustError>,
    },

    /// Nobody listens at the address.
    #[error("nothing listens at {address}: start the other side first, or correct the address")]
    Refused {
        /// Where the connection was to go.
        address: Address,
    },

    /// The host name has no address.
    #[error("the host name {host:?} has no address ({reason}): correct it, or give a numeric address")]
    UnknownHost {
        /// The name as given.
        host: String,
        /// What the resolver said.
        reason: String,
    },

    /// A port or socket path that somebody else serves.
    #[error("{address} is in use by another process: choose another address, or end that process ({hint})")]
    InUse {
        /// The address asked for.
        address: Address,
        /// A command that shows who it is.
        hint: String,
    },

    /// An address that this host does not have.
    #[error("this host has no address {address}: use one that `ip address` shows, or 0.0.0.0 for all of them")]
    NotOurs {
        /// The address asked for.
        address: Address,
    },

    /// The user may not use the address.
    #[error("no permission for {address}: {remedy}")]
    Permission {
        /// The address asked for.
        address: Address,
        /// What would give the permission.
        remedy: &'static str,
    },

    /// The path of a unix socket holds something that is not a socket; it is left alone.
    #[error("{} exists and is not a socket: remove it, or choose another path", .path.display())]
    NotASocket {
        /// The path asked for.
        path: PathBuf,
    },

    /// The directory of a unix socket does not exist.
    #[error("the directory of {} does not exist: create it, or choose another path", .path.display())]
    NoDirectory {
        /// The path asked for.
        path: PathBuf,
    },

    /// Whatever else the system refuses.
    #[error("cannot {action} {peer}")]
    Io {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// The other end, or the address.
        peer: String,
        /// The system's reason.
        source: io::Error,
    },
}

impl ChannelError {
    /// Whether the stream behind this error can never be used again. False for [`Cancelled`](Self::Cancelled) and
    /// [`TimedOut`](Self::TimedOut): the caller may wait once more, as long as it knows how much was transferred.
    pub const fn is_final(&self) -> bool {
        !matches!(self, Self::Cancelled | Self::TimedOut { .. })
    }
}
