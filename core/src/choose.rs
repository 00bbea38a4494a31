//! Choosing a method before a migration starts, and looking again while it runs.
//!
//! [`forecast`] plays a strategy in advance: a guest's [`Profile`](crate::pattern::Profile), a [`Link`] and [`Limits`] in; time,
//! downtime, bytes, rounds, faults and stall out, each with an interval. [`choose`] does so for every candidate and takes the best
//! by a [`Goal`]; its `Display` says which, by how much and why. [`Reviser`] goes along with the rounds and proposes another
//! strategy where they show that it would be better from here. [`shah_2015`] and [`AdaMig`] are how others choose.
//!
//! ```
//! use dunlin_core::choose::{CANDIDATES, Goal, Limits, Link, Uncertainty, choose};
//! use dunlin_core::pattern::{Profile, WwsCurve};
//! use dunlin_core::units::{BytesPerSec, Nanos, Pages};
//!
//! // 1 GiB, of which 10 000 pages are written in a second and no more than 20 000 at all, over 32 MB/s.
//! let curve = WwsCurve::new(&[
//!     (Nanos::from_secs(1), Pages(10_000)),
//!     (Nanos::from_secs(4), Pages(20_000)),
//!     (Nanos::from_secs(8), Pages(20_000)),
//! ])?;
//! let profile = Profile::new(Pages(1 << 18), Pages(1 << 18), curve, Nanos::from_secs(8), 2);
//! let link = Link::new(BytesPerSec(32_000_000));
//! let goal: Goal = "downtime<300ms".parse()?;
//! let choice = choose(&CANDIDATES, &profile, &link, &Limits::DEFAULT, &goal, Uncertainty::DEFAULT)?;
//! assert!(choice.to_string().starts_with("hybrid:2: 38.0 s (33.5 s to 43.7 s), 2.00 ms of downtime"), "{choice}");
//! assert!(choice.to_string().contains("precopy would not converge (λ of the load 1.28)"), "{choice}");
//! # Ok::<(), Box<dyn core::error::Error>>(())
//! ```
//!
//! # How near it comes
//! `cargo xtask bench choose` plays every candidate page by page on 180 loads (guests of 64 MiB that write 1/16 to all of their pages at
//! random, in a circle or mostly a tenth of them, 0.2 to 2 times as fast as the link sends; with and without storage), 1620
//! migrations. The likely time and bytes were 0.1 % off in the median. They were 39 % off at worst, where a rule that
//! compares rounds meets a plateau and so waits for chance; with `rounds:N` less than 5 %. 99.5 % stayed within the interval.
//! The choice cost at most 5 % more than the best candidate on 175 of the 180 loads (97 %), always `hybrid:1` on 76, Shah's rule on
//! 36; of the other five, most write in a circle, where it matters where in it the guest is.

mod baselines;
mod choice;
mod forecast;
mod goal;
mod revise;
mod setting;
#[cfg(test)]
mod tests;
mod walk;
mod words;

pub use baselines::{AdaMig, Step, shah_2015, small_for};
pub use choice::{CANDIDATES, Candidate, Choice, Keeps, candidates, choose};
pub use forecast::{Forecast, ForecastError, forecast};
pub use goal::{BOUNDS_MAX, Bound, Goal, GoalError, Metric, Weights};
pub use revise::{Reviser, Revision};
pub use setting::{Interval, Limits, Link, Uncertainty};
pub use walk::End;
pub use words::Name;
