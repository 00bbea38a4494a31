//! A downtime that is allowed to grow while pre-copy does not converge.

use crate::units::{Bytes, Nanos};

const GIB: u128 = 1 << 30;

/// A limit that grows with the time since the ramp began, in a straight line or in steps along one, and then stays.
/// Four words; O(1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct DowntimeRamp {
    from: Nanos,
    to: Nanos,
    length: Nanos,
    /// Time between two steps; one nanosecond in a straight line.
    every: Nanos,
}

impl DowntimeRamp {
    /// From `from` to `to`, not less, in a straight line over `length`.
    pub const fn linear(from: Nanos, to: Nanos, length: Nanos) -> Self {
        Self {
            from,
            to: if to.0 < from.0 { from } else { to },
            length,
            every: Nanos(1),
        }
    }

    /// OpenStack Nova's (nova/virt/libvirt/migration.py, `downtime_steps`, with its default options): from a tenth of `max` in 10
    /// equal steps to `max`, one every 75 s per GiB of memory, of which 2 are counted at least. Nova rounds the time of a step
    /// down to seconds and the limit to milliseconds; this rounds the limit to nanoseconds.
    pub fn nova(max: Nanos, memory: Bytes) -> Self {
        const STEPS: u64 = 10;
        const SECONDS_PER_GIB: u128 = 75;
        let seconds = SECONDS_PER_GIB * u128::from(memory.0).max(2 * GIB) / GIB;
        let every = Nanos::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX));
        Self {
            from: Nanos(max.0 / STEPS),
            to: max,
            length: Nanos(every.0.saturating_mul(STEPS)),
            every,
        }
    }

    /// KubeVirt's: from 150 to 1050 ms in a straight line over `length`, which begins when all memory has been sent
    /// once.
    pub const fn kubevirt(length: Nanos) -> Self {
        Self::linear(Nanos::from_millis(150), Nanos::from_millis(1050), length)
    }

    /// The limit so long after the ramp began, rounded down.
    pub fn at(&self, elapsed: Nanos) -> Nanos {
        if elapsed >= self.length {
            return self.to;
        }
        // The length is not zero and neither is the time between steps.
        let gone = elapsed.0 - elapsed.0 % self.every.0;
        let rise = u128::from(self.to.0 - self.from.0) * u128::from(gone) / u128::from(self.length.0);
        // Less than to − from.
        Nanos(self.from.0 + rise as u64)
    }
}
