//! Whether a connection goes by TLS.

use super::{Files, Name, TrustError};
use crate::channel::Address;
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

/// The environment variable that names the directory of this host's credentials.
pub const DIRECTORY_VARIABLE: &str = "DUNLIN_TLS_DIR";
/// Where they are on a host that has them for all users.
const HOST_DIRECTORY: &str = "/etc/dunlin/tls";
/// Where they are under a user's configuration.
const USER_DIRECTORY: &str = "dunlin/tls";

/// How connections to or from an address are protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Security {
    /// Not at all: they stay on this host.
    Local,
    /// Not at all, though they leave this host: somebody wants it so.
    Insecure,
    /// By mutual TLS.
    Tls(Files),
}

impl Security {
    /// Decides by where the address is. Who gives a directory gets TLS; on this host (loopback, unix sockets) nobody else, and off it
    /// only who says `insecure` gets none.
    ///
    /// # Errors
    /// [`TrustError::NoCredentials`].
    pub fn choose(address: &Address, directory: Option<&Path>, insecure: bool) -> Result<Self, TrustError> {
        match (directory, insecure) {
            (Some(directory), _) => Ok(Self::Tls(Files::new(directory))),
            _ if is_local(address) => Ok(Self::Local),
            (_, true) => Ok(Self::Insecure),
            (None, false) => Err(TrustError::NoCredentials {
                address: address.to_string(),
            }),
        }
    }

    /// What is said each time that something goes in plain to or from other hosts.
    pub fn warning(&self, address: &Address) -> Option<String> {
        (*self == Self::Insecure).then(|| {
            format!(
                "warning: --insecure: whoever is on the way to or from {address} can read and change the guest's memory, and take or send guests"
            )
        })
    }
}

/// Whether nothing that goes to or comes from this address leaves the host. A name may be anybody's.
fn is_local(address: &Address) -> bool {
    match address {
        Address::Unix(_) => true,
        Address::Tcp { host, .. } => {
            host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
        }
    }
}

/// The directory to use where none was named: [`DIRECTORY_VARIABLE`], or the first that exists of the user's and the host's.
pub fn default_directory() -> Option<PathBuf> {
    let from = |variable: &str| {
        std::env::var_os(variable)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let user = from("XDG_CONFIG_HOME").or_else(|| Some(from("HOME")?.join(".config")));
    let user = user.map(|directory| directory.join(USER_DIRECTORY));
    from(DIRECTORY_VARIABLE).or_else(|| {
        let known = user.into_iter().chain([PathBuf::from(HOST_DIRECTORY)]);
        known.into_iter().find(|directory| directory.is_dir())
    })
}

/// Whom to expect at an address: whoever was named, or else the host of the address.
///
/// # Errors
/// [`TrustError::Unnamed`], [`TrustError::UnnamedSocket`].
pub(crate) fn expected(address: &Address, named: Option<&Name>) -> Result<Name, TrustError> {
    match (named, address) {
        (Some(name), _) => Ok(name.clone()),
        (None, Address::Tcp { host, .. }) => Name::dns(host).map_err(|source| TrustError::Unnamed {
            address: address.to_string(),
            source,
        }),
        (None, Address::Unix(_)) => Err(TrustError::UnnamedSocket {
            address: address.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(address: &str, directory: Option<&str>, insecure: bool) -> Result<Security, String> {
        let address = address.parse().unwrap();
        Security::choose(&address, directory.map(Path::new), insecure).map_err(|error| error.to_string())
    }

    #[test]
    fn what_leaves_the_host_is_secured_unless_somebody_says_otherwise() {
        for local in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:/s"] {
            assert_eq!(choose(local, None, false), Ok(Security::Local), "{local}");
            assert_eq!(choose(local, None, true), Ok(Security::Local), "{local}");
            assert_eq!(choose(local, Some("d"), false), Ok(Security::Tls(Files::new("d"))));
        }
        for elsewhere in [
            "10.0.0.1:1",
            "0.0.0.0:1",
            "[::]:1",
            "host:1",
            "localhost.example:1",
            "[::ffff:10.0.0.1]:1",
        ] {
            let refused = choose(elsewhere, None, false).unwrap_err();
            assert!(
                refused.contains("--tls-dir") && refused.contains("--insecure"),
                "{refused}"
            );
            assert_eq!(choose(elsewhere, None, true), Ok(Security::Insecure), "{elsewhere}");
            assert_eq!(choose(elsewhere, Some("d"), false), Ok(Security::Tls(Files::new("d"))));
        }
    }

    #[test]
    fn who_sends_in_plain_is_warned() {
        let address = "host:1".parse().unwrap();
        assert!(Security::Insecure.warning(&address).unwrap().contains("host:1"));
        assert_eq!(Security::Local.warning(&address), None);
    }

    #[test]
    fn an_address_names_whom_to_expect() {
        let expect = |address: &str, name: Option<&str>| {
            let name = name.map(|name| name.parse().unwrap());
            expected(&address.parse().unwrap(), name.as_ref()).map(|name| name.to_string())
        };
        assert_eq!(expect("Host-B:1", None).unwrap(), "host-b");
        assert_eq!(expect("10.0.0.1:1", Some("host-b")).unwrap(), "host-b");
        assert_eq!(expect("unix:/s", Some("spiffe://x/b")).unwrap(), "spiffe://x/b");
        assert!(matches!(expect("10.0.0.1:1", None), Err(TrustError::Unnamed { .. })));
        assert!(matches!(expect("unix:/s", None), Err(TrustError::UnnamedSocket { .. })));
    }
}
