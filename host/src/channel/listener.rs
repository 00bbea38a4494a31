//! Waiting for connections.

use super::{
    Address, ChannelError, Stream,
    connect::{connect, resolve},
    wait::{Cancel, Ended, Wait},
};
use rustix::{
    event::PollFlags,
    fs::{FileType, FlockOperation, Mode, OFlags, fchmod, flock, open, stat},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};
use std::{
    io::{self, ErrorKind},
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    time::Duration,
};

/// How long the owner of an existing socket has to answer before its socket counts as stuck (and is left alone).
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// How many connections may wait to be accepted.
const QUEUE_LENGTH: i32 = 128;

/// A bound, listening socket. The file of a unix socket is removed when the listener goes.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
    /// Removes the name of a unix socket at the end.
    _file: Option<SocketFile>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens at `address`. The file that a dead process left of its unix socket is replaced; a live one's is not.
    ///
    /// # Errors
    /// [`ChannelError::InUse`] when a process listens there already, [`ChannelError::Permission`],
    /// [`ChannelError::NotOurs`], [`ChannelError::UnknownHost`], [`ChannelError::NotASocket`],
    /// [`ChannelError::NoDirectory`], [`ChannelError::Io`].
    pub fn bind(address: &Address) -> Result<Self, ChannelError> {
        match address {
            Address::Tcp { host, port } => Self::bind_tcp(address, host, *port),
            Address::Unix(path) => Self::bind_unix(address, path),
        }
    }

    /// Where this listens; with the port that the system chose, if 0 was asked for.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// [`ChannelError::Cancelled`], [`ChannelError::TimedOut`], [`ChannelError::Io`] (no descriptors left, for example;
    /// the listener stays usable).
    pub fn accept(&self, wait: Wait<'_>) -> Result<Stream, ChannelError> {
        let fd = match &self.socket {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        };
        loop {
            let accepted = match &self.socket {
                Socket::Tcp(socket) => socket
                    .accept()
                    .map(|(stream, peer)| Stream::from_tcp(stream, &peer.to_string())),
                Socket::Unix(socket) => socket
                    .accept()
                    .map(|(stream, _)| Stream::from_unix(stream, "the local peer")),
            };
            match accepted {
                Ok(stream) => return stream,
                // Aborted: the peer has gone before it was accepted; not this listener's trouble.
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => match wait.poll(fd, PollFlags::IN) {
                    Ok(Ok(())) => {}
                    Ok(Err(Ended::Cancelled)) => return Err(ChannelError::Cancelled),
                    Ok(Err(Ended::TimedOut)) => {
                        let peer = format!("anybody at {}", self.address);
                        return Err(ChannelError::TimedOut {
                            peer,
                            after: wait.patience(),
                        });
                    }
                    Err(errno) => return Err(self.error(errno.into())),
                },
                Err(error) => return Err(self.error(error)),
            }
        }
    }

    fn bind_tcp(address: &Address, host: &str, port: u16) -> Result<Self, ChannelError> {
        let cancel = Cancel::new();
        let targets = resolve(host, port, Wait::forever(&cancel))?;
        let socket = TcpListener::bind(targets.as_slice())
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
            .map_err(|error| bind_error(address, error))?;
        let port = socket.local_addr().map_err(|error| bind_error(address, error))?.port();
        let address = Address::Tcp {
            host: host.into(),
            port,
        };
        Ok(Self {
            socket: Socket::Tcp(socket),
            address,
            _file: None,
        })
    }

    fn bind_unix(address: &Address, path: &Path) -> Result<Self, ChannelError> {
        let _turn = DirectoryTurn::take(path);
        let socket = match listen_at(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                remove_if_stale(address, path)?;
                listen_at(path)
            }
            bound => bound,
        }
        .map_err(|error| bind_error(address, error))?;
        let file = SocketFile::new(path).map_err(|error| bind_error(address, error))?;
        Ok(Self {
            socket: Socket::Unix(socket),
            address: address.clone(),
            _file: Some(file),
        })
    }

    fn error(&self, source: io::Error) -> ChannelError {
        ChannelError::Io {
            action: "accept a connection at",
            peer: self.address.to_string(),
            source,
        }
    }
}

/// A socket with a name that only this user can open: whoever may connect may move the VM, or send one.
fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let fd = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )?;
    // The name gets the mode that the socket has at the time of its bind.
    fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
    bind(&fd, &SocketAddrUnix::new(path)?)?;
    listen(&fd, QUEUE_LENGTH)?;
    Ok(UnixListener::from(fd))
}

/// Removes the socket file at `path` if nobody listens at it.
fn remove_if_stale(address: &Address, path: &Path) -> Result<(), ChannelError> {
    let kind = stat(path).map(|stat| FileType::from_raw_mode(stat.st_mode));
    if kind.is_ok_and(|kind| kind != FileType::Socket) {
        return Err(ChannelError::NotASocket { path: path.into() });
    }
    let cancel = Cancel::new();
    match connect(address, Wait::within(PROBE_PATIENCE, &cancel)) {
        Err(ChannelError::Refused { .. }) => {}
        // It answers, or it is too busy to: either way a process owns it.
        Ok(_) | Err(ChannelError::TimedOut { .. }) => {
            return Err(ChannelError::InUse {
                address: address.clone(),
                hint: format!("fuser {}", path.display()),
            });
        }
        Err(error) => return Err(error),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(bind_error(address, error)),
        _ => Ok(()),
    }
}

