//! `dunlin cancel`

use super::{CliError, output, state};
use crate::{control::Client, report::status_lines};
use std::{path::PathBuf, process::ExitCode};

/// `dunlin cancel` as typed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ask the process that serves this control socket
    #[arg(long, value_name = "SOCK")]
    control: PathBuf,

    /// Print the status after it as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let status = state::ask(&self.control, Client::cancel)?;
        if self.json {
            output::json(&status)?;
        } else {
            output::result(&status_lines(&status, output::paint()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
