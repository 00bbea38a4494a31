//! Runners: they feed the state machines of `dunlin-core` and carry out what these decide.

pub mod clock;
mod confine;
mod guard;
pub mod node;
pub mod notary;
pub mod options;

mod permit;
pub mod receive;
mod recorder;
mod recording;
mod result;
pub mod serve;
pub mod source;
pub mod target;
mod vm;

pub use clock::Clock;
pub(crate) use result::{is_forced, round_report, switch_report};
pub(crate) use source::ForesightMemory;

use crate::report::chain;
use crate::storage::SealKey;
use crate::trust::Session;

/// What both ends of a session seal with what they put into a directory that others can read.
fn seal_key(session: &Session) -> SealKey {
    SealKey::new(session.key("storage"))
}

#[cfg(test)]
mod tests;
