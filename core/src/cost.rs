//! What a migration costs: closed forms for time, downtime and bytes, and the weight of a fault against a transfer.

mod alpha;

pub use alpha::{RoundCost, auto_alpha_milli};
