//! The control socket: one JSON object per line, in both directions.
//!
//! A client sends `{"command":"status"}`, `{"command":"cancel"}`, `{"command":"resolve","resolution":"give-up"}` or
//! `{"command":"migrate","to":"host:7000","strategy":"precopy",…}`, and reads lines: `{"progress":{…}}` as often as
//! there is news, then `{"result":{…}}` or `{"error":{"message":"…","exit_code":2}}`. Then it may send the next
//! request. A recording, `{"command":"record",…}`, is told of in binary [`Message`]s after its answer: see [`RecordRequest`]. The socket
//! belongs to the user who started the process; nobody else can open it.
#![forbid(unsafe_code)]

mod client;
mod line;
mod protocol;
mod recording;
mod server;
mod session;

pub use client::{Client, Event};
pub use protocol::{Failure, MigrateRequest, Request, Resolution, Response};
pub use recording::{
    Decoder, DirtyRuns, Encoder, EndReason, Message, OrderedPages, RecordRequest, RecordedRegion, RecordingAnswer,
    Service,
};
pub use server::{Caller, Gone, Handler, Heard, Server, Subscriber};
pub use session::RecordingSession;

use crate::channel::ChannelError;
use std::path::PathBuf;

/// What can go wrong between a client and the process it controls.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The other side, or the handler, refuses or has failed. The message says why and what to do.
    #[error("{}", .0.message)]
    Failed(Failure),

    /// Nobody serves the socket.
    #[error("no process answers at {}: start `dunlin guest` or `dunlin receive` with it first, or correct --control", .path.display())]
    NotServed {
        /// The socket.
        path: PathBuf,
    },

    /// The socket that was to be served is somebody else's.
    #[error("the control socket {} is in use by {owner}: choose another --control, or end that process", .path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// Who serves it, as far as known.
        owner: String,
    },

    /// The process went away without an answer.
    #[error("the process at {} ended before it answered: see its own messages, then `dunlin status --state DIR`", .path.display())]
    Lost {
        /// The socket.
        path: PathBuf,
    },

    /// A line longer than allowed.
    #[error("a line of more than {limit_bytes} bytes came over the control socket: send one JSON object per line")]
    LongLine {
        /// The limit.
        limit_bytes: usize,
    },

    /// A line that is no request.
    #[error("not understood: {reason}; send one JSON object per line, {{\"command\":\"status\"}} for example")]
    Request {
        /// What is wrong with it.
        reason: String,
    },

    /// A line that is no response.
    #[error("the process at {} answers in another way than this version expects ({reason}): use the same version for both", .path.display())]
    Response {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// Bytes that are no message of a recording.
    #[error("what the process says of the recording is not understood ({0}): use the same version for both")]
    Message(&'static str),

    /// The path cannot be a socket's.
    #[error(transparent)]
    Address(#[from] crate::channel::AddressError),

    /// The socket itself.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

impl ControlError {
    /// A refusal because of wrong usage or environment. `message` says what happened, why, and what to do.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::Failed(Failure {
            message: message.into(),
            exit_code: 2,
        })
    }

    /// A failure of something that was properly begun. `message` says what happened, why, and what to do.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed(Failure {
            message: message.into(),
            exit_code: 1,
        })
    }

    /// The exit code that a command ends with because of this.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(failure) => failure.exit_code,
            Self::Lost { .. } | Self::Channel(ChannelError::Cancelled) => 1,
            _ => 2,
        }
    }
}
