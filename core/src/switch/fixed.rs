//! Logarithms and powers of two in fixed point.

/// Binary places of a logarithm.
pub(super) const PLACES: u32 = 20;
/// 1 as a logarithm: a factor of 2.
pub(super) const ONE: i64 = 1 << PLACES;
/// Binary places of a factor.
pub(super) const FACTOR_PLACES: u32 = 32;

/// Binary places within [`exp2`].
const FINE: u32 = 62;

/// 2 to the power of 1/2, 1/4, 1/8, …, each the square root of the one before.
const ROOTS: [u64; PLACES as usize] = {
    let mut roots = [0; PLACES as usize];
    let mut power: u128 = 2 << FINE;
    let mut at = 0;
    while at < roots.len() {
        power = (power << FINE).isqrt();
        roots[at] = power as u64;
        at += 1;
    }
    roots
};

/// log2 of a number, in [`PLACES`] binary places, rounded down; of 0 as of 1. O(20).
pub(super) const fn log2(number: u64) -> i64 {
    let number = if number == 0 { 1 } else { number };
    let whole = number.ilog2();
    // Between 1 and 2 in 63 binary places; squaring it moves the next binary place of its logarithm before the point.
    let mut rest = number << (63 - whole);
    let mut log = whole as i64;
    let mut place = 0;
    while place < PLACES {
        let square = (rest as u128 * rest as u128) >> 63;
        let bit = (square >> 64) as i64;
        rest = (square >> bit) as u64;
        log = log << 1 | bit;
        place += 1;
    }
    log
}

/// 2 to the power of a logarithm, in [`FACTOR_PLACES`] binary places, rounded down; the logarithm is cut to ±16. O(20).
pub(super) const fn exp2(log: i64) -> u64 {
    let log = if log > 16 * ONE {
        16 * ONE
    } else if log < -16 * ONE {
        -16 * ONE
    } else {
        log
    };
    let (whole, part) = (log.div_euclid(ONE), log.rem_euclid(ONE));
    let mut factor: u64 = 1 << FINE;
    let mut at = 0;
    while at < ROOTS.len() {
        if part >> (PLACES as usize - 1 - at) & 1 == 1 {
            factor = ((factor as u128 * ROOTS[at] as u128) >> FINE) as u64;
        }
        at += 1;
    }
    let shift = (FINE - FACTOR_PLACES) as i64 - whole;
    factor >> shift
}

#[cfg(test)]
#[expect(clippy::float_arithmetic, reason = "compared with floating point")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn powers_of_two_are_exact() {
        assert_eq!((log2(0), log2(1), log2(2), log2(1 << 63)), (0, 0, ONE, 63 * ONE));
        assert_eq!(exp2(0), 1 << 32);
        assert_eq!((exp2(ONE), exp2(-ONE), exp2(8 * ONE)), (1 << 33, 1 << 31, 1 << 40));
        assert_eq!(exp2(i64::MIN), exp2(-16 * ONE));
        assert_eq!(exp2(i64::MAX), 1 << 48);
        // log2(10) = 3.321928…
        assert_eq!(log2(10), 3_483_294);
    }

    proptest! {
        #[test]
        fn agrees_with_floating_point(number in 1..=u64::MAX, log in -16 * ONE..16 * ONE) {
            let exact = (number as f64).log2() * ONE as f64;
            prop_assert!((log2(number) as f64 - exact).abs() <= 2.0);
            let exact = (log as f64 / ONE as f64).exp2() * (1u64 << 32) as f64;
            prop_assert!((exp2(log) as f64 - exact).abs() <= 1.0 + exact * 1e-12);
        }
    }
}
