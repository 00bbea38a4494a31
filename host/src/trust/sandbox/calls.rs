//! System calls that fail.

use super::{Duty, SandboxError};
use libc::c_long;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
use std::collections::BTreeMap;

/// What takes over other programs, the machine, or the kernel. No duty needs it once the process runs.
const FORBIDDEN: &[c_long] = &[
    // Other programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    // Other views of files and processes.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_modify_ldt,
    // Keys, and parts of the kernel that are large and not needed.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Other users.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
];

/// What only tracers need.
const NOT_OF_HOLDERS: &[c_long] = &[libc::SYS_bpf, libc::SYS_perf_event_open];

/// What only those need who hold guests: tracers listen to nobody.
const NOT_OF_TRACERS: &[c_long] = &[
    libc::SYS_userfaultfd,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
];

/// The calls that fail for this duty.
fn forbidden(duty: Duty) -> impl Iterator<Item = c_long> {
    let more: &[c_long] = match duty {
        Duty::Source | Duty::Target => NOT_OF_HOLDERS,
        Duty::Tracer => NOT_OF_TRACERS,
    };
    FORBIDDEN.iter().chain(more).copied()
}

/// Makes them fail with `EPERM` in this thread and those that it begins.
pub(super) fn enter(duty: Duty) -> Result<(), SandboxError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| SandboxError::Seccomp(error);
    let rules: BTreeMap<_, _> = forbidden(duty).map(|call| (call, Vec::new())).collect();
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| failed(error.into()))?;
    let eperm = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, eperm, arch).map_err(|error| failed(error.into()))?;
    let program = BpfProgram::try_from(filter).map_err(|error| failed(error.into()))?;
    apply_filter(&program).map_err(|error| failed(error.into()))
}
