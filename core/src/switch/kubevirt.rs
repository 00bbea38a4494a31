//! KubeVirt's stall detector.

use heapless::{Deque, Vec};

use super::bandwidth::Smoothed;
use super::{Decision, Reason, RoundEnd, Verdict};
use crate::units::{Bytes, Nanos, Pages, Ratio};

/// Progress of less than this is a stall, and this much above the best is still a minimum, in hundredths.
const MARGIN_PERCENT: u128 = 4;
/// What a migration may take per GiB of the guest, and how often that in all (`completionTimeoutPerGiB`, `CompletionTimeoutFactor`).
const BUDGET_PER_GIB: Nanos = Nanos::from_secs(150);
const BUDGETS: u128 = 2;
const GIB: u128 = 1 << 30;
/// Minima within the window, and values since the stall, that are remembered.
const HISTORY: usize = 64;

/// `kubevirt-stall:W`: post-copy at a local minimum once nothing has been gained for the window W.
///
/// KubeVirt's stall detector (VEP 248; pkg/virt-launcher/virtwrap/stall-detector.go), asked at the ends of rounds as there:
///
/// 1. **Stall.** V(i) is at least 96 % of the smallest V among rounds that ended W or longer ago. Once stalled, it stays so.
/// 2. **Minimum.** V(i) is at most 104 % of the best, which is the smallest V up to the stall.
/// 3. **Relaxation.** Stalled for W (then W/2, W/4, …) without a switch, the best becomes the smallest V since the stall that
///    it has not been yet.
/// 4. **Guard.** The rest must arrive, at the smoothed bandwidth (the newest round weighs 0.4), before twice 150 s per GiB of the
///    guest have passed since the start. If not, the network may be down: nothing is done.
///
/// Where this deviates: comparisons are exact and times in nanoseconds, there seconds and milliseconds, cut; the guest's memory
/// alone makes the budget; what KubeVirt does where post-copy is forbidden (stop-and-copy or abort) is not part of it. The
/// rule knows no round limit, but here one applies. It is told of rounds only, so V(0) is not compared with.
///
/// O(64) per round. Memory: of the rounds younger than W, the 64 that were a new minimum, and the 64 smallest values since the
/// stall, 1.6 KiB. Both can overflow only in a longer run of rounds than that: then the newest minimum takes the place of the one
/// before it, which is thereby compared with later than it should be, at most by W; and the largest value since the stall is dropped,
/// which relaxation would reach last. [`forgotten`](Self::forgotten) counts both.
///
/// The score is V(i) by what it is compared with: the smallest older V, after the stall the best; 0 before there is any.
#[derive(Clone, Debug)]
pub struct KubevirtStall {
    window: Nanos,
    deadline: Nanos,
    bandwidth: Smoothed,
    /// The smallest V of rounds that ended a window or longer ago.
    before: Option<Pages>,
    /// Rounds since then that were smaller than all before them, ascending in time, descending in pages.
    minima: Deque<(Nanos, Pages), HISTORY>,
    stall: Option<Stall>,
    forgotten: u32,
}

/// What is known since progress ended.
#[derive(Clone, Debug)]
struct Stall {
    best: Pages,
    patience: Nanos,
    relax_at: Nanos,
    /// What was left at the ends of rounds since, and has not been the best; descending.
    values: Vec<Pages, HISTORY>,
}

impl KubevirtStall {
    /// Before round 1, for a guest of this size.
    pub const fn new(window: Nanos, memory: Bytes) -> Self {
        let budget = BUDGETS * BUDGET_PER_GIB.0 as u128 * memory.0 as u128 / GIB;
        Self {
            window,
            deadline: Nanos(if budget > u64::MAX as u128 {
                u64::MAX
            } else {
                budget as u64
            }),
            bandwidth: Smoothed::new(),
            before: None,
            minima: Deque::new(),
            stall: None,
            forgotten: 0,
        }
    }

    /// Values that did not fit the history, stopping at the largest number.
    pub const fn forgotten(&self) -> u32 {
        self.forgotten
    }

    /// Takes the round in and looks for a stall, or for the minimum after one.
    pub fn on_round(&mut self, end: &RoundEnd) -> Verdict {
        self.bandwidth.update(end);
        if !self.bandwidth.is_known() {
            return verdict(Decision::Continue, Reason::StallUnknown, end, None);
        }
        self.remember(end);
        let Some(before) = self.before else {
            return verdict(Decision::Continue, Reason::StallUnknown, end, None);
        };
        let best = if let Some(stall) = &mut self.stall {
            let all_kept = stall.relax(end);
            self.forgotten = self.forgotten.saturating_add(u32::from(!all_kept));
            stall.best
        } else if u128::from(end.dirty.0) * 100 >= u128::from(before.0) * (100 - MARGIN_PERCENT) {
            // Minima descend, so the newest is the smallest.
            let best = self.minima.back().map_or(before, |&(_, newest)| newest.min(before));
            self.stall = Some(Stall {
                best,
                patience: self.window,
                relax_at: end.elapsed.saturating_add(self.window),
                values: Vec::new(),
            });
            best
        } else {
            return verdict(Decision::Continue, Reason::StallProgress { before }, end, Some(before));
        };
        let (decision, reason) = self.at_minimum(end, best);
        verdict(decision, reason, end, Some(best))
    }

