//! From a fresh connection to one whose other end is known, and which belongs to a session.
//!
//! Behind the handshake, and before the migration protocol, each side says one thing. The source: which session the connection is to
//! begin or to join, and a proof. The target: whether it does, and a proof. Each proof is a keyed hash, with the secret of the
//! session, of who proves and of the connection's own exporter; so it is worth nothing on another connection.

use super::{
    Binding, Credentials, Files, Name, Session, Sessions, TrustError, Trusted,
    commit::Signing,
    exporter::Exporter,
    session::{PROOF_BYTES, Proof, Prover, is_same},
    verify::{Judge, Shown},
};
use crate::channel::{
    ChannelError, Stream, Wait,
    secured::{Failure, Role, handshake},
};
use dunlin_core::message::SessionId;
use rustls::{ClientConfig, ServerConfig, SupportedCipherSuite, client::Resumption, version::TLS13};
use std::sync::{Arc, Mutex, PoisonError};

/// First bytes of what each side says: whose words these are, and their version.
const MAGIC: &[u8; 8] = b"DUNLIN\0\x01";
const OPENING_BYTES: usize = MAGIC.len() + 1 + 16 + PROOF_BYTES;
const ANSWER_BYTES: usize = MAGIC.len() + 1 + PROOF_BYTES;
const BEGIN: u8 = 1;
const JOIN: u8 = 2;
const ACCEPTED: u8 = 1;
const UNKNOWN: u8 = 2;
const TURNED_AWAY: u8 = 3;

/// The side that connects: whom it expects, and the session that its connections belong to.
#[derive(Debug)]
pub struct Visit {
    files: Files,
    expected: Name,
    id: SessionId,
    /// From the first connection on.
    session: Mutex<Option<Arc<Session>>>,
}

/// The side that is connected to: whoever an authority vouches for may begin a session, and only its own peer joins one.
#[derive(Debug)]
pub struct Admission {
    files: Files,
    sessions: Sessions,
}

impl Visit {
    /// Connections to `expected` for the session `id`, with the credentials in `files`.
    pub fn new(files: Files, expected: Name, id: SessionId) -> Self {
        Self {
            files,
            expected,
            id,
            session: Mutex::new(None),
        }
    }

    /// The session, once it has begun.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Secures a fresh connection: the first one begins the session, every later one joins it. Only a target that has lost its
    /// memory of the session leaves a connection with [`Binding::Unknown`].
    ///
    /// # Errors
    /// [`ChannelError`]; [`ChannelError::Trust`] if it is not the expected one that answers.
    pub fn enter(&self, stream: Stream, wait: Wait<'_>) -> Result<Stream, ChannelError> {
        let name = stream.peer().to_owned();
        let credentials = self.files.load().map_err(|source| distrust(&name, source))?;
        let (stream, exporter, shown) = credentials.connect(stream, &self.expected, wait)?;
        let signing = credentials.signing(&shown);
        let peer = shown.peer;
        let untrusted = |source| distrust(&name, source);
        let suite = suite(&stream).ok_or_else(|| untrusted(TrustError::NoDunlin))?;
        let known = self.session();
        let (kind, session) = match &known {
            Some(session) => (JOIN, Arc::clone(session)),
            None => {
                let begun = Session::begin(self.id, peer.clone(), &exporter, suite);
                (BEGIN, Arc::new(begun.ok_or_else(|| untrusted(TrustError::NoDunlin))?))
            }
        };
        if session.peer() != &peer {
            return Err(untrusted(TrustError::Impostor));
        }
        let proof = |prover| {
            session
                .proof(prover, &exporter, suite)
                .ok_or_else(|| untrusted(TrustError::NoDunlin))
        };
        stream.write_all(&opening(kind, self.id, &proof(Prover::Source)?), wait)?;
        let mut answer = [0; ANSWER_BYTES];
        stream.read_exact(&mut answer, wait)?;
        let (verdict, proved) = split_answer(&answer).ok_or_else(|| untrusted(TrustError::NoDunlin))?;
        let binding = match verdict {
            ACCEPTED if !is_same(&proved, &proof(Prover::Target)?) => return Err(untrusted(TrustError::Impostor)),
            ACCEPTED if kind == BEGIN => {
                *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&session));
                Binding::First(session)
            }
            ACCEPTED => Binding::Joined(session),
            UNKNOWN if kind == JOIN => Binding::Unknown(self.id),
            TURNED_AWAY => return Err(untrusted(TrustError::TurnedAway)),
            _ => return Err(untrusted(TrustError::NoDunlin)),
        };
        Ok(stream.trust(Trusted { peer, binding, signing }))
    }
}

