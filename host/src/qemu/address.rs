//! Where a QEMU's machine protocol is served.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A QMP socket. Written `unix:PATH`, a path with a slash, `tcp:HOST:PORT` or `HOST:PORT`, as QEMU's own `-qmp` has it; what QEMU
/// takes behind a comma (`server=on,wait=off`) is its own business and ignored.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Address {
    /// A socket file.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

/// Why a text is no address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "not the address of a socket: write unix:PATH, a path with a slash (./a.sock), or HOST:PORT, what QEMU was given with -qmp, or for an agent with -chardev socket"
)]
pub struct AddressError;

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let text = text.split(',').next().unwrap_or_default();
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(AddressError),
                path => Ok(Self::Unix(path.into())),
            };
        }
        let tcp = text.strip_prefix("tcp:");
        if tcp.is_none() && text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        let text = tcp.unwrap_or(text);
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(Self::Tcp(text.into())),
            _ => Err(AddressError),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// A connection to one.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub(super) fn connect(address: &Address, patience: Duration) -> io::Result<Self> {
        match address {
            Address::Unix(path) => Ok(Self::Unix(UnixStream::connect(path)?)),
            Address::Tcp(address) => {
                let mut failure = io::ErrorKind::NotFound.into();
                for address in address.to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, patience) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            return Ok(Self::Tcp(stream));
                        }
                        Err(error) => failure = error,
                    }
                }
                Err(failure)
            }
        }
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    pub(super) fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(read).and(stream.set_write_timeout(write)),
            Self::Tcp(stream) => stream.set_read_timeout(read).and(stream.set_write_timeout(write)),
        }
    }

    /// Ends both directions, for all clones.
    pub(super) fn shut_down(&self) {
        // One that has ended by itself needs it no more.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(std::net::Shutdown::Both),
        };
    }

    /// The process at the other end, of a socket file.
    pub(super) fn peer(&self) -> Option<u32> {
        match self {
            Self::Unix(stream) => {
                let peer = rustix::net::sockopt::socket_peercred(stream).ok()?;
                Some(peer.pid.as_raw_nonzero().get().unsigned_abs())
            }
            Self::Tcp(_) => None,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buffer),
            Self::Tcp(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_for_qemu() {
        let unix = |path: &str| Ok(Address::Unix(path.into()));
        let tcp = |text: &str| Ok(Address::Tcp(text.into()));
        for (text, expected) in [
            ("unix:/run/a.sock,server=on,wait=off", unix("/run/a.sock")),
            ("unix:a", unix("a")),
            ("./a:1", unix("./a:1")),
            ("tcp:host:4444", tcp("host:4444")),
            ("[::1]:4444", tcp("[::1]:4444")),
            ("host:4444", tcp("host:4444")),
            ("host", Err(AddressError)),
            ("unix:", Err(AddressError)),
            (":1", Err(AddressError)),
            ("host:99999", Err(AddressError)),
            ("", Err(AddressError)),
        ] {
            assert_eq!(text.parse::<Address>(), expected, "{text}");
        }
        assert_eq!(
            "/run/a".parse::<Address>().map(|it| it.to_string()),
            Ok("unix:/run/a".into())
        );
    }

    proptest::proptest! {
        #[test]
        fn what_is_read_prints_to_the_same(text in "(unix:|tcp:|)[a-z/:.,0-9\\[\\]]{0,12}(:[0-9]{1,6})?") {
            if let Ok(address) = text.parse::<Address>() {
                proptest::prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
}
