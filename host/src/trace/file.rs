//! Trace files: written while a guest is recorded, read as a stream.
//!
//! The format is that of [`dunlin_core::tracefile`]. Both directions take the memory of a few frames, whatever the length.

mod error;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

pub use error::TraceError;
use error::seconds;
pub use reader::{Damage, Ending, TraceReader};
pub use writer::{TraceWriter, Written};
