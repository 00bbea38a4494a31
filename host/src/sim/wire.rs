//! The network: a rate, a latency, and what goes wrong on the way.

use dunlin_core::units::{BytesPerSec, Nanos};
use dunlin_core::workload::Random;

use super::Varies;
use crate::channel::{BURST, FRESH, PAUSE};

/// How long a lost chunk holds up what follows: the shortest retransmission timeout of Linux (`TCP_RTO_MIN`, net/tcp.h).
pub const RETRANSMISSION: Nanos = Nanos::from_millis(200);

/// What is sent towards one side, in order.
#[derive(Debug)]
pub(super) struct Wire {
    /// `None` for as fast as one likes.
    rate: Option<BytesPerSec>,
    latency: Nanos,
    jitter: Nanos,
    loss_ppm: u32,
    random: Random,
    /// How the rate varies, and since when.
    varies: Option<(Varies, Nanos)>,
    seed: u64,
    makes_up: bool,
    /// When everything that was charged has left.
    free_at: Nanos,
    last_arrival: Nanos,
}

impl Wire {
    pub(super) fn new(rate: Option<BytesPerSec>, latency: Nanos, jitter: Nanos, loss_ppm: u32, seed: u64) -> Self {
        Self {
            rate,
            latency,
            jitter,
            loss_ppm,
            random: Random::new(seed, u64::from(rate.is_some()) + 100),
            varies: None,
            seed,
            makes_up: false,
            free_at: Nanos::ZERO,
            last_arrival: Nanos::ZERO,
        }
    }

    /// The same with a rate that varies from then on.
    pub(super) fn varying(self, varies: Option<Varies>, from: Nanos) -> Self {
        Self {
            varies: varies.map(|varies| (varies, from)),
            ..self
        }
    }

    /// The same if it `is` the rate limit of a live migration: what a pause leaves unused is made up for as there.
    pub(super) fn limiter(self, is: bool) -> Self {
        Self { makes_up: is, ..self }
    }

    /// What of the time before is not lost yet.
    fn saved(&self, now: Nanos) -> Nanos {
        let [burst, pause, fresh] = [BURST, PAUSE, FRESH].map(|time| Nanos(time.as_nanos() as u64));
        let was_idle = now.saturating_sub(self.free_at) > burst.saturating_add(pause);
        match (self.makes_up, was_idle) {
            (false, _) => Nanos::ZERO,
            (true, false) => burst,
            (true, true) => fresh,
        }
    }

    /// Occupies the wire with `bytes` from `now` on, or from when it is free; returns when the last of them has left.
    pub(super) fn occupy(&mut self, bytes: u64, now: Nanos) -> Nanos {
        let begins = self.free_at.max(now.saturating_sub(self.saved(now)));
        self.free_at = match (self.rate, self.varies) {
            (None, _) => begins,
            (Some(rate), None) => begins.saturating_add(takes(u128::from(bytes), rate, 1000)),
            (Some(rate), Some((varies, from))) => self.leaves(u128::from(bytes), begins, rate, varies, from),
        };
        self.free_at.max(now)
    }

    /// Span after span, until all has left.
    fn leaves(&self, mut bytes: u128, mut at: Nanos, rate: BytesPerSec, varies: Varies, from: Nanos) -> Nanos {
        loop {
            let span = at.saturating_sub(from).0 / varies.every.0;
            let ends = from.saturating_add(Nanos(varies.every.0.saturating_mul(span + 1)));
            let shares = u64::from(1000 - varies.least_milli) + 1;
            let share = varies.least_milli + Random::new(self.seed, span + 1000).below(shares) as u32;
            let needed = takes(bytes, rate, share);
            let left = ends.saturating_sub(at);
            if needed <= left || ends.0 == u64::MAX {
                return at.saturating_add(needed);
            }
            bytes -= u128::from(left.0) * u128::from(rate.0) * u128::from(share) / 1_000_000_000_000;
            at = ends;
        }
    }

    /// When the wire is free, or since when it has been.
    pub(super) const fn free_at(&self) -> Nanos {
        self.free_at
    }

    /// When what leaves at `left` arrives, behind everything that was sent before.
    pub(super) fn arrival(&mut self, left: Nanos) -> Nanos {
        let late = match self.jitter.0 {
            0 => 0,
            jitter => self.random.below(jitter + 1),
        };
        let lost = self.loss_ppm > 0 && self.random.below(1_000_000) < u64::from(self.loss_ppm);
        let stall = if lost { RETRANSMISSION } else { Nanos::ZERO };
        let arrives = left
            .saturating_add(self.latency)
            .saturating_add(Nanos(late))
            .saturating_add(stall);
        self.last_arrival = self.last_arrival.max(arrives);
        self.last_arrival
    }

    /// When something that overtakes everything arrives.
    pub(super) fn urgent_arrival(&mut self, left: Nanos) -> Nanos {
        let before = self.last_arrival;
        self.last_arrival = Nanos::ZERO;
        let arrives = self.arrival(left);
        self.last_arrival = before;
        arrives
    }

    /// The shortest time on the way.
    pub(super) const fn latency(&self) -> Nanos {
        self.latency
    }
}

