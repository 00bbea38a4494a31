//! Hosts with certificates by `dunlin pki`, as a person would make them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use dunlin_tests::process::Finished;
use dunlin_tests::scene::{GuestOptions, Host, Kind, PATIENCE, Scene};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};

/// Where the guest is, and where it goes.
pub(crate) const SOURCE: &str = "host-a.test";
pub(crate) const TARGET: &str = "host-b.test";

/// A guest that dirties its memory for some seconds.
pub(crate) fn busy_guest() -> GuestOptions {
    GuestOptions::new(Kind::best(), "uniform,rate=6000").with(["--fill", "random"])
}

/// Two hosts of one authority.
pub(crate) struct Hosts {
    pub(crate) scene: Scene,
}

impl Hosts {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let hosts = Self { scene: Scene::new()? };
        hosts.pki(&["init", &hosts.authority()])?;
        for name in [SOURCE, TARGET] {
            hosts.issue(name)?;
        }
        Ok(hosts)
    }

    fn authority(&self) -> String {
        self.path("authority").display().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scene.folder().join(name)
    }

    /// Makes a host known; the directory of its credentials.
    pub(crate) fn issue(&self, name: &str) -> anyhow::Result<()> {
        self.pki(&["issue", &self.authority(), name]).map(drop)
    }

    /// `dunlin pki` with these words, which must succeed.
    pub(crate) fn pki(&self, words: &[&str]) -> anyhow::Result<Finished> {
        let finished = self.scene.dunlin([&["pki"], words].concat())?.wait(PATIENCE)?;
        ensure!(finished.code == Some(0), "pki {words:?}: {finished}");
        Ok(finished)
    }

    /// Takes a host's certificate back; its directory stays where it is, as on a host that knows nothing of that yet.
    pub(crate) fn revoke(&self, name: &str) -> anyhow::Result<()> {
        let certificate = self.directory(name)?.join("cert.pem");
        self.pki(&["revoke", &self.authority(), &certificate.display().to_string()])
            .map(drop)
    }

    /// The credentials of a host.
    pub(crate) fn directory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let directory = self.path("authority").join(name);
        ensure!(directory.is_dir(), "{name} has no credentials");
        Ok(directory)
    }

    /// A copy of them, to spoil.
    pub(crate) fn copy(&self, name: &str, to: &str) -> anyhow::Result<PathBuf> {
        let copy = self.path(to);
        fs::create_dir_all(&copy)?;
        for file in fs::read_dir(self.directory(name)?)? {
            let file = file?;
            fs::copy(file.path(), copy.join(file.file_name()))?;
        }
        Ok(copy)
    }

    /// A directory for `name`, whose certificate the authority signs, but as `change` says.
    pub(crate) fn spoilt(
        &self,
        name: &str,
        to: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> anyhow::Result<PathBuf> {
        let copy = self.copy(name, to)?;
        let read = |file: &str| fs::read_to_string(self.path("authority").join(file));
        let issuer = Issuer::from_ca_cert_pem(&read("ca.pem")?, KeyPair::from_pem(&read("ca-key.pem")?)?)?;
        let mut about = CertificateParams::default();
        about.subject_alt_names = vec![SanType::DnsName(name.try_into()?)];
        about.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut about);
        let key = KeyPair::generate()?;
        fs::write(copy.join("cert.pem"), about.signed_by(&key, &issuer)?.pem())?;
        fs::write(copy.join("key.pem"), key.serialize_pem())?;
        Ok(copy)
    }

    /// A guest at the source.
    pub(crate) fn guest(&self, options: &GuestOptions) -> anyhow::Result<Host> {
        self.scene.guest("source", options)
    }

    /// A receiver with these credentials.
    pub(crate) fn receiver(&self, name: &str, credentials: &Path, extra: &[&str]) -> anyhow::Result<Host> {
        let credentials = credentials.to_str().context("a path of plain characters")?;
        self.scene
            .receiver(name, &[&["--tls-dir", credentials], extra].concat())
    }

    /// The target.
    pub(crate) fn target(&self, extra: &[&str]) -> anyhow::Result<Host> {
        self.receiver("target", &self.directory(TARGET)?, extra)
    }

    /// What `migrate` needs to know to reach `peer` as the source.
    pub(crate) fn as_source(&self, peer: &str) -> anyhow::Result<Vec<String>> {
        Ok(tls(&self.directory(SOURCE)?, peer))
    }
}

/// What `migrate` needs to know to reach `peer` with these credentials.
pub(crate) fn tls(credentials: &Path, peer: &str) -> Vec<String> {
    let credentials = credentials.display().to_string();
    ["--tls-dir", &credentials, "--peer", peer].map(str::to_owned).to_vec()
}

/// Words as `Scene` takes them.
pub(crate) fn words<'a>(first: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    first.iter().map(String::as_str).chain(more.iter().copied()).collect()
}
