//! From a bare socket to a secured one.

use super::{Engine, Progress, READ_BYTES, Secured};
use crate::channel::{Cancel, ChannelError, Stream, Wait, outgoing::Outgoing, socket::Socket};
use rustls::{
    ClientConfig, ServerConfig,
    client::UnbufferedClientConnection,
    pki_types::{DnsName, ServerName},
    server::UnbufferedServerConnection,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// No name goes over the wire, and none is looked at: who is expected is the verifier's business.
const NO_NAME: &str = "dunlin.invalid";
/// How long the peer has to take the reason of a refusal, before the connection ends.
const LINGER: Duration = Duration::from_secs(1);
/// First bytes of records: change cipher spec, alert, handshake, application data (RFC 8446, B.1).
const RECORD_TYPES: std::ops::RangeInclusive<u8> = 20..=23;

/// Who a handshake is done as.
pub(crate) enum Role {
    /// The one who connected.
    Client(Arc<ClientConfig>),
    /// The one who accepted.
    Server(Arc<ServerConfig>),
}

/// Why a handshake did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection.
    Channel(ChannelError),
    /// What came is no TLS.
    Plain,
    /// The peer ended the connection instead of an answer.
    HungUp,
    /// What rustls says.
    Tls(rustls::Error),
}

impl From<ChannelError> for Failure {
    fn from(error: ChannelError) -> Self {
        Self::Channel(error)
    }
}

impl From<rustls::Error> for Failure {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}

/// Does the handshake on a fresh connection. If it fails the peer is told why, as far as TLS has words for it.
///
/// # Errors
/// [`Failure`].
pub(crate) fn handshake(stream: Stream, role: Role, wait: Wait<'_>) -> Result<Stream, Failure> {
    let engine = match role {
        Role::Client(config) => {
            let name = ServerName::DnsName(DnsName::try_from_str(NO_NAME).expect("the constant is a name"));
            Engine::Client(UnbufferedClientConnection::new(config, name)?)
        }
        Role::Server(config) => Engine::Server(UnbufferedServerConnection::new(config)?),
    };
    let mut shake = Handshake {
        socket: stream.socket(),
        engine,
        incoming: vec![0; READ_BYTES],
        end: 0,
        plain: Vec::new(),
        outgoing: Outgoing::default(),
    };
    match shake.run(wait) {
        Ok(()) => {
            let secured = Secured::new(shake.engine, shake.incoming, shake.end, shake.plain);
            Ok(stream.secure(secured))
        }
        Err(failure) => {
            shake.refuse(&failure);
            Err(failure)
        }
    }
}

struct Handshake<'a> {
    socket: &'a Socket,
    engine: Engine,
    /// What came, up to `end`.
    incoming: Vec<u8>,
    end: usize,
    /// What came right behind the peer's handshake.
    plain: Vec<u8>,
    outgoing: Outgoing,
}

impl Handshake<'_> {
    fn run(&mut self, wait: Wait<'_>) -> Result<(), Failure> {
        loop {
            let step = self.step()?;
            match step {
                Progress::Wrote => {}
                Progress::Flight => self.send(wait)?,
                Progress::MayWrite if !self.engine.common().is_handshaking() => {
                    return Ok(self.send(wait)?);
                }
                Progress::NeedsInput | Progress::MayWrite => self.receive(wait)?,
                Progress::PeerEnded | Progress::Ended => return Err(Failure::HungUp),
                // The peer's part is done, or it could say nothing; so is this side's, then.
                Progress::Read => return Ok(self.send(wait)?),
            }
        }
    }

    fn step(&mut self) -> Result<Progress, rustls::Error> {
        let (incoming, plain) = (&mut self.incoming[..self.end], &mut self.plain);
        let mut deliver = |bytes: &[u8]| plain.extend_from_slice(bytes);
        let step = self.engine.step(incoming, &mut self.outgoing, &mut deliver)?;
        self.incoming.copy_within(step.discard..self.end, 0);
        self.end -= step.discard;
        Ok(step.progress)
    }

    fn receive(&mut self, wait: Wait<'_>) -> Result<(), Failure> {
        let is_first = self.end == 0;
        if self.end == self.incoming.len() {
            return Err(rustls::Error::PeerSentOversizedRecord.into());
        }
        let read = loop {
            let flags = rustix::net::RecvFlags::DONTWAIT;
            match self.socket.receive(&mut self.incoming[self.end..], flags)? {
                Some(0) => return Err(Failure::HungUp),
                Some(read) => break read,
                None => self.socket.wait_readable(wait)?,
            }
        };
        self.end += read;
        // Between flights a record begins here, too: it is one as long as the peer speaks TLS.
        if is_first && !RECORD_TYPES.contains(&self.incoming[0]) {
            return Err(Failure::Plain);
        }
        Ok(())
    }

    fn send(&mut self, wait: Wait<'_>) -> Result<(), ChannelError> {
        while !self.outgoing.is_empty() {
            match self.socket.send(self.outgoing.filled())? {
                Some(sent) => self.outgoing.sent(sent),
                None => self.socket.wait_writable(wait)?,
            }
        }
        Ok(())
    }

    /// Sends what rustls wants to say about a failure, and lets the peer read it: a socket closed with unread bytes would reset
    /// the connection and take the words along.
    fn refuse(&mut self, failure: &Failure) {
        if let Failure::Plain = failure {
            // A peer in plain knows an alert when it sees one, and only its bytes make rustls say it.
            let _ = self.step();
        }
        // The alert comes first, before rustls looks at its input again.
        let _ = self.step();
        let never = Cancel::new();
        if self.send(Wait::within(LINGER, &never)).is_ok() {
            self.linger();
        }
    }

    fn linger(&mut self) {
        self.socket.finish();
        let (never, began) = (Cancel::new(), Instant::now());
        let wait = Wait::within(LINGER, &never);
        while began.elapsed() < LINGER {
            match self
                .socket
                .receive(&mut self.incoming, rustix::net::RecvFlags::DONTWAIT)
            {
                Ok(Some(0)) | Err(_) => return,
                Ok(Some(_)) => {}
                Ok(None) if self.socket.wait_readable(wait).is_err() => return,
                Ok(None) => {}
            }
        }
    }
}
