//! What a strategy will cost, with an interval.

use core::fmt;

use super::setting::{Interval, Limits, Link, Uncertainty};
use super::walk::{Assumed, End, Outcome, Standing, switcher, walk};
use crate::cost::{Beyond, Dirtied};
use crate::pattern::{AccessClass, Profile};
use crate::strategy::{First, Strategy};
use crate::switch::Switcher;
use crate::units::{Bytes, BytesPerSec, Nanos, Pages};

/// What a migration will cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Forecast {
    /// From the first page to the last.
    pub time: Interval<Nanos>,
    /// How long the guest is paused in the hand-over.
    pub downtime: Interval<Nanos>,
    /// Page contents sent over all channels; headers come on top.
    pub bytes: Interval<Bytes>,
    /// Pre-copy rounds, the full copy included.
    pub rounds: Interval<u32>,
    /// Pages demanded in post-copy.
    pub faults: Interval<Pages>,
    /// From the guest's start on the target to its last page.
    pub post_copy_time: Interval<Nanos>,
    /// By how much the guest falls behind while it runs: stalled by faults and throttled.
    pub stall: Interval<Nanos>,
    /// How it likely ends.
    pub end: End,
    /// True if it ends under every assumption.
    pub ends_surely: bool,
}

impl Forecast {
    fn new(likely: &Outcome) -> Self {
        Self {
            time: Interval::exactly(likely.time),
            downtime: Interval::exactly(likely.downtime),
            bytes: Interval::exactly(Bytes(likely.bytes)),
            rounds: Interval::exactly(likely.rounds),
            faults: Interval::exactly(likely.faults),
            post_copy_time: Interval::exactly(likely.post_copy_time),
            stall: Interval::exactly(likely.stall),
            end: likely.end,
            ends_surely: likely.end != End::Never,
        }
    }

    fn with(self, outcome: &Outcome) -> Self {
        Self {
            time: self.time.with(outcome.time),
            downtime: self.downtime.with(outcome.downtime),
            bytes: self.bytes.with(Bytes(outcome.bytes)),
            rounds: self.rounds.with(outcome.rounds),
            faults: self.faults.with(outcome.faults),
            post_copy_time: self.post_copy_time.with(outcome.post_copy_time),
            stall: self.stall.with(outcome.stall),
            end: self.end,
            ends_surely: self.ends_surely && outcome.end != End::Never,
        }
    }
}

/// Why there is no forecast.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ForecastError {
    /// The link's bandwidth is zero.
    NoBandwidth,
    /// The strategy copies over storage, and the link has none.
    NoStorage,
}

impl fmt::Display for ForecastError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoBandwidth => "no page passes a bandwidth of 0: measure or give another",
            Self::NoStorage => {
                "first=parallel copies over shared storage, and there is none: name a storage directory and its bandwidth, or use \
                 first=serial"
            }
        })
    }
}

impl core::error::Error for ForecastError {}

/// Forecasts a migration: at most nine walks of at most 10 000 rounds (of `max_rounds` for every rule but `qemu`), O(log points)
/// each; nothing is stored.
///
/// # The model
/// Round by round, with the very [`Switcher`] that the migration asks: a round that sends S pages takes S/B and a round trip, at
/// least the minimum round, and leaves D(that long) pages dirty, D being the guest's curve
/// ([`cost::Dirtied`](crate::cost::Dirtied)). So forecast and migration differ only as far as rounds differ from their forecast.
/// Post-copy is [`cost::PostCopy`](crate::cost::PostCopy). On a plateau the curve alone would make every round the same, while
/// a real count scatters, and rules that ask whether a round is worse than the one before fire by that: in the likely case
/// rounds have in turn half the square root of the pages more and less (not for a guest that writes in order). Beside that:
///
/// | key | assumed |
/// |---|---|
/// | `first=parallel` | all used pages over storage at its bandwidth, beside rounds that begin with nothing dirty; nothing is decided before the static copy is done |
/// | `clear=late` | a page is sent at a time that is equally likely anywhere in its round, and is dirty afterwards if it is written in what is left of it |
/// | `filter=markov:half` | half of the dirty pages wait; those of them that are written meanwhile are dirty only once |
/// | other filters | the foreseen part of what will be rewritten in the round waits |
/// | `push` | an order that follows the guest saves the foreseen part of the faults |
/// | `slow` | QEMU's auto-converge (20 %, then 10 % more, up to 99 %) and dirty-limit (1 MB/s for each vCPU), each step at the second round that leaves more than half of what it sent |
///
/// "Foreseen" is half in the likely case, everything in the good and nothing in the bad one: how good a predictor is shows
/// only in the run.
///
/// # The interval
/// The least and most over bandwidth and dirtying each as given, less and more by the [`Uncertainty`]; predictors are good when
/// dirtying is low. Beyond the longest window measured the curve levels off as that of a random writer, stays flat when
/// dirtying is low, and goes straight on when it is high.
/// It covers every migration whose bandwidth and curve stay within the uncertainty, for `never`, `rounds:N` and `qemu` because
/// costs rise with dirtying and fall with bandwidth; for rules that look for convergence, which may switch a round earlier or
/// later anywhere in between, only nearly.
///
/// # Errors
/// [`ForecastError`].
pub fn forecast(
    strategy: &Strategy,
    profile: &Profile,
    link: &Link,
    limits: &Limits,
    uncertainty: Uncertainty,
) -> Result<Forecast, ForecastError> {
    check(strategy, link)?;
    let given = Given {
        profile,
        link,
        limits,
        uncertainty,
        dirtying_permille: 1000,
    };
    Ok(given.forecast(strategy, |assumed| {
        (switcher(strategy, assumed), Standing::start(strategy, assumed))
    }))
}

