//! Certificates and keys from files.

use super::{
    Identity, TrustError,
    commit::Signer,
    verify::{Authorities, Side},
};
use rustix::fs::fstat;
use rustls::{
    CipherSuite, SupportedCipherSuite,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem::PemObject},
    sign::{CertifiedKey, SingleCertAndKey},
};
use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};
use webpki::{BorrowedCertRevocationList, CertRevocationList, anchor_from_trusted_cert};
use zeroize::Zeroizing;

/// The certificates of those who may sign others.
pub(super) const AUTHORITY: &str = "ca.pem";
/// This host's certificate, with intermediate ones behind it if there are any.
pub(super) const CERTIFICATE: &str = "cert.pem";
/// Its key.
pub(super) const KEY: &str = "key.pem";
/// What the authorities have revoked; may be absent.
pub(super) const REVOKED: &str = "crl.pem";
/// What a key must be.
const KEY_KIND: &str = "private key of a kind used here (ECDSA P-256 or Ed25519, in PKCS #8)";
/// More than any sensible file has: a device or a wrong file must not fill memory.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// A directory with `ca.pem`, `cert.pem`, `key.pem` and perhaps `crl.pem`. It is read anew for every connection, so that what is
/// revoked or renewed counts from the next one on, without a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    directory: PathBuf,
}

/// What a host shows, and whom it believes.
#[derive(Debug)]
pub struct Credentials {
    pub(super) own: Arc<SingleCertAndKey>,
    pub(super) signer: Arc<Signer>,
    pub(super) authorities: Arc<Authorities>,
    pub(super) provider: Arc<CryptoProvider>,
    holder: Identity,
}

impl Files {
    /// The files in `directory`, which are not read yet.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Reads them, and checks that this host's own certificate is one that a peer of the same authority would take.
    ///
    /// # Errors
    /// [`TrustError`]: which file, and what is wrong with it.
    pub fn load(&self) -> Result<Credentials, TrustError> {
        let provider = provider();
        let authorities = Arc::new(Authorities {
            anchors: self.anchors()?,
            revoked: self.revoked()?,
            algorithms: provider.signature_verification_algorithms,
        });
        let path = self.directory.join(CERTIFICATE);
        let chain = certificates(&path, "certificate")?;
        let own = |source| TrustError::Own {
            path: path.clone(),
            source: Box::new(source),
        };
        let now = UnixTime::now();
        let holder = authorities
            .judge(&chain[0], &chain[1..], now, Side::Client)
            .and_then(|_| authorities.judge(&chain[0], &chain[1..], now, Side::Server))
            .map_err(own)?;
        let key = self.directory.join(KEY);
        let secret = private_key(&key)?;
        let signer = Signer::new(secret.secret_der(), &chain[0]);
        let certified = CertifiedKey::from_der(chain, secret, &provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TrustError::KeyMismatch { path: key.clone() },
            _ => TrustError::Content {
                path: key.clone(),
                what: KEY_KIND,
            },
        })?;
        // Also what TLS would take: a host that cannot sign what is handed over could deny it.
        let signer = signer.map_err(|_| TrustError::Content {
            path: key,
            what: KEY_KIND,
        })?;
        Ok(Credentials {
            own: Arc::new(certified.into()),
            signer: Arc::new(signer),
            authorities,
            provider,
            holder,
        })
    }

    fn anchors(&self) -> Result<Vec<rustls::pki_types::TrustAnchor<'static>>, TrustError> {
        let path = self.directory.join(AUTHORITY);
        let anchor = |certificate: &CertificateDer<'_>| {
            anchor_from_trusted_cert(certificate)
                .map(|anchor| anchor.to_owned())
                .map_err(|_| TrustError::Content {
                    path: path.clone(),
                    what: "certificate of an authority",
                })
        };
        certificates(&path, "certificate of an authority")?
            .iter()
            .map(anchor)
            .collect()
    }

    fn revoked(&self) -> Result<Vec<CertRevocationList<'static>>, TrustError> {
        let path = self.directory.join(REVOKED);
        let what = "list of revoked certificates";
        let text = match read(&path, what) {
            Err(TrustError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text?,
        };
        let wrong = || TrustError::Content {
            path: path.clone(),
            what,
        };
        let lists = CertificateRevocationListDer::pem_slice_iter(&text)
            .map(|list| {
                let list = list.map_err(|_| wrong())?;
                let parsed = BorrowedCertRevocationList::from_der(&list).map_err(|_| wrong())?;
                parsed.to_owned().map(Into::into).map_err(|_| wrong())
            })
            .collect::<Result<Vec<_>, _>>()?;
        // An emptied file must not pass for a list of nothing.
        if lists.is_empty() { Err(wrong()) } else { Ok(lists) }
    }
}

impl Credentials {
    /// Whom this host's own certificate names.
    pub const fn holder(&self) -> &Identity {
        &self.holder
    }
}

/// Suites of TLS 1.3, the fastest of this processor first. Key exchange and signatures are as ring has them.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    let has_aes = std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    provider.cipher_suites.sort_by_key(|suite: &SupportedCipherSuite| {
        let rank = [
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            CipherSuite::TLS13_AES_256_GCM_SHA384,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        let rank = rank.iter().position(|known| *known == suite.suite());
        if has_aes {
            rank
        } else {
            rank.map(|rank| rank.abs_diff(2))
        }
    });
    Arc::new(provider)
}

fn certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let text = read(path, what)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(TrustError::Content {
            path: path.to_owned(),
            what,
        }),
    }
}

/// A key that nobody but this user can read.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TrustError> {
    let what = "private key";
    let failed = |source| TrustError::File {
        path: path.to_owned(),
        what,
        source,
    };
    let file = File::open(path).map_err(failed)?;
    // Of the file that is open, not of whatever has that name now.
    let found = fstat(&file).map_err(|errno| failed(errno.into()))?;
    let mode = found.st_mode & 0o777;
    if mode & 0o077 != 0 {
        return Err(TrustError::OpenKey {
            path: path.to_owned(),
            mode,
        });
    }
    let user = rustix::process::geteuid();
    if found.st_uid != user.as_raw() && !user.is_root() {
        return Err(TrustError::ForeignKey {
            path: path.to_owned(),
            owner: found.st_uid,
        });
    }
    let text = Zeroizing::new(read_open(file).map_err(failed)?);
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| TrustError::Content {
        path: path.to_owned(),
        what,
    })
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, TrustError> {
    File::open(path).and_then(read_open).map_err(|source| TrustError::File {
        path: path.to_owned(),
        what,
        source,
    })
}

fn read_open(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}