fn bind_error(address: &Address, source: io::Error) -> ChannelError {
    let address = address.clone();
    match (source.kind(), &address) {
        (ErrorKind::AddrInUse, Address::Tcp { port, .. }) => ChannelError::InUse {
            hint: format!("ss -ltnp 'sport = :{port}'"),
            address,
        },
        (ErrorKind::AddrInUse, Address::Unix(path)) => ChannelError::InUse {
            hint: format!("fuser {}", path.display()),
            address,
        },
        (ErrorKind::AddrNotAvailable, _) => ChannelError::NotOurs { address },
        (ErrorKind::NotFound | ErrorKind::NotADirectory, Address::Unix(path)) => {
            ChannelError::NoDirectory { path: path.clone() }
        }
        (ErrorKind::PermissionDenied, Address::Tcp { .. }) => ChannelError::Permission {
            address,
            remedy: "ports below 1024 belong to root; use a larger one",
        },
        (ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem, Address::Unix(_)) => ChannelError::Permission {
            address,
            remedy: "the directory must be writable for this user; /run/user/UID or /tmp usually is",
        },
        _ => ChannelError::Io {
            action: "listen at",
            peer: address.to_string(),
            source,
        },
    }
}

/// Two processes that both find the same stale socket must not remove each other's new one: who looks at a socket file
/// and replaces it holds its directory's lock meanwhile.
struct DirectoryTurn {
    /// Closing it releases the lock.
    _locked: OwnedFd,
}

impl DirectoryTurn {
    /// Waits for the turn, a second at most: a directory that cannot be locked (a network file system, somebody's
    /// long-held lock) must not keep a socket from being served.
    fn take(path: &Path) -> Option<Self> {
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let fd = open(
            directory,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .ok()?;
        let cancel = Cancel::new();
        let wait = Wait::within(PROBE_PATIENCE, &cancel);
        while flock(&fd, FlockOperation::NonBlockingLockExclusive).is_err() {
            if !wait.sleep(Duration::from_millis(5)) {
                return None;
            }
        }
        Some(Self { _locked: fd })
    }
}

/// The name of a unix socket in the file system.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.into(),
            identity: identity(path)?,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Not if somebody has put another socket there since. Failure leaves a stale file, which the next bind
        // replaces.
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = stat(path)?;
    Ok((found.st_dev, found.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(dir: &tempfile::TempDir, name: &str) -> Address {
        Address::unix(dir.path().join(name)).unwrap()
    }

    #[test]
    fn a_port_in_use_is_said_so() {
        let first = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let error = Listener::bind(first.address()).unwrap_err();
        assert!(
            matches!(&error, ChannelError::InUse { hint, .. } if hint.contains("ss -ltnp")),
            "{error}"
        );
    }

    #[test]
    fn a_foreign_address_is_said_so() {
        let error = Listener::bind(&"192.0.2.1:0".parse().unwrap()).unwrap_err();
        assert!(matches!(error, ChannelError::NotOurs { .. }), "{error}");
    }

    #[test]
    fn a_live_socket_stays_and_a_stale_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let address = unix(&dir, "socket");
        let live = Listener::bind(&address).unwrap();
        assert_eq!(stat(dir.path().join("socket")).unwrap().st_mode & 0o777, 0o600);
        let error = Listener::bind(&address).unwrap_err();
        assert!(matches!(error, ChannelError::InUse { .. }), "{error}");
        drop(live);
        assert!(!dir.path().join("socket").exists(), "the file goes with the listener");

        drop(UnixListener::bind(dir.path().join("socket")).unwrap());
        assert!(dir.path().join("socket").exists(), "std leaves a stale file");
        let cancel = Cancel::new();
        let listener = Listener::bind(&address).unwrap();
        connect(&address, Wait::forever(&cancel)).unwrap();
        listener.accept(Wait::forever(&cancel)).unwrap();
    }

    #[test]
    fn a_successor_s_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let address = unix(&dir, "socket");
        let first = Listener::bind(&address).unwrap();
        std::fs::remove_file(dir.path().join("socket")).unwrap();
        let _second = Listener::bind(&address).unwrap();
        drop(first);
        assert!(dir.path().join("socket").exists());
    }

    #[test]
    fn of_many_that_find_a_stale_socket_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let address = unix(&dir, "socket");
        const RACERS: usize = 8;
        for _ in 0..100 {
            drop(UnixListener::bind(dir.path().join("socket")).unwrap());
            let start = std::sync::Barrier::new(RACERS);
            let race = || {
                start.wait();
                Listener::bind(&address)
            };
            let bound: Vec<_> = std::thread::scope(|scope| {
                let racers: Vec<_> = (0..RACERS).map(|_| scope.spawn(race)).collect();
                racers.into_iter().map(|racer| racer.join().unwrap()).collect()
            });
            assert_eq!(bound.iter().filter(|result| result.is_ok()).count(), 1);
        }
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "precious").unwrap();
        let error = Listener::bind(&unix(&dir, "file")).unwrap_err();
        assert!(matches!(error, ChannelError::NotASocket { .. }), "{error}");
        assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"precious");
        let error = Listener::bind(&unix(&dir, "absent/socket")).unwrap_err();
        assert!(matches!(error, ChannelError::NoDirectory { .. }), "{error}");
    }

    #[test]
    fn accept_ends_with_its_wait() {
        let cancel = Cancel::new();
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let error = listener
            .accept(Wait::within(Duration::from_millis(1), &cancel))
            .unwrap_err();
        assert!(matches!(error, ChannelError::TimedOut { .. }), "{error}");
        cancel.raise();
        let error = listener.accept(Wait::forever(&cancel)).unwrap_err();
        assert!(matches!(error, ChannelError::Cancelled), "{error}");
    }
}
