//! What the command line asks of a process that holds a VM.

use crate::{
    channel::Address,
    guest::{GuestConfig, Tracking},
};
use dunlin_core::units::Bytes;
use std::path::PathBuf;

/// Whom to trust, and with what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustOptions {
    /// Where the audit log is, if there is one.
    pub audit: Option<PathBuf>,
    /// Where the policy is; if absent, [`DEFAULT_FILE`](crate::trust::policy::DEFAULT_FILE) if that is there.
    pub policy: Option<PathBuf>,
    /// Folders that migrations may use later, besides the usual ones.
    pub allow: Vec<PathBuf>,
    /// Whether the process keeps rights that it does not need.
    pub no_sandbox: bool,
}

/// `dunlin guest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestOptions {
    /// The guest to start; its workload is known to fit its memory.
    pub config: GuestConfig,
    /// Where to serve the control socket.
    pub control: PathBuf,
    /// How written pages are tracked.
    pub tracking: Tracking,
    /// Where to write guest RAM when the guest has halted.
    pub dump_ram: Option<PathBuf>,
    /// Where the hand-over record is.
    pub state: Option<PathBuf>,
    /// Whom to trust.
    pub trust: TrustOptions,
    /// Results as JSON lines.
    pub json: bool,
}

/// `dunlin receive`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveOptions {
    /// Where to wait for a migration.
    pub listen: Address,
    /// This host's credentials, for TLS.
    pub tls_dir: Option<PathBuf>,
    /// Without them, to listen all the same where other hosts can connect.
    pub insecure: bool,
    /// Where to serve the control socket.
    pub control: PathBuf,
    /// How written pages of a KVM guest are tracked from its arrival on.
    pub tracking: Tracking,
    /// The largest guest to accept.
    pub max_memory: Bytes,
    /// Populate all guest memory before the copy.
    pub populate: bool,
    /// A directory that the source's host mounts, too.
    pub storage: Option<PathBuf>,
    /// Where to write guest RAM when the guest has halted.
    pub dump_ram: Option<PathBuf>,
    /// Where the hand-over record is.
    pub state: Option<PathBuf>,
    /// Whom to trust.
    pub trust: TrustOptions,
    /// Results as JSON lines.
    pub json: bool,
}
