//! What can go wrong with a guest.

use std::io;
use std::time::Duration;

use crate::memory::{MemoryError, UserfaultfdError};

/// Why a guest cannot be built, run, tracked or moved.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The configuration's bytes are none.
    #[error("The guest's configuration is malformed; use the same version of dunlin on both hosts")]
    ConfigMalformed,

    /// The workload, or its fit into this guest.
    #[error("The guest's workload cannot be used: {0}")]
    Workload(String),

    /// Memory could not be described or mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),

    /// There is no KVM.
    #[error(
        "This host has no /dev/kvm; load the kvm_intel or kvm_amd module (and enable virtualisation in the firmware), or use --kind thread"
    )]
    NoKvm,

    /// KVM is there for others.
    #[error(
        "Access to /dev/kvm is denied; run as root or join the group that owns it (usermod -aG kvm USER), or use --kind thread"
    )]
    KvmDenied,

    /// KVM lacks something.
    #[error("KVM on this host lacks {0}; use a newer kernel, or --kind thread")]
    KvmLacks(&'static str),

    /// KVM refused to build the virtual machine.
    #[error("KVM refused {call}; see the kernel log (dmesg)")]
    Kvm {
        /// What was asked of it.
        call: &'static str,
        /// What it said.
        source: io::Error,
    },

    /// The description of the processors is none.
    #[error("The guest's CPUID is malformed; use the same version of dunlin on both hosts")]
    CpuidMalformed,

    /// The time stamp counter cannot be given the guest's rate.
    #[error(
        "The guest's time stamp counter runs at {guest_khz} kHz, this host's at {host_khz} kHz, and this host cannot scale it; move the guest to a host with the same rate"
    )]
    Tsc {
        /// The guest's rate in kHz.
        guest_khz: u32,
        /// The host's rate in kHz.
        host_khz: u32,
    },

    /// The payload is broken: a fault of the build.
    #[error("The guest payload in this program cannot be loaded ({0}); rebuild it with `cargo xtask build`")]
    Payload(&'static str),

    /// A system resource for the vCPU threads is missing.
    #[error("Could not start a thread for a vCPU; raise `ulimit -u` or the pids limit of the cgroup")]
    Thread(#[source] io::Error),

    /// Dirty tracking failed.
    #[error("Tracking of written pages failed in {call}")]
    Tracking {
        /// The operation.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },

    /// Dirty tracking of a thread guest needs userfaultfd.
    #[error("Tracking of written pages is not possible")]
    TrackingUserfaultfd(#[from] UserfaultfdError),

    /// A dirty ring of a size that KVM does not make.
    #[error("A dirty ring of {entries} entries is not possible here; write a power of two from 2048 to {most}")]
    RingSize {
        /// The entries asked for.
        entries: u32,
        /// The most this KVM makes.
        most: u32,
    },

    /// A harvest without tracking.
    #[error("Written pages are not being tracked; start tracking first")]
    NotTracking,

    /// Something that needs a stopped guest.
    #[error("The guest is running; pause it first")]
    NotPaused,

    /// A vCPU did not stop.
    #[error("vCPU {vcpu} did not stop within {timeout:?}; the host may be overloaded: try again")]
    PauseTimedOut {
        /// The vCPU.
        vcpu: u32,
        /// How long was waited.
        timeout: Duration,
    },

    /// Part of a vCPU's or the VM's state could not be read or written.
    #[error("KVM refused to {action} {part} of vCPU {vcpu}")]
    Vcpu {
        /// The vCPU; the VM's own parts are counted as the first one's.
        vcpu: u32,
        /// `save` or `restore`.
        action: &'static str,
        /// The part.
        part: &'static str,
        /// What KVM said.
        source: io::Error,
    },

    /// State bytes that are none, or are meant for another guest.
    #[error("The saved state of the guest is unusable: {0}; use the same version of dunlin on both hosts")]
    State(&'static str),

    /// A vCPU cannot run any more.
    #[error("vCPU {vcpu} has failed: {reason}")]
    VcpuFailed {
        /// The vCPU.
        vcpu: u32,
        /// Why.
        reason: String,
    },

    /// The workload found its memory wrong.
    #[error("vCPU {vcpu} found damaged memory: {what}")]
    Damaged {
        /// The vCPU.
        vcpu: u32,
        /// Page and words.
        what: String,
    },
}
