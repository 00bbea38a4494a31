//! Opening a connection.

use super::{
    Address, ChannelError, Stream,
    wait::{Ended, Wait},
};
use rustix::{
    event::PollFlags,
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, sockopt},
};
use std::{
    io,
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::mpsc::{RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

/// How long to pause before asking a listener again whose queue of waiting connections is full.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(10);

/// Connects to `address`. Of a host with several addresses each is tried in the resolver's order.
///
/// # Errors
/// [`ChannelError`]; of several tried addresses the last one's error.
pub fn connect(address: &Address, wait: Wait<'_>) -> Result<Stream, ChannelError> {
    match address {
        Address::Unix(path) => connect_unix(address, path, wait),
        Address::Tcp { host, port } => {
            let mut last = None;
            for target in resolve(host, *port, wait)? {
                match connect_tcp(address, target, wait) {
                    Err(error @ (ChannelError::Cancelled | ChannelError::TimedOut { .. })) => return Err(error),
                    Err(error) => last = Some(error),
                    connected => return connected,
                }
            }
            Err(last.unwrap_or_else(|| ChannelError::UnknownHost {
                host: host.clone(),
                reason: "the answer is empty".into(),
            }))
        }
    }
}

/// The addresses of `host`. The resolver knows no deadline, so it works in a thread of its own, which is left behind if
/// it takes too long.
pub(super) fn resolve(host: &str, port: u16, wait: Wait<'_>) -> Result<Vec<SocketAddr>, ChannelError> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (sender, receiver) = sync_channel(1);
    let name = host.to_owned();
    thread::spawn(move || {
        let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect);
        // Nobody waits any more after a cancellation.
        let _ = sender.send(found);
    });
    loop {
        let slice = wait
            .slice()
            .map_err(|ended| gave_up(ended, &format!("the resolver for {host:?}"), wait))?;
        match receiver.recv_timeout(slice) {
            Ok(Ok(addresses)) => return Ok(addresses),
            Ok(Err(error)) => {
                return Err(ChannelError::UnknownHost {
                    host: host.into(),
                    reason: error.to_string(),
                });
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(ChannelError::UnknownHost {
                    host: host.into(),
                    reason: "the resolver failed".into(),
                });
            }
        }
    }
}

fn connect_tcp(address: &Address, target: SocketAddr, wait: Wait<'_>) -> Result<Stream, ChannelError> {
    let family = if target.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let fd = socket(address, family)?;
    match rustix::net::connect(&fd, &target) {
        Ok(()) => {}
        Err(Errno::INPROGRESS | Errno::INTR) => finish_connect(address, &fd, wait)?,
        Err(errno) => return Err(failed(address, errno)),
    }
    Stream::from_tcp(TcpStream::from(fd), &address.to_string())
}

fn connect_unix(address: &Address, path: &Path, wait: Wait<'_>) -> Result<Stream, ChannelError> {
    let target = SocketAddrUnix::new(path).map_err(|errno| failed(address, errno))?;
    let fd = socket(address, AddressFamily::UNIX)?;
    loop {
        match rustix::net::connect(&fd, &target) {
            Ok(()) => break,
            // unix(7): the listener's queue is full; unlike with TCP nothing is under way then.
            Err(Errno::AGAIN) => {
                wait.slice()
                    .map_err(|ended| gave_up(ended, &address.to_string(), wait))?;
                wait.sleep(FULL_QUEUE_PAUSE);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(address, errno)),
        }
    }
    Stream::from_unix(UnixStream::from(fd), &address.to_string())
}

fn socket(address: &Address, family: AddressFamily) -> Result<OwnedFd, ChannelError> {
    socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| ChannelError::Io {
        action: "create a socket for",
        peer: address.to_string(),
        source: errno.into(),
    })
}

fn finish_connect(address: &Address, fd: &OwnedFd, wait: Wait<'_>) -> Result<(), ChannelError> {
    match wait.poll(fd.as_fd(), PollFlags::OUT) {
        Ok(Ok(())) => {}
        Ok(Err(ended)) => return Err(gave_up(ended, &address.to_string(), wait)),
        Err(errno) => return Err(failed(address, errno)),
    }
    match sockopt::socket_error(fd) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(errno)) | Err(errno) => Err(failed(address, errno)),
    }
}

fn gave_up(ended: Ended, peer: &str, wait: Wait<'_>) -> ChannelError {
    match ended {
        Ended::Cancelled => ChannelError::Cancelled,
        Ended::TimedOut => ChannelError::TimedOut {
            peer: peer.into(),
            after: wait.patience(),
        },
    }
}

fn failed(address: &Address, errno: Errno) -> ChannelError {
    match errno {
        // A socket file that was never made, or that a dead process left behind, is an address where nobody listens.
        Errno::CONNREFUSED | Errno::NOENT => ChannelError::Refused {
            address: address.clone(),
        },
        Errno::ACCESS | Errno::PERM => ChannelError::Permission {
            address: address.clone(),
            remedy: match address {
                Address::Unix(_) => "run as the user who owns the socket, or as root",
                Address::Tcp { .. } => "a firewall rule or security policy of this host forbids it",
            },
        },
        errno => ChannelError::Io {
            action: "connect to",
            peer: address.to_string(),
            source: io::Error::from(errno),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Cancel;

    #[test]
    fn nobody_there_is_said_so() {
        let cancel = Cancel::new();
        // Bound, so that nobody else gets the port, but not listening.
        let unheard = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::empty(), None).unwrap();
        rustix::net::bind(&unheard, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let bound = SocketAddr::try_from(rustix::net::getsockname(&unheard).unwrap()).unwrap();
        let unheard_address = bound.to_string().parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let absent = Address::unix(dir.path().join("absent")).unwrap();
        for address in [unheard_address, absent] {
            let error = connect(&address, Wait::forever(&cancel)).unwrap_err();
            assert!(matches!(error, ChannelError::Refused { .. }), "{error}");
        }
    }

    #[test]
    fn an_unknown_host_is_named() {
        let cancel = Cancel::new();
        let error = connect(&"no-such-host.invalid:7".parse().unwrap(), Wait::forever(&cancel)).unwrap_err();
        assert!(
            matches!(&error, ChannelError::UnknownHost { host, .. } if host == "no-such-host.invalid"),
            "{error}"
        );
    }

    #[test]
    fn a_full_queue_is_waited_for_until_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::unix(dir.path().join("full")).unwrap();
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None).unwrap();
        rustix::net::bind(&fd, &SocketAddrUnix::new(dir.path().join("full")).unwrap()).unwrap();
        rustix::net::listen(&fd, 0).unwrap();
        let cancel = Cancel::new();
        let first = connect(&address, Wait::forever(&cancel)).unwrap();
        let error = connect(&address, Wait::within(Duration::from_millis(30), &cancel)).unwrap_err();
        assert!(matches!(error, ChannelError::TimedOut { .. }), "{error}");
        cancel.raise();
        let error = connect(&address, Wait::forever(&cancel)).unwrap_err();
        assert!(matches!(error, ChannelError::Cancelled), "{error}");
        drop(first);
    }
}
