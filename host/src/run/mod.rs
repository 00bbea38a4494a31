//! run

pub mod node;
pub mod options;
