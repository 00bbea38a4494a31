//! Random numbers that cost a handful of integer instructions.

/// 2^64 divided by the golden ratio, odd: the increment of SplitMix64 (Steele, Lea and Flood 2014).
pub(super) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output function: every bit of the input reaches every bit of the result, one to one.
#[inline]
pub(super) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A generator of the wyrand family (Wang Yi's wyhash, final version 3): one addition, one 64 by 64 bit multiplication
/// and two exclusive-ors per number, which is what a guest whose every instruction is emulated can afford.
///
/// Not for secrets. Passes the usual statistical batteries; period 2^64.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Random(u64);

impl Random {
    /// The generator for stream `stream` of a seed: streams of one seed are unrelated to each other.
    pub const fn new(seed: u64, stream: u64) -> Self {
        Self(mix(
            mix(seed.wrapping_add(GOLDEN)).wrapping_add(stream.wrapping_mul(GOLDEN))
        ))
    }

    /// The next 64 random bits.
    #[inline]
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0xa076_1d64_78bd_642f);
        let product = self.0 as u128 * (self.0 ^ 0xe703_7ed1_a0b4_28db) as u128;
        (product >> 64) as u64 ^ product as u64
    }

    /// A random number below `bound`, from the upper 32 of 64 random bits; `bound` is at most 2^32.
    ///
    /// Multiplies instead of dividing; the bias is below `bound` / 2^32, for 64 GiB of pages 0.4 %, spread evenly.
    #[inline]
    pub const fn below(&mut self, bound: u64) -> u64 {
        scale(self.next_u64() >> 32, bound)
    }
}

/// Maps 32 random bits to 0 .. `bound`, which is at most 2^32.
#[inline]
pub(super) const fn scale(bits: u64, bound: u64) -> u64 {
    (bits * bound) >> 32
}
