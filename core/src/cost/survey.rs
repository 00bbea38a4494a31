//! Pre-copy by the equations of the survey: a guest that dirties memory at a constant rate, however long one looks.

use crate::units::{Bytes, BytesPerSec, Nanos};

/// Fractional bits of a byte that the recurrence keeps.
const FRACTION: u32 = 32;

/// Pre-copy of memory that is dirtied at a constant rate: equations (1) to (6) of the survey of Choudhary et al., "A critical
/// survey of live virtual machine migration techniques" (2017). Its r (transmission rate) and b (bandwidth) are both `link`; q is
/// d / r.
///
/// Equation (4) prints the elapsed time of round i as v_mem·dⁱ / vⁱ⁺¹; the denominator has to be rⁱ⁺¹, as follows from (3).
///
/// **Valid only for linear dirtying.** A real guest writes the same pages again: distinct pages grow concavely with the time
/// one looks and stop at the working set. The equations then promise too many bytes, and no convergence where there is
/// a plateau; [`rounds`](super::rounds) over a [`WwsCurve`](crate::pattern::WwsCurve) has neither fault.
///
/// Rounds count from 0 here, as in the survey: round 0 is the full copy, which the rest of this crate calls round 1. Amounts
/// stay below u64: growing ones (q > 1) stop there. Each step keeps 32 fractional bits, so for q ≤ 1 what round i sends is less
/// than a byte too small up to i = 2³², and for q > 1 by less than i·2⁻³² of it. Nothing overflows.
///
/// ```
/// use dunlin_core::cost::LinearDirtying;
/// use dunlin_core::units::{Bytes, BytesPerSec, Nanos};
///
/// // 1000 bytes over 100 bytes/s, dirtied at 50 bytes/s: rounds of 1000, 500, 250 bytes; 2000 if it never stopped.
/// let load = LinearDirtying { memory: Bytes(1000), dirtying: BytesPerSec(50), link: BytesPerSec(100) };
/// assert_eq!(load.round_bytes(2), Bytes(250));
/// assert_eq!(load.bytes(2), Bytes(1750));
/// assert_eq!(load.time(2), Nanos::from_millis(17_500));
/// assert_eq!(load.bytes_in_the_limit(), Some(Bytes(2000)));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct LinearDirtying {
    /// v_mem: the guest's memory.
    pub memory: Bytes,
    /// d: memory dirtied per second (pages per second times the page length l).
    pub dirtying: BytesPerSec,
    /// r and b: the link. A link of zero never sends anything: times are the largest.
    pub link: BytesPerSec,
}

impl LinearDirtying {
    /// Equation (1), t_m = v_m / b: the time of a full copy, and of any migration that sends every page once. Rounded up.
    pub const fn full_copy_time(&self) -> Nanos {
        self.link.time_to_send(self.memory)
    }

    /// Equation (2), t_d = d·l·t_n / b (after Liu et al. 2011): the downtime if the last round before the pause took this
    /// long, d·l being `dirtying`. Rounded up, from the bytes rounded up.
    pub const fn downtime(&self, last_round: Nanos) -> Nanos {
        let bytes = (self.dirtying.0 as u128 * last_round.0 as u128).div_ceil(1_000_000_000);
        self.link.time_to_send(Bytes(narrow(bytes)))
    }

    /// Equation (3), v_0 = v_mem and v_i = d·t_(i−1), which is v_mem·qⁱ: the bytes round i sends, rounded down. O(i).
    pub fn round_bytes(&self, round: u32) -> Bytes {
        Bytes(narrow(self.walk(round).last >> FRACTION))
    }

    /// Equation (4), t_i = v_mem·dⁱ / rⁱ⁺¹: how long round i takes. Rounded up, from the bytes rounded down. O(i).
    pub fn round_time(&self, round: u32) -> Nanos {
        self.link.time_to_send(self.round_bytes(round))
    }

    /// Equation (5), v_mig = Σ v_mem·qⁱ for i from 0 to n = v_mem·(1 − qⁿ⁺¹) / (1 − q): the bytes of rounds 0 to n, the last of
    /// them sent while the guest is paused. Rounded down. O(n): the sum, not the quotient, as that loses its digits where q is
    /// close to 1.
    pub fn bytes(&self, last_round: u32) -> Bytes {
        Bytes(narrow(self.walk(last_round).sum >> FRACTION))
    }

