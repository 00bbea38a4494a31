//! A process that holds guests gives up what it does not need.

use std::path::PathBuf;

use super::options::{GuestOptions, ReceiveOptions, TrustOptions};
use crate::channel::Address;
use crate::trust::default_directory;
use crate::trust::policy::DEFAULT_FILE;
use crate::trust::sandbox::{Duty, Folders, SandboxError, enter, hide_memory};

/// Before the guest, and so before any other thread.
pub(super) fn confine_guest(options: &GuestOptions) -> Result<(), SandboxError> {
    let mut folders = folders(&options.trust);
    folders.write_file(&options.control);
    options.dump_ram.iter().for_each(|file| folders.write_file(file));
    options.state.iter().for_each(|folder| folders.write(folder));
    // What `dunlin migrate` names if nobody says otherwise; others are for --allow.
    default_directory().iter().for_each(|folder| folders.read(folder));
    confine(&options.trust, Duty::Source, &folders)
}

/// When the port is open, which no other will be.
pub(super) fn confine_receiver(options: &ReceiveOptions) -> Result<(), SandboxError> {
    let mut folders = folders(&options.trust);
    folders.write_file(&options.control);
    if let Address::Unix(path) = &options.listen {
        folders.write_file(path);
    }
    options.dump_ram.iter().for_each(|file| folders.write_file(file));
    // Read anew for each connection.
    options.tls_dir.iter().for_each(|folder| folders.read(folder));
    for folder in options.state.iter().chain(&options.storage) {
        folders.write(folder);
    }
    confine(&options.trust, Duty::Target, &folders)
}

fn folders(trust: &TrustOptions) -> Folders {
    let mut folders = Folders::usual();
    trust.audit.iter().for_each(|log| folders.write_file(log));
    for folder in &trust.allow {
        folders.write(folder);
    }
    let policy = trust.policy.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    folders.read_file(&policy);
    if let Some(counted) = crate::trust::policy::count_folder(&policy) {
        folders.write(&counted);
    }
    folders
}

fn confine(trust: &TrustOptions, duty: Duty, folders: &Folders) -> Result<(), SandboxError> {
    hide_memory()?;
    if trust.no_sandbox {
        eprintln!("dunlin: --no-sandbox: the process keeps all its rights, and whoever takes it over has them");
        return Ok(());
    }
    if let Some(lacking) = enter(duty, folders)? {
        eprintln!("dunlin: {lacking}");
    }
    Ok(())
}
