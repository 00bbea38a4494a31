//! What is wrong with a certificate, a file, a peer: in words that say what to do.

use super::Name;
use rustls::{
    AlertDescription, CertificateError, Error as TlsError, InvalidMessage, PeerIncompatible, pki_types::UnixTime,
};
use std::{
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

/// Why somebody, or something, is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file of credentials that cannot be read.
    #[error("cannot read {}, {what}: `dunlin pki issue` makes a directory with all that is needed", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },

    /// A file that holds something else.
    #[error("{} holds no {what} in PEM form: put the right file there; `dunlin pki issue` makes one", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },

    /// A key that others may read is no secret.
    #[error("others may read the key {} (mode {mode:03o}): `chmod 600 {}`, and make a new key if they may have", .path.display(), .path.display())]
    OpenKey {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },

    /// A key of somebody else.
    #[error("the key {} belongs to user {owner}, not to this process's user: give it to that user, or run as its owner", .path.display())]
    ForeignKey {
        /// The file.
        path: PathBuf,
        /// The user's number.
        owner: u32,
    },

    /// Certificate and key from different pairs.
    #[error("the key {} does not belong to the certificate beside it: copy both from where they were made together", .path.display())]
    KeyMismatch {
        /// The file of the key.
        path: PathBuf,
    },

    /// A certificate of this host that no peer would take.
    #[error("this host's own certificate {} is of no use", .path.display())]
    Own {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<TrustError>,
    },

    /// Bytes that are no certificate.
    #[error("its certificate cannot be read: make it anew")]
    Malformed,

    /// A certificate without a name.
    #[error(
        "its certificate names nobody: it needs a URI or a DNS name (without wildcards) as alternative name; `dunlin pki issue` gives it one"
    )]
    Nameless,

    /// A certificate of the past.
    #[error("its certificate ended at {}, and by this host's clock it is {}: issue a new one, or set the clock that is wrong", time(*.ended), time(*.now))]
    Expired {
        /// The end of its time.
        ended: UnixTime,
        /// What the clock here says.
        now: UnixTime,
    },

    /// A certificate of the future.
    #[error("its certificate begins at {}, and by this host's clock it is {} only: the clock of this host is late, or that of the authority was early; set the one that is wrong", time(*.begins), time(*.now))]
    NotYetValid {
        /// The beginning of its time.
        begins: UnixTime,
        /// What the clock here says.
        now: UnixTime,
    },

    /// Signed by somebody else.
    #[error("its certificate is not signed by the authority in ca.pem: both hosts need certificates of the same one")]
    UnknownAuthority,

    /// Taken back.
    #[error(
        "its certificate is revoked by the authority's list, crl.pem: if that host is still to be trusted, issue a new one"
    )]
    Revoked,

    /// A list of revocations that is too old to tell.
    #[error("the list of revoked certificates, crl.pem, ended at {}, and by this host's clock it is {}: get the authority's present one", time(*.ended), time(*.now))]
    OldRevocations {
        /// The end of its time.
        ended: UnixTime,
        /// What the clock here says.
        now: UnixTime,
    },

    /// A list of revocations of somebody else.
    #[error(
        "the list of revoked certificates, crl.pem, is not by the authority of the certificate: get that one's list, or remove the file"
    )]
    ForeignRevocations,

    /// A certificate for other uses.
    #[error(
        "its certificate is not meant for this side of a connection (extended key usage): both hosts need certificates for clients and servers; `dunlin pki issue` makes such"
    )]
    Purpose,

    /// Anything else about a certificate.
    #[error("its certificate is not valid ({0}): issue a new one")]
    Invalid(String),

    /// The right authority, but another host.
    #[error("it is {found}, and {expected} was expected: correct the address, or say with --peer who is meant")]
    WrongName {
        /// Who was to be reached.
        expected: Name,
        /// All names of whoever was.
        found: String,
    },

    /// A client without a certificate.
    #[error("it showed no certificate: start it with --tls-dir DIR")]
    NoCertificate,

    /// The other side does not use TLS.
    #[error("it speaks no TLS, and this side does: start both with --tls-dir DIR, or both without")]
    PlainPeer,

    /// The other side uses TLS, this one does not.
    #[error("it speaks TLS, and this side does not: start both with --tls-dir DIR, or both without")]
    PlainHere,

    /// The peer ended the connection in the handshake.
    #[error("it hung up in the middle of the TLS handshake: see its own messages")]
    HungUp,

    /// The peer refused this side's certificate.
    #[error("it refuses this host's certificate: {0}; see its own messages for more")]
    Refused(&'static str),

    /// A record that was not made by the peer, or not in this place.
    #[error("what came was altered on the way, or out of place; the connection is given up")]
    Altered,

    /// TLS without anything in common.
    #[error("it speaks another TLS than 1.3 with the suites used here: use the same release of dunlin on both hosts")]
    Incompatible,

    /// Anything else that TLS calls wrong.
    #[error("TLS: {0}; use the same release of dunlin on both hosts")]
    Tls(TlsError),

    /// Something that is no dunlin, though it has a certificate.
    #[error(
        "it is no dunlin of this release, though its certificate is good: correct the address, or use the same release on both hosts"
    )]
    NoDunlin,

    /// Somebody who took no part in the session's first connection.
    #[error("{name} wanted to join a session that is not its own; it was turned away")]
    Stranger {
        /// By its certificate.
        name: Name,
    },

    /// A session with a name that is in use.
    #[error("{name} wanted to begin a session that is there already; it was turned away")]
    SessionTaken {
        /// By its certificate.
        name: Name,
    },

    /// The target turned this side's connection away.
    #[error(
        "it does not take this connection for one of the migration: another process, or another host, has taken its place"
    )]
    TurnedAway,

    /// The target could not prove to be the one of the session.
    #[error("it is not the one that the migration began with, though its certificate is good; nothing was sent to it")]
    Impostor,

    /// Plain TCP to or from other hosts.
    #[error(
        "{address} can be reached from other hosts, and there are no certificates to keep strangers out: name their directory with --tls-dir DIR (`dunlin pki` makes it), or say --insecure to send the guest's memory in plain for anybody to read and change"
    )]
    NoCredentials {
        /// Where to, or where from.
        address: String,
    },

    /// A source that does not know whom to expect.
    #[error("whom to expect at {address} is not known")]
    Unnamed {
        /// Where to.
        address: String,
        /// Why.
        source: super::NameError,
    },

    /// A unix socket has no host in its name.
    #[error("whom to expect at {address} is not known: say with --peer which name the other side's certificate has")]
    UnnamedSocket {
        /// Where to.
        address: String,
    },
}

