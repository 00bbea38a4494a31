//! What every workload can do.

use std::thread;
use std::time::Instant;

/// Why a guest stops.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Memory is not as it was left.
    Corrupt(String),
    /// Anything else.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// A workload.
pub(crate) trait Load {
    /// Works until `until`, or a little longer.
    fn work(&mut self, until: Instant) -> Result<(), Fault>;

    /// What it has done so far.
    fn steps(&self) -> u64;

    /// Checks everything, and returns how much that was.
    fn check(&mut self) -> Result<u64, Fault>;

    /// Spoils something that is checked, if it can.
    fn spoil(&mut self) {}
}

/// Does nothing.
#[derive(Default)]
pub(crate) struct Idle(u64);

impl Load for Idle {
    fn work(&mut self, until: Instant) -> Result<(), Fault> {
        thread::sleep(until.saturating_duration_since(Instant::now()));
        self.0 += 1;
        Ok(())
    }

    fn steps(&self) -> u64 {
        self.0
    }

    fn check(&mut self) -> Result<u64, Fault> {
        Ok(0)
    }
}
