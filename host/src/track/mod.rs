//! Where knowledge of written pages comes from.

pub mod pagemap;
pub mod ring;
pub mod rings;
pub mod runs;

use dunlin_core::units::Nanos;
use rustix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds: the clock of eBPF's `bpf_ktime_get_ns`.
pub fn monotonic_ns() -> u64 {
    read(ClockId::Monotonic)
}

/// CPU time that the calling thread has taken.
pub fn thread_cpu() -> Nanos {
    Nanos(read(ClockId::ThreadCPUTime))
}

/// CPU time that this process has taken.
pub fn process_cpu() -> Nanos {
    Nanos(read(ClockId::ProcessCPUTime))
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    // These clocks start at zero and will not pass 2^64 ns for 584 years.
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
