//! What a process keeps of its rights once it is set up: whoever takes it over by what a peer or a guest sent gains little.
//!
//! - Nothing dumps its memory: no core file, no debugger of the same user ([`hide_memory`]); guest RAM is in no dump anyway.
//! - It gains no rights by anything it executes (`no_new_privs`), and loses the capabilities that its [`Duty`] does not need.
//! - It opens only the folders it was told of (Landlock, Linux 5.13; more since 6.12): no program is executed, no TCP port
//!   opened, no process outside signalled.
//! - System calls that no duty of Dunlin needs, and that take over systems, fail (seccomp).
//!
//! What the kernel does not offer is left out, which [`enter`] and `dunlin doctor` say. All of it holds for threads that begin later;
//! so it is entered before there are any.
#![forbid(unsafe_code)]

mod calls;
mod files;

pub use files::{Folders, NotAllowed, Offered, offered};

use rustix::{
    io::Errno,
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities, set_no_new_privs,
    },
};
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::MetadataExt as _,
};

/// What a process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Holds a guest, and may send it away.
    Source,
    /// Waits for a guest, holds it then, and may send it on.
    Target,
    /// Records what others write, by eBPF.
    Tracer,
}

/// Why a process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A right could not be given up.
    #[error("cannot give up {what}: start it again with --no-sandbox if this host forbids that")]
    GiveUp {
        /// Which.
        what: &'static str,
        /// The system's reason.
        source: Errno,
    },
    /// Landlock is there, but refuses.
    #[error("cannot limit the process to its folders: start it again with --no-sandbox if this host forbids that")]
    Landlock(#[from] landlock::RulesetError),
    /// Seccomp is there, but refuses.
    #[error("cannot limit the process to its system calls: start it again with --no-sandbox if this host forbids that")]
    Seccomp(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn give_up<T>(what: &'static str, done: Result<T, Errno>) -> Result<T, SandboxError> {
    done.map_err(|source| SandboxError::GiveUp { what, source })
}

/// Keeps the memory of this process from whoever is not root: it is in no core dump, and no process of the same user reads it. For
/// every process that holds guest memory, or pages of it.
///
/// # Errors
/// [`SandboxError::GiveUp`].
pub fn hide_memory() -> Result<(), SandboxError> {
    // Later the kernel would not let this process open it, which belongs to root from then on.
    crate::memory::pagemap::keep();
    // One byte: no file is that small, and only for 1 the kernel leaves out a program that takes dumps, too (core(5)).
    let limit = getrlimit(Resource::Core);
    let least = Rlimit {
        current: Some(limit.maximum.unwrap_or(1).min(1)),
        maximum: Some(limit.maximum.unwrap_or(1).min(1)),
    };
    give_up("core dumps", setrlimit(Resource::Core, least))?;
    give_up("being debugged", set_dumpable_behavior(DumpableBehavior::NotDumpable))
}

/// Gives up what this duty does not need. Only for a process with one thread: others would keep their rights. Says what this kernel
/// does not offer, in words, if something.
///
/// # Errors
/// [`SandboxError`]: some rights may have been given up.
pub fn enter(duty: Duty, folders: &Folders) -> Result<Option<&'static str>, SandboxError> {
    give_up("gaining rights", set_no_new_privs(true))?;
    drop_capabilities(kept(duty))?;
    let lacking = match duty {
        // What it writes and reads is its user's affair: it listens to nobody but the kernel.
        Duty::Tracer => None,
        Duty::Source | Duty::Target => files::enter(folders)?,
    };
    calls::enter(duty)?;
    Ok(lacking)
}

/// The capabilities that a duty needs beyond set-up, if the process has them.
fn kept(duty: Duty) -> CapabilitySet {
    match duty {
        // Without the device only this lets a process answer faults of the kernel, which KVM's are, or write-protect the memory.
        Duty::Source | Duty::Target if !opens_device() => CapabilitySet::SYS_PTRACE,
        Duty::Source | Duty::Target => CapabilitySet::empty(),
        // Loading and reading eBPF programs; SYS_ADMIN on kernels that know no finer ones (before 5.8), and for tracefs.
        Duty::Tracer => {
            CapabilitySet::BPF
                | CapabilitySet::PERFMON
                | CapabilitySet::SYS_ADMIN
                | CapabilitySet::SYS_PTRACE
                | CapabilitySet::SYS_RESOURCE
                | CapabilitySet::DAC_OVERRIDE
                | CapabilitySet::DAC_READ_SEARCH
        }
    }
}

/// Whether userfaultfd can be had from its device (Linux 6.1), without a capability.
fn opens_device() -> bool {
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd");
    // As the user, not by what is about to be given up.
    let owned = |file: &File| {
        file.metadata()
            .is_ok_and(|found| found.uid() == rustix::process::geteuid().as_raw())
    };
    device.is_ok_and(|device| owned(&device) || !rustix::process::geteuid().is_root())
}

fn drop_capabilities(kept: CapabilitySet) -> Result<(), SandboxError> {
    let now = give_up("capabilities", capabilities(None))?;
    let kept = now.permitted & kept;
    // A kernel without ambient capabilities has none to clear.
    let _ = clear_ambient_capability_set();
    let sets = CapabilitySets {
        effective: now.effective & kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    give_up("capabilities", set_capabilities(None, sets))
}
