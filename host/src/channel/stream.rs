//! A connected byte stream.

use super::{
    ChannelError,
    wait::{Ended, Wait},
};
use rustix::{
    event::PollFlags,
    io::Errno,
    net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt},
};
use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::Duration,
};

/// One connection. All methods take `&self`: one thread may read while another writes, and a third may
/// [`shutdown`](Self::shutdown) to end both.
///
/// The descriptor is a blocking one, but for [`read_patiently`](Self::read_patiently) every call is told not to wait
/// (`MSG_DONTWAIT`). Whoever moves data over [`as_fd`](AsFd::as_fd) with own system calls (guest memory goes out by
/// `sendmsg` straight from where it lies) does the same, waits with [`wait_writable`](Self::wait_writable) and
/// [`wait_readable`](Self::wait_readable), and names failures with [`error`](Self::error).
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    transport: Transport,
    peer: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp,
    Unix,
}

impl Stream {
    /// Takes over a TCP connection and switches Nagle's delay off: requests for single pages must not wait for more
    /// data.
    ///
    /// # Errors
    /// [`ChannelError::Io`] when the socket takes no options.
    pub fn from_tcp(socket: TcpStream, peer: &str) -> Result<Self, ChannelError> {
        let set_up = socket.set_nodelay(true).and_then(|()| socket.set_nonblocking(false));
        let stream = Self {
            fd: socket.into(),
            transport: Transport::Tcp,
            peer: peer.into(),
        };
        set_up.map_err(|source| stream.error("set up the connection to", source))?;
        Ok(stream)
    }

    /// Takes over a unix connection.
    ///
    /// # Errors
    /// [`ChannelError::Io`] when the socket takes no options.
    pub fn from_unix(socket: UnixStream, peer: &str) -> Result<Self, ChannelError> {
        let set_up = socket.set_nonblocking(false);
        let stream = Self {
            fd: socket.into(),
            transport: Transport::Unix,
            peer: peer.into(),
        };
        set_up.map_err(|source| stream.error("set up the connection to", source))?;
        Ok(stream)
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
        &self.peer
    }

    /// The other end's address; a unix socket's has none.
    ///
    /// # Errors
    /// [`ChannelError::Io`] when the connection is gone.
    pub fn peer_ip(&self) -> Result<Option<IpAddr>, ChannelError> {
        if self.transport == Transport::Unix {
            return Ok(None);
        }
        let named = rustix::net::getpeername(&self.fd).and_then(|address| address.ok_or(Errno::NOTCONN));
        match named.and_then(SocketAddr::try_from) {
            Ok(address) => Ok(Some(address.ip())),
            Err(errno) => Err(self.error("name the other end of", errno.into())),
        }
    }

    /// Reads what is there, at most `buffer`, waiting for the first byte. 0 means that the peer has ended the stream.
    ///
    /// # Errors
    /// [`ChannelError`]; nothing was read then.
    pub fn read_some(&self, buffer: &mut [u8], wait: Wait<'_>) -> Result<usize, ChannelError> {
        loop {
            match self.read_now(buffer)? {
                Some(read) => return Ok(read),
                None => self.wait_readable(wait)?,
            }
        }
    }

    /// Reads what is there, at most `buffer`, without waiting: `None` if nothing is. 0 means that the peer has ended the
    /// stream.
    ///
    /// # Errors
    /// [`ChannelError`]; nothing was read then.
    pub fn read_now(&self, buffer: &mut [u8]) -> Result<Option<usize>, ChannelError> {
        self.receive(buffer, RecvFlags::DONTWAIT)
    }

    /// As [`read_now`](Self::read_now), but waits in the call itself for the first byte, for as long as
    /// [`set_read_patience`](Self::set_read_patience) has set, and for ever without. Only [`shutdown`](Self::shutdown) ends it
    /// before, but it costs one system call less than waiting first.
    ///
    /// # Errors
    /// [`ChannelError`]; nothing was read then.
    pub fn read_patiently(&self, buffer: &mut [u8]) -> Result<Option<usize>, ChannelError> {
        self.receive(buffer, RecvFlags::empty())
    }

