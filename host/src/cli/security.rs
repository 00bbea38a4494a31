//! Options that say how connections between hosts are protected.

use super::{CliError, output};
use crate::{
    channel::Address,
    report::chain,
    trust::{Security, default_directory},
};
use std::path::PathBuf;

/// How a connection is protected, as typed.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct SecurityArgs {
    /// Use TLS, with this host's ca.pem, cert.pem, key.pem and perhaps crl.pem in this directory
    ///
    /// Without it, TLS is used wherever other hosts can connect, with the directory in DUNLIN_TLS_DIR, or else dunlin/tls in
    /// XDG_CONFIG_HOME, ~/.config or /etc, whichever is there. The process that holds the guest reads it,
    /// and knows only those directories that it would have chosen itself, below /etc and such that its --allow names. `dunlin pki` makes such
    /// directories. The files are read again for each
    /// connection.
    #[arg(long, value_name = "DIR")]
    tls_dir: Option<PathBuf>,

    /// Use no TLS even where other hosts can connect: anybody on the way can read and change the guest's memory
    #[arg(long, conflicts_with = "tls_dir")]
    insecure: bool,
}

/// The same, decided.
pub(super) struct Protection {
    pub(super) tls_dir: Option<PathBuf>,
    pub(super) insecure: bool,
}

impl SecurityArgs {
    /// Decides for connections to or from `address`, and warns of those that are open to everybody.
    ///
    /// # Errors
    /// [`CliError::Usage`] where there should be credentials and are none.
    pub(super) fn protect(&self, address: &Address) -> Result<Protection, CliError> {
        let protection = self.protection(address);
        let security = Security::choose(address, protection.tls_dir.as_deref(), protection.insecure)
            .map_err(|error| CliError::Usage(chain(&error)))?;
        if let Some(warning) = security.warning(address) {
            output::message(&warning);
        }
        Ok(protection)
    }

    /// Decides without a word.
    pub(super) fn protection(&self, address: &Address) -> Protection {
        let is_open = !self.insecure && Security::choose(address, None, false).is_err();
        let usual = || is_open.then(default_directory).flatten();
        Protection {
            // Another process may be the one that reads it, from wherever it was started.
            tls_dir: self.tls_dir.clone().or_else(usual).map(super::migrate::absolute),
            insecure: self.insecure,
        }
    }
}
