//! A small authority of one's own: a directory with its certificate, its key, its list of what it took back, and a directory for each
//! host it has signed for, ready to be copied there.

use super::{
    Name,
    credentials::{AUTHORITY, CERTIFICATE, KEY, REVOKED},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData as _,
    RevokedCertParams, SanType, SerialNumber,
};
use rustix::fs::{FlockOperation, flock};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime, pem::PemObject};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use time::OffsetDateTime;
use webpki::{BorrowedCertRevocationList, EndEntityCert};
use zeroize::Zeroizing;

/// The authority's key; it stays where it was made.
const AUTHORITY_KEY: &str = "ca-key.pem";
/// How long an authority lasts, and its list of what it took back: a new list goes to all hosts at once, not by its age.
const AUTHORITY_DAYS: u64 = 3650;
/// Certificates begin so much before they are made: hosts whose clocks differ by less trust them at once.
const BACKDATED: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;
const PRIVATE_DIRECTORY: u32 = 0o700;

/// Why an authority does not do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Something of that name is there, and may be needed.
    #[error("{} is there already, and nothing is overwritten: choose another directory, or move that one away", .path.display())]
    Exists {
        /// What is there.
        path: PathBuf,
    },

    /// No authority in that directory.
    #[error("there is no authority in {}: `dunlin pki init {}` makes one", .directory.display(), .directory.display())]
    NoAuthority {
        /// Where it was looked for.
        directory: PathBuf,
    },

    /// A file that holds something else.
    #[error("{} holds no {what}: restore it from a copy, or make a new authority", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },

    /// Certificate and key from different authorities.
    #[error("the key {} belongs to another authority than the certificate beside it: restore both from the same copy", .path.display())]
    KeyMismatch {
        /// The file of the key.
        path: PathBuf,
    },

    /// Nobody of that name has a certificate.
    #[error("no certificate for {name} is in {}: name one that `dunlin pki issue` made, or the file of its certificate", .directory.display())]
    NotIssued {
        /// Who was named.
        name: String,
        /// Where it was looked for.
        directory: PathBuf,
    },

    /// A certificate of somebody else.
    #[error("{} was not issued by this authority, which cannot take it back", .path.display())]
    NotOurs {
        /// The file of the certificate.
        path: PathBuf,
    },

    /// A file or directory.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// A name that no certificate can carry, or a defect.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),

    /// No random numbers.
    #[error("the system gives no random numbers for a serial number")]
    Random,
}

/// Makes an authority in `directory`, which is made, too.
///
/// # Errors
/// [`PkiError::Exists`] if one is there; [`PkiError::Io`], [`PkiError::Make`], [`PkiError::Random`].
pub fn init(directory: &Path) -> Result<(), PkiError> {
    let path = directory.join(AUTHORITY);
    if path.exists() {
        return Err(PkiError::Exists { path });
    }
    let made = DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_DIRECTORY)
        .create(directory);
    made.map_err(io_error("make the directory", directory))?;
    let mut about = CertificateParams::default();
    // Two authorities of the same name would be taken for each other, and then for forgers.
    let name = format!("Dunlin authority {}", u32::from_le_bytes(random()?));
    about.distinguished_name.push(DnType::CommonName, name);
    about.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    about.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lasts(&mut about, AUTHORITY_DAYS)?;
    let authority = CertifiedIssuer::self_signed(about, KeyPair::generate()?)?;
    let key = Zeroizing::new(authority.key().serialize_pem());
    create(&directory.join(AUTHORITY_KEY), key.as_bytes(), PRIVATE)?;
    create(&path, authority.pem().as_bytes(), PUBLIC)?;
    let nothing = revocations(vec![], &authority)?;
    create(&directory.join(REVOKED), nothing.as_bytes(), PUBLIC)
}

