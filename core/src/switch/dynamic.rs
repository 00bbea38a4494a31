//! A number of rounds that follows from dirty rate and bandwidth.

use super::{RoundEnd, Rounds, SwitchSetting, Verdict};
use crate::units::{BytesPerSec, PAGE_SIZE};

/// 0.1 in 64 binary places.
const TENTH: u64 = u64::MAX / 10;
/// Rounds are counted in so many bits.
const BITS: usize = 32;

/// `dyn`: post-copy after N rounds, N fixed at the end of round 1. With r = dirty rate / bandwidth: r ≥ 1 → N = 1; otherwise N is the
/// smallest n with rⁿ ≤ 0.1, at most max-rounds.
///
/// A reconstruction of Altahat et al. 2020, "Dyn-hybrid": Li & Cao 2023 say only that it sets the number of rounds from dirty
/// rate, memory size and bandwidth. If every round dirties r times what it sent, n rounds leave rⁿ of the guest; a tenth is
/// what fits the measurements they print. The dirty rate is the one measured before the migration
/// ([`SwitchSetting::dirty_rate_before`]) over the bandwidth of round 1; without it r = V(1)/S(1). Waiting for round 1 loses nothing,
/// as N ≥ 1. If round 1 sent nothing, N = 1.
///
/// rⁿ is computed in 64 binary places and may be below the exact value by up to n + 1 of the last: where rⁿ is that close to 0.1, N may be
/// one too small. r ≥ 1 and r ≤ 0.1 are compared exactly.
///
/// O(32) in round 1, O(1) after it. The score is r.
#[derive(Clone, Copy, Debug)]
pub struct Dyn {
    dirty_rate_before: Option<BytesPerSec>,
    max_rounds: u32,
    fixed: Option<(Rounds, i64)>,
}

impl Dyn {
    /// Before round 1.
    pub const fn new(setting: &SwitchSetting) -> Self {
        Self {
            dirty_rate_before: setting.dirty_rate_before,
            max_rounds: setting.max_rounds,
            fixed: None,
        }
    }

    /// Fixes N in the first round told, then counts.
    pub fn on_round(&mut self, end: &RoundEnd) -> Verdict {
        let (rounds, r_milli) = self.fixed.get_or_insert_with(|| {
            let (part, whole) = rate(self.dirty_rate_before, end);
            let count = smallest_power(part, whole).min(self.max_rounds).max(1);
            (Rounds::new(count), milli(part, whole))
        });
        Verdict {
            score_milli: *r_milli,
            ..rounds.on_round(end)
        }
    }
}

/// r as a fraction.
fn rate(dirty_rate_before: Option<BytesPerSec>, end: &RoundEnd) -> (u128, u128) {
    match dirty_rate_before {
        Some(rate) => (
            u128::from(rate.0) * u128::from(end.duration.0),
            u128::from(end.sent.0) * u128::from(PAGE_SIZE) * 1_000_000_000,
        ),
        None => (end.dirty.0.into(), end.sent.0.into()),
    }
}

fn milli(part: u128, whole: u128) -> i64 {
    let milli = part.saturating_mul(1000).checked_div(whole).unwrap_or(0);
    i64::try_from(milli).unwrap_or(i64::MAX)
}

/// The smallest n ≥ 1 with (part / whole)ⁿ ≤ 0.1, or 1 if no power is.
fn smallest_power(part: u128, whole: u128) -> u32 {
    if part >= whole || part <= whole / 10 {
        return 1;
    }
    // powers[k] is r to the power of 2^k.
    let mut powers = [fixed(part, whole); BITS];
    for k in 1..BITS {
        powers[k] = times(powers[k - 1], powers[k - 1]);
    }
    // The largest n with rⁿ > 0.1, bit by bit.
    let mut largest = 0u32;
    let mut product = None;
    for k in (0..BITS).rev() {
        let longer = product.map_or(powers[k], |product| times(product, powers[k]));
        if longer > TENTH {
            product = Some(longer);
            largest |= 1 << k;
        }
    }
    largest.saturating_add(1)
}

/// part / whole < 1 in 64 binary places, rounded down.
fn fixed(part: u128, whole: u128) -> u64 {
    let shift = 64u32.saturating_sub(whole.leading_zeros());
    let quotient = ((part >> shift) << 64) / (whole >> shift).max(1);
    u64::try_from(quotient).unwrap_or(u64::MAX)
}

fn times(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::super::tests::round;
    use super::super::{Decision, Reason};
    use super::*;
    use crate::units::{Nanos, Pages};

    fn rounds(part: u128, whole: u128) -> u32 {
        smallest_power(part, whole)
    }

    #[test]
    fn the_smallest_power_below_a_tenth() {
        // 0.37² = 0.137, 0.37³ = 0.051: the three rounds of the paper.
        assert_eq!(rounds(37, 100), 3);
        assert_eq!((rounds(1, 10), rounds(1_000_001, 10_000_000)), (1, 2));
        // 0.9²¹ = 0.109, 0.9²² = 0.098.
        assert_eq!(rounds(9, 10), 22);
        assert_eq!(
            (rounds(1, 1), rounds(7, 3), rounds(0, 5), rounds(0, 0), rounds(5, 0)),
            (1, 1, 1, 1, 1)
        );
        // ln 10 · 2³² = 9 889 527 670: more than can be counted.
        assert_eq!(rounds((1 << 32) - 1, 1 << 32), u32::MAX);
        assert_eq!(rounds(u128::MAX - 1, u128::MAX), u32::MAX);
    }

    #[test]
    fn the_number_of_rounds_is_fixed_after_the_first() {
        let setting = SwitchSetting::new(Pages(1000));
        let mut rule = Dyn::new(&setting);
        let decisions = [(1, 1000, 370), (2, 370, 999), (3, 999, 999)];
        let decisions = decisions.map(|(n, sent, dirty)| rule.on_round(&round(n, sent, dirty, 1)));
        assert_eq!(
            decisions.map(|verdict| verdict.decision),
            [Decision::Continue, Decision::Continue, Decision::PostCopy]
        );
        assert_eq!(decisions[2].score_milli, 370);
        let none_allowed = SwitchSetting {
            max_rounds: 0,
            ..setting
        };
        let verdict = Dyn::new(&none_allowed).on_round(&round(1, 1000, 370, 1));
        assert_eq!(verdict.reason, Reason::RoundsDone { rounds: 1 }, "the first is over");
    }

    #[test]
    fn a_dirty_rate_known_before_is_gone_by() {
        let setting = SwitchSetting {
            dirty_rate_before: Some(BytesPerSec(4096 * 900)),
            max_rounds: 20,
            ..SwitchSetting::new(Pages(1000))
        };
        // 1000 pages in a second: r = 0.9, 22 rounds, of which 20 are allowed.
        let mut rule = Dyn::new(&setting);
        assert_eq!(rule.on_round(&round(1, 1000, 1000, 1000)).score_milli, 900);
        assert_eq!(rule.on_round(&round(19, 1, 1, 1)).decision, Decision::Continue);
        assert_eq!(rule.on_round(&round(20, 1, 1, 1)).decision, Decision::PostCopy);
        let mut rule = Dyn::new(&SwitchSetting {
            dirty_rate_before: Some(BytesPerSec(u64::MAX)),
            ..setting
        });
        let end = RoundEnd {
            duration: Nanos(u64::MAX),
            ..round(1, u64::MAX, 1, 1)
        };
        assert_eq!(rule.on_round(&end).decision, Decision::PostCopy);
    }
}
