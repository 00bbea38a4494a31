//! When the guest runs and when it does not: how often, how long, and for what it goes back to its hypervisor.

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use dunlin_core::record::Kind;

use crate::emit;
use crate::filter::traced;

/// `(__u32 reason, int errno)`, in the thread of the vCPU, as the next two are.
#[raw_tracepoint(tracepoint = "kvm_userspace_exit")]
fn kvm_userspace_exit(ctx: RawTracePointContext) -> i32 {
    if let Some(tid) = traced() {
        emit::event(tid, Kind::UserspaceExit, 0, u64::from(ctx.arg::<u32>(0)));
    }
    0
}

/// Arguments differ between releases and architectures, so that none is used.
#[raw_tracepoint(tracepoint = "kvm_exit")]
fn kvm_exit(_: RawTracePointContext) -> i32 {
    if let Some(tid) = traced() {
        emit::event(tid, Kind::Exit, 0, 0);
    }
    0
}

/// Arguments differ between releases and architectures, so that none is used.
#[raw_tracepoint(tracepoint = "kvm_entry")]
fn kvm_entry(_: RawTracePointContext) -> i32 {
    if let Some(tid) = traced() {
        emit::event(tid, Kind::Entry, 0, 0);
    }
    0
}
