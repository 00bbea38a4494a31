//! `dunlin audit`

use super::{CliError, output};
use crate::{
    report::{audit_lines, audit_table},
    trust::audit::{self, Disagreement, Report},
};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// `dunlin audit` as typed.
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Check that nothing in an audit log was edited, removed or moved, and say where first if it was.
    ///
    /// The chain of hashes shows every change before the last line. It has no secret: whoever may write the file can cut its end off, or write
    /// another from the beginning. Keep the head that this prints elsewhere, and give it as --head later: then both show. Signatures
    /// under commit records are checked, too. Exit code 0: whole; 1: not.
    Verify(VerifyArgs),
    /// Show an audit log as a table.
    Show(ShowArgs),
}

#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// The audit log
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// A head that was printed before and kept elsewhere: it must still be in the log
    #[arg(long, value_name = "HASH", value_parser = hash)]
    head: Option<String>,

    /// Compare it with the hand-over records in this directory: do they say the same about where the guests are?
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The audit log
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Show only what concerns the guest of this name
    #[arg(long)]
    name: Option<String>,

    /// Print its records as JSON lines
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    whole: bool,
    #[serde(flatten)]
    report: &'a Report,
    /// In words.
    wrong: Option<String>,
    /// Guests that are in the hand-over records, too, if they were compared.
    compared: Option<usize>,
    disagreements: &'a [Disagreement],
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        match self.command {
            Command::Verify(args) => args.run(),
            Command::Show(args) => args.run(),
        }
    }
}

impl VerifyArgs {
    fn run(self) -> Result<ExitCode, CliError> {
        let report = audit::verify(&self.file, self.head.as_deref())?;
        let compared = match &self.state {
            Some(directory) => Some(compared(&self.file, directory)?),
            None => None,
        };
        let (both, disagreements) = compared.map_or((None, Vec::new()), |(both, found)| (Some(both), found));
        let whole = report.problem.is_none() && report.signatures.bad == 0;
        if self.json {
            output::json(&Document {
                schema: "dunlin.audit-verification.v1",
                whole,
                wrong: report.problem.as_ref().map(ToString::to_string),
                report: &report,
                compared: both,
                disagreements: &disagreements,
            })?;
        } else {
            output::result(&audit_lines(&report, both, &disagreements, output::paint()))?;
        }
        Ok(ExitCode::from(u8::from(!whole || !disagreements.is_empty())))
    }
}

impl ShowArgs {
    fn run(self) -> Result<ExitCode, CliError> {
        let (mut records, report) = audit::read(&self.file)?;
        if let Some(name) = &self.name {
            records.retain(|record| record.entry.guest.as_ref() == Some(name));
        }
        if self.json {
            for record in &records {
                if !output::offer_json(record)? {
                    break;
                }
            }
        } else {
            output::result(&audit_table(&records))?;
        }
        let Some(problem) = report.problem else {
            return Ok(ExitCode::SUCCESS);
        };
        output::message(&format!(
            "error: this log is not whole, and this is only what comes before: {problem}"
        ));
        Ok(ExitCode::from(1))
    }
}

fn compared(file: &Path, directory: &Path) -> Result<(usize, Vec<Disagreement>), CliError> {
    audit::against_journals(file, directory).map_err(CliError::Node)
}

fn hash(text: &str) -> Result<String, &'static str> {
    let fits = text.len() == 64
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    match fits {
        true => Ok(text.to_owned()),
        false => Err("not a head: it has 64 digits from 0 to f, as `dunlin audit verify` prints it"),
    }
}
