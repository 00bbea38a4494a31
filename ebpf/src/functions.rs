//! Functions of the kernel, on hosts that allow it: no lockdown, and for the first one a KVM that is not a module.

use aya_ebpf::Global;
use aya_ebpf::macros::{fentry, fexit};
use aya_ebpf::programs::{FEntryContext, FExitContext};
use dunlin_core::record::{Kind, counter};

use crate::emit;
use crate::filter::{is_guest_memory, traced};

/// How many parameters `mark_page_dirty_in_slot` has: 3 as of Linux 5.12.
#[unsafe(no_mangle)]
static MARK_PARAMETERS: Global<u64> = Global::new(3);

/// `(struct kvm *, const struct kvm_memory_slot *, gfn_t)`, before Linux 5.12 without the first: the one place through which
/// KVM marks pages dirty, whatever the tracker.
#[fentry(function = "mark_page_dirty_in_slot")]
fn mark_page_dirty_in_slot(ctx: FEntryContext) -> i32 {
    let Some(tid) = traced() else { return 0 };
    let frame: u64 = if MARK_PARAMETERS.load() == 2 {
        ctx.arg(1)
    } else {
        ctx.arg(2)
    };
    if is_guest_memory(frame) {
        emit::write(tid, Kind::MarkDirty, 0, frame);
    } else {
        emit::count(counter::OUTSIDE);
    }
    0
}

/// `vm_fault_t (struct vm_fault *, unsigned long reason)`: a thread begins to wait for a page of userfaultfd.
#[fentry(function = "handle_userfault")]
fn handle_userfault(ctx: FEntryContext) -> i32 {
    if let Some(tid) = traced() {
        emit::event(tid, Kind::WaitBegin, 0, ctx.arg(1));
    }
    0
}

/// The same: it has its page, or gives up.
#[fexit(function = "handle_userfault")]
fn handle_userfault_exit(_: FExitContext) -> i32 {
    if let Some(tid) = traced() {
        emit::event(tid, Kind::WaitEnd, 0, 0);
    }
    0
}
