//! What a trace of page writes says about the guest that made them.

mod curve;

pub use curve::{CurveError, POINTS_MAX, WwsCurve};
