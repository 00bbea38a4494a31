//! `slow=auto-converge`: the guest slowed down round after round, as QEMU does it.

use dunlin_core::control::{AutoConverge, AutoConvergeSetting};
use dunlin_core::strategy::{Slow, Strategy};
use dunlin_core::units::{Nanos, Pages};

/// QEMU looks at a period only when it took longer (`migration_bitmap_sync`, migration/ram.c).
const PERIOD: Nanos = Nanos::from_secs(1);

/// Slows the guest down while it is copied; does nothing unless the strategy says so.
#[derive(Debug)]
pub(super) struct Slowing {
    controller: Option<AutoConverge>,
    dirtied: Pages,
    sent: Pages,
    took: Nanos,
}

impl Slowing {
    pub(super) fn new(strategy: &Strategy) -> Self {
        let some = strategy.slow == Slow::AutoConverge;
        Self {
            controller: some.then(|| AutoConverge::new(AutoConvergeSetting::default())),
            dirtied: Pages::ZERO,
            sent: Pages::ZERO,
            took: Nanos::ZERO,
        }
    }

    /// A round that took so long, sent so much and left so much; how many percent of its time the guest is to be held up from now on, if
    /// that changes.
    pub(super) fn after(&mut self, took: Nanos, sent: Pages, dirty: Pages) -> Option<u8> {
        let controller = self.controller.as_mut()?;
        self.dirtied = Pages(self.dirtied.0 + dirty.0);
        self.sent = Pages(self.sent.0 + sent.0);
        self.took = self.took.saturating_add(took);
        if self.took <= PERIOD {
            return None;
        }
        let before = controller.throttle();
        let now = controller.on_period(self.dirtied.bytes(), self.sent.bytes());
        (self.dirtied, self.sent, self.took) = (Pages::ZERO, Pages::ZERO, Nanos::ZERO);
        (now != before).then(|| now.percent())
    }

    /// What a step takes of a vCPU that is held up so many percent of the time; at most 99 count.
    pub(super) fn step_cost(cost: Nanos, percent: u8) -> Nanos {
        Nanos(cost.0.saturating_mul(100) / u64::from(100 - percent.min(99)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slowing(strategy: &str) -> Slowing {
        Slowing::new(&Strategy::parse(strategy).expect("a strategy"))
    }

    /// The threshold is half of what was sent, for the second time.
    #[test]
    fn every_second_period_that_outruns_the_link_slows_further() {
        let mut slowing = slowing("precopy,slow=auto-converge");
        let mut after = |dirty| slowing.after(Nanos::from_secs(2), Pages(100), Pages(dirty));
        assert_eq!(
            [after(60), after(60), after(60), after(60)],
            [None, Some(20), None, Some(30)]
        );
        assert_eq!([after(40), after(40)], [None, None]);
    }

    #[test]
    fn short_rounds_count_together() {
        let mut slowing = slowing("precopy,slow=auto-converge");
        let short = |slowing: &mut Slowing| slowing.after(Nanos::from_millis(600), Pages(100), Pages(60));
        let all: Vec<_> = (0..4).map(|_| short(&mut slowing)).collect();
        assert_eq!(all, [None, None, None, Some(20)]);
        let mut none = self::slowing("precopy");
        assert_eq!(none.after(Nanos::from_secs(9), Pages(1), Pages(9)), None);
    }

    #[test]
    fn a_guest_that_is_held_up_half_of_the_time_takes_twice_as_long() {
        assert_eq!(Slowing::step_cost(Nanos(500), 50), Nanos(1000));
        assert_eq!(Slowing::step_cost(Nanos(500), 0), Nanos(500));
        assert_eq!(Slowing::step_cost(Nanos(500), 100), Nanos(50_000));
    }
}
