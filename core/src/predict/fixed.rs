//! Logarithms and powers in fixed point, from tables made of integers.

/// 1 in units of 2⁻³².
pub(super) const ONE_Q32: u64 = 1 << 32;

/// The product of two numbers in units of 2⁻³², one of them at most 1; rounded down.
pub(super) const fn mul_q32(a: u64, b: u64) -> u64 {
    ((a as u128 * b as u128) >> 32) as u64
}

/// A number of at most 1, in units of 2⁻³², to this power: by squaring, each product rounded down. O(log exponent).
pub(super) const fn pow_q32(mut base: u64, mut exponent: u64) -> u64 {
    let mut power = ONE_Q32;
    while exponent > 0 {
        if exponent & 1 == 1 {
            power = mul_q32(power, base);
        }
        base = mul_q32(base, base);
        exponent >>= 1;
    }
    power
}

/// Steps of a coarse logarithm to one octave.
pub(super) const OCTAVE: u32 = 64;

/// round(64·log2(1 + (i + ½)/256)).
const LOG_STEPS: [u8; 256] = {
    let mut steps = [0; 256];
    let mut i = 0;
    while i < 256 {
        steps[i] = ((log2_q16(512 + 2 * i as u64 + 1) - (9 << 16) + 512) >> 10) as u8;
        i += 1;
    }
    steps
};

/// 64·log2(x) to the nearest but one: within 1 of the true value. `x` must not be zero.
#[inline(always)]
pub(super) const fn log2_steps(x: u32) -> u32 {
    let normal = x << x.leading_zeros();
    let exponent = 31 - x.leading_zeros();
    exponent * OCTAVE + LOG_STEPS[(normal >> 23 & 0xff) as usize] as u32
}

/// 2¹⁶·log2(x), bit by bit by squaring; at most 1 too small. `x` must not be zero.
pub(super) const fn log2_q16(x: u64) -> u64 {
    let exponent = x.ilog2();
    // 1 ≤ mantissa < 2 in units of 2⁻⁶³.
    let mut mantissa = (x << (63 - exponent)) as u128;
    let mut log = exponent as u64;
    let mut bit = 0;
    while bit < 16 {
        mantissa = (mantissa * mantissa) >> 63;
        log <<= 1;
        if mantissa >> 64 != 0 {
            log |= 1;
            mantissa >>= 1;
        }
        bit += 1;
    }
    log
}

/// log2 e in units of 2⁻³².
pub(super) const LOG2_E_Q32: u64 = 6_196_328_019;

/// ln 2 in units of 2⁻³².
const LN_2_Q32: u64 = 2_977_044_472;

/// 2³²·2^(−x/2¹⁶), within 8: a power of two times the series of the exponential. 0 from x = 32 on.
pub(super) const fn exp2_neg_q32(x: u64) -> u64 {
    let whole = x >> 16;
    if whole >= 32 {
        return 0;
    }
    // e^−y with 0 ≤ y < ln 2: six terms leave less than y^9/9! = 10⁻⁷ … of 2^32 that is 0.4 with nine.
    let y = mul_q32(LN_2_Q32, (x & 0xffff) << 16);
    let mut term = ONE_Q32;
    let mut sum = ONE_Q32;
    let mut n = 1;
    while n < 11 {
        term = mul_q32(term, y) / n;
        sum = if n % 2 == 1 { sum - term } else { sum + term };
        n += 1;
    }
    sum >> whole
}

#[cfg(test)]
#[expect(clippy::float_arithmetic, reason = "compared with exact logarithms and powers")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn logarithms_are_as_near_as_they_say(x in 1..=u32::MAX, wide in 1..=u64::MAX) {
            for x in [x, x % 1000 + 1] {
                prop_assert!((f64::from(log2_steps(x)) - f64::from(x).log2() * 64.0).abs() <= 1.0, "{}", x);
            }
            let exact = (wide as f64).log2() * 65536.0;
            prop_assert!((log2_q16(wide) as f64 - exact).abs() <= 1.001, "{wide}");
        }

        #[test]
        fn powers_are_as_near_as_they_say(x in 0..40u64 << 16, base in 0..=ONE_Q32, exponent in 0..2000u64) {
            let exact = (-(x as f64) / 65536.0).exp2() * ONE_Q32 as f64;
            prop_assert!((exp2_neg_q32(x) as f64 - exact).abs() <= 8.0, "{x}");
            let exact = (base as f64 / ONE_Q32 as f64).powf(exponent as f64);
            prop_assert!((pow_q32(base, exponent) as f64 / ONE_Q32 as f64 - exact).abs() <= 1e-6);
        }
    }

    #[test]
    fn whole_powers_of_two_are_exact() {
        for exponent in 0..32 {
            assert_eq!(log2_steps(1 << exponent), exponent * OCTAVE);
            assert_eq!(log2_q16(1 << exponent), u64::from(exponent) << 16);
            assert_eq!(exp2_neg_q32(u64::from(exponent) << 16), ONE_Q32 >> exponent);
        }
        assert_eq!(exp2_neg_q32(u64::MAX), 0);
        assert_eq!(pow_q32(0, 0), ONE_Q32);
    }
}