    /// Ages minima, and takes this round in if it is one.
    fn remember(&mut self, end: &RoundEnd) {
        while let Some(&(ended, dirty)) = self.minima.front() {
            if end.elapsed.saturating_sub(ended) < self.window {
                break;
            }
            self.minima.pop_front();
            self.before = Some(self.before.map_or(dirty, |before| before.min(dirty)));
        }
        let smallest = self.minima.back().map(|&(_, dirty)| dirty).or(self.before);
        // What is no smaller than an older value never becomes the smallest of those that have aged.
        if smallest.is_some_and(|smallest| end.dirty >= smallest) {
            return;
        }
        if self.minima.is_full() {
            self.minima.pop_back();
            self.forgotten = self.forgotten.saturating_add(1);
        }
        // There is room now.
        _ = self.minima.push_back((end.elapsed, end.dirty));
    }

    fn at_minimum(&self, end: &RoundEnd, best: Pages) -> (Decision, Reason) {
        let left = self.deadline.saturating_sub(end.elapsed);
        if u128::from(end.dirty.0) * 100 > u128::from(best.0) * (100 + MARGIN_PERCENT) {
            (Decision::Continue, Reason::StallNotMinimum { best })
        } else if !self.bandwidth.sends_within(end.dirty, left) {
            (Decision::Continue, Reason::StallTooSlow)
        } else {
            (Decision::PostCopy, Reason::StallMinimum { best })
        }
    }
}

impl Stall {
    /// Takes a round in; when patience has run out, the best gets worse. False if a value had to be dropped.
    fn relax(&mut self, end: &RoundEnd) -> bool {
        let is_full = self.values.is_full();
        let at = self.values.partition_point(|&value| value > end.dirty);
        if is_full && at > 0 {
            self.values.remove(0);
        }
        // If it is full of smaller values, this one is dropped instead.
        _ = self.values.insert(at.saturating_sub(usize::from(is_full)), end.dirty);
        if end.elapsed >= self.relax_at
            && let Some(next) = self.values.pop()
        {
            self.best = next;
            self.patience = Nanos(self.patience.0 / 2);
            self.relax_at = end.elapsed.saturating_add(self.patience);
        }
        !is_full
    }
}

