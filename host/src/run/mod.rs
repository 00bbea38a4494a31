//! Runners: they feed the state machines of `dunlin-core` and carry out what these decide.

pub mod clock;
pub mod node;
pub mod options;

pub mod receive;
mod recorder;
mod recording;
mod result;
pub mod serve;
pub mod source;
pub mod target;
mod vm;

pub use clock::Clock;
pub(crate) use result::{is_forced, round_report, switch_report};
pub(crate) use source::ForesightMemory;

use crate::report::chain;

#[cfg(test)]
mod tests;
