//! A connected byte stream.

use super::{
    ChannelError,
    secured::Secured,
    socket::{Socket, Transport},
    wait::Wait,
};
use crate::trust::Trusted;
use rustix::net::RecvFlags;
use std::{
    io,
    net::{IpAddr, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::Duration,
};

/// One connection, in plain or by TLS. All methods take `&self`: one thread may read while another writes, and a third may
/// [`shutdown`](Self::shutdown) to end both.
///
/// The descriptor is a blocking one, but for [`read_patiently`](Self::read_patiently) every call is told not to wait
/// (`MSG_DONTWAIT`). Whoever moves data over [`as_fd`](AsFd::as_fd) with own system calls (guest memory goes out by
/// `sendmsg` straight from where it lies) does the same, waits with [`wait_writable`](Self::wait_writable) and
/// [`wait_readable`](Self::wait_readable), and names failures with [`error`](Self::error). That is possible only where
/// [`is_plain`](Self::is_plain).
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    secured: Option<Arc<Secured>>,
    trusted: Option<Trusted>,
}

impl Stream {
    /// Takes over a TCP connection and switches Nagle's delay off: requests for single pages must not wait for more
    /// data.
    ///
    /// # Errors
    /// [`ChannelError::Io`] when the socket takes no options.
    pub fn from_tcp(socket: TcpStream, peer: &str) -> Result<Self, ChannelError> {
        let set_up = socket.set_nodelay(true).and_then(|()| socket.set_nonblocking(false));
        Self::new(Socket::new(socket.into(), Transport::Tcp, peer), set_up)
    }

    /// Takes over a unix connection.
    ///
    /// # Errors
    /// [`ChannelError::Io`] when the socket takes no options.
    pub fn from_unix(socket: UnixStream, peer: &str) -> Result<Self, ChannelError> {
        let set_up = socket.set_nonblocking(false);
        Self::new(Socket::new(socket.into(), Transport::Unix, peer), set_up)
    }

    fn new(socket: Socket, set_up: io::Result<()>) -> Result<Self, ChannelError> {
        set_up.map_err(|source| socket.error("set up the connection to", source))?;
        Ok(Self {
            socket,
            secured: None,
            trusted: None,
        })
    }

    /// Two connected ends within this process.
    ///
    /// # Errors
    /// [`ChannelError::Io`] when the process has no descriptors left.
    pub fn pair() -> Result<(Self, Self), ChannelError> {
        let (left, right) = UnixStream::pair().map_err(|source| ChannelError::Io {
            action: "create",
            peer: "a pair of sockets".into(),
            source,
        })?;
        Ok((
            Self::from_unix(left, "the other end")?,
            Self::from_unix(right, "the other end")?,
        ))
    }

    /// The other end, for messages.
    pub fn peer(&self) -> &str {
        self.socket.peer()
    }

    /// The socket, before anything is wrapped around it.
    pub(super) const fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The same connection, whose bytes go by TLS from now on.
    pub(super) fn secure(self, secured: Secured) -> Self {
        Self {
            secured: Some(Arc::new(secured)),
            ..self
        }
    }

    /// The same connection, with what is known of its other end.
    pub(crate) fn trust(self, trusted: Trusted) -> Self {
        Self {
            trusted: Some(trusted),
            ..self
        }
    }

    /// The layer of TLS, if there is one.
    pub(crate) fn secured(&self) -> Option<&Secured> {
        self.secured.as_deref()
    }

    /// Who is at the other end, and to which session the connection belongs; `None` in plain.
    pub const fn trusted(&self) -> Option<&Trusted> {
        self.trusted.as_ref()
    }

    /// Whether bytes go over the wire as they are.
    pub const fn is_plain(&self) -> bool {
        self.secured.is_none()
    }

    /// Bytes on the wire beyond `bytes` that are written at once.
    pub fn overhead(&self, bytes: usize) -> u64 {
        self.secured.as_ref().map_or(0, |_| Secured::overhead(bytes))
    }

    /// The other end's address; a unix socket's has none.
    ///
    /// # Errors
    /// [`ChannelError::Io`] when the connection is gone.
    pub fn peer_ip(&self) -> Result<Option<IpAddr>, ChannelError> {
        self.socket.peer_ip()
    }

