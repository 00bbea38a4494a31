//! Switch as soon as a round does not shrink what is left.

use super::{Decision, Reason, RoundEnd, Verdict};

/// `heuristic`: i ≥ 2 and V(i) ≥ S(i) → post-copy.
///
/// After Li et al. 2019 (FGCS), as Li & Cao 2023 compare with it: λ(i) ≥ 1 in a single round. Round 1 is not asked: what it
/// leaves is measured against the whole guest. The paper also drops *fake dirty* pages, whose content is unchanged; that is a
/// filter's task, not a rule's.
///
/// O(1), no memory. The score is λ(i).
#[derive(Clone, Copy, Debug)]
pub struct Heuristic;

impl Heuristic {
    /// Compares V(i) with S(i).
    pub fn on_round(&mut self, end: &RoundEnd) -> Verdict {
        let (dirty, sent) = (end.dirty, end.sent);
        let (decision, reason) = if end.round < 2 {
            (Decision::Continue, Reason::FirstRound)
        } else if dirty >= sent {
            (Decision::PostCopy, Reason::NotShrinking { dirty, sent })
        } else {
            (Decision::Continue, Reason::Shrinking { dirty, sent })
        };
        Verdict {
            decision,
            score_milli: end.lambda_milli(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::round;
    use super::*;

    #[test]
    fn one_round_that_does_not_shrink_is_enough() {
        let says = |number, sent, dirty| Heuristic.on_round(&round(number, sent, dirty, 1)).decision;
        assert_eq!(says(1, 100, 100), Decision::Continue, "the full copy is not asked");
        assert_eq!(says(2, 100, 99), Decision::Continue);
        assert_eq!(says(2, 100, 100), Decision::PostCopy);
        assert_eq!(says(2, 0, 0), Decision::PostCopy);
    }
}
