//! Xen's rule.

use super::{Decision, FEW_PAGES, Reason, RoundEnd, Verdict};
use crate::units::Pages;

/// `xen`: V(i) < 50 or i ≥ 5 → stop-and-copy.
///
/// `simple_precopy_policy` of Xen (tools/libs/guest/xg_sr_save.c): `dirty_count < 50` or `iteration >= 5`. The rest is sent
/// however long that takes.
///
/// O(1), no memory. The score is 0.
#[derive(Clone, Copy, Debug)]
pub struct Xen;

impl Xen {
    /// The round after which it stops in any case.
    const ROUNDS: u32 = 5;

    /// Counts pages, then rounds.
    pub fn on_round(&mut self, end: &RoundEnd) -> Verdict {
        let (decision, reason) = match Self::ROUNDS.checked_sub(end.round) {
            _ if end.dirty < Pages(FEW_PAGES) => (Decision::StopCopy, Reason::FewDirty { dirty: end.dirty }),
            None | Some(0) => (Decision::StopCopy, Reason::RoundsDone { rounds: Self::ROUNDS }),
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
    use super::super::tests::round;
    use super::*;

    #[test]
    fn stops_at_few_pages_or_after_five_rounds() {
        let says = |number, dirty| Xen.on_round(&round(number, 1000, dirty, 1)).decision;
        assert_eq!(says(1, 49), Decision::StopCopy);
        assert_eq!(says(1, 50), Decision::Continue);
        assert_eq!(says(4, 50), Decision::Continue);
        assert_eq!(says(5, 1 << 32), Decision::StopCopy);
        assert_eq!(says(u32::MAX, 50), Decision::StopCopy);
    }
}
