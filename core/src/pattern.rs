//! What a trace of page writes says about the guest that made them.
//!
//! Two sources feed it: single writes with their times ([`Intervals`]), and dirty bitmaps harvested every so often
//! ([`Samples`]). Both give the whole writable-working-set curve from one pass, without trying windows one by one.
//!
//! ```
//! use dunlin_core::pattern::Intervals;
//! use dunlin_core::units::{Gfn, Nanos, Pages};
//!
//! let mut table = [0; 8];
//! let mut intervals = Intervals::new(&mut table, Nanos::ZERO);
//! for time in 0..1000 {
//!     intervals.on_write(Gfn(time % 4), Nanos(time))?; // pages 0, 1, 2, 3, 0, …
//! }
//! let curve = intervals.working_sets(Nanos(1000)).curve();
//! assert_eq!(curve.pages_in(Nanos(2)), Pages(2));
//! assert_eq!(curve.pages_in(Nanos(500)), Pages(4));
//! # Ok::<(), dunlin_core::pattern::OutsideTable>(())
//! ```

mod access;
mod class;
mod curve;
mod heat;
mod histogram;
mod intervals;
mod profile;
mod profiler;
mod samples;
mod sharing;
#[cfg(test)]
mod tests;
mod workload_class;

pub use access::{AccessOrder, NoTrail, Trail};
pub use class::AccessClass;
pub use curve::{CurveError, POINTS_MAX, WwsCurve};
pub use heat::HeatSlot;
pub use histogram::IntervalHistogram;
pub use intervals::{Intervals, OutsideTable, WorkingSets, distinct_in_all_windows};
pub use profile::Profile;
pub use profiler::{Profiler, ProfilerError, ProfilerTables};
pub use samples::Samples;
pub use sharing::Sharing;
pub use workload_class::{Access, Counters, Intensity, WorkloadClass};