    /// Equation (6), t_mig = Σ t_i for i from 0 to n = v_mig / r. Rounded up, from the bytes rounded down. O(n).
    pub fn time(&self, last_round: u32) -> Nanos {
        self.link.time_to_send(self.bytes(last_round))
    }

    /// What (5) tends to if pre-copy never stops, v_mem / (1 − q), rounded down; `None` if q ≥ 1: it grows beyond
    /// all bounds. O(1).
    pub const fn bytes_in_the_limit(&self) -> Option<Bytes> {
        if self.dirtying.0 >= self.link.0 {
            return None;
        }
        let spare = self.link.0 - self.dirtying.0;
        Some(Bytes(narrow(
            self.memory.0 as u128 * self.link.0 as u128 / spare as u128,
        )))
    }

    /// The first round that leaves at most this much, v_(i+1) ≤ rest; `None` if no round below `limit` does. O(limit).
    pub fn rounds_until(&self, rest: Bytes, limit: u32) -> Option<u32> {
        let mut sent = u128::from(self.memory.0) << FRACTION;
        (0..limit).find(|_| {
            sent = self.next(sent);
            sent <= u128::from(rest.0) << FRACTION
        })
    }

    fn walk(&self, rounds: u32) -> Walk {
        let first = u128::from(self.memory.0) << FRACTION;
        let mut walk = Walk {
            last: first,
            sum: first,
        };
        for done in 0..rounds {
            let next = self.next(walk.last);
            if next == walk.last {
                // As every round to come.
                walk.sum = walk.sum.saturating_add(next.saturating_mul(u128::from(rounds - done)));
                break;
            }
            walk.last = next;
            walk.sum = walk.sum.saturating_add(next);
        }
        walk
    }

    /// v·d / r, v with the fraction and at most u64::MAX.
    fn next(&self, sent: u128) -> u128 {
        const MOST: u128 = (u64::MAX as u128) << FRACTION;
        let (dirtying, link) = (u128::from(self.dirtying.0), u128::from(self.link.0));
        let next = match (sent.checked_mul(dirtying), link) {
            (Some(0), _) => 0,
            (_, 0) => MOST,
            (Some(product), _) => product / link,
            // So much that the fraction says nothing any more.
            (None, _) => ((sent >> FRACTION) * dirtying / link).min(u128::from(u64::MAX)) << FRACTION,
        };
        next.min(MOST)
    }
}

/// The recurrence after some rounds, with its fraction.
struct Walk {
    last: u128,
    sum: u128,
}

const fn narrow(amount: u128) -> u64 {
    if amount > u64::MAX as u128 {
        u64::MAX
    } else {
        amount as u64
    }
}