/// Makes a key and a certificate of `name` for `days`, in a directory of its own beside the authority's files. Returns the directory.
///
/// # Errors
/// [`PkiError::Exists`] if that name has a certificate; [`PkiError::NoAuthority`], [`PkiError::Content`],
/// [`PkiError::KeyMismatch`], [`PkiError::Io`], [`PkiError::Make`], [`PkiError::Random`].
pub fn issue(directory: &Path, name: &Name, days: u64) -> Result<PathBuf, PkiError> {
    let authority = Authority::open(directory)?;
    let mut about = CertificateParams::default();
    about.distinguished_name.push(DnType::CommonName, name.as_str());
    about.subject_alt_names = vec![match name {
        Name::Uri(uri) => SanType::URI(uri.as_str().try_into()?),
        Name::Dns(host) => SanType::DnsName(host.as_str().try_into()?),
    }];
    about.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // A guest that came may go on from there: each host connects, and is connected to.
    about.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    about.use_authority_key_identifier_extension = true;
    lasts(&mut about, days)?;
    let key = KeyPair::generate()?;
    let certificate = about.signed_by(&key, &authority.issuer)?;
    let host = directory.join(folder(name));
    match DirBuilder::new().mode(PRIVATE_DIRECTORY).create(&host) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(PkiError::Exists { path: host }),
        made => made.map_err(io_error("make the directory", &host))?,
    }
    let revoked = read(&directory.join(REVOKED))?;
    create(&host.join(AUTHORITY), authority.certificate.as_bytes(), PUBLIC)?;
    create(&host.join(REVOKED), revoked.as_bytes(), PUBLIC)?;
    create(&host.join(CERTIFICATE), certificate.pem().as_bytes(), PUBLIC)?;
    let key = Zeroizing::new(key.serialize_pem());
    create(&host.join(KEY), key.as_bytes(), PRIVATE)?;
    Ok(host)
}

/// Takes the certificate of `whose` back: a name that it was issued for, or a file with the certificate. The list is renewed beside the
/// authority's files and in every host's directory there; it counts on a host once it has been copied to it. A name can be issued for
/// again afterwards.
///
/// # Errors
/// [`PkiError::NotIssued`], [`PkiError::NotOurs`]; [`PkiError::NoAuthority`], [`PkiError::Content`], [`PkiError::KeyMismatch`],
/// [`PkiError::Io`], [`PkiError::Make`].
pub fn revoke(directory: &Path, whose: &str) -> Result<(), PkiError> {
    let authority = Authority::open(directory)?;
    let host = whose.parse::<Name>().ok().map(|name| directory.join(folder(&name)));
    let host = host.filter(|host| host.join(CERTIFICATE).is_file());
    let path = match &host {
        Some(host) => host.join(CERTIFICATE),
        None if Path::new(whose).is_file() => PathBuf::from(whose),
        None => {
            return Err(PkiError::NotIssued {
                name: whose.to_owned(),
                directory: directory.to_owned(),
            });
        }
    };
    let serial = authority.serial(&path)?;
    let list = directory.join(REVOKED);
    let mut revoked = authority.revoked(&list)?;
    if revoked.iter().all(|known| known.serial_number != serial) {
        revoked.push(RevokedCertParams {
            serial_number: serial,
            revocation_time: SystemTime::now().into(),
            reason_code: None,
            invalidity_date: None,
        });
    }
    let text = revocations(revoked, &authority.issuer)?;
    replace(&list, &text)?;
    let entries = fs::read_dir(directory).map_err(io_error("read the directory", directory))?;
    for copy in entries.flatten().map(|entry| entry.path().join(REVOKED)) {
        if copy.is_file() {
            replace(&copy, &text)?;
        }
    }
    let Some(host) = host else { return Ok(()) };
    let aside = (1..).map(|number| PathBuf::from(format!("{}.revoked-{number}", host.display())));
    let aside = aside.into_iter().find(|aside| !aside.exists()).unwrap_or_default();
    fs::rename(&host, &aside).map_err(io_error("rename the directory", &host))
}

/// An authority that may sign; nobody else changes its list meanwhile.
struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    /// Closing it releases the lock.
    _locked: File,
}