impl Admission {
    /// A guard with the credentials in `files`.
    pub fn new(files: Files) -> Self {
        Self {
            files,
            sessions: Sessions::default(),
        }
    }

    /// Secures a connection that was accepted, and finds out who is at its other end and to which session it belongs.
    ///
    /// # Errors
    /// [`ChannelError`]; [`ChannelError::Trust`] if nobody who may be here is there.
    pub fn admit(&self, stream: Stream, wait: Wait<'_>) -> Result<Stream, ChannelError> {
        let name = stream.peer().to_owned();
        let credentials = self.files.load().map_err(|source| distrust(&name, source))?;
        let (stream, exporter, shown) = credentials.accept(stream, wait)?;
        let signing = credentials.signing(&shown);
        let peer = shown.peer;
        let untrusted = |source| distrust(&name, source);
        let suite = suite(&stream).ok_or_else(|| untrusted(TrustError::NoDunlin))?;
        let mut opening = [0; OPENING_BYTES];
        stream.read_exact(&mut opening, wait)?;
        let (kind, id, proved) = split_opening(&opening).ok_or_else(|| untrusted(TrustError::NoDunlin))?;
        let turn_away = |source| {
            // Whoever is turned away may be gone already.
            let _ = stream.write_all(&answer(TURNED_AWAY, &[0; PROOF_BYTES]), wait);
            stream.finish();
            untrusted(source)
        };
        let prove = |session: &Session, prover| session.proof(prover, &exporter, suite);
        let is_proved =
            |session: &Session| prove(session, Prover::Source).is_some_and(|expected| is_same(&proved, &expected));
        let stranger = || TrustError::Stranger {
            name: peer.name().clone(),
        };
        let binding = match kind {
            BEGIN => {
                let begun = Session::begin(id, peer.clone(), &exporter, suite).filter(is_proved);
                let begun = begun.ok_or_else(|| turn_away(TrustError::NoDunlin))?;
                let taken = || TrustError::SessionTaken {
                    name: peer.name().clone(),
                };
                Binding::First(self.sessions.begin(begun).ok_or_else(|| turn_away(taken()))?)
            }
            JOIN => match self.sessions.find(id) {
                Some(session) if session.peer() == &peer && is_proved(&session) => Binding::Joined(session),
                Some(_) => return Err(turn_away(stranger())),
                None => Binding::Unknown(id),
            },
            _ => return Err(turn_away(TrustError::NoDunlin)),
        };
        let answer = match &binding {
            Binding::First(session) | Binding::Joined(session) => {
                let proof = prove(session, Prover::Target).ok_or_else(|| turn_away(TrustError::NoDunlin))?;
                answer(ACCEPTED, &proof)
            }
            Binding::Unknown(_) => answer(UNKNOWN, &[0; PROOF_BYTES]),
        };
        stream.write_all(&answer, wait)?;
        Ok(stream.trust(Trusted { peer, binding, signing }))
    }
}

impl Credentials {
    /// What hand-overs are signed with on a connection to whoever has shown that.
    fn signing(&self, shown: &Shown) -> Signing {
        Signing::new(Arc::clone(&self.signer), self.holder(), &shown.peer, &shown.certificate)
    }