#[cfg(test)]
#[expect(
    clippy::float_arithmetic,
    reason = "integers are compared with the closed forms in floating point"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn load(memory: u64, dirtying: u64, link: u64) -> LinearDirtying {
        LinearDirtying {
            memory: Bytes(memory),
            dirtying: BytesPerSec(dirtying),
            link: BytesPerSec(link),
        }
    }

    /// By hand: 1000 MiB at 100 MiB/s with 20 MiB/s dirtied, so q = 0.2.
    #[test]
    fn every_equation_by_hand() {
        const MIB: u64 = 1 << 20;
        let load = load(1000 * MIB, 20 * MIB, 100 * MIB);
        assert_eq!(load.full_copy_time(), Nanos::from_secs(10)); // (1)
        assert_eq!(load.downtime(Nanos::from_millis(500)), Nanos::from_millis(100)); // (2) 10 MiB
        let sent: std::vec::Vec<_> = (0..4).map(|round| load.round_bytes(round).0 / MIB).collect();
        assert_eq!(sent, [1000, 200, 40, 8]); // (3)
        assert_eq!(load.round_time(1), Nanos::from_secs(2)); // (4) 1000 · 20 / 100²
        assert_eq!(load.bytes(3), Bytes(1248 * MIB)); // (5)
        assert_eq!(load.time(3), Nanos::from_millis(12_480)); // (6)
        assert_eq!(load.bytes_in_the_limit(), Some(Bytes(1250 * MIB)));
        assert_eq!(load.rounds_until(Bytes(40 * MIB), 30), Some(1));
        assert_eq!(load.rounds_until(Bytes(39 * MIB), 30), Some(2));
    }

    #[test]
    fn at_and_beyond_the_link_nothing_shrinks() {
        let even = load(4096, 77, 77);
        assert_eq!((even.round_bytes(9), even.bytes(9)), (Bytes(4096), Bytes(40_960)));
        assert_eq!(
            (even.bytes_in_the_limit(), even.rounds_until(Bytes(4095), 999)),
            (None, None)
        );
        assert_eq!(even.bytes(u32::MAX), Bytes(4096 << 32));
        let diverging = load(1, 2, 1);
        assert_eq!(
            (diverging.round_bytes(9), diverging.bytes(9)),
            (Bytes(512), Bytes(1023))
        );
        assert_eq!(diverging.bytes(1000), Bytes(u64::MAX));
        assert_eq!(diverging.bytes_in_the_limit(), None);
    }

    #[test]
    fn without_a_link_a_guest_or_writes() {
        let no_link = load(1, 1, 0);
        assert_eq!(
            (no_link.full_copy_time(), no_link.time(5)),
            (Nanos(u64::MAX), Nanos(u64::MAX))
        );
        assert_eq!(no_link.downtime(Nanos::from_secs(1)), Nanos(u64::MAX));
        assert_eq!(load(0, 9, 0).time(5), Nanos::ZERO);
        let idle = load(4096, 0, 4096);
        assert_eq!(
            (idle.bytes(30), idle.downtime(Nanos(u64::MAX))),
            (Bytes(4096), Nanos::ZERO)
        );
        assert_eq!(idle.rounds_until(Bytes::ZERO, 1), Some(0));
    }

    #[test]
    fn the_largest_guest_for_a_day() {
        let largest = load(1 << 44, 1 << 40, 1 << 40);
        assert_eq!(largest.bytes(99), Bytes(100 << 44));
        assert_eq!(largest.downtime(Nanos::from_secs(86_400)), Nanos::from_secs(86_400));
        let slow = load(1 << 44, (1 << 20) - 1, 1 << 20);
        assert_eq!(
            slow.bytes_in_the_limit(),
            Some(Bytes(u64::MAX)),
            "2^64, which is one too many"
        );
    }

    proptest! {
        /// v_mem·qⁿ and v_mem·(1 − qⁿ⁺¹) / (1 − q).
        #[test]
        fn sums_meet_their_closed_forms(
            memory in 1..1u64 << 44, dirtying in 0..1u64 << 36, link in 1..1u64 << 36, round in 0..60u32,
        ) {
            let load = load(memory, dirtying, link);
            let q = dirtying as f64 / link as f64;
            let sent = memory as f64 * q.powf(f64::from(round));
            let sum = if dirtying == link {
                memory as f64 * f64::from(round + 1)
            } else {
                memory as f64 * (1.0 - q.powf(f64::from(round + 1))) / (1.0 - q)
            };
            let agree = |integer: u64, float: f64| {
                if float >= u64::MAX as f64 { integer == u64::MAX } else { (integer as f64 - float).abs() <= 61.0 + float * 1e-6 }
            };
            prop_assert!(agree(load.round_bytes(round).0, sent), "{} {sent}", load.round_bytes(round));
            prop_assert!(agree(load.bytes(round).0, sum) || (q - 1.0).abs() < 1e-6, "{} {sum}", load.bytes(round));
        }

        #[test]
        fn a_faster_link_is_never_slower(memory in 1..1u64 << 44, dirtying in 0..1u64 << 36, link in 1..1u64 << 35, more in 0..1u64 << 35, n in 0..40u32) {
            let (slower, faster) = (load(memory, dirtying, link), load(memory, dirtying, link + more));
            prop_assert!(faster.bytes(n) <= slower.bytes(n));
            prop_assert!(faster.time(n) <= slower.time(n));
            prop_assert!(faster.downtime(Nanos(u64::from(n))) <= slower.downtime(Nanos(u64::from(n))));
        }
    }
}
