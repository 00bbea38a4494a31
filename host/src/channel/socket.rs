//! The bare socket under a stream.

use super::{
    ChannelError,
    wait::{Ended, Wait},
};
use rustix::{
    event::PollFlags,
    io::Errno,
    net::{RecvFlags, SendFlags, Shutdown, getpeername, recv, send, shutdown, sockopt},
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

/// A connected socket. Every call is told not to wait (`MSG_DONTWAIT`) unless it is asked to.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    transport: Transport,
    peer: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Unix,
}

impl Socket {
    pub(super) fn new(fd: OwnedFd, transport: Transport, peer: &str) -> Self {
        Self {
            fd,
            transport,
            peer: peer.into(),
        }
    }

    pub(super) fn peer(&self) -> &str {
        &self.peer
    }

    /// A unix socket's has none.
    pub(super) fn peer_ip(&self) -> Result<Option<IpAddr>, ChannelError> {
        if self.transport == Transport::Unix {
            return Ok(None);
        }
        let named = getpeername(&self.fd).and_then(|address| address.ok_or(Errno::NOTCONN));
        match named.and_then(SocketAddr::try_from) {
            Ok(address) => Ok(Some(address.ip())),
            Err(errno) => Err(self.error("name the other end of", errno.into())),
        }
    }

    /// `None` if nothing is there, 0 at the end of the stream.
    pub(super) fn receive(&self, buffer: &mut [u8], flags: RecvFlags) -> Result<Option<usize>, ChannelError> {
        loop {
            match recv(&self.fd, &mut *buffer, flags) {
                Ok((read, _)) => return Ok(Some(read)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.error("read from", errno.into())),
            }
        }
    }

    /// `None` if the socket takes nothing now.
    pub(super) fn send(&self, bytes: &[u8]) -> Result<Option<usize>, ChannelError> {
        loop {
            match send(&self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(written) => return Ok(Some(written)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.error("write to", errno.into())),
            }
        }
    }

    pub(super) fn wait_readable(&self, wait: Wait<'_>) -> Result<(), ChannelError> {
        self.poll(PollFlags::IN, wait)
    }

    pub(super) fn wait_writable(&self, wait: Wait<'_>) -> Result<(), ChannelError> {
        self.poll(PollFlags::OUT, wait)
    }

    pub(super) fn set_read_patience(&self, patience: Duration) -> Result<(), ChannelError> {
        sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Recv, Some(patience))
            .map_err(|errno| self.error("limit the time of reads from", errno.into()))
    }

    pub(super) fn shutdown(&self) {
        // It fails only when the connection is gone already, which is what was asked for.
        let _ = shutdown(&self.fd, Shutdown::Both);
    }

    pub(super) fn finish(&self) {
        // As above: a lost connection is finished.
        let _ = shutdown(&self.fd, Shutdown::Write);
    }

    pub(super) fn try_clone(&self) -> Result<Self, ChannelError> {
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

    pub(super) fn set_small_backlog(&self, bytes: usize) -> Result<(), ChannelError> {
        let limit = u32::try_from(bytes).unwrap_or(u32::MAX);
        match self.transport {
            Transport::Tcp => socket2::SockRef::from(self).set_tcp_notsent_lowat(limit),
            Transport::Unix => sockopt::set_socket_send_buffer_size(&self.fd, bytes).map_err(io::Error::from),
        }
        .map_err(|source| self.error("limit the backlog to", source))
    }

    pub(super) fn error(&self, action: &'static str, source: io::Error) -> ChannelError {
        match source.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => self.closed(),
            _ => ChannelError::Io {
                action,
                peer: self.peer.to_string(),
                source,
            },
        }
    }

    pub(super) fn closed(&self) -> ChannelError {
        ChannelError::Closed {
            peer: self.peer.to_string(),
        }
    }

    fn poll(&self, events: PollFlags, wait: Wait<'_>) -> Result<(), ChannelError> {
        match wait.poll(self.fd.as_fd(), events) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Ended::Cancelled)) => Err(ChannelError::Cancelled),
            Ok(Err(Ended::TimedOut)) => Err(ChannelError::TimedOut {
                peer: self.peer.to_string(),
                after: wait.patience(),
            }),
            Err(errno) => Err(self.error("wait for", errno.into())),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
