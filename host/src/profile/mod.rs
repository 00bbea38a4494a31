//! What a trace of page writes says about its guest.
//!
//! An [`Analysis`] takes [`Item`](dunlin_core::tracefile::Item)s in one by one, from a file or from a guest that is being watched, and gives a
//! [`TraceReport`](crate::report::TraceReport) at any time. What is measured is measured by [`dunlin_core::pattern`]; here are the tables for it,
//! what needs a course over time, and the words. Memory depends on the guest's size only.
//!
//! Three sorts of sources are told apart ([`Resolution`](dunlin_core::tracefile::Resolution)), and what one cannot tell is left open:
//!
//! | | every write | first writes | windows |
//! |---|---|---|---|
//! | rate | distinct pages in windows of 1 ms to 10 s | the same in windows no shorter than a harvest | by harvest |
//! | working sets | exact | between bounds: a write that was not seen is at most a harvest later than one that was | exact for windows from harvest to harvest |
//! | re-dirty intervals | exact | none shorter than a harvest | whole harvests |
//! | order, class | of all writes | of first writes | unknown, or of first writes where each vCPU has a ring |
//! | vCPUs, sharing | yes | yes | where each vCPU has a ring |
#![forbid(unsafe_code)]

mod analysis;
mod frames;
mod harvest;
mod heat;
mod hot;
mod notes;
mod rate;
mod read;
mod report;
mod steps;
mod tables;
#[cfg(test)]
pub(crate) mod tests;
mod touch;

pub use analysis::Analysis;
pub use read::AnalyseError;
pub use tables::{ProfileError, Tables};
pub use touch::{Agreement, FirstTouch};
