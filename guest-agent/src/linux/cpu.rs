//! What the agent itself costs.

use rustix::time::{ClockId, clock_gettime};

/// Processor time of this process so far, in microseconds.
pub(super) fn used_us() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    (time.tv_sec as u64).saturating_mul(1_000_000) + time.tv_nsec as u64 / 1000
}
