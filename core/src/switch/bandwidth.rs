//! Bandwidth, smoothed over rounds.

use super::RoundEnd;
use crate::units::{Nanos, Pages};

/// Binary places of a page per second.
const PLACES: u32 = 16;
const NANOS_PER_SEC: u128 = 1_000_000_000;

/// An exponentially weighted mean of the rounds' bandwidths; the newest weighs 0.4, KubeVirt's default.
///
/// In 1/65536 pages per second, each step rounded down; at most 2^48 pages per second. Rounds that sent nothing, or took no time,
/// say nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Smoothed {
    rate: Option<u64>,
}

impl Smoothed {
    pub(crate) const fn new() -> Self {
        Self { rate: None }
    }

    pub(crate) fn update(&mut self, end: &RoundEnd) {
        let sent = (u128::from(end.sent.0) * NANOS_PER_SEC) << PLACES;
        let Some(newest) = sent.checked_div(end.duration.0.into()).filter(|&rate| rate > 0) else {
            return;
        };
        let newest = newest.min(u64::MAX.into());
        let mean = self.rate.map_or(newest, |rate| (2 * newest + 3 * u128::from(rate)) / 5);
        // A mean is no larger than what it is the mean of.
        self.rate = Some(mean as u64);
    }

    pub(super) fn is_known(&self) -> bool {
        self.rate.is_some()
    }

    /// A time as the number of pages that can be sent in it, in parts of a page, rounded down, stopping at the largest number.
    pub(super) fn in_page_times(&self, time: Nanos, parts: u128) -> Option<u128> {
        let rate = u128::from(self.rate?);
        Some((u128::from(time.0) * rate).saturating_mul(parts) / (NANOS_PER_SEC << PLACES))
    }

    /// How long these pages take, rounded up, stopping at the largest time; `None` if the bandwidth is not known.
    pub(crate) fn time_to_send(&self, pages: Pages) -> Option<Nanos> {
        let needed = (u128::from(pages.0) * NANOS_PER_SEC) << PLACES;
        let nanos = needed.div_ceil(self.rate?.into());
        Some(Nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Whether these pages can be sent in this time; false if the bandwidth is not known.
    pub(super) fn sends_within(&self, pages: Pages, time: Nanos) -> bool {
        let needed = (u128::from(pages.0) * NANOS_PER_SEC) << PLACES;
        self.rate
            .is_some_and(|rate| needed <= u128::from(time.0) * u128::from(rate))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::round;
    use super::*;

    #[test]
    fn the_newest_round_weighs_two_fifths() {
        let mut mean = Smoothed::new();
        assert!(!mean.sends_within(Pages::ZERO, Nanos(u64::MAX)));
        mean.update(&round(1, 1000, 0, 1000));
        assert!(mean.sends_within(Pages(1000), Nanos::from_secs(1)));
        assert!(!mean.sends_within(Pages(1001), Nanos::from_secs(1)));
        // 0.4 · 500 + 0.6 · 1000 = 800.
        mean.update(&round(2, 500, 0, 1000));
        assert!(mean.sends_within(Pages(800), Nanos::from_secs(1)));
        assert!(!mean.sends_within(Pages(801), Nanos::from_secs(1)));
        mean.update(&round(3, 0, 0, 1000));
        mean.update(&round(3, 7, 0, 0));
        assert!(mean.sends_within(Pages(800), Nanos::from_secs(1)), "nothing learnt");
        mean.update(&round(4, u64::MAX, 0, 1));
        assert!(mean.sends_within(Pages(1 << 40), Nanos::from_secs(1)));
    }
}
