//! Pressure: how far a guest is slowed down, how fast a link is used, how long a pause may become.
//!
//! Each controller is told what happened in a period or round and says what holds for the next. None reads a clock or
//! acts by itself; all take O(1) time and a few words.
//!
//! | controller | acts on | after |
//! |---|---|---|
//! | [`AutoConverge`] | all vCPUs alike | QEMU's `auto-converge` |
//! | [`DirtyLimit`] | each vCPU that writes | QEMU's `dirty-limit` |
//! | [`AdaptiveRate`] | the link | Clark et al. 2005, Xen's `ADAPTIVE_SAVE` |
//! | [`DowntimeRamp`] | the pause that is allowed | OpenStack Nova, KubeVirt |
//!
//! ```
//! use dunlin_core::control::{AutoConverge, AutoConvergeSetting, Throttle};
//! use dunlin_core::units::Bytes;
//!
//! let mut control = AutoConverge::new(AutoConvergeSetting::default());
//! let throttles = [0; 6].map(|_| control.on_period(Bytes(60 << 20), Bytes(100 << 20)).percent());
//! assert_eq!(throttles, [0, 20, 20, 30, 30, 40]); // 60 % is more than half: every second time a step
//! ```

mod auto_converge;
mod dirty_limit;
mod ramp;
mod rate;
#[cfg(test)]
mod tests;

pub use auto_converge::{AutoConverge, AutoConvergeSetting, Congestion};
pub use dirty_limit::{DirtyLimit, NoSuchVcpu, VcpuLimit};
pub use ramp::DowntimeRamp;
pub use rate::{AdaptiveRate, RateRule, RateSetting, RateStep};

use core::fmt;

/// The share of time in which a vCPU is kept from running, 0 to 99 %.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Throttle(u8);

impl Throttle {
    /// The vCPU runs freely.
    pub const NONE: Self = Self(0);
    /// The most: a vCPU that never runs would never finish what it holds locks for.
    pub const MAX: Self = Self(99);

    /// So many percent, at most 99.
    pub const fn new(percent: u8) -> Self {
        if percent < Self::MAX.0 {
            Self(percent)
        } else {
            Self::MAX
        }
    }

    /// In percent.
    pub const fn percent(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.0)
    }
}
