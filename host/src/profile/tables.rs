//! Memory for an analysis: bounded by the guest's size, whatever is recorded.

use dunlin_core::pattern::{HeatSlot, Trail};
use dunlin_core::tracefile::{Head, VCPUS_MAX};
use dunlin_core::units::{Bytes, Pages};

use crate::report::bytes;

/// The largest guest: frames up to 16 TiB.
const SPAN_MAX: u64 = 1 << 32;
/// Pages in the sample of [`AccessOrder`](dunlin_core::pattern::AccessOrder).
const SLOTS: usize = 4096;
/// Bytes for each page: last write, writers, events, place in the order of first writes.
const BYTES_PER_PAGE: u64 = 8 + 8 + 4 + 4;

/// Why there is no analysis.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No RAM, or more than anybody has.
    #[error("this trace is of a guest whose RAM ends at page {}; there must be one, and at most {SPAN_MAX}: record it again", .0.0)]
    Span(Pages),
    /// No vCPU, or too many.
    #[error("this trace is of a guest with {0} vCPUs; there must be 1 to {VCPUS_MAX}: record it again")]
    Vcpus(u32),
    /// Not enough memory here.
    #[error("a guest of {} needs {} here to be analysed, and there is not so much: take a machine with more memory", bytes(.guest.0), bytes(.needed.0))]
    Memory {
        /// Its RAM.
        guest: Bytes,
        /// For the tables.
        needed: Bytes,
    },
}

/// What an [`Analysis`](super::Analysis) works on: 24 bytes a page of RAM, and 64 KiB.
#[derive(Debug)]
pub struct Tables {
    pub(super) last: Vec<u64>,
    pub(super) sharing: Vec<u64>,
    pub(super) counts: Vec<u32>,
    pub(super) trails: Vec<Trail>,
    pub(super) slots: Vec<HeatSlot>,
}

impl Tables {
    /// For a guest.
    ///
    /// # Errors
    /// [`ProfileError`].
    pub fn for_guest(head: &Head) -> Result<Self, ProfileError> {
        let span = head.span();
        if !(1..=SPAN_MAX).contains(&span.0) {
            return Err(ProfileError::Span(span));
        }
        if !(1..=VCPUS_MAX).contains(&head.vcpus) {
            return Err(ProfileError::Vcpus(head.vcpus));
        }
        let needed = Bytes(span.0 * BYTES_PER_PAGE);
        let memory = ProfileError::Memory {
            guest: head.total().bytes(),
            needed,
        };
        // What is more than all memory would be granted, and then kill the process.
        let here = rustix::system::sysinfo();
        if needed.0 > here.totalram.saturating_mul(u64::from(here.mem_unit.max(1))) {
            return Err(memory);
        }
        let pages = span.0 as usize;
        // A single vCPU shares with nobody.
        let shared = if head.vcpus > 1 { pages } else { 0 };
        let (Some(last), Some(sharing), Some(counts)) = (zeros(pages), zeros(shared), zeros(pages)) else {
            return Err(memory);
        };
        Ok(Self {
            last,
            sharing,
            counts,
            trails: vec![Trail::default(); head.vcpus as usize],
            slots: vec![HeatSlot::default(); SLOTS],
        })
    }
}

fn zeros<T: Clone + Default>(count: usize) -> Option<Vec<T>> {
    let mut table = Vec::new();
    table.try_reserve_exact(count).ok()?;
    table.resize(count, T::default());
    Some(table)
}
