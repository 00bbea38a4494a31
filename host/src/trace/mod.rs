//! Traces of page writes.

mod file;

pub use file::{Damage, Ending, TraceError, TraceReader, TraceWriter, Written};
