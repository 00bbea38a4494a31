//! What is handed over, in bytes that both sides sign: neither can later deny that it gave, or took.
//!
//! A [`CommitRecord`] has the same bytes on both hosts. The target signs them when it says that it is ready to take the VM, the source
//! when it has given it up; each side keeps both signatures, with the certificates that they can be checked by, in its audit log
//! ([`SignedCommit`]). Which [`Side`] signs is part of what is signed, so that one's signature is not the other's.
#![forbid(unsafe_code)]

use super::{Identity, Name, audit::Signatures};
use data_encoding::HEXLOWER;
use dunlin_core::message::{Mode, SessionId, VmId};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair},
};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm};
use serde::{Deserialize, Serialize};
use std::{fmt, sync::Arc};

/// Begins every signed text, so that no signature for another purpose fits.
const CONTEXT: &[u8] = b"dunlin commit record v1\0";

/// Algorithms by which signatures are checked: those of the keys that [`Signer`] takes.
static ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 2] = [webpki::ring::ECDSA_P256_SHA256, webpki::ring::ED25519];

/// Why something cannot be signed, or a signature does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// No key that signs.
    #[error("The key can sign no commit record: use an ECDSA P-256 or an Ed25519 key, in PKCS #8")]
    Key,
    /// The signing itself.
    #[error("The system gives no random numbers to sign with")]
    Signing,
    /// The certificate cannot be read.
    #[error("The signer's certificate cannot be read")]
    Certificate,
    /// There is none.
    #[error("The other side has not signed what is handed over")]
    Unsigned,
    /// The signature does not fit.
    #[error("The signature does not fit what is handed over")]
    Signature,
}

/// Which side of a hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who gives the VM up.
    Source,
    /// Who takes it.
    Target,
}

/// What is handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitRecord {
    /// The migration.
    #[serde(with = "hex128")]
    pub session: u128,
    /// The VM.
    #[serde(with = "hex128")]
    pub vm: u128,
    /// Its name.
    pub guest: String,
    /// Who gives it, by what it proved to be; nothing on a plain connection.
    pub source: Option<String>,
    /// Who takes it.
    pub target: Option<String>,
    /// Whether all memory had been sent.
    pub mode: CommitMode,
    /// BLAKE3 of the vCPU and device state, in hexadecimal.
    pub state: String,
}

/// [`Mode`] as the log names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommitMode {
    /// All of it.
    StopCopy,
    /// Not yet.
    PostCopy,
}

impl From<Mode> for CommitMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::StopCopy => Self::StopCopy,
            Mode::PostCopy => Self::PostCopy,
        }
    }
}

impl CommitRecord {
    /// What the hand-over of a VM on a connection of this session is about; `state` are the bytes of its vCPUs and devices as they
    /// were sent.
    pub fn new(session: SessionId, vm: VmId, guest: &str, parties: Parties<'_>, mode: Mode, state: &[u8]) -> Self {
        Self {
            session: session.0,
            vm: vm.0,
            guest: guest.to_owned(),
            source: parties.source.map(str::to_owned),
            target: parties.target.map(str::to_owned),
            mode: mode.into(),
            state: blake3::hash(state).to_hex().to_string(),
        }
    }

    /// What `side` signs: every field, with its length before it where it has one, in one order.
    pub fn signed_bytes(&self, side: Side) -> Vec<u8> {
        let mut bytes = CONTEXT.to_vec();
        bytes.push(match side {
            Side::Source => 1,
            Side::Target => 2,
        });
        bytes.extend(self.session.to_be_bytes());
        bytes.extend(self.vm.to_be_bytes());
        bytes.push(match self.mode {
            CommitMode::StopCopy => 1,
            CommitMode::PostCopy => 2,
        });
        let mut text = |text: Option<&str>| {
            bytes.push(u8::from(text.is_some()));
            let text = text.unwrap_or_default().as_bytes();
            bytes.extend((text.len() as u64).to_be_bytes());
            bytes.extend(text);
        };
        text(Some(&self.guest));
        text(self.source.as_deref());
        text(self.target.as_deref());
        text(Some(&self.state));
        bytes
    }