    /// Reads what is there, at most `buffer`, waiting for the first byte. 0 means that the peer has ended the stream.
    ///
    /// # Errors
    /// [`ChannelError`]; nothing was read then. [`ChannelError::Cut`] when a stream by TLS ends without its peer's word.
    pub fn read_some(&self, buffer: &mut [u8], wait: Wait<'_>) -> Result<usize, ChannelError> {
        loop {
            match self.read_now(buffer)? {
                Some(read) => return Ok(read),
                // Not `wait_readable`: what is here of an unfinished record would end that wait at once.
                None => self.socket.wait_readable(wait)?,
            }
        }
    }

    /// Reads what is there, at most `buffer`, without waiting: `None` if nothing is. 0 means that the peer has ended the
    /// stream.
    ///
    /// # Errors
    /// As [`read_some`](Self::read_some).
    pub fn read_now(&self, buffer: &mut [u8]) -> Result<Option<usize>, ChannelError> {
        self.receive(buffer, RecvFlags::DONTWAIT)
    }

    /// As [`read_now`](Self::read_now), but waits in the call itself for the first byte, for as long as
    /// [`set_read_patience`](Self::set_read_patience) has set, and for ever without. Only [`shutdown`](Self::shutdown) ends it
    /// before, but it costs one system call less than waiting first.
    ///
    /// # Errors
    /// As [`read_some`](Self::read_some).
    pub fn read_patiently(&self, buffer: &mut [u8]) -> Result<Option<usize>, ChannelError> {
        self.receive(buffer, RecvFlags::empty())
    }

    /// How long [`read_patiently`](Self::read_patiently) waits.
    ///
    /// # Errors
    /// [`ChannelError::Io`] when the system does not take the time; zero is not taken.
    pub fn set_read_patience(&self, patience: Duration) -> Result<(), ChannelError> {
        self.socket.set_read_patience(patience)
    }

    fn receive(&self, buffer: &mut [u8], flags: RecvFlags) -> Result<Option<usize>, ChannelError> {
        match &self.secured {
            Some(secured) => secured.read(&self.socket, buffer, flags),
            None => self.socket.receive(buffer, flags),
        }
    }

    /// Whether a read gives something that the socket does not show any more.
    pub fn has_buffered(&self) -> bool {
        self.secured.as_ref().is_some_and(|secured| secured.has_buffered())
    }

    /// Fills `buffer`.
    ///
    /// # Errors
    /// [`ChannelError`]; an unknown part of the buffer is filled then, so that the stream is of no more use to a
    /// protocol. [`ChannelError::Closed`] when the peer ends the stream first.
    pub fn read_exact(&self, mut buffer: &mut [u8], wait: Wait<'_>) -> Result<(), ChannelError> {
        while !buffer.is_empty() {
            // Even a peer that never stops sending must not outrun a cancellation.
            self.check(wait)?;
            match self.read_some(buffer, wait)? {
                0 => return Err(self.socket.closed()),
                read => buffer = &mut buffer[read..],
            }
        }
        Ok(())
    }

    /// Writes at least one byte of `bytes` (none if it is empty) and returns how many, waiting for room.
    ///
    /// # Errors
    /// [`ChannelError`]; nothing was written then. By TLS an unknown part was, and the stream takes nothing more.
    pub fn write_some(&self, bytes: &[u8], wait: Wait<'_>) -> Result<usize, ChannelError> {
        if let Some(secured) = &self.secured {
            return secured.write(&self.socket, bytes, wait);
        }
        loop {
            match self.socket.send(bytes)? {
                Some(written) => return Ok(written),
                None => self.wait_writable(wait)?,
            }
        }
    }

