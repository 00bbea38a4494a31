//! The command line: one file per subcommand.
//!
//! Results go to stdout, progress and messages to stderr. Exit codes: 0 done; 1 ran, but the goal was not met; 2 wrong
//! usage or environment. A reader that closes stdout early (`| head`) has what it wanted, so that is no error.
#![forbid(unsafe_code)]

mod audit;
mod cancel;
mod convert;
mod doctor;
mod guest;
mod migrate;
mod output;
mod pki;
mod policy;
mod predict;
mod profile;
mod progress;
mod qemu;
mod receive;
mod record;
mod replay;
mod report;
mod resolve;
mod security;
mod simulate;
mod state;
mod status;
mod tracking;
mod trust;
pub mod values;

use crate::{
    channel::ChannelError,
    control::ControlError,
    journal::JournalError,
    profile::{AnalyseError, ProfileError},
    push_order::PushOrderError,
    qemu::DriveError,
    replay::LogError,
    report::chain,
    trace::{TraceError, recording::RecordingError},
    trust::audit::AuditError,
    trust::pki::PkiError,
};
use clap::{Parser, Subcommand};
use std::{error::Error, ffi::OsString, io, path::PathBuf, process::ExitCode, time::Duration};

/// How long a process may take to answer a question.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Moves running virtual machines between hosts without stopping them, and shows what that cost.
#[derive(Debug, Parser)]
#[command(name = "dunlin", version, subcommand_required = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done; 1 ran, but the goal was not met; 2 wrong usage or environment; 130 ended by a signal."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what this host offers, what is missing, and how to get it.
    Doctor(doctor::Args),
    /// Start a guest and hold it until it halts or moves away.
    Guest(Box<guest::Args>),
    /// Wait for a guest, and hold it from its arrival on.
    Receive(receive::Args),
    /// Record which pages a running guest writes, into a trace file.
    Record(Box<record::Args>),
    /// Move a guest to another host while it runs.
    Migrate(migrate::Args),
    /// Stop the migration that is going on; the guest stays where it is.
    Cancel(cancel::Args),
    /// Show what a process is doing with its guest, or what it did last.
    Status(status::Args),
    /// Decide about a guest that waits between two hosts, when its other side cannot be reached.
    Resolve(resolve::Args),
    /// Check or show the log of who moved what, what was decided, and what came of it.
    Audit(audit::Args),
    /// Check who may move which guest by a policy.
    Policy(policy::Args),
    /// Show when a rule, or each of several, would have ended the pre-copy of a recorded log of rounds.
    Replay(replay::Args),
    /// Predict what each strategy would cost a recorded guest over each link, and say which one to take.
    Predict(Box<predict::Args>),
    /// Watch what a guest writes, report it, and predict what moving it would cost.
    Profile(Box<profile::Args>),
    /// Turn a trace of page writes into CSV or JSON lines, or anybody's into a trace.
    Convert(convert::Args),
    /// Show what recorded traces say of their guests, and migrations: tables, pictures, one page of HTML.
    Report(report::Args),
    /// Make the certificates that hosts know each other by, with an authority of one's own.
    Pki(pki::Args),
    /// Move the guests of stock QEMU (7.2 or newer), watch them being moved, or take a migration over.
    Qemu(qemu::Args),
    /// Simulate a migration in virtual time: what a strategy would cost for a workload and a link.
    Simulate(Box<simulate::Args>),
}

/// Why a command ends without its result.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// Arguments that fit their types, but not each other or this host.
    #[error("{0}")]
    Usage(String),

    /// The process that holds the guest.
    #[error(transparent)]
    Control(#[from] ControlError),

    /// The hand-over records.
    #[error(transparent)]
    Journal(#[from] JournalError),

    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),

    /// The guest, here.
    #[error(transparent)]
    Node(Box<dyn Error + Send + Sync>),

    /// A log of rounds.
    #[error("{name}")]
    Log {
        /// Its path, or what it is.
        name: String,
        source: LogError,
    },

    /// A trace of page writes.
    #[error(transparent)]
    Trace(#[from] TraceError),

    /// What a trace is to be analysed with.
    #[error(transparent)]
    Profile(#[from] ProfileError),

    /// A file that is neither a trace nor a report, or that cannot be read or written.
    #[error("cannot {what} {}", path.display())]
    File {
        /// In words.
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    /// Certificates and keys.
    #[error(transparent)]
    Pki(#[from] PkiError),

    /// The order of pages.
    #[error(transparent)]
    PushOrder(#[from] PushOrderError),

    /// A recording.
    #[error(transparent)]
    Recording(RecordingError),

    /// A migration between two QEMUs.
    #[error(transparent)]
    Qemu(#[from] DriveError),

    /// The system's signals.
    #[error("cannot catch signals")]
    Signals(#[source] io::Error),

    /// Standard output.
    #[error("cannot write the result: give stdout a place with room")]
    Output(#[source] io::Error),
}

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Control(error) => error.exit_code(),
            Self::Journal(_)
            | Self::Audit(_)
            | Self::Usage(_)
            | Self::Node(_)
            | Self::Log { .. }
            | Self::Profile(_)
            | Self::File { .. }
            | Self::Pki(_)
            | Self::PushOrder(_)
            | Self::Qemu(_)
            | Self::Signals(_) => 2,
            Self::Output(_) | Self::Trace(TraceError::Io { what: "write", .. }) => 1,
            Self::Trace(_) | Self::Recording(_) => 2,
        }
    }
}

impl From<RecordingError> for CliError {
    fn from(error: RecordingError) -> Self {
        match error {
            RecordingError::Control(error) => Self::Control(error),
            RecordingError::Trace(error) => Self::Trace(error),
            error => Self::Recording(error),
        }
    }
}

impl From<AnalyseError> for CliError {
    fn from(error: AnalyseError) -> Self {
        match error {
            AnalyseError::Trace(error) => error.into(),
            AnalyseError::Profile(error) => error.into(),
        }
    }
}

impl From<ChannelError> for CliError {
    fn from(error: ChannelError) -> Self {
        Self::Control(error.into())
    }
}

/// Runs the command with these arguments, the program's name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli.command,
        Err(error) => {
            // Help goes to stdout, where a closed pipe is no error; usage errors to stderr, where nothing better can be
            // done.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let result = match command {
        Command::Doctor(args) => args.run(),
        Command::Guest(args) => args.run(),
        Command::Receive(args) => args.run(),
        Command::Record(args) => args.run(),
        Command::Migrate(args) => args.run(),
        Command::Cancel(args) => args.run(),
        Command::Status(args) => args.run(),
        Command::Resolve(args) => args.run(),
        Command::Audit(args) => args.run(),
        Command::Policy(args) => args.run(),
        Command::Replay(args) => args.run(),
        Command::Convert(args) => args.run(),
        Command::Report(args) => args.run(),
        Command::Predict(args) => args.run(),
        Command::Profile(args) => args.run(),
        Command::Pki(args) => args.run(),
        Command::Qemu(args) => args.run(),
        Command::Simulate(args) => args.run(),
    };
    result.unwrap_or_else(|error| {
        output::message(&format!("error: {}", chain(&error)));
        ExitCode::from(error.exit_code())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_has_a_help_text() {
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
        }
    }
}
