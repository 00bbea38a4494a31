//! What the commands that hold guests have in common: whom they trust, and with what.

use crate::{run::options::TrustOptions, trust::audit::FILE_NAME};
use std::path::{Path, PathBuf};

/// As typed.
#[derive(Debug, clap::Args)]
pub(super) struct TrustArgs {
    /// Keep the audit log in this file: who moved what where, what was decided, and what came of it [default: audit.jsonl in the directory
    /// of --state; without one, none]
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,

    /// Go by this policy: which peers may send or receive which guests; read again for each migration [default: /etc/dunlin/policy.toml if
    /// it is there; without one, only peers of this host may]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,

    /// Let migrations use this folder later, as --storage, --tls-dir or for --record-order: the process confines itself to the folders it was told
    /// of, the folder of temporary files, /mnt, /media and /srv. May be given several times
    #[arg(long, value_name = "DIR")]
    allow: Vec<PathBuf>,

    /// Keep all rights of the process, instead of those it needs: to find out whether a failure is due to their lack
    #[arg(long)]
    no_sandbox: bool,
}

impl TrustArgs {
    pub(super) fn options(self, state: Option<&Path>) -> TrustOptions {
        TrustOptions {
            audit: self.audit.or_else(|| state.map(|directory| directory.join(FILE_NAME))),
            policy: self.policy,
            allow: self.allow,
            no_sandbox: self.no_sandbox,
        }
    }
}