    /// How long [`read_patiently`](Self::read_patiently) waits.
    ///
    /// # Errors
    /// [`ChannelError::Io`] when the system does not take the time; zero is not taken.
    pub fn set_read_patience(&self, patience: Duration) -> Result<(), ChannelError> {
        sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Recv, Some(patience))
            .map_err(|errno| self.error("limit the time of reads from", errno.into()))
    }

    fn receive(&self, buffer: &mut [u8], flags: RecvFlags) -> Result<Option<usize>, ChannelError> {
        loop {
            match recv(&self.fd, &mut *buffer, flags) {
                Ok((read, _)) => return Ok(Some(read)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.error("read from", errno.into())),
            }
        }
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
                0 => {
                    return Err(ChannelError::Closed {
                        peer: self.peer.to_string(),
                    });
                }
                read => buffer = &mut buffer[read..],
            }
        }
        Ok(())
    }

    /// Writes at least one byte of `bytes` (none if it is empty) and returns how many, waiting for room.
    ///
    /// # Errors
    /// [`ChannelError`]; nothing was written then.
    pub fn write_some(&self, bytes: &[u8], wait: Wait<'_>) -> Result<usize, ChannelError> {
        loop {
            match send(&self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(written) => return Ok(written),
                Err(Errno::AGAIN) => self.wait_writable(wait)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.error("write to", errno.into())),
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

    /// Waits until a read would not block: data, the end of the stream, or an error to fetch.
    ///
    /// # Errors
    /// [`ChannelError::Cancelled`], [`ChannelError::TimedOut`].
    pub fn wait_readable(&self, wait: Wait<'_>) -> Result<(), ChannelError> {
        self.poll(PollFlags::IN, wait)
    }

    /// Waits until a write would not block: room, or an error to fetch.
    ///
    /// # Errors
    /// [`ChannelError::Cancelled`], [`ChannelError::TimedOut`].
    pub fn wait_writable(&self, wait: Wait<'_>) -> Result<(), ChannelError> {
        self.poll(PollFlags::OUT, wait)
    }

    /// Ends the stream in both directions. Threads blocked in it return; what was written before still goes out.
    pub fn shutdown(&self) {
        // It fails only when the connection is gone already, which is what was asked for.
        let _ = shutdown(&self.fd, Shutdown::Both);
    }

    /// Ends this side's direction: the peer reads the end of the stream, and may still answer.
    pub fn finish(&self) {
        // As above: a lost connection is finished.
        let _ = shutdown(&self.fd, Shutdown::Write);
    }

    /// Another handle of the same connection.
    ///
    /// # Errors
    /// [`ChannelError::Io`] when the process has no descriptors left.
    pub fn try_clone(&self) -> Result<Self, ChannelError> {
        let fd = self
            .fd
            .try_clone()
            .map_err(|source| self.error("duplicate the connection to", source))?;
        Ok(Self {
            fd,
            transport: self.transport,
            peer: self.peer.clone(),
        })
    }

    /// Keeps at most about `bytes` waiting in this host's socket, so that what is urgent on another connection of the
    /// same link is not queued behind much bulk data (`TCP_NOTSENT_LOWAT` of tcp(7); the send buffer of a unix socket).
    ///
    /// # Errors
    /// [`ChannelError::Io`] when the system does not know the option.
    pub fn set_small_backlog(&self, bytes: usize) -> Result<(), ChannelError> {
        let limit = u32::try_from(bytes).unwrap_or(u32::MAX);
        match self.transport {
            Transport::Tcp => socket2::SockRef::from(self).set_tcp_notsent_lowat(limit),
            Transport::Unix => sockopt::set_socket_send_buffer_size(&self.fd, bytes).map_err(io::Error::from),
        }
        .map_err(|source| self.error("limit the backlog to", source))
    }

    /// Names a failed system call on this stream. `action` is an infinitive with a preposition, "read from" for
    /// example.
    pub fn error(&self, action: &'static str, source: io::Error) -> ChannelError {
        match source.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                ChannelError::Closed {
                    peer: self.peer.to_string(),
                }
            }
            _ => ChannelError::Io {
                action,
                peer: self.peer.to_string(),
                source,
            },
        }
    }

    fn poll(&self, events: PollFlags, wait: Wait<'_>) -> Result<(), ChannelError> {
        match wait.poll(self.fd.as_fd(), events) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ended)) => Err(self.ended(ended, wait)),
            Err(errno) => Err(self.error("wait for", errno.into())),
        }
    }

    /// A passed deadline alone is no reason to leave data unread that is there: the poll decides about that.
    fn check(&self, wait: Wait<'_>) -> Result<(), ChannelError> {
        if wait.cancel().is_raised() {
            return Err(ChannelError::Cancelled);
        }
        Ok(())
    }

    fn ended(&self, ended: Ended, wait: Wait<'_>) -> ChannelError {
        match ended {
            Ended::Cancelled => ChannelError::Cancelled,
            Ended::TimedOut => ChannelError::TimedOut {
                peer: self.peer.to_string(),
                after: wait.patience(),
            },
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{Cancel, Listener, connect};
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
