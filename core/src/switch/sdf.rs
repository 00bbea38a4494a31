//! The SDF rule: switch when a page sent brings too little progress.

use super::{Decision, FEW_PAGES, Reason, RoundEnd, Verdict};
use crate::cost::RoundCost;
use crate::strategy::Alpha;
use crate::units::{Nanos, Pages};

/// `sdf:A`: V(i) < 50 → stop-and-copy; else SDF(i) = (V(i−1) − V(i)) / S(i) ≤ α → post-copy.
///
/// "A novel hybrid-copy algorithm for live migration" (2017), eq. 7 and Algorithm 1. Both are printed the wrong way round (the
/// loop `while SDF < α` starting at 0 would stop at once for every α above 0 that progress can reach); the text is right and is what is
/// implemented. The comparison is `≤`, so that α = 1 makes one copy, as the paper says it does. α = 0, which it calls pure pre-copy,
/// stops at no progress; pure pre-copy is `never`. A round that sent nothing made no progress: SDF = 0.
///
/// If everything dirty is sent, SDF(i) = 1 − λ(i): the test λ ≥ 1 is α = 0.
///
/// `sdf:auto` sets α in each round to [`RoundCost::alpha_milli`]: what a page sent in vain costs the link, as a share of that and what
/// a page left to post-copy costs the guest. The paper leaves choosing α to future work. A round that sent nothing has no such costs,
/// but no progress either, and no α is below that.
///
/// O(1) per round, no memory beyond the setting. The score is SDF(i).
#[derive(Clone, Copy, Debug)]
pub struct Sdf {
    alpha: Choice,
}

#[derive(Clone, Copy, Debug)]
enum Choice {
    Fixed(Alpha),
    Auto { fault_stall: Nanos },
}

impl Sdf {
    /// With an α for all rounds.
    pub const fn new(alpha: Alpha) -> Self {
        Self {
            alpha: Choice::Fixed(alpha),
        }
    }

    /// With an α of each round; a fault holds a vCPU up for this long.
    pub const fn auto(fault_stall: Nanos) -> Self {
        Self {
            alpha: Choice::Auto { fault_stall },
        }
    }

    /// Compares SDF(i) with α.
    pub fn on_round(&mut self, end: &RoundEnd) -> Verdict {
        let sdf_milli = end.sdf_milli();
        let alpha_milli = self.alpha_milli(end);
        let (decision, reason) = if end.dirty < Pages(FEW_PAGES) {
            (Decision::StopCopy, Reason::FewDirty { dirty: end.dirty })
        } else if exceeds(end, alpha_milli) {
            (Decision::Continue, Reason::SdfProgress { sdf_milli, alpha_milli })
        } else {
            (Decision::PostCopy, Reason::SdfTooLittle { sdf_milli, alpha_milli })
        };
        Verdict {
            decision,
            score_milli: sdf_milli,
            reason,
        }
    }

    fn alpha_milli(&self, end: &RoundEnd) -> u16 {
        match self.alpha {
            Choice::Fixed(alpha) => alpha.milli(),
            Choice::Auto { fault_stall } => {
                let cost = RoundCost {
                    sent: end.sent,
                    dirty: end.dirty,
                    duration: end.duration,
                    fault_stall,
                };
                // At most 1000.
                cost.alpha_milli().unwrap_or(0) as u16
            }
        }
    }
}

/// SDF(i) > α, multiplied crosswise.
fn exceeds(end: &RoundEnd, alpha_milli: u16) -> bool {
    let progress = i128::from(end.previous_dirty.0) - i128::from(end.dirty.0);
    end.sent > Pages::ZERO && progress * 1000 > i128::from(alpha_milli) * i128::from(end.sent.0)
}

#[cfg(test)]
mod tests {
    use super::super::tests::round;
    use super::*;

    fn says(milli: u16, previous: u64, dirty: u64, sent: u64) -> Decision {
        let alpha = Alpha::from_milli(milli).expect("at most 1");
        let end = RoundEnd {
            previous_dirty: Pages(previous),
            ..round(2, sent, dirty, 1)
        };
        Sdf::new(alpha).on_round(&end).decision
    }

    #[test]
    fn goes_on_while_progress_is_above_alpha() {
        // SDF = 0.5.
        assert_eq!(says(500, 1000, 500, 1000), Decision::PostCopy);
        assert_eq!(says(499, 1000, 500, 1000), Decision::Continue);
        // SDF = 500.1 / 1000 with half of it sent.
        assert_eq!(says(500, 100_000, 74_994, 50_000), Decision::Continue);
        assert_eq!(
            says(1000, 1000, 50, 950),
            Decision::PostCopy,
            "no round does better than 1"
        );
        assert_eq!(says(0, 1000, 999, 1000), Decision::Continue);
        assert_eq!(says(0, 1000, 1000, 1000), Decision::PostCopy);
        assert_eq!(says(0, 1000, 1001, 1000), Decision::PostCopy);
    }

    #[test]
    fn few_pages_come_first_and_nothing_sent_is_no_progress() {
        assert_eq!(says(1000, 1000, 49, 1000), Decision::StopCopy);
        assert_eq!(says(0, 1000, 50, 0), Decision::PostCopy);
        assert_eq!(says(0, 0, 0, 0), Decision::StopCopy);
    }

    #[test]
    fn auto_alpha_weighs_the_link_against_faults() {
        // 1000 pages in 33 ms: 33 us a page. With 300 left the guest demands 2.75 % of them, at 500 us each:
        // 33 / (33 + 13.75) = 0.705, and SDF is 0.7.
        let end = |dirty| RoundEnd {
            previous_dirty: Pages(1000),
            ..round(2, 1000, dirty, 33)
        };
        let verdict = |dirty| Sdf::auto(Nanos::from_micros(500)).on_round(&end(dirty));
        let too_little = Reason::SdfTooLittle {
            sdf_milli: 700,
            alpha_milli: 705,
        };
        assert_eq!(verdict(300).reason, too_little);
        // 33 / (33 + 500·0.0274) = 0.706, and SDF is 0.71.
        assert_eq!(verdict(290).decision, Decision::Continue);
        let free = Sdf::auto(Nanos::ZERO).on_round(&end(50));
        assert_eq!(free.decision, Decision::PostCopy, "faults that cost nothing: α = 1");
        let nothing_sent = Sdf::auto(Nanos::from_micros(500)).on_round(&round(3, 0, 60, 33));
        let no_cost = Reason::SdfTooLittle {
            sdf_milli: 0,
            alpha_milli: 0,
        };
        assert_eq!(nothing_sent.reason, no_cost);
    }

    #[test]
    fn absurd_counts_are_decided_without_overflow() {
        let all = u64::MAX;
        let end = RoundEnd {
            previous_dirty: Pages(all),
            duration: Nanos(all),
            ..round(2, all, all, 1)
        };
        assert_eq!(Sdf::auto(Nanos(all)).on_round(&end).decision, Decision::PostCopy);
        assert_eq!(says(0, all, 60, 1), Decision::Continue);
        assert_eq!(says(0, 60, all, 1), Decision::PostCopy);
    }
}
