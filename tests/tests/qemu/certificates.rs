//! Certificates in the files that QEMU looks for (docs/system/tls.rst).

use std::fs;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

/// The name in the certificate of whoever listens.
pub(crate) const NAME: &str = "target.test";

/// Somebody who signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new(name: &str) -> anyhow::Result<Self> {
        let mut about = about(name, &[])?;
        about.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        about.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self(CertifiedIssuer::self_signed(about, KeyPair::generate()?)?))
    }

    /// What the source reads: it connects.
    pub(crate) fn client(&self) -> anyhow::Result<TempDir> {
        let mut about = about("source", &[])?;
        about.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue("client", about)
    }

    /// What the target reads: it listens, and is known as [`NAME`] and `localhost`.
    pub(crate) fn server(&self) -> anyhow::Result<TempDir> {
        let mut about = about(NAME, &[NAME, "localhost"])?;
        about.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue("server", about)
    }

    fn issue(&self, endpoint: &str, mut about: CertificateParams) -> anyhow::Result<TempDir> {
        about.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        let key = KeyPair::generate()?;
        let certificate = about.signed_by(&key, &self.0)?;
        let folder = tempfile::tempdir()?;
        let write = |name: String, text: String| fs::write(folder.path().join(name), text);
        write("ca-cert.pem".into(), self.0.pem())?;
        write(format!("{endpoint}-cert.pem"), certificate.pem())?;
        write(format!("{endpoint}-key.pem"), key.serialize_pem())?;
        Ok(folder)
    }
}

fn about(name: &str, hosts: &[&str]) -> anyhow::Result<CertificateParams> {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut about = CertificateParams::new(hosts)?;
    // Two that are called the same would look as if they had signed themselves.
    about.distinguished_name.push(DnType::CommonName, name);
    Ok(about)
}
