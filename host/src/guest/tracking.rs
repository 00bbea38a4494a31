//! How the pages that a guest writes are tracked.

use dunlin_core::tracefile::Source;

/// How KVM is to track the written pages of a guest: decided when it is built, for good. Guests of threads know one way only.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Tracking {
    /// By a bitmap for each slot: KVM_GET_DIRTY_LOG.
    #[default]
    Bitmap,
    /// By a ring for each vCPU (KVM_CAP_DIRTY_LOG_RING), which tells the order of writes.
    Ring {
        /// Entries of each ring: a power of two, see [`ENTRIES_MIN`](crate::track::ring::ENTRIES_MIN) and
        /// [`ENTRIES_MAX`](crate::track::ring::ENTRIES_MAX).
        entries: u32,
    },
}

impl Tracking {
    /// Entries of a ring where nobody says otherwise: as many as KVM allows.
    pub const RING_ENTRIES: u32 = crate::track::ring::ENTRIES_MAX;
}

/// How a guest's tracking stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrackingState {
    /// What it tracks by: [`Source::Bitmap`], [`Source::Ring`] or [`Source::PagemapScan`].
    pub source: Source,
    /// Whether it is on.
    pub on: bool,
    /// Entries of each vCPU's ring; 0 without rings.
    pub ring_entries: u32,
    /// Harvests of rings that could not be proved complete, each of which made all pages dirty.
    pub overruns: u64,
}
