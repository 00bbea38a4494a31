//! Peers that send nonsense, on either side of a migration, against real `dunlin` processes: a named error on both sides, no
//! memory beyond the limits, and afterwards the same process takes part in a real migration that verifies.

mod chain;
mod peer;
mod source;
mod target;
