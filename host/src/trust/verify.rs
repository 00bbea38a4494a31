//! Whether a certificate is good, and whose it is.

use super::{Identity, Name, TrustError};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error as TlsError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use std::sync::{Arc, Mutex, PoisonError};
use webpki::{CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationOptionsBuilder};

/// Whom this host believes.
#[derive(Debug)]
pub(super) struct Authorities {
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    /// Empty if the authority revokes nothing.
    pub(super) revoked: Vec<CertRevocationList<'static>>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

/// Which end of a connection a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl Authorities {
    /// Who the holder of this certificate is, if an authority vouches for him at this time.
    ///
    /// # Errors
    /// [`TrustError`].
    pub(super) fn judge(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        side: Side,
    ) -> Result<Identity, TrustError> {
        let parsed = EndEntityCert::try_from(certificate).map_err(|error| TrustError::of_webpki(&error))?;
        let revoked: Vec<_> = self.revoked.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&revoked)
            .ok()
            .map(|options| options.with_expiration_policy(ExpirationPolicy::Enforce).build());
        let usage = match side {
            Side::Client => KeyUsage::client_auth(),
            Side::Server => KeyUsage::server_auth(),
        };
        parsed
            .verify_for_usage(
                self.algorithms.all,
                &self.anchors,
                intermediates,
                now,
                usage,
                revocation,
                None,
            )
            .map_err(|error| TrustError::of_webpki(&error))?;
        Identity::of(certificate)
    }
}

/// What the other end has shown, and an authority vouches for.
#[derive(Debug)]
pub(super) struct Shown {
    /// Who it is.
    pub(super) peer: Identity,
    /// Its certificate (DER).
    pub(super) certificate: Vec<u8>,
}

/// The judge of one handshake; remembers what it found.
#[derive(Debug)]
pub(super) struct Judge {
    authorities: Arc<Authorities>,
    /// Who must be at the other end; a client may be anybody.
    expected: Option<Name>,
    verdict: Mutex<Option<Result<Shown, TrustError>>>,
}

impl Judge {
    pub(super) fn new(authorities: Arc<Authorities>, expected: Option<Name>) -> Self {
        Self {
            authorities,
            expected,
            verdict: Mutex::new(None),
        }
    }

    /// What became of the peer's certificate; `None` if none came.
    pub(super) fn verdict(&self) -> Option<Result<Shown, TrustError>> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn hear(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        side: Side,
    ) -> Result<(), TlsError> {
        let found = self
            .authorities
            .judge(certificate, intermediates, now, side)
            .and_then(|peer| match &self.expected {
                Some(expected) if !peer.is(expected) => Err(TrustError::WrongName {
                    expected: expected.clone(),
                    found: peer.names().map(Name::as_str).collect::<Vec<_>>().join(", "),
                }),
                _ => Ok(Shown {
                    peer,
                    certificate: certificate.to_vec(),
                }),
            });
        let answer = found.as_ref().map(|_| ()).map_err(TrustError::for_peer);
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        answer
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        self.hear(certificate, intermediates, now, Side::Server)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signed, &self.authorities.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signed, &self.authorities.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        self.hear(certificate, intermediates, now, Side::Client)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signed, &self.authorities.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signed, &self.authorities.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.algorithms.supported_schemes()
    }
}