    /// The handshake of the side that connects.
    pub(super) fn connect(
        &self,
        stream: Stream,
        expected: &Name,
        wait: Wait<'_>,
    ) -> Result<(Stream, Arc<Exporter>, Shown), ChannelError> {
        let name = stream.peer().to_owned();
        let judge = Arc::new(Judge::new(Arc::clone(&self.authorities), Some(expected.clone())));
        let exporter = Arc::new(Exporter::default());
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| distrust(&name, TrustError::Tls(error)))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&judge) as Arc<_>)
            .with_client_cert_resolver(Arc::clone(&self.own) as Arc<_>);
        // Each connection shows its certificate anew, and says no name in plain.
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config.key_log = Arc::clone(&exporter) as Arc<_>;
        shake(stream, Role::Client(Arc::new(config)), judge, exporter, wait)
    }

    /// The handshake of the side that is connected to.
    pub(super) fn accept(
        &self,
        stream: Stream,
        wait: Wait<'_>,
    ) -> Result<(Stream, Arc<Exporter>, Shown), ChannelError> {
        let name = stream.peer().to_owned();
        let judge = Arc::new(Judge::new(Arc::clone(&self.authorities), None));
        let exporter = Arc::new(Exporter::default());
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| distrust(&name, TrustError::Tls(error)))?
            .with_client_cert_verifier(Arc::clone(&judge) as Arc<_>)
            .with_cert_resolver(Arc::clone(&self.own) as Arc<_>);
        config.send_tls13_tickets = 0;
        config.key_log = Arc::clone(&exporter) as Arc<_>;
        shake(stream, Role::Server(Arc::new(config)), judge, exporter, wait)
    }
}

fn shake(
    stream: Stream,
    role: Role,
    judge: Arc<Judge>,
    exporter: Arc<Exporter>,
    wait: Wait<'_>,
) -> Result<(Stream, Arc<Exporter>, Shown), ChannelError> {
    let name = stream.peer().to_owned();
    let done = handshake(stream, role, wait);
    match (done, judge.verdict()) {
        (Ok(stream), Some(Ok(shown))) => Ok((stream, exporter, shown)),
        // The verdict on a certificate says more than what TLS made of it.
        (_, Some(Err(error))) => Err(distrust(&name, error)),
        (Err(Failure::Channel(error)), _) => Err(error),
        (Err(Failure::Plain), _) => Err(distrust(&name, TrustError::PlainPeer)),
        (Err(Failure::HungUp), _) => Err(distrust(&name, TrustError::HungUp)),
        (Err(Failure::Tls(error)), _) => Err(distrust(&name, TrustError::of_tls(&error))),
        (Ok(_), None) => Err(distrust(&name, TrustError::NoCertificate)),
    }
}

fn suite(stream: &Stream) -> Option<SupportedCipherSuite> {
    stream.secured()?.suite()
}

fn distrust(peer: &str, source: TrustError) -> ChannelError {
    ChannelError::Trust {
        peer: peer.to_owned(),
        source: Box::new(source),
    }
}

fn opening(kind: u8, id: SessionId, proof: &Proof) -> Vec<u8> {
    [MAGIC, &[kind][..], &id.0.to_le_bytes(), proof].concat()
}

fn split_opening(bytes: &[u8; OPENING_BYTES]) -> Option<(u8, SessionId, Proof)> {
    let (kind, rest) = bytes.strip_prefix(MAGIC)?.split_first()?;
    let (id, proof) = rest.split_first_chunk()?;
    Some((*kind, SessionId(u128::from_le_bytes(*id)), proof.try_into().ok()?))
}

fn answer(verdict: u8, proof: &Proof) -> Vec<u8> {
    [MAGIC, &[verdict][..], proof].concat()
}

fn split_answer(bytes: &[u8; ANSWER_BYTES]) -> Option<(u8, Proof)> {
    let (verdict, proof) = bytes.strip_prefix(MAGIC)?.split_first()?;
    Some((*verdict, proof.try_into().ok()?))
}
