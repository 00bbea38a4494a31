//! The deciding half of Dunlin.
#![no_std]
#![forbid(unsafe_code)]
#![deny(clippy::float_arithmetic)]

#[cfg(test)]
extern crate std;

pub mod pageset;
pub mod strategy;
pub mod switch;
pub mod units;
#[cfg(feature = "workload")]
pub mod workload;

pub mod message;
pub mod migrate;
#[cfg(feature = "wire")]
pub mod wire;
