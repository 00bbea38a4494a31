//! Hybrid with a fixed number of rounds, and pure post-copy.

use super::{Decision, Reason, RoundEnd, Verdict};

/// `rounds:N`: post-copy at the end of round N. The full copy is round 1 (Li & Cao 2023: "1-hybrid" and "2-hybrid"
/// count it), so `rounds:1` is what libvirt calls post-copy after pre-copy, and `rounds:0` is pure post-copy, known before
/// round 1 from [`starts_with_post_copy`](Self::starts_with_post_copy).
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    count: u32,
}

impl Rounds {
    /// Post-copy after `count` rounds.
    pub const fn new(count: u32) -> Self {
        Self { count }
    }

    /// True if there is no round to make.
    pub const fn starts_with_post_copy(&self) -> bool {
        self.count == 0
    }

    /// i ≥ N → [`Decision::PostCopy`].
    pub fn on_round(&mut self, end: &RoundEnd) -> Verdict {
        let (decision, reason) = match self.count.checked_sub(end.round) {
            None | Some(0) => (Decision::PostCopy, Reason::RoundsDone { rounds: self.count }),
            Some(left) => (Decision::Continue, Reason::RoundsLeft { left }),
        };
        Verdict {
            decision,
            score_milli: 0,
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Nanos, Pages};

    fn decision(count: u32, round: u32) -> Decision {
        let end = RoundEnd {
            round,
            sent: Pages(9),
            dirty: Pages(9),
            previous_dirty: Pages(9),
            duration: Nanos(1),
            elapsed: Nanos::ZERO,
        };
        Rounds::new(count).on_round(&end).decision
    }

    #[test]
    fn switches_at_the_end_of_round_n() {
        assert_eq!(decision(2, 1), Decision::Continue);
        assert_eq!(decision(2, 2), Decision::PostCopy);
        assert_eq!(decision(2, 3), Decision::PostCopy);
        assert_eq!(decision(u32::MAX, u32::MAX - 1), Decision::Continue);
    }

    #[test]
    fn no_rounds_means_post_copy_from_the_start() {
        assert!(Rounds::new(0).starts_with_post_copy());
        assert!(!Rounds::new(1).starts_with_post_copy());
        assert_eq!(decision(0, 1), Decision::PostCopy, "a replayed log starts with round 1");
    }
}