/// How long `bytes` take at a share of a rate, in thousandths.
fn takes(bytes: u128, rate: BytesPerSec, share_milli: u32) -> Nanos {
    let per_second = u128::from(rate.0.max(1)) * u128::from(share_milli.max(1));
    Nanos(u64::try_from((bytes * 1_000_000_000_000).div_ceil(per_second)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: BytesPerSec = BytesPerSec(1_000_000);
    const MS: Nanos = Nanos::from_millis(1);

    fn wire(jitter: Nanos, loss_ppm: u32) -> Wire {
        Wire::new(Some(RATE), MS, jitter, loss_ppm, 7)
    }

    #[test]
    fn bytes_take_their_time_one_after_the_other() {
        let mut wire = wire(Nanos::ZERO, 0);
        assert_eq!(wire.occupy(2_000, MS), Nanos::from_millis(3));
        assert_eq!(wire.occupy(1_000, MS), Nanos::from_millis(4), "behind the first");
        assert_eq!(
            wire.occupy(1_000, Nanos::from_millis(9)),
            Nanos::from_millis(10),
            "idle time is lost"
        );
        assert_eq!(wire.arrival(Nanos::from_millis(10)), Nanos::from_millis(11));
    }

    #[test]
    fn a_limiter_makes_up_for_a_pause_as_a_live_one_does() {
        let live = |pauses: &[(u64, u64)]| {
            let mut limit = crate::channel::Schedule::new(Some(RATE), Nanos::ZERO);
            let each = pauses.iter().map(|&(at, bytes)| {
                let at = Nanos::from_millis(at);
                let reserved = limit.reserve(bytes, at);
                let left = limit.time_until(reserved, at).unwrap_or_default();
                at.saturating_add(Nanos(left.as_nanos() as u64))
            });
            each.collect::<Vec<_>>()
        };
        let pauses = [(0, 2_000), (1, 1_000), (4, 2_000), (15, 7_000), (90, 3_000), (91, 500)];
        let mut wire = wire(Nanos::ZERO, 0).limiter(true);
        let simulated: Vec<_> = pauses
            .iter()
            .map(|&(at, bytes)| wire.occupy(bytes, Nanos::from_millis(at)))
            .collect();
        assert_eq!(simulated, live(&pauses));
        assert_eq!(simulated[2], Nanos::from_millis(5), "a short pause");
        assert_eq!(simulated[4], Nanos::from_millis(92), "a long one");
    }

    #[test]
    fn what_is_late_holds_up_what_follows_but_not_what_is_urgent() {
        let mut wire = wire(Nanos::ZERO, 1_000_000);
        let lost = wire.arrival(MS);
        assert_eq!(lost, Nanos::from_millis(2).saturating_add(RETRANSMISSION));
        wire.loss_ppm = 0;
        assert_eq!(wire.arrival(MS), lost);
        assert_eq!(wire.urgent_arrival(MS), Nanos::from_millis(2));
        assert_eq!(wire.arrival(MS), lost);
    }

    #[test]
    fn a_rate_that_varies_is_between_its_bounds_and_is_the_same_however_it_is_asked() {
        let varies = Varies {
            least_milli: 250,
            every: Nanos::from_millis(10),
        };
        let make = || wire(Nanos::ZERO, 0).varying(Some(varies), MS);
        let (mut whole, mut parts) = (make(), make());
        let at_once = whole.occupy(1_000_000, MS);
        let piecewise = (0..1_000).map(|_| parts.occupy(1_000, MS)).last().expect("some");
        assert!(at_once.0.abs_diff(piecewise.0) < 2_000_000, "{at_once:?} {piecewise:?}");
        // A second at the whole rate, on average of all shares 1.6 s.
        assert!((1_300_000_000..2_000_000_000).contains(&at_once.0), "{at_once:?}");
        let spans: Vec<u64> = (0..100)
            .map(|_| 10_000)
            .scan(make(), |wire, bytes| {
                let before = wire.free_at;
                Some(wire.occupy(bytes, MS).saturating_sub(before.max(MS)).0)
            })
            .collect();
        assert!(
            spans.iter().all(|nanos| (10_000_000..=40_000_000).contains(nanos)),
            "{spans:?}"
        );
        assert!(spans.iter().max() > spans.iter().min());
        let constant = Varies {
            least_milli: 1000,
            ..varies
        };
        let mut constant = wire(Nanos::ZERO, 0).varying(Some(constant), MS);
        assert_eq!(constant.occupy(1_000_000, MS), MS.saturating_add(Nanos::from_secs(1)));
    }

    #[test]
    fn jitter_stays_in_its_bounds_and_in_order() {
        let mut wire = wire(MS, 0);
        let mut last = Nanos::ZERO;
        for left in 0..1_000 {
            let left = Nanos(left * 10_000);
            let arrives = wire.arrival(left);
            assert!(arrives >= last && arrives >= left.saturating_add(MS));
            assert!(arrives.0 <= left.0 + 2 * MS.0 + last.0.saturating_sub(left.0));
            last = arrives;
        }
    }
}
