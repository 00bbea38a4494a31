//! What a trace of page writes says about the guest that made them.

mod class;
mod curve;
mod profile;

pub use class::AccessClass;
pub use curve::{CurveError, POINTS_MAX, WwsCurve};
pub use profile::Profile;
