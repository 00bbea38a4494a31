//! The deciding half of Dunlin.
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

pub mod cost;
pub mod order;
pub mod pageset;
pub mod pattern;
pub mod strategy;
pub mod switch;
pub mod units;
#[cfg(feature = "workload")]
pub mod workload;

pub mod message;
pub mod migrate;
#[cfg(feature = "wire")]
pub mod wire;
