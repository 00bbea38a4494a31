//! oVirt's ladder.

use super::{RoundEnd, Rounds, Verdict};
use crate::units::Nanos;

/// `ovirt`: the rest has to fit 100 ms after round 1, 150 ms after round 2, 200 ms from round 3 on, whatever downtime was asked for;
/// i ≥ 4 → post-copy.
///
/// oVirt's policy "Post-copy migration" (vdsm, lib/vdsm/virt/migration.py `_next_action`; engine, 0000_config.sql). Its next
/// step after post-copy, to abort, has nothing to abort here. It also turns QEMU's auto-converge on, which is another key of a
/// strategy.
///
/// O(1), no memory. The score is 0.
#[derive(Clone, Copy, Debug)]
pub struct Ovirt;

impl Ovirt {
    /// The round at whose end it gives up.
    const ROUNDS: u32 = 4;

    /// What sending the rest may take at the end of a round, the fixed cost of the hand-over included.
    pub const fn downtime(round: u32) -> Nanos {
        Nanos::from_millis(match round {
            0 | 1 => 100,
            2 => 150,
            _ => 200,
        })
    }

    /// Counts rounds.
    pub fn on_round(&mut self, end: &RoundEnd) -> Verdict {
        Rounds::new(Self::ROUNDS).on_round(end)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Decision;
    use super::super::tests::round;
    use super::*;

    #[test]
    fn gives_up_after_four_rounds() {
        let says = |number| Ovirt.on_round(&round(number, 10, 10, 1)).decision;
        assert_eq!([1, 2, 3].map(says), [Decision::Continue; 3]);
        assert_eq!([4, 5, u32::MAX].map(says), [Decision::PostCopy; 3]);
    }
}
