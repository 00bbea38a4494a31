//! `dunlin resolve`

use super::{CliError, output, state};
use crate::{
    control::Resolution,
    journal::{HandOver, Journal, JournalError, Phase, Reading, Role},
    report::{Status, status_lines},
    trust::audit::{AuditLog, Entry, Event, FILE_NAME, Outcome, Place},
};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// `dunlin resolve` as typed.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "dunlin resolve (--control <SOCK> | --state <DIR>) (--run-here --other-side-is-dead | --give-up) [OPTIONS]"
)]
pub(super) struct Args {
    #[command(flatten)]
    place: state::Place,

    #[command(flatten)]
    decision: Decision,

    /// Run the guest here: I have made sure that the other side is dead
    ///
    /// If it is not, two copies of the guest run, and what they write to shared disks is lost.
    #[arg(long, requires = "run_here")]
    other_side_is_dead: bool,

    /// Put it on record in this audit log, if its process is dead [default: audit.jsonl in the state directory, if there is one]
    #[arg(long, value_name = "FILE", requires = "state")]
    audit: Option<PathBuf>,

    /// Decide about the guest of this name, where the state directory has several
    #[arg(long, requires = "state")]
    name: Option<String>,

    /// Print the status after it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Decision {
    /// Run the guest on this host
    #[arg(long, requires = "other_side_is_dead")]
    run_here: bool,

    /// Give the guest up on this host: it runs on the other one, or nowhere
    #[arg(long)]
    give_up: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let resolution = if self.decision.run_here {
            Resolution::RunHere
        } else {
            Resolution::GiveUp
        };
        let status = match &self.place.control {
            Some(control) => ask(control, resolution)?,
            None => {
                let directory = self.place.state.as_deref().unwrap_or(Path::new("."));
                by_record(directory, self.name.as_deref(), self.audit, resolution)?
            }
        };
        if self.json {
            output::json(&status)?;
        } else {
            output::result(&status_lines(&status, output::paint()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn ask(control: &Path, resolution: Resolution) -> Result<Status, CliError> {
    state::ask(control, |client, wait| client.resolve(resolution, wait))
}

/// Decides about the only VM of a state directory, or the one of that name.
fn by_record(
    directory: &Path,
    name: Option<&str>,
    audit: Option<PathBuf>,
    resolution: Resolution,
) -> Result<Status, CliError> {
    let mut listed = state::records(directory, name)?;
    let chosen = listed.pop().filter(|_| listed.is_empty()).ok_or_else(|| {
        CliError::Usage(format!(
            "{} has the records of several guests: say which with --name",
            directory.display()
        ))
    })?;
    let reading = chosen.reading?;
    if reading.held {
        return ask(&control_of_holder(directory, &reading)?, resolution);
    }
    match resolution {
        Resolution::GiveUp => {
            let audit = audit.or_else(|| Some(directory.join(FILE_NAME)).filter(|log| log.exists()));
            give_up(directory, &reading.vm_name, audit.as_deref())
        }
        Resolution::RunHere => Err(CliError::Usage(format!(
            "the process that held the memory of {:?} has ended, so nothing is left to run here: start the guest again, \
             or clear the record with --give-up",
            reading.vm_name
        ))),
    }
}

fn control_of_holder(directory: &Path, reading: &Reading) -> Result<PathBuf, CliError> {
    let control = reading
        .record
        .as_ref()
        .and_then(|record| record.hand_over.control.clone());
    control.map(PathBuf::from).ok_or_else(|| {
        let holder = reading
            .holder
            .map_or("a process".into(), |pid| format!("process {pid}"));
        CliError::Usage(format!(
            "{holder} holds {:?} of {} and can only be asked at its control socket: use --control",
            reading.vm_name,
            directory.display()
        ))
    })
}

/// Ends the record of a dead process in a way that nobody takes for a VM in between.
fn give_up(directory: &Path, vm_name: &str, audit: Option<&Path>) -> Result<Status, CliError> {
    let mut journal = Journal::open(directory, vm_name)?;
    let last = journal
        .last()
        .ok_or_else(|| JournalError::NoRecord(directory.into()))?
        .hand_over
        .clone();
    let phase = match last.role {
        Role::Source => Phase::MovedAway,
        Role::Target => Phase::Aborted,
    };
    let audit = audit.map(AuditLog::open).transpose()?;
    let say = |event, place, outcome| {
        let entry = Entry {
            guest: Some(vm_name.to_owned()),
            outcome,
            reason: Some("given up by hand: its process is dead".into()),
            ..Entry::new(event, last.role, last.vm_id, last.session).at(place)
        };
        audit.as_ref().map_or(Ok(()), |audit| audit.append(entry))
    };
    // As everywhere: the log says before and after what the record says in between.
    say(Event::Decision, Place::Between, None)?;
    let record = journal.write(HandOver { phase, ..last.clone() })?.clone();
    say(Event::Outcome, Place::Elsewhere, Some(Outcome::GivenUp))?;
    let reading = Reading {
        vm_name: vm_name.into(),
        record: Some(record),
        held: false,
        holder: None,
    };
    Ok(state::status_of(&reading))
}
