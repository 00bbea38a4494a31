//! Names in certificates.

use super::TrustError;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, str::FromStr};
use webpki::EndEntityCert;

/// The longest name taken; DNS allows 253 bytes, and a URI that names a host needs no more than this.
const NAME_BYTES_MAX: usize = 255;

/// Whom a certificate names: the subject's alternative name of kind URI or DNS.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Name {
    /// A URI, `spiffe://example.org/host/a` for example; compared byte by byte.
    Uri(String),
    /// A DNS name, in lower case.
    Dns(String),
}

/// Why a text is no [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// An address: certificates of hosts name hosts.
    #[error(
        "{0} is an address, and certificates name hosts: say with --peer which name the other host's certificate has"
    )]
    Address(IpAddr),
    /// No DNS name.
    #[error(
        "{0:?} is no name of a host: write a DNS name, host-b.example.org for example, or a URI, spiffe://example.org/host-b for example"
    )]
    Dns(String),
    /// No URI.
    #[error("{0:?} is no URI: write scheme:rest in plain characters, spiffe://example.org/host-b for example")]
    Uri(String),
}

impl Name {
    /// A DNS name.
    ///
    /// # Errors
    /// [`NameError::Address`], [`NameError::Dns`].
    pub fn dns(text: &str) -> Result<Self, NameError> {
        if let Ok(address) = text.parse() {
            return Err(NameError::Address(address));
        }
        match ServerName::try_from(text) {
            Ok(ServerName::DnsName(_)) => Ok(Self::Dns(text.to_ascii_lowercase())),
            _ => Err(NameError::Dns(text.to_owned())),
        }
    }

    /// A URI.
    ///
    /// # Errors
    /// [`NameError::Uri`].
    pub fn uri(text: &str) -> Result<Self, NameError> {
        let is_scheme = |scheme: &str| {
            scheme.starts_with(|first: char| first.is_ascii_alphabetic())
                && scheme
                    .chars()
                    .all(|it| it.is_ascii_alphanumeric() || "+-.".contains(it))
        };
        let (scheme, rest) = text.split_once(':').unwrap_or_default();
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_scheme(scheme) && !rest.is_empty() && is_plain && text.len() <= NAME_BYTES_MAX {
            Ok(Self::Uri(text.to_owned()))
        } else {
            Err(NameError::Uri(text.to_owned()))
        }
    }

    /// The name without its kind.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Uri(name) | Self::Dns(name) => name,
        }
    }
}

impl FromStr for Name {
    type Err = NameError;

    /// What has a colon is a URI, everything else a DNS name.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains(':') && text.parse::<IpAddr>().is_err() {
            Self::uri(text)
        } else {
            Self::dns(text)
        }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.to_string()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whoever holds the key of a certificate that the authority vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    name: Name,
    others: Vec<Name>,
}

impl Identity {
    /// Whom this certificate names; nothing is verified here.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Self, TrustError> {
        let parsed = EndEntityCert::try_from(certificate).map_err(|_| TrustError::Malformed)?;
        let uris = parsed.valid_uri_names().filter_map(|uri| Name::uri(uri).ok());
        let hosts = parsed.valid_dns_names().filter_map(|host| Name::dns(host).ok());
        let mut names = uris.chain(hosts);
        let name = names.next().ok_or(TrustError::Nameless)?;
        Ok(Self {
            name,
            others: names.collect(),
        })
    }

    /// The name it goes by: the first URI of its certificate, or else the first DNS name.
    pub const fn name(&self) -> &Name {
        &self.name
    }

    /// All its names, that one first.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        std::iter::once(&self.name).chain(&self.others)
    }

    /// Whether its certificate has this name. No wildcards: a certificate that names many hosts names none.
    pub fn is(&self, name: &Name) -> bool {
        self.names().any(|own| own == name)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    fn certificate(names: Vec<SanType>) -> CertificateDer<'static> {
        let mut about = CertificateParams::default();
        about.subject_alt_names = names;
        let key = KeyPair::generate().unwrap();
        about.self_signed(&key).unwrap().der().clone()
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    fn uri(name: &str) -> SanType {
        SanType::URI(name.try_into().unwrap())
    }

    #[test]
    fn names_have_their_kind() {
        assert_eq!("Host-B.example".parse(), Ok(Name::Dns("host-b.example".into())));
        assert_eq!(
            "spiffe://x/Host-B".parse(),
            Ok(Name::Uri("spiffe://x/Host-B".into())),
            "nobody changes a URI"
        );
        assert_eq!(
            "192.0.2.1".parse::<Name>(),
            Err(NameError::Address("192.0.2.1".parse().unwrap()))
        );
        assert_eq!("::1".parse::<Name>(), Err(NameError::Address("::1".parse().unwrap())));
        for wrong in ["", "a b", "*.example", "-a", "a..b", "host\n", "host/x"] {
            assert!(matches!(wrong.parse::<Name>(), Err(NameError::Dns(_))), "{wrong:?}");
        }
        for wrong in [":", "spiffe:", "1x:y", "a:b c", "a:\u{e4}", ":x"] {
            assert!(matches!(wrong.parse::<Name>(), Err(NameError::Uri(_))), "{wrong:?}");
        }
    }

    #[test]
    fn a_peer_goes_by_its_uri() {
        let peer = Identity::of(&certificate(vec![
            dns("b.example"),
            uri("spiffe://x/b"),
            dns("c.example"),
        ]))
        .unwrap();
        assert_eq!(peer.name(), &Name::Uri("spiffe://x/b".into()));
        let names: Vec<_> = peer.names().map(Name::as_str).collect();
        assert_eq!(names, ["spiffe://x/b", "b.example", "c.example"]);
        assert!(peer.is(&"c.example".parse().unwrap()) && !peer.is(&"d.example".parse().unwrap()));
        assert!(
            !peer.is(&Name::Uri("b.example".into())),
            "a name of one kind is none of the other"
        );
    }

    #[test]
    fn many_hosts_are_nobody() {
        let nobody = Identity::of(&certificate(vec![dns("*.example")]));
        assert!(matches!(nobody, Err(TrustError::Nameless)), "{nobody:?}");
        let nobody = Identity::of(&certificate(vec![]));
        assert!(matches!(nobody, Err(TrustError::Nameless)), "{nobody:?}");
        let nonsense = Identity::of(&CertificateDer::from(&b"certificate"[..]));
        assert!(matches!(nonsense, Err(TrustError::Malformed)), "{nonsense:?}");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_parses_prints_back(text in ".{0,40}") {
            if let Ok(name) = text.parse::<Name>() {
                prop_assert_eq!(name.to_string().parse(), Ok(name));
            }
        }
    }
}
