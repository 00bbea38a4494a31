//! What can go wrong with guests of others.

use std::io;

use crate::qemu::QmpError;

/// Why another hypervisor's guest cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// There is no such process.
    #[error("There is no process {0}; `pgrep -a qemu` lists QEMU's")]
    NoProcess(u32),

    /// The process belongs to somebody else.
    #[error("Process {process} may not be looked into; run this as its user, as root, or with CAP_SYS_PTRACE")]
    Denied {
        /// Its number.
        process: u32,
        /// What the kernel said.
        source: io::Error,
    },

    /// The process has no virtual machine.
    #[error("Process {process} ({name}) has no virtual machine of KVM; a QEMU needs -accel kvm")]
    NoMachine {
        /// Its number.
        process: u32,
        /// Its name.
        name: String,
    },

    /// QEMU does not answer, or refuses.
    #[error(transparent)]
    Qmp(#[from] QmpError),

    /// QEMU's guest is not under KVM.
    #[error(
        "QEMU does not run its guest under KVM, and without it ends by itself when it is to keep a dirty log for a measurement (seen with 7.2); start it with -accel kvm"
    )]
    NoKvm,

    /// Somebody else measures the dirty rate.
    #[error("QEMU is measuring its dirty rate for somebody else; wait until that has ended")]
    Busy,

    /// Nothing on this host shows what guests of others write.
    #[error(
        "{0} does not show what the guest of another hypervisor writes; use ebpf:mmu where the processor runs guests (VMX or SVM, without page-modification log), or ebpf:mark where the kernel lets its functions be traced: see `dunlin doctor`"
    )]
    Blind(&'static str),

    /// A thread for the recording could not be started.
    #[error("Could not start a thread for the dirty log; raise `ulimit -u` or the pids limit of the cgroup")]
    Thread(#[source] io::Error),
}
