//! How far a migration has come.

use super::{State, bytes, count, duration, rate};
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// A moment of a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is going on: [`State::PreCopy`], [`State::Handover`] or [`State::PostCopy`] and its kin.
    pub phase: State,
    /// The round of pre-copy, from 1; 0 outside of pre-copy.
    pub round: u32,
    /// What this round, or post-copy, has to send in all, in pages.
    pub total_pages: u64,
    /// What is left of it.
    pub remaining_pages: u64,
    /// The same in bytes of guest memory.
    pub remaining_bytes: u64,
    /// Bytes per second on the network, lately.
    pub rate: u64,
    /// Microseconds until nothing of it is left; `None` when nothing is being sent.
    pub eta_us: Option<u64>,
    /// Microseconds for which the guest will still be observed before anything is sent; `None` if it is not observed.
    #[serde(default)]
    pub observing_us: Option<u64>,
}

impl Progress {
    /// The part that is done, from 0 to 1000.
    pub fn done_milli(&self) -> u64 {
        let done = self.total_pages.saturating_sub(self.remaining_pages);
        // Nothing to send is all done.
        (u128::from(done) * 1000)
            .checked_div(self.total_pages.into())
            .map_or(1000, |milli| milli.try_into().unwrap_or(1000))
    }
}

impl fmt::Display for Progress {
    /// One line, without the part that a bar shows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.round {
            0 => write!(f, "{}", self.phase)?,
            round => write!(f, "{} round {round}", self.phase)?,
        }
        if let Some(left) = self.observing_us {
            let left = duration(Duration::from_micros(left));
            return write!(f, " · observing what the guest writes, {left} more");
        }
        write!(
            f,
            " · {} pages ({}) left",
            count(self.remaining_pages),
            bytes(self.remaining_bytes),
        )?;
        let is_cut = matches!(self.phase, State::PostCopyPaused | State::HandoverUnknown);
        if self.rate > 0 && !is_cut {
            write!(f, " · {}", rate(self.rate))?;
        }
        match self.eta_us {
            Some(eta) => write!(f, " · ETA {}", duration(Duration::from_micros(eta))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_well() {
        let mut progress = Progress {
            phase: State::PreCopy,
            round: 2,
            total_pages: 8_000,
            remaining_pages: 2_000,
            remaining_bytes: 8_192_000,
            rate: 32_100_000,
            eta_us: Some(255_000),
            observing_us: None,
        };
        assert_eq!(
            progress.to_string(),
            "pre-copy round 2 · 2,000 pages (7.81 MiB) left · 32.1 MB/s · ETA 255 ms"
        );
        assert_eq!(progress.done_milli(), 750);
        progress = Progress {
            phase: State::PostCopy,
            round: 0,
            eta_us: None,
            total_pages: 0,
            ..progress
        };
        assert_eq!(
            progress.to_string(),
            "post-copy · 2,000 pages (7.81 MiB) left · 32.1 MB/s"
        );
        assert_eq!(progress.done_milli(), 1000);
        progress.phase = State::PreCopy;
        progress.observing_us = Some(1_500_000);
        assert_eq!(
            progress.to_string(),
            "pre-copy · observing what the guest writes, 1.50 s more"
        );
    }
}
