//! A process that holds a VM.

use super::options::{GuestOptions, ReceiveOptions};
use std::process::ExitCode;

/// Why a node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// This build has no runner.
    #[error("this build cannot run guests: use a newer one")]
    NoRunner,
}

/// Runs a guest until it has halted or moved away.
///
/// # Errors
/// [`NodeError`].
pub fn run_guest(_options: GuestOptions) -> Result<ExitCode, NodeError> {
    Err(NodeError::NoRunner)
}

/// Waits for a guest and runs it until it has halted or moved away.
///
/// # Errors
/// [`NodeError`].
pub fn run_receive(_options: ReceiveOptions) -> Result<ExitCode, NodeError> {
    Err(NodeError::NoRunner)
}
