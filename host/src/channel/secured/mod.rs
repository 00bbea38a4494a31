//! TLS over a socket: what goes in and comes out is plain, what is on the wire is not.
//!
//! rustls keeps the protocol, and both directions share its state; so nobody who holds that state waits for a socket. A reader
//! takes records from the socket into a buffer of its own and holds the state only while it decrypts them. A writer holds
//! it only while it encrypts a piece; whatever was encrypted goes out in the order of encryption, by one writer at a time.
//! All buffers are bounded: about 150 KiB for what arrives, 70 KiB for what leaves.

mod engine;
mod handshake;
#[cfg(test)]
mod tests;

pub(crate) use handshake::{Failure, Role, handshake};

use super::{ChannelError, Wait, outgoing::Outgoing, socket::Socket};
use crate::trust::TrustError;
use engine::{Engine, Progress};
use rustix::net::RecvFlags;
use rustls::SupportedCipherSuite;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// The most plaintext of a record (RFC 8446, 5.1).
const RECORD_BYTES: usize = 16 * 1024;
/// What a record has beside its plaintext: header, content type and tag (RFC 8446, 5.2).
const RECORD_OVERHEAD: usize = 22;
/// Type and length before a record.
const HEADER_BYTES: usize = 5;
/// A longer record is wrong, and rustls says so without having seen it whole (RFC 8446, 5.2, and what older versions allowed).
const RECORD_BYTES_MAX: usize = RECORD_BYTES + 2048;
/// What is encrypted at a time: few system calls, still in the cache, and soon on its way.
const PIECE_BYTES: usize = 4 * RECORD_BYTES;
/// What is taken from the socket at a time.
const READ_BYTES: usize = 128 * 1024;

/// A connection after its handshake.
pub(crate) struct Secured {
    state: Mutex<State>,
    reading: Mutex<Reading>,
    writing: Mutex<Writing>,
}

/// What both directions share.
struct State {
    engine: Engine,
    /// Encrypted, and in the order of encryption; nobody has begun to send it.
    pending: Outgoing,
    /// The peer has said that it ends its direction.
    has_peer_ended: bool,
    /// This side has said so.
    has_ended: bool,
    /// The peer broke the protocol: nothing is read or written any more.
    has_failed: bool,
}

/// Of the reader.
struct Reading {
    /// What came from the socket; `start..end` is not decrypted yet.
    records: Vec<u8>,
    start: usize,
    end: usize,
    /// What of a record had no room in the caller's buffer, from `plain_start` on.
    plain: Vec<u8>,
    plain_start: usize,
}

/// Of the writer.
#[derive(Default)]
struct Writing {
    /// On its way into the socket.
    sending: Outgoing,
    /// A write was given up in the middle: whoever wrote it does not know what of it was sent.
    is_broken: bool,
}

impl Reading {
    /// True if a whole record is there, or one that is too long ever to be.
    fn has_record(&self) -> bool {
        let waiting = &self.records[self.start..self.end];
        waiting.get(3..HEADER_BYTES).is_some_and(|length| {
            let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
            length > RECORD_BYTES_MAX || waiting.len() >= HEADER_BYTES + length
        })
    }

    fn has_plain(&self) -> bool {
        self.plain_start < self.plain.len()
    }

    /// Room behind what is there for at least the rest of a record.
    fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.records.len() - self.end < HEADER_BYTES + RECORD_BYTES_MAX {
            self.records.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.records[self.end..]
    }

    /// Moves what did not fit before to `buffer`.
    fn take_plain(&mut self, buffer: &mut [u8]) -> usize {
        let waiting = &self.plain[self.plain_start..];
        let taken = waiting.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&waiting[..taken]);
        self.plain_start += taken;
        taken
    }

    /// Decrypts whole records into `buffer` until it is full. The peer may end its direction behind them.
    fn decrypt(&mut self, state: &mut State, buffer: &mut [u8]) -> Result<usize, rustls::Error> {
        let mut filled = 0;
        while filled < buffer.len() && !state.has_peer_ended && self.has_record() {
            let (plain, plain_start) = (&mut self.plain, &mut self.plain_start);
            let mut deliver = |bytes: &[u8]| {
                let fitting = bytes.len().min(buffer.len() - filled);
                buffer[filled..filled + fitting].copy_from_slice(&bytes[..fitting]);
                filled += fitting;
                if fitting < bytes.len() {
                    // At most one record at a time is decrypted, so nothing else waits here.
                    plain.clear();
                    *plain_start = 0;
                    plain.extend_from_slice(&bytes[fitting..]);
                }
            };
            let step = state.engine.step(
                &mut self.records[self.start..self.end],
                &mut state.pending,
                &mut deliver,
            )?;
            self.start += step.discard;
            match step.progress {
                Progress::PeerEnded => state.has_peer_ended = true,
                // A part of a handshake message. None of ours is that long, and rustls would look for the part in the buffer
                // of whoever calls next.
                Progress::MayWrite | Progress::NeedsInput if step.discard == 0 => {
                    return Err(rustls::Error::General("a handshake message in parts".to_owned()));
                }
                _ => {}
            }
        }
        Ok(filled)
    }
}

impl Secured {
    /// Bytes that TLS adds to `bytes` that are written at once.
    pub(crate) const fn overhead(bytes: usize) -> u64 {
        (bytes.div_ceil(RECORD_BYTES) * RECORD_OVERHEAD) as u64
    }

    fn new(engine: Engine, mut records: Vec<u8>, end: usize, plain: Vec<u8>) -> Self {
        records.resize(READ_BYTES, 0);
        Self {
            state: Mutex::new(State {
                engine,
                pending: Outgoing::default(),
                has_peer_ended: false,
                has_ended: false,
                has_failed: false,
            }),
            reading: Mutex::new(Reading {
                records,
                start: 0,
                end,
                plain,
                plain_start: 0,
            }),
            writing: Mutex::default(),
        }
    }

