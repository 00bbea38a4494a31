//! When a vCPU does its steps: a start at the workload's rate, or as soon as it is done with the step before.

use dunlin_core::units::Nanos;

/// How far behind its rate a vCPU may be and still catch up: that of [`dunlin_core::workload::Pacer`].
pub(super) const CATCH_UP: Nanos = Nanos::from_millis(50);

/// The times of one vCPU's steps. Times of many steps in a row that follow one rule have a closed form, which is what makes long
/// stretches cheap: nothing is computed for the single step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Pace {
    step_cost: Nanos,
    /// Nanoseconds from step to step: a fraction. 0 if there is no rate.
    interval: (u64, u64),
    /// Its whole part.
    whole: u64,
    /// When the next step is due by the rate, and with what is left of a nanosecond, in parts of `interval`.
    due: Nanos,
    rest: u64,
    /// When the vCPU is done with the last.
    free: Nanos,
    last_step: Nanos,
}

/// What the start of the next steps follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    /// Each starts when the one before is done.
    Cost,
    /// Each starts when it is due.
    Rate,
    /// The vCPU catches up.
    Neither,
}

impl Pace {
    /// Of a vCPU that starts at time 0 and takes `step_cost` for a step.
    pub(super) const fn new(step_cost: Nanos) -> Self {
        Self {
            step_cost,
            interval: (0, 1),
            whole: 0,
            due: Nanos::ZERO,
            rest: 0,
            free: Nanos::ZERO,
            last_step: Nanos::ZERO,
        }
    }

    /// From the next step on this is one of `vcpus` that share `rate` steps per second; 0 is as fast as it goes.
    pub(super) fn set_rate(&mut self, rate: u32, vcpus: u32) {
        self.interval = match rate {
            0 => (0, 1),
            rate => (u64::from(vcpus) * 1_000_000_000, u64::from(rate)),
        };
        self.whole = self.interval.0 / self.interval.1;
        self.rest = 0;
    }

    /// A step takes that long from the next one on.
    pub(super) const fn set_step_cost(&mut self, cost: Nanos) {
        self.step_cost = cost;
    }

    /// When the next step starts.
    pub(super) fn next_at(&self) -> Nanos {
        self.due.max(self.free)
    }

    /// When it is done with the last step, or since when it waits.
    pub(super) const fn free(&self) -> Nanos {
        self.free
    }

    /// It does nothing before `time`.
    pub(super) fn wait_until(&mut self, time: Nanos) {
        self.free = self.free.max(time);
    }

    fn rule(&self) -> Rule {
        match self.interval.0 {
            0 => Rule::Cost,
            _ if self.whole >= self.step_cost.0 && self.due >= self.free => Rule::Rate,
            _ if self.whole < self.step_cost.0 && self.free >= self.due => Rule::Cost,
            _ => Rule::Neither,
        }
    }

    /// How many steps can be done [at once](Self::advance), all of which start before `until`: none only if none does.
    pub(super) fn steps_before(&self, until: Nanos) -> u64 {
        let at = self.next_at();
        if at >= until {
            return 0;
        }
        let left = until.0 - at.0;
        match self.rule() {
            Rule::Cost => left.div_ceil(self.step_cost.0.max(1)),
            Rule::Rate => {
                let (interval, parts) = self.interval;
                // A step is due in time if the fraction is below; the rest is less than one nanosecond.
                match left.checked_mul(parts) {
                    Some(left) => (left - self.rest).div_ceil(interval),
                    None => {
                        let left = u128::from(left) * u128::from(parts) - u128::from(self.rest);
                        u64::try_from(left.div_ceil(u128::from(interval))).unwrap_or(u64::MAX)
                    }
                }
            }
            Rule::Neither => 1,
        }
    }

    /// `steps` steps are done, at most [`steps_before`](Self::steps_before); returns the longest time from the start of one to that of
    /// the next, the last before included.
    pub(super) fn advance(&mut self, steps: u64) -> Nanos {
        if steps == 0 {
            return Nanos::ZERO;
        }
        let (first, more) = (self.next_at(), steps - 1);
        let (last, between) = match self.rule() {
            Rule::Rate => {
                let (later, _) = self.due_after(more);
                let even = more.saturating_mul(self.whole);
                (
                    self.due.saturating_add(Nanos(later)),
                    self.whole + u64::from(later > even),
                )
            }
            _ => {
                let later = more.saturating_mul(self.step_cost.0);
                (first.saturating_add(Nanos(later)), self.step_cost.0)
            }
        };
        self.free = last.saturating_add(self.step_cost);
        if self.interval.0 == 0 {
            self.due = self.free;
        } else {
            let (later, rest) = self.due_after(steps);
            self.due = self.due.saturating_add(Nanos(later)).max(last.saturating_sub(CATCH_UP));
            self.rest = rest;
        }
        let gap = first.saturating_sub(self.last_step);
        self.last_step = last;
        match more {
            0 => gap,
            _ => gap.max(Nanos(between)),
        }
    }

