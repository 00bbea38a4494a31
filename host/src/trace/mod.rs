//! Traces of page writes: files of them, texts of other programs, and which of them a file is.

mod any;
mod file;
pub mod recording;
pub mod text;

pub use any::{AnyReader, AnyWriter, Assumed, FileFormat};
pub use file::{Damage, Ending, TraceError, TraceReader, TraceWriter, Written};