impl TrustError {
    /// What TLS itself says, without what is known of certificates.
    pub(crate) fn of_tls(error: &TlsError) -> Self {
        match error {
            TlsError::InvalidCertificate(error) => Self::of_certificate(error),
            TlsError::NoCertificatesPresented => Self::NoCertificate,
            TlsError::AlertReceived(alert) => Self::of_alert(*alert),
            TlsError::DecryptError => Self::Altered,
            TlsError::InvalidMessage(InvalidMessage::InvalidContentType) => Self::PlainPeer,
            TlsError::PeerIncompatible(
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls13RequiredForQuic
                | PeerIncompatible::NoCipherSuitesInCommon
                | PeerIncompatible::NoKxGroupsInCommon
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            ) => Self::Incompatible,
            error => Self::Tls(error.clone()),
        }
    }

    fn of_alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::CertificateExpired => {
                Self::Refused("by its clock it has ended, or not begun yet; compare the clocks of both hosts")
            }
            AlertDescription::CertificateRevoked => Self::Refused("its authority has revoked it"),
            AlertDescription::UnknownCA => Self::Refused("another authority has signed it than its ca.pem has"),
            AlertDescription::CertificateRequired => Self::Refused("it got none"),
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied => Self::Refused("it names somebody else, or is not valid"),
            AlertDescription::BadRecordMac => Self::Altered,
            AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => Self::Incompatible,
            AlertDescription::UnexpectedMessage | AlertDescription::DecodeError => Self::Altered,
            alert => Self::Tls(TlsError::AlertReceived(alert)),
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::BadEncoding => Self::Malformed,
            CertificateError::UnknownIssuer => Self::UnknownAuthority,
            CertificateError::Revoked => Self::Revoked,
            error => Self::Invalid(format!("{error:?}")),
        }
    }

    /// What webpki finds wrong with a certificate.
    pub(super) fn of_webpki(error: &webpki::Error) -> Self {
        match error {
            webpki::Error::BadDer | webpki::Error::BadDerTime | webpki::Error::TrailingData(_) => Self::Malformed,
            webpki::Error::CertExpired { time, not_after } => Self::Expired {
                ended: *not_after,
                now: *time,
            },
            webpki::Error::CertNotValidYet { time, not_before } => Self::NotYetValid {
                begins: *not_before,
                now: *time,
            },
            webpki::Error::CertRevoked => Self::Revoked,
            webpki::Error::CrlExpired { time, next_update } => Self::OldRevocations {
                ended: *next_update,
                now: *time,
            },
            webpki::Error::UnknownRevocationStatus
            | webpki::Error::InvalidCrlSignatureForPublicKey
            | webpki::Error::IssuerNotCrlSigner => Self::ForeignRevocations,
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => Self::UnknownAuthority,
            webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension => Self::Purpose,
            error => Self::Invalid(format!("{error:?}")),
        }
    }

    /// How TLS is to tell the peer.
    pub(super) fn for_peer(&self) -> TlsError {
        let error = match self {
            Self::Expired { ended, now } => CertificateError::ExpiredContext {
                time: *now,
                not_after: *ended,
            },
            Self::NotYetValid { begins, now } => CertificateError::NotValidYetContext {
                time: *now,
                not_before: *begins,
            },
            Self::UnknownAuthority => CertificateError::UnknownIssuer,
            Self::Revoked => CertificateError::Revoked,
            Self::Malformed => CertificateError::BadEncoding,
            Self::WrongName { .. } | Self::Nameless => CertificateError::NotValidForName,
            Self::Purpose => CertificateError::InvalidPurpose,
            _ => CertificateError::ApplicationVerificationFailure,
        };
        TlsError::InvalidCertificate(error)
    }
}

/// A time for people who compare clocks.
fn time(time: UnixTime) -> impl std::fmt::Display {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs());
    humantime::format_rfc3339_seconds(time)
}
