//! Traces of page writes: seeing them in the kernel, files of them, texts of other programs.

mod any;
pub mod ebpf;
mod file;
pub mod foreign;
pub mod ladder;
pub mod recording;
pub mod text;

pub use any::{AnyReader, AnyWriter, Assumed, FileFormat};
pub use file::{Damage, Ending, TraceError, TraceReader, TraceWriter, Written};