    /// Checks that the holder of `certificate`'s key signed this as `side`. Whether the certificate itself is to be trusted is another
    /// question: on a connection it has been answered by TLS, for a log by who keeps the authority's certificate.
    ///
    /// # Errors
    /// [`CommitError::Certificate`], [`CommitError::Signature`].
    pub fn verify(&self, side: Side, signature: &[u8], certificate: &[u8]) -> Result<(), CommitError> {
        let certificate = CertificateDer::from(certificate);
        let certificate = webpki::EndEntityCert::try_from(&certificate).map_err(|_| CommitError::Certificate)?;
        let message = self.signed_bytes(side);
        let fits = |algorithm: &&&dyn SignatureVerificationAlgorithm| {
            certificate.verify_signature(**algorithm, &message, signature).is_ok()
        };
        match ALGORITHMS.iter().find(fits) {
            Some(_) => Ok(()),
            None => Err(CommitError::Signature),
        }
    }
}

/// Who hands over to whom, by what they proved to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parties<'a> {
    /// Who gives.
    pub source: Option<&'a str>,
    /// Who takes.
    pub target: Option<&'a str>,
}

/// A key that signs commit records: the one that this host proves its identity with.
pub struct Signer {
    key: Key,
    certificate: Vec<u8>,
}

enum Key {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl fmt::Debug for Signer {
    /// Nothing of the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    /// Takes a private key in PKCS #8 (DER), and the certificate of its public key (DER).
    ///
    /// # Errors
    /// [`CommitError::Key`], also if the two do not belong together; [`CommitError::Certificate`].
    pub fn new(pkcs8: &[u8], certificate: &[u8]) -> Result<Self, CommitError> {
        let ecdsa = || EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8, &SystemRandom::new());
        let key = match (ecdsa(), Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8)) {
            (Ok(key), _) => Key::Ecdsa(key),
            (_, Ok(key)) => Key::Ed25519(key),
            (Err(_), Err(_)) => return Err(CommitError::Key),
        };
        let signer = Self {
            key,
            certificate: certificate.to_vec(),
        };
        let probe = CommitRecord::new(SessionId(0), VmId(0), "", Parties::default(), Mode::StopCopy, &[]);
        let signature = signer.sign(&probe, Side::Source)?;
        match probe.verify(Side::Source, &signature.bytes()?, certificate) {
            Err(CommitError::Signature) => Err(CommitError::Key),
            checked => checked.map(|()| signer),
        }
    }

    /// Signs the record as `side`.
    ///
    /// # Errors
    /// [`CommitError::Signing`].
    pub fn sign(&self, record: &CommitRecord, side: Side) -> Result<Signature, CommitError> {
        let message = record.signed_bytes(side);
        let bytes = match &self.key {
            Key::Ecdsa(key) => key
                .sign(&SystemRandom::new(), &message)
                .map_err(|_| CommitError::Signing)?
                .as_ref()
                .to_vec(),
            Key::Ed25519(key) => key.sign(&message).as_ref().to_vec(),
        };
        Ok(Signature::new(&bytes, &self.certificate))
    }
}

/// What hand-overs are signed with on a connection, and checked by: this host's key, and the certificate that the other side has shown.
#[derive(Clone, Debug)]
pub struct Signing {
    signer: Arc<Signer>,
    own: Name,
    peer: Name,
    /// DER, as TLS has taken it.
    certificate: Arc<[u8]>,
}

impl Signing {
    /// For a connection between this host, which `signer` signs for, and the holder of `certificate`.
    pub fn new(signer: Arc<Signer>, own: &Identity, peer: &Identity, certificate: &[u8]) -> Self {
        Self {
            signer,
            own: own.name().clone(),
            peer: peer.name().clone(),
            certificate: certificate.into(),
        }
    }