impl Authority {
    fn open(directory: &Path) -> Result<Self, PkiError> {
        let path = directory.join(AUTHORITY_KEY);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(PkiError::NoAuthority {
                    directory: directory.to_owned(),
                });
            }
            file => file.map_err(io_error("open", &path))?,
        };
        flock(&file, FlockOperation::LockExclusive).map_err(|errno| io_error("lock", &path)(errno.into()))?;
        let mut text = Zeroizing::new(String::new());
        file.read_to_string(&mut text).map_err(io_error("read", &path))?;
        let key = KeyPair::from_pem(&text).map_err(|_| PkiError::Content {
            path: path.clone(),
            what: "private key",
        })?;
        let certificate = read(&directory.join(AUTHORITY))?;
        let wrong = || PkiError::Content {
            path: directory.join(AUTHORITY),
            what: "certificate of an authority",
        };
        let parsed = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|_| wrong())?;
        let public = EndEntityCert::try_from(&parsed)
            .map_err(|_| wrong())?
            .subject_public_key_info();
        if public.as_ref() != key.subject_public_key_info() {
            return Err(PkiError::KeyMismatch { path });
        }
        let issuer = Issuer::from_ca_cert_der(&parsed, key).map_err(|_| wrong())?;
        Ok(Self {
            certificate,
            issuer,
            _locked: file,
        })
    }

    /// The serial number of a certificate that this authority has signed.
    fn serial(&self, path: &Path) -> Result<SerialNumber, PkiError> {
        let text = read(path)?;
        let wrong = |_| PkiError::Content {
            path: path.to_owned(),
            what: "certificate",
        };
        let certificate = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| wrong(()))?;
        let parsed = EndEntityCert::try_from(&certificate).map_err(|_| wrong(()))?;
        let own = CertificateDer::from_pem_slice(self.certificate.as_bytes()).map_err(|_| wrong(()))?;
        let own = EndEntityCert::try_from(&own).map_err(|_| wrong(()))?;
        if parsed.issuer() != own.subject() {
            return Err(PkiError::NotOurs { path: path.to_owned() });
        }
        Ok(SerialNumber::from_slice(parsed.serial()))
    }

    /// What the list says so far.
    fn revoked(&self, path: &Path) -> Result<Vec<RevokedCertParams>, PkiError> {
        let text = read(path)?;
        let wrong = || PkiError::Content {
            path: path.to_owned(),
            what: "list of revoked certificates",
        };
        let list = CertificateRevocationListDer::from_pem_slice(text.as_bytes()).map_err(|_| wrong())?;
        let list = BorrowedCertRevocationList::from_der(&list).map_err(|_| wrong())?;
        list.into_iter()
            .map(|revoked| {
                let revoked = revoked.map_err(|_| wrong())?;
                Ok(RevokedCertParams {
                    serial_number: SerialNumber::from_slice(revoked.serial_number),
                    revocation_time: moment(revoked.revocation_date),
                    reason_code: None,
                    invalidity_date: None,
                })
            })
            .collect()
    }
}

fn moment(time: UnixTime) -> OffsetDateTime {
    (SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())).into()
}

fn revocations(revoked_certs: Vec<RevokedCertParams>, issuer: &Issuer<'_, KeyPair>) -> Result<String, PkiError> {
    let now = SystemTime::now();
    let age = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let list = CertificateRevocationListParams {
        this_update: (now - BACKDATED).into(),
        next_update: (now + DAY * AUTHORITY_DAYS as u32).into(),
        // Later lists have larger numbers.
        crl_number: SerialNumber::from_slice(&u64::try_from(age.as_millis()).unwrap_or(u64::MAX).to_be_bytes()),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(list.signed_by(issuer)?.pem()?)
}

fn lasts(about: &mut CertificateParams, days: u64) -> Result<(), PkiError> {
    let now = SystemTime::now();
    about.not_before = (now - BACKDATED).into();
    about.not_after = (now + DAY * u32::try_from(days).unwrap_or(u32::MAX)).into();
    let mut serial: [u8; 16] = random()?;
    // Positive, and as long as any other.
    serial[0] = serial[0] & 0x7f | 0x40;
    about.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(())
}

fn random<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| PkiError::Random)?;
    Ok(bytes)
}

/// The directory of whoever has this name.
fn folder(name: &Name) -> String {
    let plain = |byte: char| byte.is_ascii_alphanumeric() || ".-".contains(byte);
    name.as_str()
        .chars()
        .map(|byte| if plain(byte) { byte } else { '_' })
        .collect()
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(io_error("read", path))
}