/// Whether the link can carry it out.
pub(super) fn check(strategy: &Strategy, link: &Link) -> Result<(), ForecastError> {
    if link.bandwidth == BytesPerSec::ZERO {
        return Err(ForecastError::NoBandwidth);
    }
    let storage = link.storage_bandwidth.unwrap_or(BytesPerSec::ZERO);
    if strategy.first == First::Parallel && storage == BytesPerSec::ZERO {
        return Err(ForecastError::NoStorage);
    }
    Ok(())
}

/// Below, as or above what is given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Low,
    Likely,
    High,
}

impl Side {
    const ALL: [Self; 3] = [Self::Low, Self::Likely, Self::High];

    const fn permille(self, percent: u32) -> u32 {
        match self {
            Self::Low => 1000 - percent * 10,
            Self::Likely => 1000,
            Self::High => 1000 + percent * 10,
        }
    }
}

/// What all walks of one forecast share.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) profile: &'a Profile,
    pub(super) link: &'a Link,
    pub(super) limits: &'a Limits,
    pub(super) uncertainty: Uncertainty,
    /// How much more the guest writes than its curve says.
    pub(super) dirtying_permille: u32,
}

impl<'a> Given<'a> {
    /// The forecast from wherever `from` says the migration stands.
    pub(super) fn forecast(
        &self,
        strategy: &Strategy,
        from: impl Fn(&Assumed<'a>) -> (Switcher, Standing),
    ) -> Forecast {
        let outcome = |bandwidth, dirtying| {
            let assumed = self.assumed(bandwidth, dirtying);
            let (switcher, standing) = from(&assumed);
            walk(strategy, switcher, standing, &assumed)
        };
        let mut forecast = Forecast::new(&outcome(Side::Likely, Side::Likely));
        if self.uncertainty == Uncertainty::NONE {
            return forecast;
        }
        for bandwidth in Side::ALL {
            for dirtying in Side::ALL {
                if (bandwidth, dirtying) != (Side::Likely, Side::Likely) {
                    forecast = forecast.with(&outcome(bandwidth, dirtying));
                }
            }
        }
        forecast
    }

    /// Everything as given.
    pub(super) fn likely(&self) -> Assumed<'a> {
        self.assumed(Side::Likely, Side::Likely)
    }

    fn assumed(&self, bandwidth: Side, dirtying: Side) -> Assumed<'a> {
        let Uncertainty {
            bandwidth_percent,
            dirtying_percent,
        } = self.uncertainty;
        let rate = |rate: BytesPerSec| {
            let scaled = u128::from(rate.0) * u128::from(bandwidth.permille(bandwidth_percent.min(99))) / 1000;
            BytesPerSec(u64::try_from(scaled).unwrap_or(u64::MAX).max(1))
        };
        let (beyond, foresight_permille) = match dirtying {
            Side::Low => (Beyond::Flat, 1000),
            Side::Likely => (Beyond::Decay, 500),
            Side::High => (Beyond::Slope, 0),
        };
        let permille =
            u64::from(dirtying.permille(dirtying_percent.min(100))) * u64::from(self.dirtying_permille) / 1000;
        let likely = (bandwidth, dirtying) == (Side::Likely, Side::Likely);
        Assumed {
            profile: self.profile,
            link: self.link,
            limits: self.limits,
            dirtied: Dirtied::new(self.profile, u32::try_from(permille).unwrap_or(u32::MAX), beyond),
            bandwidth: rate(self.link.bandwidth),
            storage_bandwidth: self.link.storage_bandwidth.map(rate),
            foresight_permille,
            noisy: likely && !matches!(self.profile.class, AccessClass::Stride | AccessClass::Loop),
        }
    }
}