    /// Who hands over to whom, if this host is that side.
    pub fn parties(&self, own: Side) -> Parties<'_> {
        let (own_name, peer) = (Some(self.own.as_str()), Some(self.peer.as_str()));
        match own {
            Side::Source => Parties {
                source: own_name,
                target: peer,
            },
            Side::Target => Parties {
                source: peer,
                target: own_name,
            },
        }
    }

    /// This host's signature.
    ///
    /// # Errors
    /// [`CommitError::Signing`].
    pub fn sign(&self, record: &CommitRecord, side: Side) -> Result<Signature, CommitError> {
        self.signer.sign(record, side)
    }

    /// A signature that came over the connection.
    pub fn of_peer(&self, signature: &[u8]) -> Signature {
        Signature::new(signature, &self.certificate)
    }
}

/// A signature as it is kept, with the certificate that it can be checked by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The signature, in hexadecimal.
    pub signature: String,
    /// The signer's certificate (DER), in hexadecimal.
    pub certificate: String,
}

impl Signature {
    /// A signature that came over the network, and the certificate which TLS took there.
    pub fn new(signature: &[u8], certificate: &[u8]) -> Self {
        Self {
            signature: HEXLOWER.encode(signature),
            certificate: HEXLOWER.encode(certificate),
        }
    }

    /// The signature as it travels.
    ///
    /// # Errors
    /// [`CommitError::Signature`] if it is not in hexadecimal.
    pub fn bytes(&self) -> Result<Vec<u8>, CommitError> {
        HEXLOWER
            .decode(self.signature.as_bytes())
            .map_err(|_| CommitError::Signature)
    }

    fn check(&self, record: &CommitRecord, side: Side) -> Result<(), CommitError> {
        let certificate = HEXLOWER
            .decode(self.certificate.as_bytes())
            .map_err(|_| CommitError::Certificate)?;
        record.verify(side, &self.bytes()?, &certificate)
    }
}

/// What is handed over, and who has signed it so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedCommit {
    /// What.
    #[serde(flatten)]
    pub record: CommitRecord,
    /// By who gives it.
    pub source_signature: Option<Signature>,
    /// By who takes it.
    pub target_signature: Option<Signature>,
}

impl SignedCommit {
    /// Not signed yet.
    pub const fn unsigned(record: CommitRecord) -> Self {
        Self {
            record,
            source_signature: None,
            target_signature: None,
        }
    }

    /// Adds a signature of `side`, this host's own or one that came from the other, if it is one.
    ///
    /// # Errors
    /// [`CommitError`]; nothing was added then.
    pub fn add(&mut self, side: Side, signature: Signature) -> Result<(), CommitError> {
        signature.check(&self.record, side)?;
        match side {
            Side::Source => self.source_signature = Some(signature),
            Side::Target => self.target_signature = Some(signature),
        }
        Ok(())
    }

    /// Checks the signatures there are.
    pub(super) fn count(&self, signatures: &mut Signatures) {
        for (side, signature) in [
            (Side::Source, &self.source_signature),
            (Side::Target, &self.target_signature),
        ] {
            match signature.as_ref().map(|signature| signature.check(&self.record, side)) {
                Some(Ok(())) => signatures.good += 1,
                Some(Err(_)) => signatures.bad += 1,
                None => signatures.missing += 1,
            }
        }
    }
}