/// Writes a file that is not there yet.
fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = match opened {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(PkiError::Exists { path: path.into() }),
        file => file.map_err(io_error("make", path))?,
    };
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(io_error("write", path))
}

/// Writes a file in the place of another, which stays whole if that fails.
fn replace(path: &Path, text: &str) -> Result<(), PkiError> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io_error("remove", &new)(error)),
        _ => {}
    }
    create(&new, text.as_bytes(), PUBLIC)?;
    fs::rename(&new, path).map_err(io_error("replace", path))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::{Files, TrustError};
    use std::os::unix::fs::PermissionsExt as _;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn authority() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("authority");
        init(&directory).unwrap();
        (folder, directory)
    }

    #[test]
    fn what_is_issued_is_of_use_and_its_keys_are_secret() {
        let (_folder, directory) = authority();
        for (text, folder) in [
            ("host-a.example", "host-a.example"),
            ("spiffe://x/host-b", "spiffe___x_host-b"),
        ] {
            let host = issue(&directory, &name(text), 30).unwrap();
            assert_eq!(host, directory.join(folder));
            let credentials = Files::new(&host).load().unwrap();
            assert_eq!(credentials.holder().name(), &name(text));
            let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(host.join(KEY)), 0o600);
            assert_eq!(mode(host), 0o700);
        }
        assert_eq!(
            fs::metadata(directory.join(AUTHORITY_KEY))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
    }

    #[test]
    fn nothing_is_overwritten() {
        let (_folder, directory) = authority();
        assert!(matches!(init(&directory), Err(PkiError::Exists { .. })));
        issue(&directory, &name("a"), 1).unwrap();
        let key = fs::read(directory.join("a").join(KEY)).unwrap();
        assert!(matches!(issue(&directory, &name("a"), 1), Err(PkiError::Exists { .. })));
        assert_eq!(fs::read(directory.join("a").join(KEY)).unwrap(), key);
    }

    #[test]
    fn who_is_revoked_is_so_everywhere_and_for_good() {
        let (_folder, directory) = authority();
        for host in ["a", "b", "c"] {
            issue(&directory, &name(host), 1).unwrap();
        }
        let old = directory.join("a.revoked-1");
        revoke(&directory, "a").unwrap();
        revoke(&directory, directory.join("b").join(CERTIFICATE).to_str().unwrap()).unwrap();
        for gone in [&old, &directory.join("b")] {
            let refused = Files::new(gone).load().unwrap_err();
            assert!(
                matches!(&refused, TrustError::Own { source, .. } if matches!(**source, TrustError::Revoked)),
                "{refused:?}"
            );
        }
        Files::new(directory.join("c")).load().unwrap();
        // The name can have another one, and that one is revoked beside the first.
        Files::new(issue(&directory, &name("a"), 1).unwrap()).load().unwrap();
        revoke(&directory, "a").unwrap();
        assert!(Files::new(&old).load().is_err() && Files::new(directory.join("a.revoked-2")).load().is_err());
        assert!(matches!(revoke(&directory, "a"), Err(PkiError::NotIssued { .. })));
    }

    #[test]
    fn strangers_certificates_are_not_taken_back() {
        let ((_one, ours), (_other, theirs)) = (authority(), authority());
        let host = issue(&theirs, &name("a"), 1).unwrap();
        let refused = revoke(&ours, host.join(CERTIFICATE).to_str().unwrap());
        assert!(matches!(refused, Err(PkiError::NotOurs { .. })), "{refused:?}");
        fs::copy(theirs.join(AUTHORITY_KEY), ours.join(AUTHORITY_KEY)).unwrap();
        let refused = issue(&ours, &name("b"), 1);
        assert!(matches!(refused, Err(PkiError::KeyMismatch { .. })), "{refused:?}");
        let nowhere = issue(&ours.join("a"), &name("b"), 1);
        assert!(matches!(nowhere, Err(PkiError::NoAuthority { .. })), "{nowhere:?}");
    }
}
