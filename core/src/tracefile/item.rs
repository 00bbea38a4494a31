//! What is in a trace.

use crate::pageset::Run;
use crate::units::{Gfn, Nanos};

/// The vCPU of a write that no vCPU is known to have made.
pub const VCPU_UNKNOWN: u32 = u32::MAX;

/// One thing that a trace says. All times count from its start, and do not fall from one item to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Item {
    /// A page was written.
    Write {
        /// When.
        at: Nanos,
        /// By whom, or [`VCPU_UNKNOWN`].
        vcpu: u32,
        /// Which.
        gfn: Gfn,
    },
    /// These pages were written in the window that ends next, each once or more often. Runs of one window ascend.
    Dirty {
        /// Which; at least one page.
        run: Run,
    },
    /// The tracker was harvested, or protected pages anew: the first write of each page from here on is seen again.
    WindowEnd {
        /// When.
        at: Nanos,
        /// By whose harvest: a vCPU whose own ring it was, or [`VCPU_UNKNOWN`] for all.
        vcpu: u32,
    },
    /// Writes that the source knows it has missed since the item before.
    Lost {
        /// When it was found out.
        at: Nanos,
        /// How many; the largest number if all that is known is that there were some.
        events: u64,
    },
    /// The guest's own count of its steps, where it keeps one.
    Steps {
        /// When it was read.
        at: Nanos,
        /// Of which vCPU.
        vcpu: u32,
        /// Since the guest began.
        steps: u64,
    },
    /// The recording ended by itself and nothing follows; a trace without it was cut off.
    End {
        /// When.
        at: Nanos,
        /// CPU time that tracing took in the kernel and in the tracer.
        overhead: Nanos,
    },
}

impl Item {
    /// When it was, if it says so.
    pub const fn at(&self) -> Option<Nanos> {
        match *self {
            Self::Dirty { .. } => None,
            Self::Write { at, .. }
            | Self::WindowEnd { at, .. }
            | Self::Lost { at, .. }
            | Self::Steps { at, .. }
            | Self::End { at, .. } => Some(at),
        }
    }
}