    /// As [`recv`](rustix::net::recv) with these flags, of what was encrypted: `None` if nothing is there, 0 at the end.
    pub(super) fn read(
        &self,
        socket: &Socket,
        buffer: &mut [u8],
        flags: RecvFlags,
    ) -> Result<Option<usize>, ChannelError> {
        if buffer.is_empty() {
            return Ok(Some(0));
        }
        let mut reading = lock(&self.reading);
        loop {
            if reading.has_plain() {
                return Ok(Some(reading.take_plain(buffer)));
            }
            if reading.has_record() {
                let read = self.decrypt(socket, &mut reading, buffer)?;
                if read > 0 {
                    return Ok(Some(read));
                }
            }
            if self.has_peer_ended(socket)? {
                return Ok(Some(0));
            }
            if !reading.has_record() {
                match socket.receive(reading.room(), flags)? {
                    None => return Ok(None),
                    Some(0) => {
                        return Err(ChannelError::Cut {
                            peer: socket.peer().to_owned(),
                        });
                    }
                    Some(read) => reading.end += read,
                }
            }
        }
    }

    fn decrypt(&self, socket: &Socket, reading: &mut Reading, buffer: &mut [u8]) -> Result<usize, ChannelError> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let decrypted = reading.decrypt(state, buffer);
        if decrypted.is_err() {
            state.has_failed = true;
            // The alert comes first, before rustls looks at its input again.
            let input = &mut reading.records[reading.start..reading.end];
            let _ = state.engine.step(input, &mut state.pending, &mut |_| {});
        }
        let answers = !state.pending.is_empty();
        drop(guard);
        if answers {
            // What rustls has to say itself: new keys, or what is wrong. A writer at work takes it along.
            self.try_flush(socket);
        }
        decrypted.map_err(|error| broken(socket, &error))
    }

    fn has_peer_ended(&self, socket: &Socket) -> Result<bool, ChannelError> {
        let state = lock(&self.state);
        if state.has_failed {
            return Err(socket.closed());
        }
        Ok(state.has_peer_ended)
    }

    /// Whether [`read`](Self::read) has something that the socket does not show any more.
    pub(super) fn has_buffered(&self) -> bool {
        let reading = lock(&self.reading);
        reading.has_plain() || reading.has_record() || lock(&self.state).has_peer_ended
    }

    /// Encrypts as much of `bytes` as goes at a time and sends all of that.
    pub(super) fn write(&self, socket: &Socket, bytes: &[u8], wait: Wait<'_>) -> Result<usize, ChannelError> {
        let piece = &bytes[..bytes.len().min(PIECE_BYTES)];
        let mut writing = lock(&self.writing);
        let written = if writing.is_broken {
            Err(socket.closed())
        } else {
            self.encrypt(socket, piece)
                .and_then(|()| self.flush(&mut writing, socket, Some(wait)))
        };
        writing.is_broken |= written.is_err();
        written.map(|()| piece.len())
    }

    fn encrypt(&self, socket: &Socket, piece: &[u8]) -> Result<(), ChannelError> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if state.has_failed || state.has_ended {
            return Err(socket.closed());
        }
        let encrypted = state
            .engine
            .encrypt(piece, &mut state.pending, &mut state.has_peer_ended);
        encrypted.map_err(|error| broken(socket, &error))
    }

    /// Sends whatever is encrypted; without a `wait`, as much as the socket takes.
    fn flush(&self, writing: &mut Writing, socket: &Socket, wait: Option<Wait<'_>>) -> Result<(), ChannelError> {
        loop {
            if writing.sending.is_empty() {
                std::mem::swap(&mut writing.sending, &mut lock(&self.state).pending);
                if writing.sending.is_empty() {
                    return Ok(());
                }
            }
            match (socket.send(writing.sending.filled())?, wait) {
                (Some(sent), _) => writing.sending.sent(sent),
                (None, Some(wait)) => socket.wait_writable(wait)?,
                (None, None) => return Ok(()),
            }
            if wait.is_some_and(|wait| wait.cancel().is_raised()) && !writing.sending.is_empty() {
                return Err(ChannelError::Cancelled);
            }
        }
    }

    /// Sends what it can without waiting for anybody.
    fn try_flush(&self, socket: &Socket) {
        let mut writing = match self.writing.try_lock() {
            Ok(writing) => writing,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // A lost connection needs no words.
        let _ = self.flush(&mut writing, socket, None);
    }

    /// Tells the peer that this side ends its direction, if it can be told without waiting.
    pub(super) fn say_goodbye(&self, socket: &Socket) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if std::mem::replace(&mut state.has_ended, true) || state.has_failed {
            return;
        }
        // Without it the peer takes the end for a cut, which does no harm.
        let _ = state.engine.end(&mut state.pending, &mut state.has_peer_ended);
        drop(guard);
        self.try_flush(socket);
    }

    /// What both sides agreed to encrypt with.
    pub(crate) fn suite(&self) -> Option<SupportedCipherSuite> {
        lock(&self.state).engine.common().negotiated_cipher_suite()
    }
}

impl std::fmt::Debug for Secured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Neither keys nor memory of a guest may get into a log.
        f.write_str("Secured")
    }
}

/// A peer that breaks the protocol, or somebody on the way: the connection is of no more use.
fn broken(socket: &Socket, error: &rustls::Error) -> ChannelError {
    ChannelError::Trust {
        peer: socket.peer().to_owned(),
        source: Box::new(TrustError::of_tls(error)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
