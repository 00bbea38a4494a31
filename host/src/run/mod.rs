//! Runners: they feed the state machines of `dunlin-core` and carry out what these decide.

pub mod clock;
pub mod node;
pub mod options;

pub mod receive;
mod recorder;
mod result;
pub mod serve;
pub mod source;
pub mod target;
mod vm;

pub use clock::Clock;

use std::error::Error;

/// An error with its causes, outermost first, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Transparent wrappers say the same twice.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