/// Numbers that JSON has no place for.
mod hex128 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(number: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{number:032x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = String::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn signers() -> [Signer; 2] {
        [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519].map(|algorithm| {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let certificate = rcgen::CertificateParams::new(vec!["a.example".to_owned()])
                .unwrap()
                .self_signed(&key)
                .unwrap();
            Signer::new(&key.serialize_der(), certificate.der()).unwrap()
        })
    }

    fn record() -> impl Strategy<Value = CommitRecord> {
        let party = || proptest::option::of("[a-z:/.]{0,20}");
        let mode = prop_oneof![Just(CommitMode::StopCopy), Just(CommitMode::PostCopy)];
        (
            any::<u128>(),
            any::<u128>(),
            "[a-z]{0,8}",
            party(),
            party(),
            mode,
            any::<u64>(),
        )
            .prop_map(|(session, vm, guest, source, target, mode, state)| CommitRecord {
                session,
                vm,
                guest,
                source,
                target,
                mode,
                state: blake3::hash(&state.to_le_bytes()).to_hex().to_string(),
            })
    }

    #[test]
    fn what_was_signed_cannot_be_denied_nor_claimed_of_anything_else() {
        let signers = signers();
        for (signer, other) in [(&signers[0], &signers[1]), (&signers[1], &signers[0])] {
            proptest!(ProptestConfig::with_cases(24), |(record in record(), another in record())| {
                let mut commit = SignedCommit::unsigned(record.clone());
                commit.add(Side::Source, signer.sign(&record, Side::Source).unwrap()).unwrap();
                commit.add(Side::Target, other.sign(&record, Side::Target).unwrap()).unwrap();
                let json = serde_json::to_string(&commit).unwrap();
                prop_assert_eq!(&serde_json::from_str::<SignedCommit>(&json).unwrap(), &commit);
                let mut signatures = Signatures::default();
                commit.count(&mut signatures);
                prop_assert_eq!(signatures, Signatures { good: 2, bad: 0, missing: 0 });

                let signature = signer.sign(&record, Side::Source).unwrap();
                // As the other side, of another hand-over, by another's key.
                prop_assert_eq!(commit.add(Side::Target, signature.clone()), Err(CommitError::Signature));
                if another != record {
                    let mut another = SignedCommit::unsigned(another);
                    prop_assert_eq!(another.add(Side::Source, signature.clone()), Err(CommitError::Signature));
                }
                let borrowed = Signature { certificate: HEXLOWER.encode(&other.certificate), ..signature };
                prop_assert_eq!(commit.add(Side::Source, borrowed), Err(CommitError::Signature));
            });
        }
    }

    #[test]
    fn a_key_of_another_certificate_signs_nothing() {
        let key = rcgen::KeyPair::generate().unwrap();
        let [other, _] = signers();
        assert_eq!(
            Signer::new(&key.serialize_der(), &other.certificate).unwrap_err(),
            CommitError::Key
        );
        assert_eq!(
            Signer::new(b"no key", &other.certificate).unwrap_err(),
            CommitError::Key
        );
        assert_eq!(
            Signer::new(&key.serialize_der(), b"no certificate").unwrap_err(),
            CommitError::Certificate
        );
        assert!(!format!("{other:?}").contains("key"), "nothing of a key is printed");
    }

    proptest! {
        /// A field cannot borrow bytes from its neighbour.
        #[test]
        fn different_records_have_different_bytes(one in record(), other in record()) {
            for (left, right) in [(Side::Source, Side::Source), (Side::Source, Side::Target)] {
                let equal = one.signed_bytes(left) == other.signed_bytes(right);
                prop_assert_eq!(equal, one == other && left == right);
            }
        }

        #[test]
        fn texts_do_not_run_into_each_other(left in "[ab]{0,3}", right in "[ab]{0,3}", at in 0usize..4) {
            let with = |source: &str, target: &str| CommitRecord {
                session: 0, vm: 0, guest: String::new(), source: Some(source.into()), target: Some(target.into()),
                mode: CommitMode::StopCopy, state: String::new(),
            };
            let all = format!("{left}{right}");
            let (first, second) = all.split_at(at.min(all.len()));
            let equal = with(&left, &right).signed_bytes(Side::Source) == with(first, second).signed_bytes(Side::Source);
            prop_assert_eq!(equal, left == first);
        }
    }
}
