//! What ties the connections of one migration together.

use super::{Identity, commit::Signing, exporter::Exporter};
use dunlin_core::message::SessionId;
use rustls::SupportedCipherSuite;
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};
use zeroize::Zeroizing;

/// The exporter's label for the secret of a session, on its first connection.
const SESSION_LABEL: &str = "EXPORTER-dunlin-session";
/// The exporter's label for what a connection proves itself by.
const CONNECTION_LABEL: &str = "EXPORTER-dunlin-connection";
/// What is hashed with the session's secret for keys begins with this, and for proofs with the roles.
const KEY_PURPOSE: &[u8] = b"key";

/// Bytes of a proof.
pub(super) const PROOF_BYTES: usize = 32;
/// A proof that the session is known.
pub(super) type Proof = [u8; PROOF_BYTES];

/// A session between two hosts: its secret came into being on the first connection, is known to these two processes only, and never
/// leaves their memory.
pub struct Session {
    id: SessionId,
    peer: Identity,
    secret: Zeroizing<[u8; 32]>,
}

/// Who proves something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prover {
    Source,
    Target,
}

/// How a connection belongs to its session.
#[derive(Clone, Debug)]
pub enum Binding {
    /// It is the first one.
    First(Arc<Session>),
    /// Its peer has proved to have taken part in the first one.
    Joined(Arc<Session>),
    /// The target knows nothing of the session, and said so: it is another process than before. Only its certificate says who it
    /// is, and nothing but that it knows nothing may be believed.
    Unknown(SessionId),
}

/// What is known of the other end of a connection.
#[derive(Clone, Debug)]
pub struct Trusted {
    /// Who it is.
    pub peer: Identity,
    /// To which session the connection belongs.
    pub binding: Binding,
    /// What hand-overs are signed with.
    pub signing: Signing,
}

impl Trusted {
    /// The session of the connection, if both ends have proved to know it.
    pub const fn session(&self) -> Option<&Arc<Session>> {
        match &self.binding {
            Binding::First(session) | Binding::Joined(session) => Some(session),
            Binding::Unknown(_) => None,
        }
    }

    /// Whether the connection is the first one of this session.
    pub fn begins(&self, id: SessionId) -> bool {
        matches!(&self.binding, Binding::First(session) if session.id == id)
    }

    /// Whether the connection has joined this session.
    pub fn joined(&self, id: SessionId) -> bool {
        matches!(&self.binding, Binding::Joined(session) if session.id == id)
    }

    /// Whether the connection asks for this session, which nobody here knows any more.
    pub fn misses(&self, id: SessionId) -> bool {
        matches!(&self.binding, Binding::Unknown(missed) if *missed == id)
    }
}

impl Session {
    /// The session whose first connection this is.
    pub(super) fn begin(
        id: SessionId,
        peer: Identity,
        exporter: &Exporter,
        suite: SupportedCipherSuite,
    ) -> Option<Self> {
        let secret = exporter.export(suite, SESSION_LABEL, &id.0.to_le_bytes())?;
        Some(Self { id, peer, secret })
    }

    /// Its name.
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// Who is at the other end.
    pub const fn peer(&self) -> &Identity {
        &self.peer
    }

    /// A key of the session for some purpose: both sides get the same one for the same label, and no key tells anything of another.
    pub fn key(&self, label: &str) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        hasher.update(KEY_PURPOSE).update(label.as_bytes());
        *hasher.finalize().as_bytes()
    }

    /// What proves that `prover` knows the session, on this connection and on no other.
    pub(super) fn proof(&self, prover: Prover, exporter: &Exporter, suite: SupportedCipherSuite) -> Option<Proof> {
        let connection = exporter.export(suite, CONNECTION_LABEL, &self.id.0.to_le_bytes())?;
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        let role: &[u8] = match prover {
            Prover::Source => b"source",
            Prover::Target => b"target",
        };
        hasher
            .update(role)
            .update(&*connection)
            .update(&self.id.0.to_le_bytes());
        Some(*hasher.finalize().as_bytes())
    }
}

/// Whether two proofs are the same, in a time that does not tell where they differ.
pub(super) fn is_same(one: &Proof, other: &Proof) -> bool {
    blake3::Hash::from_bytes(*one) == blake3::Hash::from_bytes(*other)
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// The sessions of a process that is connected to. Each lasts as long as somebody holds it: a connection, an attempt, or whoever
/// remembers how one ended.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<SessionId, Weak<Session>>>);

impl Sessions {
    /// Takes a new session in; `None` if there is one of this name.
    pub(super) fn begin(&self, session: Session) -> Option<Arc<Session>> {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| session.strong_count() > 0);
        if sessions.contains_key(&session.id) {
            return None;
        }
        let session = Arc::new(session);
        sessions.insert(session.id, Arc::downgrade(&session));
        Some(session)
    }

    /// The session of this name, if there still is one.
    pub(super) fn find(&self, id: SessionId) -> Option<Arc<Session>> {
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&id).and_then(Weak::upgrade)
    }
}
