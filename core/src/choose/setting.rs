//! What a forecast needs to know beside the guest.

use crate::units::{BytesPerSec, Nanos};

/// The way to the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Link {
    /// The migration channel's goodput.
    pub bandwidth: BytesPerSec,
    /// From a request to the beginning of its answer.
    pub round_trip: Nanos,
    /// What a fault costs beside the round trip and its page's transfer: trapping, reading, installing, waking the vCPU.
    pub fault_overhead: Nanos,
    /// The goodput of a static copy over shared storage, written and read; `None` if there is no storage.
    pub storage_bandwidth: Option<BytesPerSec>,
}

impl Link {
    /// A local network of this bandwidth, without storage: 200 us there and back, and 100 us more for a fault. To be measured
    /// where it matters.
    pub const fn new(bandwidth: BytesPerSec) -> Self {
        Self {
            bandwidth,
            round_trip: Nanos::from_micros(200),
            fault_overhead: Nanos::from_micros(100),
            storage_bandwidth: None,
        }
    }

    /// How long one fault holds a vCPU up at this bandwidth.
    pub(super) const fn fault_stall(&self, bandwidth: BytesPerSec) -> Nanos {
        let page = bandwidth.time_to_send(crate::units::Pages(1).bytes());
        self.round_trip.saturating_add(self.fault_overhead).saturating_add(page)
    }
}

/// What a migration is run with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Limits {
    /// The longest downtime that pre-copy waits for, the hand-over included.
    pub downtime: Nanos,
    /// Rounds after which pre-copy ends at the latest.
    pub max_rounds: u32,
    /// The shortest round: a round that sends less idles.
    pub min_round: Nanos,
    /// The part of the downtime that does not depend on pages: state, records, round trips.
    pub handover: Nanos,
}

impl Limits {
    /// The defaults of `dunlin migrate`: a downtime of 300 ms, of which 2 ms for the hand-over, 30 rounds of at least 100 ms.
    pub const DEFAULT: Self = Self {
        downtime: Nanos::from_millis(300),
        max_rounds: 30,
        min_round: Nanos::from_millis(100),
        handover: Nanos::from_millis(2),
    };
}

/// How far what is given may be from what will be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Uncertainty {
    /// Of the bandwidths, in percent up or down; at most 99.
    pub bandwidth_percent: u32,
    /// Of the pages dirtied in any window, in percent up or down; at most 100.
    pub dirtying_percent: u32,
}

impl Uncertainty {
    /// 10 % of the bandwidth, 20 % of the dirtying.
    pub const DEFAULT: Self = Self {
        bandwidth_percent: 10,
        dirtying_percent: 20,
    };
    /// Everything is as given.
    pub const NONE: Self = Self {
        bandwidth_percent: 0,
        dirtying_percent: 0,
    };
}

/// A forecast quantity: what is likely, and between what it stays if everything stays within the [`Uncertainty`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Interval<T> {
    /// The least.
    pub low: T,
    /// With everything as given.
    pub likely: T,
    /// The most.
    pub high: T,
}

impl<T: Copy + Ord> Interval<T> {
    /// The likely value alone.
    pub(super) const fn exactly(value: T) -> Self {
        Self {
            low: value,
            likely: value,
            high: value,
        }
    }

    /// Widened to hold this value as well.
    pub(super) fn with(self, value: T) -> Self {
        Self {
            low: self.low.min(value),
            high: self.high.max(value),
            ..self
        }
    }

    /// True if the value lies within.
    pub fn contains(&self, value: T) -> bool {
        self.low <= value && value <= self.high
    }
}