    /// How many nanoseconds later what follows `steps` steps is due, and the rest of one.
    fn due_after(&self, steps: u64) -> (u64, u64) {
        let (interval, by) = self.interval;
        if let Some(parts) = steps
            .checked_mul(interval)
            .and_then(|parts| parts.checked_add(self.rest))
        {
            return (parts / by, parts % by);
        }
        let (parts, by) = (
            u128::from(steps) * u128::from(interval) + u128::from(self.rest),
            u128::from(by),
        );
        // What is left is below `by`.
        (u64::try_from(parts / by).unwrap_or(u64::MAX), (parts % by) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One step after the other, as the rule is written.
    fn one_by_one(pace: &mut Pace, until: Nanos, most: u64) -> (u64, Nanos) {
        let (mut steps, mut longest) = (0, Nanos::ZERO);
        while pace.next_at() < until && steps < most {
            let at = pace.next_at();
            longest = longest.max(at.saturating_sub(pace.last_step));
            pace.last_step = at;
            pace.free = at.saturating_add(pace.step_cost);
            if pace.interval.0 == 0 {
                pace.due = pace.free;
            } else {
                let nanos = pace.interval.0 + pace.rest;
                let due = pace.due.saturating_add(Nanos(nanos / pace.interval.1));
                pace.rest = nanos % pace.interval.1;
                pace.due = due.max(at.saturating_sub(CATCH_UP));
            }
            steps += 1;
        }
        (steps, longest)
    }

    fn at_once(pace: &mut Pace, until: Nanos, most: u64) -> (u64, Nanos) {
        let (mut steps, mut longest) = (0, Nanos::ZERO);
        loop {
            let some = pace.steps_before(until).min(most - steps);
            if some == 0 {
                return (steps, longest);
            }
            steps += some;
            longest = longest.max(pace.advance(some));
        }
    }

    #[test]
    fn steps_without_a_rate_follow_their_cost() {
        let mut pace = Pace::new(Nanos(500));
        assert_eq!(pace.steps_before(Nanos(1000)), 2);
        assert_eq!(pace.steps_before(Nanos(1001)), 3);
        assert_eq!(pace.advance(3), Nanos(500));
        assert_eq!((pace.next_at(), pace.steps_before(Nanos(1500))), (Nanos(1500), 0));
    }

    #[test]
    fn steps_of_a_rate_lose_no_fraction() {
        let mut pace = Pace::new(Nanos(10));
        pace.set_rate(3_000_000, 1);
        assert_eq!(pace.steps_before(Nanos(1_000)), 3);
        assert_eq!(pace.advance(3), Nanos(333));
        assert_eq!(pace.next_at(), Nanos(1_000));
        // 1000, 1333, 1666, 2000
        assert_eq!(pace.steps_before(Nanos(2_001)), 4);
        assert_eq!(pace.advance(4), Nanos(334));
    }

    #[test]
    fn what_is_lost_beyond_the_catch_up_stays_lost() {
        let mut pace = Pace::new(Nanos(500));
        pace.set_rate(1_000, 1);
        pace.wait_until(Nanos::from_secs(1));
        let (steps, _) = at_once(&mut pace, Nanos::from_secs(2), u64::MAX);
        assert!((1_049..=1_052).contains(&steps), "{steps}");
    }

    proptest! {
        #[test]
        fn many_steps_at_once_are_as_many_one_by_one(
            cost in prop::sample::select(vec![1_u64, 333, 500, 777, 100_000]),
            turns in prop::collection::vec((0..6_u32, 1..5_u32, 0..80_000_000_u64, 0..70_000_000_u64, 1..3_000_u64), 1..6),
        ) {
            let mut single = Pace::new(Nanos(cost));
            let mut many = single.clone();
            let mut now = Nanos::ZERO;
            for (rate, vcpus, runs, waits, most) in turns {
                let rate = [0, 1_000, 7_001, 999_983, 2_000_000, 30_000_000][rate as usize];
                let until = now.saturating_add(Nanos(runs));
                for pace in [&mut single, &mut many] {
                    pace.set_rate(rate, vcpus);
                    pace.wait_until(now);
                }
                prop_assert_eq!(one_by_one(&mut single, until, most), at_once(&mut many, until, most));
                prop_assert_eq!(&single, &many);
                now = until.saturating_add(Nanos(waits));
            }
        }
    }
}
