//! rustls without buffers of its own, for either side.

use super::{RECORD_BYTES, RECORD_OVERHEAD};
use crate::channel::outgoing::Outgoing;
use rustls::{
    CommonState, Error,
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus},
};

/// Room for what rustls sends along with a piece by itself: new keys.
const SLACK_BYTES: usize = 128;
/// An alert with its record.
const ALERT_BYTES: usize = 64;

/// One side of a connection.
pub(super) enum Engine {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What a step was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// A record was decrypted.
    Read,
    /// Something was encoded; more steps follow before input is needed.
    Wrote,
    /// What was encoded is a whole flight: it should be sent now.
    Flight,
    /// Nothing can be done without more input.
    NeedsInput,
    /// Nothing can be done without more input, but something may be written.
    MayWrite,
    /// The peer ended its direction.
    PeerEnded,
    /// Both did.
    Ended,
}

/// A step and how much of the input it used up.
pub(super) struct Step {
    pub(super) discard: usize,
    pub(super) progress: Progress,
}

macro_rules! process {
    ($engine:expr, $incoming:expr, $handle:expr) => {
        match $engine {
            Engine::Client(connection) => $handle(connection.process_tls_records($incoming)),
            Engine::Server(connection) => $handle(connection.process_tls_records($incoming)),
        }
    };
}

impl Engine {
    pub(super) fn common(&self) -> &CommonState {
        match self {
            Self::Client(connection) => connection,
            Self::Server(connection) => connection,
        }
    }

    /// Does the next thing: decrypts at most one record of `incoming` for `deliver`, or encodes what rustls has to say.
    pub(super) fn step(
        &mut self,
        incoming: &mut [u8],
        outgoing: &mut Outgoing,
        deliver: &mut dyn FnMut(&[u8]),
    ) -> Result<Step, Error> {
        process!(self, incoming, |status| step(status, outgoing, deliver))
    }

    /// Encrypts `bytes`.
    pub(super) fn encrypt(
        &mut self,
        bytes: &[u8],
        outgoing: &mut Outgoing,
        has_peer_ended: &mut bool,
    ) -> Result<(), Error> {
        let room = bytes.len() + bytes.len().div_ceil(RECORD_BYTES) * RECORD_OVERHEAD + SLACK_BYTES;
        self.write(outgoing, has_peer_ended, &Written::Data(bytes), room)
    }

    /// Says that this side ends its direction.
    pub(super) fn end(&mut self, outgoing: &mut Outgoing, has_peer_ended: &mut bool) -> Result<(), Error> {
        self.write(outgoing, has_peer_ended, &Written::Goodbye, ALERT_BYTES)
    }

    fn write(
        &mut self,
        outgoing: &mut Outgoing,
        has_peer_ended: &mut bool,
        what: &Written<'_>,
        room: usize,
    ) -> Result<(), Error> {
        loop {
            // No input: the reader alone has that.
            let progress = process!(self, &mut [], |status| write(status, outgoing, what, room))?;
            match progress {
                Progress::MayWrite => return Ok(()),
                Progress::PeerEnded => *has_peer_ended = true,
                Progress::Wrote | Progress::Flight => {}
                Progress::Read | Progress::NeedsInput | Progress::Ended => return Err(Error::HandshakeNotComplete),
            }
        }
    }
}

enum Written<'a> {
    Data(&'a [u8]),
    Goodbye,
}

fn step<D>(
    UnbufferedStatus { mut discard, state, .. }: UnbufferedStatus<'_, '_, D>,
    outgoing: &mut Outgoing,
    deliver: &mut dyn FnMut(&[u8]),
) -> Result<Step, Error> {
    let progress = match state? {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                discard += record.discard;
                deliver(record.payload);
            }
            Progress::Read
        }
        ConnectionState::WriteTraffic(_) => Progress::MayWrite,
        other => common(other, outgoing)?,
    };
    Ok(Step { discard, progress })
}

fn write<D>(
    UnbufferedStatus { state, .. }: UnbufferedStatus<'_, '_, D>,
    outgoing: &mut Outgoing,
    what: &Written<'_>,
    room: usize,
) -> Result<Progress, Error> {
    match state? {
        ConnectionState::WriteTraffic(mut traffic) => {
            let room = outgoing.room(room);
            let written = match what {
                Written::Data(bytes) => traffic.encrypt(bytes, room),
                Written::Goodbye => traffic.queue_close_notify(room),
            };
            outgoing.add(written.map_err(|error| match error {
                EncryptError::InsufficientSize(_) => Error::General("a record is longer than it can be".to_owned()),
                EncryptError::EncryptExhausted => Error::EncryptError,
            })?);
            Ok(Progress::MayWrite)
        }
        other => common(other, outgoing),
    }
}

fn common<D>(state: ConnectionState<'_, '_, D>, outgoing: &mut Outgoing) -> Result<Progress, Error> {
    Ok(match state {
        ConnectionState::EncodeTlsData(mut data) => {
            let mut room = ALERT_BYTES;
            let encoded = loop {
                match data.encode(outgoing.room(room)) {
                    Ok(encoded) => break encoded,
                    Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => room = required_size,
                    Err(EncodeError::AlreadyEncoded) => return Err(Error::General("encoded twice".to_owned())),
                }
            };
            outgoing.add(encoded);
            Progress::Wrote
        }
        // It goes out behind what was encoded before, and in front of all that is encoded later.
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Progress::Flight
        }
        ConnectionState::BlockedHandshake => Progress::NeedsInput,
        ConnectionState::PeerClosed => Progress::PeerEnded,
        ConnectionState::Closed => Progress::Ended,
        // Early data is never offered nor taken, and there are no other states.
        _ => return Err(Error::General("a state of TLS that does not occur here".to_owned())),
    })
}
