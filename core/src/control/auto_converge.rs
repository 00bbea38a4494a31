//! Slowing all vCPUs down until the link keeps up.

use super::Throttle;
use crate::units::Bytes;

/// Tells when dirtying outruns the link: for the second time since it last told, a period dirtied more than so many percent
/// of what it sent.
///
/// The two periods need not be neighbours, as QEMU resets its counter only when it acts (`dirty_rate_high_cnt` in
/// `migration_trigger_throttle`, migration/ram.c). QEMU looks at a period only if more than a second has passed since
/// the last; that is up to the caller. Two words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Congestion {
    threshold_percent: u8,
    seen_one: bool,
}

impl Congestion {
    /// With this threshold in percent; QEMU's `throttle-trigger-threshold` is 50.
    pub const fn new(threshold_percent: u8) -> Self {
        Self {
            threshold_percent,
            seen_one: false,
        }
    }

    /// A period in which so much was dirtied and sent: whether it is the second that outran the link. Exact.
    pub fn on_period(&mut self, dirtied: Bytes, sent: Bytes) -> bool {
        let high = u128::from(dirtied.0) * 100 > u128::from(sent.0) * u128::from(self.threshold_percent);
        let second = high && self.seen_one;
        self.seen_one = (self.seen_one || high) && !second;
        second
    }
}

/// What [`AutoConverge`] goes by, all in percent. The default is QEMU's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct AutoConvergeSetting {
    /// `throttle-trigger-threshold`: dirtied by sent.
    pub threshold: u8,
    /// `cpu-throttle-initial`: the first step.
    pub initial: u8,
    /// `cpu-throttle-increment`: every other step, at most.
    pub increment: u8,
    /// `max-cpu-throttle`: at most 99.
    pub max: u8,
    /// `cpu-throttle-tailslow`: steps no longer than what would suffice if dirtying slowed down with the vCPUs.
    pub tailslow: bool,
}

impl Default for AutoConvergeSetting {
    fn default() -> Self {
        Self {
            threshold: 50,
            initial: 20,
            increment: 10,
            max: 99,
            tailslow: false,
        }
    }
}

/// QEMU's `auto-converge` (migration/ram.c, `mig_throttle_guest_down`): each time [`Congestion`] tells, all vCPUs are throttled
/// further, first to 20 %, then by 10 points more, up to 99 %. It never goes back.
///
/// With `tailslow` a step is at most what is left to the share at which the period would have dirtied just the threshold: with c %
/// running, c − ⌊c · threshold·sent / dirtied⌋. QEMU rounds the threshold down to bytes and divides in floating point; this is
/// exact, so the two may differ by one point where the division comes out whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AutoConverge {
    setting: AutoConvergeSetting,
    congestion: Congestion,
    throttle: Throttle,
}

impl AutoConverge {
    /// Not throttling yet.
    pub const fn new(setting: AutoConvergeSetting) -> Self {
        Self {
            setting,
            congestion: Congestion::new(setting.threshold),
            throttle: Throttle::NONE,
        }
    }

    /// What holds now.
    pub const fn throttle(&self) -> Throttle {
        self.throttle
    }

    /// A period in which so much was dirtied and sent: what holds for the next. O(1).
    pub fn on_period(&mut self, dirtied: Bytes, sent: Bytes) -> Throttle {
        if self.congestion.on_period(dirtied, sent) {
            // As QEMU, the first step is not held to the maximum of the setting, only to 99 %.
            self.throttle = if self.throttle == Throttle::NONE {
                Throttle::new(self.setting.initial.max(1))
            } else {
                let now = self.throttle.percent();
                Throttle::new(
                    now.saturating_add(self.step(dirtied, sent))
                        .min(self.setting.max.max(1)),
                )
            };
        }
        self.throttle
    }

    fn step(&self, dirtied: Bytes, sent: Bytes) -> u8 {
        if !self.setting.tailslow {
            return self.setting.increment;
        }
        let running = 100 - self.throttle.percent();
        let allowed = u128::from(running) * u128::from(sent.0) * u128::from(self.setting.threshold);
        // Dirtied is above the threshold, so not 0, and the share that would do is below the one that runs.
        let ideal = (allowed / (u128::from(dirtied.0.max(1)) * 100)) as u8;
        running.saturating_sub(ideal).min(self.setting.increment)
    }
}
