//! Who the other side of a connection is.

use super::Identity;
use crate::channel::Address;
use std::{fmt, net::IpAddr};

/// The other side, by what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    local: bool,
    /// What it proved to be; a certificate may have several names, and a rule about any of them is a rule about its holder.
    identities: Vec<String>,
}

impl Peer {
    /// Who is at `address`, having proved to be `identity` if anything.
    pub fn at(address: &Address, identity: Option<&str>) -> Self {
        let local = match address {
            Address::Unix(_) => true,
            // The name that always means this host (RFC 6761, 6.3); whatever else may resolve to it may also cease to.
            Address::Tcp { host, .. } => host == "localhost" || host.parse().is_ok_and(is_loopback),
        };
        Self::new(local, identity)
    }

    /// Who is at the other end of a connection that was accepted from `ip`, or over a unix socket, which has none.
    pub fn from(ip: Option<IpAddr>, identity: Option<&Identity>) -> Self {
        let names = identity.into_iter().flat_map(Identity::names);
        Self {
            local: ip.is_none_or(is_loopback),
            identities: names.map(|name| name.as_str().to_owned()).collect(),
        }
    }

    /// One that is a process of this host or not, and has proved to be `identity` if anything.
    pub fn new(local: bool, identity: Option<&str>) -> Self {
        Self {
            local,
            identities: identity.map(str::to_owned).into_iter().collect(),
        }
    }

    /// Whether it is a process of this host: a unix socket, or loopback.
    pub const fn is_local(&self) -> bool {
        self.local
    }

    /// What it proved to be, by all of its names; nothing on a plain connection.
    pub fn identities(&self) -> &[String] {
        &self.identities
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match (self.identities.first(), self.local) {
            (Some(identity), _) => identity,
            (None, true) => "local",
            (None, false) => "unknown",
        })
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_is_local() {
        let at = |text: &str| Peer::at(&text.parse().unwrap(), None);
        for local in [
            "unix:/run/a",
            "127.0.0.1:7",
            "127.9.9.9:7",
            "[::1]:7",
            "localhost:7",
            "[::ffff:127.0.0.1]:7",
        ] {
            assert!(at(local).is_local(), "{local}");
        }
        for other in [
            "192.0.2.1:7",
            "localhost.example:7",
            "[::]:7",
            "0.0.0.0:7",
            "[::ffff:192.0.2.1]:7",
        ] {
            assert!(!at(other).is_local(), "{other}");
        }
        assert_eq!(Peer::from(None, None).to_string(), "local");
        assert_eq!(Peer::from(Some([192, 0, 2, 1].into()), None).to_string(), "unknown");
        let named = Peer::new(true, Some("a"));
        assert_eq!((named.is_local(), named.to_string()), (true, "a".to_owned()));
    }
}
