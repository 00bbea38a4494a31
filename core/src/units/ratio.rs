//! Exact fractions.

use core::cmp::Ordering;

/// A fraction of two counts, never rounded: 1/2 and 2/4 are equal, and comparisons multiply crosswise in 128 bits.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Ratio {
    numerator: u64,
    /// Not zero.
    denominator: u64,
}

impl Ratio {
    /// 0.
    pub const ZERO: Self = Self {
        numerator: 0,
        denominator: 1,
    };
    /// 1.
    pub const ONE: Self = Self {
        numerator: 1,
        denominator: 1,
    };

    /// `numerator` / `denominator`, or `None` if the denominator is zero.
    pub const fn new(numerator: u64, denominator: u64) -> Option<Self> {
        if denominator == 0 {
            None
        } else {
            Some(Self { numerator, denominator })
        }
    }

    /// The number above the line, as given.
    pub const fn numerator(self) -> u64 {
        self.numerator
    }

    /// The number below the line, as given; never zero.
    pub const fn denominator(self) -> u64 {
        self.denominator
    }

    /// In thousandths, rounded toward zero, stopping at the largest value.
    pub const fn milli(self) -> i64 {
        let milli = self.numerator as u128 * 1000 / self.denominator as u128;
        if milli > i64::MAX as u128 {
            i64::MAX
        } else {
            milli as i64
        }
    }
}

impl Ord for Ratio {
    fn cmp(&self, other: &Self) -> Ordering {
        let left = u128::from(self.numerator) * u128::from(other.denominator);
        let right = u128::from(other.numerator) * u128::from(self.denominator);
        left.cmp(&right)
    }
}

impl PartialOrd for Ratio {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ratio {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ratio {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ratio(numerator: u64, denominator: u64) -> Ratio {
        Ratio::new(numerator, denominator).expect("denominator is not zero")
    }

    #[test]
    fn equal_fractions_are_equal_however_written() {
        assert_eq!(ratio(1, 2), ratio(2, 4));
        assert_eq!(ratio(0, 5), Ratio::ZERO);
        assert_eq!(ratio(u64::MAX, u64::MAX), Ratio::ONE);
        assert!(ratio(u64::MAX, u64::MAX - 1) > Ratio::ONE);
        assert!(ratio(u64::MAX - 1, u64::MAX) < Ratio::ONE);
        assert!(Ratio::new(1, 0).is_none());
    }

    #[test]
    fn thousandths_round_toward_zero() {
        assert_eq!(ratio(2, 3).milli(), 666);
        assert_eq!(ratio(1999, 1_000_000).milli(), 1);
        assert_eq!(ratio(5, 4).milli(), 1250);
        assert_eq!(ratio(u64::MAX, 1).milli(), i64::MAX);
    }

    /// Integer part by integer part, as in Euclid's algorithm, never multiplying.
    fn compare_by_quotients((a, b): (u64, u64), (c, d): (u64, u64)) -> Ordering {
        match (a / b).cmp(&(c / d)) {
            Ordering::Equal => match (a % b, c % d) {
                (0, 0) => Ordering::Equal,
                (0, _) => Ordering::Less,
                (_, 0) => Ordering::Greater,
                (left, right) => compare_by_quotients((d, right), (b, left)),
            },
            unequal => unequal,
        }
    }

    proptest! {
        #[test]
        fn compares_like_continued_fractions(
            a in any::<u64>(), b in 1..=u64::MAX, c in any::<u64>(), d in 1..=u64::MAX,
            small in [0..20u64, 1..20, 0..20, 1..20],
        ) {
            let [e, f, g, h] = small;
            prop_assert_eq!(ratio(a, b).cmp(&ratio(c, d)), compare_by_quotients((a, b), (c, d)));
            prop_assert_eq!(ratio(e, f).cmp(&ratio(g, h)), compare_by_quotients((e, f), (g, h)));
        }
    }
}
