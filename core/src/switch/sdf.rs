//! The SDF rule: switch when a page sent brings too little progress.

use super::{Decision, FEW_PAGES, Reason, RoundEnd, Verdict};
use crate::strategy::Alpha;
use crate::units::{Nanos, Pages};

/// Of the pages that are missing at the switch, those that the guest waits for, in hundredths: with adaptive pre-paging faults
/// are within 21 % of the working set (Hines & Gopalan 2009).
const FAULTS_PERCENT: u128 = 21;
/// Counts and times are exact up to these, 1 PiB of pages and 13 days; larger ones are read as that.
const COUNT_MAX: u64 = 1 << 38;
const TIME_MAX: u64 = 1 << 50;
const STALL_MAX: u64 = 1 << 36;

// The larger side of the comparison of `sdf:auto`.
const _: () = assert!(
    (100 * TIME_MAX as i128 + FAULTS_PERCENT as i128 * COUNT_MAX as i128 * STALL_MAX as i128)
        .checked_mul(COUNT_MAX as i128)
        .is_some()
);

/// `sdf:A`: V(i) < 50 → stop-and-copy; else SDF(i) = (V(i−1) − V(i)) / S(i) ≤ α → post-copy.
///
/// "A novel hybrid-copy algorithm for live migration" (2017), eq. 7 and Algorithm 1. Both are printed the wrong way round (the
/// loop `while SDF < α` starting at 0 would stop at once for every α above 0 that progress can reach); the text is right and is what is
/// implemented. The comparison is `≤`, so that α = 1 makes one copy, as the paper says it does. α = 0, which it calls pure pre-copy,
/// stops at no progress; pure pre-copy is `never`. A round that sent nothing made no progress: SDF = 0.
///
/// If everything dirty is sent, SDF(i) = 1 − λ(i): the test λ ≥ 1 is α = 0.
///
/// `sdf:auto` sets α in each round from what the choice costs. A page sent again costs the link c = T(i) / S(i); a page left to
/// post-copy holds the guest up for `fault_stall` if it is waited for, which one in five is (21 %):
/// α = c / (c + 0.21·fault_stall). The paper leaves choosing α to future work. If nothing was sent there is no c; SDF is 0 then, and no α
/// is below that.
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
        let (part, whole) = self.alpha(end);
        // α is at most 1.
        let alpha_milli = (part * 1000).checked_div(whole).unwrap_or(0) as u16;
        let (decision, reason) = if end.dirty < Pages(FEW_PAGES) {
            (Decision::StopCopy, Reason::FewDirty { dirty: end.dirty })
        } else if exceeds(end, part, whole) {
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

    /// α as a fraction.
    fn alpha(&self, end: &RoundEnd) -> (u128, u128) {
        match self.alpha {
            Choice::Fixed(alpha) => (alpha.milli().into(), 1000),
            Choice::Auto { fault_stall } => {
                let sent = u128::from(end.sent.0.min(COUNT_MAX));
                let sending = 100 * u128::from(end.duration.0.min(TIME_MAX));
                let waiting = FAULTS_PERCENT * u128::from(fault_stall.0.min(STALL_MAX)) * sent;
                (sending, (sending + waiting).max(1))
            }
        }
    }
}

/// SDF(i) > part / whole, multiplied crosswise.
fn exceeds(end: &RoundEnd, part: u128, whole: u128) -> bool {
    let cut = |pages: Pages| i128::from(pages.0.min(COUNT_MAX));
    let progress = match cut(end.sent) {
        0 => return false,
        _ => cut(end.previous_dirty) - cut(end.dirty),
    };
    progress * whole as i128 > part as i128 * cut(end.sent)
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
        // 1000 pages in 33 ms: 33 us a page. 33 / (33 + 0.21 · 500) = 33/138 = 0.2391.
        let end = |dirty| RoundEnd {
            previous_dirty: Pages(1000),
            ..round(2, 1000, dirty, 33)
        };
        let verdict = |dirty| Sdf::auto(Nanos::from_micros(500)).on_round(&end(dirty));
        let reason = |sdf_milli| Reason::SdfTooLittle {
            sdf_milli,
            alpha_milli: 239,
        };
        assert_eq!(verdict(761).reason, reason(239));
        assert_eq!(verdict(760).decision, Decision::Continue);
        let free = Sdf::auto(Nanos::ZERO).on_round(&end(50));
        assert_eq!(free.decision, Decision::PostCopy, "faults that cost nothing: α = 1");
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