    /// Writes all of `bytes` into the socket; they need not have arrived when this returns.
    ///
    /// # Errors
    /// [`ChannelError`]; an unknown part was written then, so that the stream is of no more use to a protocol.
    pub fn write_all(&self, mut bytes: &[u8], wait: Wait<'_>) -> Result<(), ChannelError> {
        while !bytes.is_empty() {
            self.check(wait)?;
            let written = self.write_some(bytes, wait)?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Waits until a read would not block: data, the end of the stream, or an error to fetch. By TLS a record may still be
    /// incomplete then.
    ///
    /// # Errors
    /// [`ChannelError::Cancelled`], [`ChannelError::TimedOut`].
    pub fn wait_readable(&self, wait: Wait<'_>) -> Result<(), ChannelError> {
        if self.has_buffered() {
            return self.check(wait);
        }
        self.socket.wait_readable(wait)
    }

    /// Waits until a write would not block: room, or an error to fetch.
    ///
    /// # Errors
    /// [`ChannelError::Cancelled`], [`ChannelError::TimedOut`].
    pub fn wait_writable(&self, wait: Wait<'_>) -> Result<(), ChannelError> {
        self.socket.wait_writable(wait)
    }

    /// Ends the stream in both directions. Threads blocked in it return; what was written before still goes out.
    pub fn shutdown(&self) {
        if let Some(secured) = &self.secured {
            secured.say_goodbye(&self.socket);
        }
        self.socket.shutdown();
    }

    /// Ends this side's direction: the peer reads the end of the stream, and may still answer.
    pub fn finish(&self) {
        if let Some(secured) = &self.secured {
            secured.say_goodbye(&self.socket);
        }
        self.socket.finish();
    }

    /// Another handle of the same connection.
    ///
    /// # Errors
    /// [`ChannelError::Io`] when the process has no descriptors left.
    pub fn try_clone(&self) -> Result<Self, ChannelError> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            secured: self.secured.clone(),
            trusted: self.trusted.clone(),
        })
    }

    /// Keeps at most about `bytes` waiting in this host's socket, so that what is urgent on another connection of the
    /// same link is not queued behind much bulk data (`TCP_NOTSENT_LOWAT` of tcp(7); the send buffer of a unix socket).
    ///
    /// # Errors
    /// [`ChannelError::Io`] when the system does not know the option.
    pub fn set_small_backlog(&self, bytes: usize) -> Result<(), ChannelError> {
        self.socket.set_small_backlog(bytes)
    }

    /// Names a failed system call on this stream. `action` is an infinitive with a preposition, "read from" for
    /// example.
    pub fn error(&self, action: &'static str, source: io::Error) -> ChannelError {
        self.socket.error(action, source)
    }

    /// A passed deadline alone is no reason to leave data unread that is there: the poll decides about that.
    fn check(&self, wait: Wait<'_>) -> Result<(), ChannelError> {
        if wait.cancel().is_raised() {
            return Err(ChannelError::Cancelled);
        }
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{Cancel, Listener, connect};
    use rustix::net::sockopt;
    use std::thread;

    const FOREVER_FOR_A_TEST: Duration = Duration::from_secs(20);

    /// A connection of each transport, both ends.
    fn connections() -> Vec<(Stream, Stream)> {
        let cancel = Cancel::new();
        let wait = Wait::within(FOREVER_FOR_A_TEST, &cancel);
        let dir = tempfile::tempdir().unwrap();
        [
            "127.0.0.1:0".into(),
            "[::1]:0".into(),
            format!("unix:{}/socket", dir.path().display()),
        ]
        .iter()
        .filter_map(|address: &String| match Listener::bind(&address.parse().unwrap()) {
            // Some build machines have no IPv6.
            Err(error) if address.starts_with('[') => {
                eprintln!("skipped: no IPv6 here ({error})");
                None
            }
            listener => Some(listener.unwrap()),
        })
        .map(|listener| {
            (
                connect(listener.address(), wait).unwrap(),
                listener.accept(wait).unwrap(),
            )
        })
        .chain([Stream::pair().unwrap()])
        .collect()
    }

    #[test]
    fn more_than_the_buffers_hold_arrives_whole() {
        let sent: Vec<u8> = (0..10_000_000u32).map(|i| (i * 7 + i / 256) as u8).collect();
        for (left, right) in connections() {
            left.set_small_backlog(128 << 10).unwrap();
            let cancel = Cancel::new();
            let wait = Wait::within(FOREVER_FOR_A_TEST, &cancel);
            let mut received = vec![0; sent.len()];
            thread::scope(|scope| {
                scope.spawn(|| {
                    left.write_all(&sent, wait).unwrap();
                    left.finish();
                });
                right.read_exact(&mut received, wait).unwrap();
                assert_eq!(right.read_some(&mut [0], wait).unwrap(), 0);
            });
            assert!(sent == received);
        }
    }

    #[test]
    fn a_blocked_write_ends_with_its_wait() {
        for (left, _right) in connections() {
            let cancel = Cancel::new();
            let endless = vec![0; 64 << 20];
            let error = left
                .write_all(&endless, Wait::within(Duration::from_millis(30), &cancel))
                .unwrap_err();
            assert!(matches!(error, ChannelError::TimedOut { .. }), "{error}");
            assert!(!error.is_final());
            thread::scope(|scope| {
                let writer = scope.spawn(|| left.write_all(&endless, Wait::forever(&cancel)));
                cancel.raise();
                assert!(matches!(writer.join().unwrap(), Err(ChannelError::Cancelled)));
            });
        }
    }

    #[test]
    fn a_raised_flag_ends_a_read_before_data_that_is_there() {
        let (left, right) = Stream::pair().unwrap();
        let cancel = Cancel::new();
        left.write_all(b"data", Wait::forever(&cancel)).unwrap();
        cancel.raise();
        assert!(matches!(
            right.read_exact(&mut [0; 4], Wait::forever(&cancel)),
            Err(ChannelError::Cancelled)
        ));
        cancel.lower();
        // A deadline is no such order: what is there can be read at any time.
        right
            .read_exact(&mut [0; 4], Wait::within(Duration::ZERO, &cancel))
            .unwrap();
        let error = right.wait_readable(Wait::within(Duration::ZERO, &cancel)).unwrap_err();
        assert!(matches!(error, ChannelError::TimedOut { .. }));
        right.wait_writable(Wait::within(Duration::ZERO, &cancel)).unwrap();
    }

    #[test]
    fn the_end_of_the_peer_is_named() {
        for (left, right) in connections() {
            let cancel = Cancel::new();
            let wait = Wait::within(FOREVER_FOR_A_TEST, &cancel);
            right.write_all(b"ab", wait).unwrap();
            drop(right);
            assert!(matches!(
                left.read_exact(&mut [0; 3], wait),
                Err(ChannelError::Closed { .. })
            ));
            let refused = left.write_all(&vec![0; 32 << 20], wait).unwrap_err();
            assert!(matches!(refused, ChannelError::Closed { .. }), "{refused}");
        }
    }

    #[test]
    fn shutdown_wakes_a_reader_of_a_clone() {
        for (left, _right) in connections() {
            let cancel = Cancel::new();
            let clone = left.try_clone().unwrap();
            thread::scope(|scope| {
                let reader = scope.spawn(|| clone.read_some(&mut [0], Wait::within(FOREVER_FOR_A_TEST, &cancel)));
                left.shutdown();
                assert_eq!(reader.join().unwrap().unwrap(), 0);
            });
        }
    }

    #[test]
    fn a_patient_read_ends_with_its_time_with_data_and_with_the_stream() {
        for (left, right) in connections() {
            let mut bytes = [0; 4];
            right.set_read_patience(Duration::from_millis(1)).unwrap();
            assert_eq!(right.read_patiently(&mut bytes).unwrap(), None);
            assert_eq!(right.read_now(&mut bytes).unwrap(), None);
            right.set_read_patience(FOREVER_FOR_A_TEST).unwrap();
            thread::scope(|scope| {
                let reader = scope.spawn(|| right.read_patiently(&mut bytes));
                left.write_all(b"ab", Wait::forever(&Cancel::new())).unwrap();
                assert_eq!(reader.join().unwrap().unwrap(), Some(2));
                let reader = scope.spawn(|| right.read_patiently(&mut [0]));
                right.shutdown();
                assert_eq!(reader.join().unwrap().unwrap(), Some(0));
            });
        }
    }

    #[test]
    fn requests_are_not_delayed() {
        let cancel = Cancel::new();
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let near = connect(listener.address(), Wait::forever(&cancel)).unwrap();
        let far = listener.accept(Wait::forever(&cancel)).unwrap();
        assert!(sockopt::tcp_nodelay(&near).unwrap() && sockopt::tcp_nodelay(&far).unwrap());
        near.set_small_backlog(4096).unwrap();
        assert_eq!(socket2::SockRef::from(&near).tcp_notsent_lowat().unwrap(), 4096);
    }
}
