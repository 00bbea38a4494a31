//! How fast to send, so that migration disturbs little while dirtying is slow and keeps up while it is fast.

use crate::units::{Bytes, BytesPerSec, Nanos};

/// Bytes per second in a Mbit/s.
const MBIT: u64 = 1_000_000 / 8;

/// From which round's dirtying the next rate follows how.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum RateRule {
    /// Clark et al., "Live Migration of Virtual Machines" (NSDI 2005), section 5.3, as it is commonly told: the dirty rate of
    /// the round before plus the step, at least the minimum. Above the maximum, or with little remaining, pre-copy ends.
    Clark,
    /// Xen 3's `ADAPTIVE_SAVE` (tools/libxc/xc_linux_save.c): as Clark's, but in whole Mbit/s, the rate only ever
    /// rises, it stops at the maximum, and when pre-copy ends is decided elsewhere.
    Xen,
}

/// What [`AdaptiveRate`] goes by. The default has the numbers of Xen 3's code: 100 to 500 Mbit/s in steps of 50. That
/// pre-copy ends below 256 KB is Clark's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RateSetting {
    /// The rule.
    pub rule: RateRule,
    /// The rate of the first round, and the least.
    pub min: BytesPerSec,
    /// The most, and the rate of stop-and-copy.
    pub max: BytesPerSec,
    /// How much faster than the guest dirties.
    pub step: BytesPerSec,
    /// With less than this remaining, pre-copy ends.
    pub stop_below: Bytes,
}

impl Default for RateSetting {
    fn default() -> Self {
        Self {
            rule: RateRule::Clark,
            min: BytesPerSec(100 * MBIT),
            max: BytesPerSec(500 * MBIT),
            step: BytesPerSec(50 * MBIT),
            stop_below: Bytes(256 << 10),
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum RateStep {
    /// Another round at this rate.
    Round(BytesPerSec),
    /// Stop-and-copy at this rate.
    StopCopy(BytesPerSec),
}

/// An adaptive rate: few words, O(1) per round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AdaptiveRate {
    setting: RateSetting,
    rate: BytesPerSec,
}

impl AdaptiveRate {
    /// Before the first round, which goes at the minimum.
    pub const fn new(setting: RateSetting) -> Self {
        Self {
            setting,
            rate: setting.min,
        }
    }

    /// The rate of the current round.
    pub const fn rate(&self) -> BytesPerSec {
        self.rate
    }

    /// Whether the current round goes at the maximum: then Xen 3 ends pre-copy as soon as a round sends more than the one before.
    pub fn is_max(&self) -> bool {
        self.rate >= self.setting.max
    }

    /// A round in which so much was dirtied, how long it took, and what remains to be sent. Rates are rounded down, after all
    /// comparisons.
    pub fn on_round(&mut self, dirtied: Bytes, duration: Nanos, remaining: Bytes) -> RateStep {
        match self.setting.rule {
            RateRule::Clark => self.clark(dirtied, duration, remaining),
            RateRule::Xen => RateStep::Round(self.xen(dirtied, duration)),
        }
    }

    fn clark(&mut self, dirtied: Bytes, duration: Nanos, remaining: Bytes) -> RateStep {
        let RateSetting {
            min,
            max,
            step,
            stop_below,
            ..
        } = self.setting;
        // Without a duration anything dirtied is infinitely fast.
        let dirtied = u128::from(dirtied.0) * 1_000_000_000;
        let too_fast = match max.0.checked_sub(step.0) {
            Some(room) => dirtied > u128::from(room) * u128::from(duration.0),
            None => true,
        };
        if too_fast || remaining < stop_below {
            self.rate = max;
            return RateStep::StopCopy(max);
        }
        // At most max, as just found.
        let dirty_rate = dirtied.checked_div(u128::from(duration.0)).unwrap_or(0) as u64;
        self.rate = BytesPerSec((dirty_rate + step.0).clamp(min.0.min(max.0), max.0));
        RateStep::Round(self.rate)
    }

    fn xen(&mut self, dirtied: Bytes, duration: Nanos) -> BytesPerSec {
        // Wall time in whole milliseconds, at least one.
        let millis = u128::from((duration.0 / 1_000_000).max(1));
        let dirtied_mbit = u128::from(dirtied.0) / (millis * 125);
        if dirtied_mbit * u128::from(MBIT) > u128::from(self.rate.0) {
            let faster = dirtied_mbit * u128::from(MBIT) + u128::from(self.setting.step.0);
            self.rate = BytesPerSec(u64::try_from(faster).unwrap_or(u64::MAX).min(self.setting.max.0));
        }
        self.rate
    }
}
