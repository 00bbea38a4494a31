//! Page faults of the process on the memory that it gave to its guest: arch/x86/mm/fault.c. With that memory write-protected
//! by userfaultfd (WP_ASYNC) each is the first write of a page since it was protected.

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use dunlin_core::record::Kind;

use crate::emit;
use crate::filter::{frame_at, traced};

/// Of the processor's error code: it was a write.
const WRITE: u64 = 1 << 1;

/// `(unsigned long address, struct pt_regs *regs, unsigned long error_code)`: a thread in user mode.
#[raw_tracepoint(tracepoint = "page_fault_user")]
fn page_fault_user(ctx: RawTracePointContext) -> i32 {
    on_fault(&ctx, Kind::UserFault)
}

/// The same from kernel mode: what KVM's emulator writes for the guest, or a system call for the process.
#[raw_tracepoint(tracepoint = "page_fault_kernel")]
fn page_fault_kernel(ctx: RawTracePointContext) -> i32 {
    on_fault(&ctx, Kind::KernelFault)
}

#[inline(always)]
fn on_fault(ctx: &RawTracePointContext, kind: Kind) -> i32 {
    let Some(tid) = traced() else { return 0 };
    if ctx.arg::<u64>(2) & WRITE != 0
        && let Some(frame) = frame_at(ctx.arg(0))
    {
        emit::write(tid, kind, 0, frame);
    }
    0
}
