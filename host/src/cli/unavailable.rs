//! Options of the command line's contract that nothing in this version can honour. Ignoring them would be a lie, so
//! they are refused by name.

use super::CliError;

/// For `migrate`.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Choice {
    #[arg(long, hide = true)]
    goal: Option<String>,
}

impl Choice {
    /// # Errors
    /// [`CliError::Usage`] when any of them is given.
    pub(super) fn refuse(&self) -> Result<(), CliError> {
        refuse("--goal", &self.goal, "no strategy of this version chooses by a goal")
    }
}

fn refuse(option: &str, value: &Option<String>, reason: &str) -> Result<(), CliError> {
    match value {
        Some(_) => Err(CliError::Usage(format!(
            "{option} cannot be used: {reason}; leave it out"
        ))),
        None => Ok(()),
    }
}
