//! What a migration costs: closed forms for time, downtime, bytes and faults, and the weight of a fault against a transfer.
//!
//! | model | of what | by |
//! |---|---|---|
//! | [`LinearDirtying`] | pre-copy of a guest that dirties other pages all the time | the survey's equations (1) to (6), corrected |
//! | [`xen_forecast`] over [`AverageRate`] | Xen's pre-copy, such a guest | AVG of Akoush et al. 2010 |
//! | [`xen_forecast`] over [`History`] | Xen's pre-copy, a guest that does what it did before | HIST of Akoush et al. 2010 |
//! | [`rounds`] over a [`WwsCurve`](crate::pattern::WwsCurve) | pre-copy of a guest with a working set | ours: V(i + 1) = D(V(i) / B) |
//! | [`PostCopy`] | faults and stalls of post-copy | ours |
//! | [`RoundCost`], [`auto_alpha_milli`] | when another round is not worth it | ours, from F(n) of the 2017 paper |
//!
//! Forecasts of whole strategies, which ask the switch rules, are in `choose`.

mod alpha;
mod dirtied;
mod faults;
mod precopy;
mod survey;

pub use alpha::{RoundCost, auto_alpha_milli};
pub use dirtied::{Beyond, Dirtied};
pub use faults::{PostCopy, PostCopyCost};
pub use precopy::{
    AverageRate, Bounds, Dirtying, History, Overhead, Round, Rounds, XenForecast, rounds, xen_downtime_bounds,
    xen_forecast, xen_time_bounds,
};
pub use survey::LinearDirtying;
