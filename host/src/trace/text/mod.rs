//! Traces as text, for other programs: CSV and JSON lines.
//!
//! Both say the same with the same names. What [`TextWriter`] writes, [`TextReader`] reads back exactly; and it reads what other
//! programs write, as long as it has a time and a page.
//!
//! # CSV
//!
//! A header that names the columns, in any order, then a line for every item. Values may stand in quotation marks.
//!
//! | column | of | |
//! |---|---|---|
//! | `kind` | all | `write`, `dirty`, `window-end`, `lost`, `steps` or `end`; without the column or a value it is a write |
//! | `at_ns`, `at_us`, `at_ms` or `at_s` | all but `dirty` | when; but for `at_ns` it may have a decimal point, and is rounded down to whole nanoseconds |
//! | `vcpu` | `write`, `window-end`, `steps` | counted from 0; unknown without one |
//! | `gfn` or `address` | `write`, `dirty` | page number, or an address of a byte in it; decimal, or hexadecimal with `0x` |
//! | `pages` | `dirty`, `write` | length of the run, 1 without one; of a write 1 |
//! | `value` | `lost`, `steps`, `end` | how many; of `end` the overhead in nanoseconds, 0 without one |
//!
//! Lines that begin with `#` are comments. Before the header they may say what a trace says of itself, see
//! [`Head`](dunlin_core::tracefile::Head):
//!
//! ```text
//! # dunlin.trace.v1
//! # source=ebpf:kvm_dirty_ring_push
//! # regions=0+262144 1048576+786432
//! # used_pages=1000000
//! # vcpus=4
//! # window_ns=0
//! # started_unix_ns=1790000000000000000
//! # guest="web-1"
//! kind,at_ns,vcpu,gfn,pages,value
//! write,20000,0,17,,
//! end,1000000000,,,,0
//! ```
//!
//! All of these may be left out. Where `dunlin.trace.v1` is, times count from the start of the trace; where it is not, from its first
//! time, so that they may be of any clock.
//!
//! # JSON lines
//!
//! An object a line, whose keys are the columns above; a number may be a text, too. The first line may say what the comments do:
//!
//! ```text
//! {"schema":"dunlin.trace.v1","source":"imported","regions":[[0,262144]],"used_pages":262144,"vcpus":4,"window_ns":0,"started_unix_ns":0,"guest":"web-1"}
//! {"kind":"write","at_ns":20000,"vcpu":0,"gfn":17}
//! {"at_us":20.5,"address":"0x12f40"}
//! ```

mod csv;
mod error;
mod json;
mod lines;
mod reader;
mod row;
mod said;
mod writer;

#[cfg(test)]
mod tests;

pub use error::{Fault, Field, Place, TextError};
pub use reader::TextReader;
pub use said::{Said, Survey, one_region};
pub use writer::TextWriter;

/// How a text is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TextFormat {
    /// A header and lines of values.
    Csv,
    /// A JSON object a line.
    JsonLines,
}

/// What a text that says when its times begin says first.
const SCHEMA: &str = "dunlin.trace.v1";
