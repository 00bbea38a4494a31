//! Nova's progress rule.

use super::{Decision, Reason, RoundEnd, Verdict};

/// `nova10`: i ≥ 2 and V(i)·10 > V(i−1)·9, less than 10 % progress in a round → post-copy.
///
/// OpenStack Nova 2016 (nova/virt/libvirt, commit 1651850f6f), removed in 2018 (4c3698c0b6) because it could not tell when a
/// migration makes little progress. There it compared what was left in polls half a second apart, which may lie within one
/// round; here it gets its best chance and compares ends of rounds.
///
/// O(1), no memory. The score is the progress (V(i−1) − V(i)) / V(i−1), 0 if nothing was dirty.
#[derive(Clone, Copy, Debug)]
pub struct Nova10;

impl Nova10 {
    /// Compares V(i) with V(i−1).
    pub fn on_round(&mut self, end: &RoundEnd) -> Verdict {
        let (before, after) = (i128::from(end.previous_dirty.0), i128::from(end.dirty.0));
        let milli = ((before - after) * 1000).checked_div(before).unwrap_or(0);
        let progress_milli = i64::try_from(milli).unwrap_or(i64::MIN);
        let (decision, reason) = if end.round < 2 {
            (Decision::Continue, Reason::FirstRound)
        } else if after * 10 > before * 9 {
            (Decision::PostCopy, Reason::NovaTooLittle { progress_milli })
        } else {
            (Decision::Continue, Reason::NovaProgress { progress_milli })
        };
        Verdict {
            decision,
            score_milli: progress_milli,
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::round;
    use super::*;

    #[test]
    fn exactly_ten_percent_is_progress() {
        let says = |number, before, dirty| Nova10.on_round(&round(number, before, dirty, 1));
        assert_eq!(says(2, 1000, 900).decision, Decision::Continue);
        assert_eq!(says(2, 1000, 901).decision, Decision::PostCopy);
        assert_eq!(says(1, 1000, 2000).decision, Decision::Continue);
        assert_eq!(says(2, 1000, 901).score_milli, 99);
        assert_eq!(says(2, 0, 0).reason, Reason::NovaProgress { progress_milli: 0 });
        assert_eq!(says(2, 1, u64::MAX).score_milli, i64::MIN);
    }
}
