//! The time the state machines are given.

use std::time::{Duration, Instant};

use dunlin_core::units::Nanos;

/// A monotonic clock with an origin of its own.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock whose origin is now.
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Now.
    pub fn now(&self) -> Nanos {
        nanos(self.origin.elapsed())
    }

    /// How long until `time`, zero if it has passed.
    pub fn until(&self, time: Nanos) -> Duration {
        Duration::from_nanos(time.saturating_sub(self.now()).0)
    }
}

/// A duration in the core's units, stopping at the largest value (584 years).
pub fn nanos(duration: Duration) -> Nanos {
    Nanos(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}
