//! Where a peer is: `host:port` or `unix:PATH`.

use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// The longest path of a unix socket in bytes: `sun_path` of unix(7) without its final zero.
const UNIX_PATH_MAX_BYTES: usize = 107;

/// The address of one end of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// A TCP port.
    Tcp {
        /// A name or a numeric address; an IPv6 address stands here without its brackets.
        host: String,
        /// The port; 0 lets the system choose one when listening.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
}

/// Why a text is no [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither form.
    #[error("{0:?} is no address: write host:port, for example 192.0.2.1:7000, or unix:/path/to/socket")]
    Form(String),
    /// A TCP address without a host.
    #[error("no host before \":{0}\": write 0.0.0.0:{0} to listen on every interface, or name the host to connect to")]
    NoHost(String),
    /// A port that is not a number, or too large.
    #[error("{0:?} is no port: a port is a number from 0 to 65535")]
    Port(String),
    /// An IPv6 address whose port cannot be told from the address.
    #[error("{0:?} is ambiguous: write an IPv6 address in brackets, for example [::1]:7000")]
    Ambiguous(String),
    /// `unix:` and nothing behind it, or a zero byte.
    #[error("{0:?} names no file: write unix:/path/to/socket")]
    Path(String),
    /// A path longer than the system's limit for sockets.
    #[error("the path {0:?} is too long for a socket: {UNIX_PATH_MAX_BYTES} bytes are the limit, use a shorter one")]
    LongPath(PathBuf),
}

impl Address {
    /// The address of a unix socket.
    ///
    /// # Errors
    /// [`AddressError::Path`] and [`AddressError::LongPath`] as for the text form.
    pub fn unix(path: impl Into<PathBuf>) -> Result<Self, AddressError> {
        let path = path.into();
        let bytes = path.as_os_str().as_encoded_bytes();
        if bytes.is_empty() || bytes.contains(&0) {
            return Err(AddressError::Path(path.display().to_string()));
        }
        if bytes.len() > UNIX_PATH_MAX_BYTES {
            return Err(AddressError::LongPath(path));
        }
        Ok(Self::Unix(path))
    }

    /// The path of a unix socket; `None` for TCP.
    pub fn unix_path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp { .. } => None,
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err(AddressError::Path(text.into()))
            } else {
                Self::unix(path)
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| AddressError::Form(text.into()))?;
        let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => inner,
            None if host.contains(':') => return Err(AddressError::Ambiguous(text.into())),
            None => host,
        };
        if host.is_empty() {
            return Err(AddressError::NoHost(port.into()));
        }
        if host.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '[' | ']')) {
            return Err(AddressError::Form(text.into()));
        }
        // Digits only: `u16::from_str` would take "+80".
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port
            .parse()
            .ok()
            .filter(|_| digits)
            .ok_or_else(|| AddressError::Port(port.into()))?;
        Ok(Self::Tcp {
            host: host.into(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_parse() {
        assert_eq!(
            "host:7000".parse(),
            Ok(Address::Tcp {
                host: "host".into(),
                port: 7000
            })
        );
        assert_eq!(
            "[::1]:7".parse(),
            Ok(Address::Tcp {
                host: "::1".into(),
                port: 7
            })
        );
        assert_eq!("unix:a:b".parse(), Ok(Address::Unix("a:b".into())));
    }

    #[test]
    fn every_mistake_has_its_name() {
        let error = |text: &str| text.parse::<Address>().unwrap_err();
        assert!(matches!(error("host"), AddressError::Form(_)));
        assert!(matches!(error("ho st:1"), AddressError::Form(_)));
        assert!(matches!(
            error("tcp://host:1"),
            AddressError::Form(_) | AddressError::Ambiguous(_)
        ));
        assert!(matches!(error(":7000"), AddressError::NoHost(_)));
        assert!(matches!(error("[]:7000"), AddressError::NoHost(_)));
        assert!(matches!(error("host:"), AddressError::Port(_)));
        assert!(matches!(error("host:+80"), AddressError::Port(_)));
        assert!(matches!(error("host:65536"), AddressError::Port(_)));
        assert!(matches!(error("::1:7000"), AddressError::Ambiguous(_)));
        assert!(matches!(error("unix:"), AddressError::Path(_)));
        assert!(matches!(
            error(&format!("unix:/{}", "x".repeat(107))),
            AddressError::LongPath(_)
        ));
        assert!(format!("unix:/{}", "x".repeat(106)).parse::<Address>().is_ok());
        assert!(error(":7000").to_string().contains("0.0.0.0:7000"));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_parses_prints_back(text in ".{0,40}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }

        #[test]
        fn addresses_print_and_parse_back(host in "[a-z0-9.-]{1,20}|[0-9a-f]{1,4}::[0-9a-f]{1,4}", port: u16, path in "/[ -~]{0,100}") {
            for address in [Address::Tcp { host: host.clone(), port }, Address::unix(path).unwrap()] {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
}
