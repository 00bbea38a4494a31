#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]
#![deny(clippy::float_arithmetic)]
// clippy.toml names f32 and f64.
#![cfg_attr(not(test), deny(clippy::disallowed_types))]
#![cfg_attr(
    test,
    expect(clippy::disallowed_types, reason = "tests compare with floating-point models")
)]

#[cfg(test)]
extern crate std;

pub mod choose;
pub mod control;
pub mod cost;
pub mod order;
pub mod pageset;
pub mod pattern;
pub mod predict;
#[cfg(feature = "record")]
pub mod record;
pub mod steer;
pub mod strategy;
pub mod switch;
#[cfg(feature = "tracefile")]
pub mod tracefile;
pub mod units;
#[cfg(feature = "workload")]
pub mod workload;

pub mod message;
pub mod migrate;
#[cfg(feature = "wire")]
pub mod wire;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_the_readme_says() {
        let per_gib = pageset::words_needed(units::Pages(1 << 18)) * 8;
        assert_eq!(per_gib * 10 / 1024, 325, "32.5 KiB per GiB");
        assert!(size_of::<migrate::Source<'_>>() < 4 << 10);
        assert!(size_of::<migrate::Target<'_>>() < 1 << 10);
    }
}
