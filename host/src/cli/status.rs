//! `dunlin status`

use super::{CliError, output, state};
use crate::{
    control::Client,
    journal::Reading,
    report::{Status, chain, status_lines},
};
use std::{path::Path, process::ExitCode};

/// `dunlin status` as typed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: state::Place,

    /// Show only the guest of this name
    #[arg(long, requires = "state")]
    name: Option<String>,

    /// Print one JSON object per guest
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        if let Some(control) = &self.place.control {
            self.show(&state::ask(control, Client::status)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let directory = self.place.state.as_deref().unwrap_or(Path::new("."));
        let mut all_readable = true;
        for listed in state::records(directory, self.name.as_deref())? {
            match listed.reading {
                Ok(reading) => self.show(&ask_or_read(&reading))?,
                Err(error) => {
                    output::message(&format!("error: {}", chain(&error)));
                    all_readable = false;
                }
            }
        }
        Ok(if all_readable {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(2)
        })
    }

    fn show(&self, status: &Status) -> Result<(), CliError> {
        if self.json {
            output::json(status)
        } else {
            output::result(&status_lines(status, output::paint()))
        }
    }
}

/// The living process knows more than its record.
fn ask_or_read(reading: &Reading) -> Status {
    let control = reading
        .record
        .as_ref()
        .and_then(|record| record.hand_over.control.as_deref());
    let asked = control
        .filter(|_| reading.held)
        .and_then(|control| state::ask(Path::new(control), Client::status).ok());
    asked.unwrap_or_else(|| state::status_of(reading))
}