fn verdict(decision: Decision, reason: Reason, end: &RoundEnd, beside: Option<Pages>) -> Verdict {
    let ratio = beside.and_then(|beside| Ratio::new(end.dirty.0, beside.0));
    Verdict {
        decision,
        score_milli: ratio.map_or(0, Ratio::milli),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    /// 4 GiB: a deadline of 1200 s.
    const MEMORY: Bytes = Bytes(4 << 30);

    /// Feeds (seconds since the start, dirty) with rounds that send 1000 pages a second.
    fn verdicts(window_s: u64, ends: &[(u64, u64)]) -> vec::Vec<Verdict> {
        let mut rule = KubevirtStall::new(Nanos::from_secs(window_s), MEMORY);
        let ends = ends.iter().zip(1..).map(|(&(at, dirty), round)| RoundEnd {
            round,
            sent: Pages(1000),
            dirty: Pages(dirty),
            previous_dirty: Pages(dirty),
            duration: Nanos::from_secs(1),
            elapsed: Nanos::from_secs(at),
        });
        ends.map(|end| rule.on_round(&end)).collect()
    }

    fn reasons(window_s: u64, ends: &[(u64, u64)]) -> vec::Vec<Reason> {
        verdicts(window_s, ends).iter().map(|verdict| verdict.reason).collect()
    }

    #[test]
    fn a_stall_is_too_little_progress_over_the_window() {
        // At 50 s, the round that ended at 10 s is a window old: 96 % of its 1000 pages are a stall, 959 are progress.
        let progress = Reason::StallProgress { before: Pages(1000) };
        let at = |dirty| reasons(40, &[(10, 1000), (30, 990), (50, dirty)]);
        assert_eq!(at(959), [Reason::StallUnknown, Reason::StallUnknown, progress]);
        assert_eq!(at(960)[2], Reason::StallMinimum { best: Pages(960) });
        assert_eq!(reasons(40, &[(10, 1000), (49, 2000)])[1], Reason::StallUnknown);
    }

    #[test]
    fn it_waits_for_a_minimum() {
        // Stalled at 50 s with 500 as the best, seen at 20 s, within the window.
        let best = Pages(500);
        let reasons = reasons(40, &[(10, 700), (20, 500), (50, 900), (60, 521), (70, 520)]);
        assert_eq!(reasons[2..4], [Reason::StallNotMinimum { best }; 2]);
        assert_eq!(reasons[4], Reason::StallMinimum { best });
    }

    #[test]
    fn patience_halves_and_the_best_gets_worse() {
        // Stalled at 50 s; relaxed at 90 s to 800, at 110 s to 850 (with half the patience), at 120 s to 900.
        let reasons = reasons(
            40,
            &[
                (10, 500),
                (50, 900),
                (60, 850),
                (70, 800),
                (89, 900),
                (90, 900),
                (109, 900),
                (110, 890),
                (120, 936),
            ],
        );
        let waits = |best| Reason::StallNotMinimum { best: Pages(best) };
        let expected = [500, 500, 500, 500, 800, 800].map(waits);
        assert_eq!(reasons[1..7], expected);
        assert_eq!(reasons[7], waits(850), "884 pages would be a minimum");
        assert_eq!(
            reasons[8],
            waits(890).clone(),
            "the smallest that has not been the best"
        );
    }

    #[test]
    fn a_rest_that_would_arrive_too_late_is_no_reason_to_switch() {
        // 1000 pages a second and 1200 s: 1 000 000 pages are in time at 200 s, and one more is not.
        let at = |dirty| reasons(40, &[(100, 1_000_000), (200, dirty)])[1];
        assert_eq!(at(1_000_000), Reason::StallMinimum { best: Pages(1_000_000) });
        assert_eq!(at(1_000_001), Reason::StallTooSlow);
        assert_eq!(reasons(40, &[(1100, 1), (1201, 1)])[1], Reason::StallTooSlow);
    }

    #[test]
    fn what_does_not_fit_the_history_is_counted() {
        let mut rule = KubevirtStall::new(Nanos::from_secs(1000), MEMORY);
        let end = |number: u64, dirty| RoundEnd {
            round: number as u32,
            sent: Pages(1),
            dirty: Pages(dirty),
            previous_dirty: Pages(dirty),
            duration: Nanos(1),
            elapsed: Nanos::from_secs(number),
        };
        for number in 1..=70 {
            rule.on_round(&end(number, 1000 - number));
        }
        assert_eq!(rule.forgotten(), 6);
        // The first aged minimum is still the first of all.
        assert_eq!(
            rule.on_round(&end(1001, 500)).reason,
            Reason::StallProgress { before: Pages(999) }
        );
        rule.on_round(&end(1002, 3000));
        for number in 1003..1003 + 70 {
            rule.on_round(&end(number, 3000 + number));
        }
        assert_eq!(rule.forgotten(), 6 + 6);
    }

    #[test]
    fn of_too_many_values_the_largest_is_dropped() {
        // Stalled at 40 s. Of 70 values that descend to 831 the last 64 are kept, and relaxing at 80 s takes the smallest.
        let mut rule = KubevirtStall::new(Nanos::from_secs(40), MEMORY);
        let mut end = |millis: u64, dirty| {
            rule.on_round(&RoundEnd {
                round: 1,
                sent: Pages(1000),
                dirty: Pages(dirty),
                previous_dirty: Pages(dirty),
                duration: Nanos::from_secs(1),
                elapsed: Nanos::from_millis(millis),
            })
            .reason
        };
        end(0, 500);
        let best = Pages(500);
        assert_eq!(end(40_000, 900), Reason::StallNotMinimum { best });
        for number in 0..70 {
            assert_eq!(end(41_000 + number, 900 - number), Reason::StallNotMinimum { best });
        }
        assert_eq!(end(80_000, 2000), Reason::StallNotMinimum { best: Pages(831) });
        assert_eq!(rule.forgotten(), 7);
    }

    #[test]
    fn nothing_sent_says_nothing() {
        let mut rule = KubevirtStall::new(Nanos::ZERO, MEMORY);
        let nothing = RoundEnd {
            round: 1,
            sent: Pages::ZERO,
            dirty: Pages(5),
            previous_dirty: Pages(5),
            duration: Nanos::ZERO,
            elapsed: Nanos::ZERO,
        };
        assert_eq!(rule.on_round(&nothing).reason, Reason::StallUnknown);
        assert_eq!(rule.on_round(&nothing).reason, Reason::StallUnknown);
    }
}
