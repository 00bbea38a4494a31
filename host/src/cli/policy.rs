//! `dunlin policy`

use super::{CliError, output, values};
use crate::{
    report::bytes,
    trust::{
        Name, Peer,
        policy::{Allowance, DEFAULT_FILE, Direction, Policy, Request, Verdict},
    },
};
use dunlin_core::units::Bytes;
use serde::Serialize;
use std::{path::PathBuf, process::ExitCode};

/// `dunlin policy` as typed.
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Check a policy, and say what it decides about a migration.
    ///
    /// Exit code 0: the policy is fine, and allows what was asked; 1: it refuses that; 2: it is broken, and refuses everything.
    Check(CheckArgs),
    /// Let another host send guests here, take guests from here, or both, and say so in the policy of this host.
    ///
    /// A rule is added behind those there are; the first that fits decides. A policy that is not there is made, with a rule by which
    /// processes of this host may do what they may without one. It counts from the next migration on.
    Allow(AllowArgs),
}

#[derive(Debug, clap::Args)]
struct AllowArgs {
    /// The other host, as its certificate names it; one * at the beginning or the end stands for anything; anyone for plain connections,
    /// too
    #[arg(value_name = "PEER")]
    peer: String,

    /// Only guests of this name; one * as above
    #[arg(long, value_name = "NAME")]
    guest: Option<String>,

    /// Only guests that come to this host, or only those that leave it
    #[arg(long, value_enum)]
    direction: Option<Way>,

    /// Only guests with no more memory
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,

    /// No more than N at once
    #[arg(long, value_name = "N")]
    migrations: Option<u32>,

    /// No faster than that
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<String>,

    /// The policy
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE)]
    policy: PathBuf,
}

#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// The policy
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// The other side: the identity of its certificate, local for a process of this host, or unknown for a plain connection from another
    #[arg(long, requires_all = ["guest", "direction"])]
    peer: Option<String>,

    /// The guest's name
    #[arg(long, requires_all = ["peer", "direction"])]
    guest: Option<String>,

    /// The guest's memory
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = values::size, requires = "peer")]
    memory: Bytes,

    /// Whether the guest comes to this host or leaves it
    #[arg(long, value_enum, requires_all = ["peer", "guest"])]
    direction: Option<Way>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Way {
    In,
    Out,
}

#[derive(Serialize)]
struct Document {
    schema: &'static str,
    rules: usize,
    allowed: Option<bool>,
    /// The number of the rule that decided, from 1.
    rule: Option<usize>,
    /// The line it begins in.
    line: Option<usize>,
    /// The verdict in words.
    verdict: Option<String>,
    /// The limits of the rule that allows it.
    memory: Option<u64>,
    migrations: Option<u32>,
    bandwidth: Option<u64>,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        match self.command {
            Command::Check(args) => args.run(),
            Command::Allow(args) => args.run(),
        }
    }
}

impl AllowArgs {
    fn run(self) -> Result<ExitCode, CliError> {
        let peer = written(&self.peer)?;
        let allowance = Allowance {
            peer: &peer,
            guest: self.guest.as_deref(),
            direction: self.direction.map(Way::direction),
            memory: self.memory.as_deref(),
            migrations: self.migrations,
            bandwidth: self.bandwidth.as_deref(),
        };
        let policy = allowance
            .add_to(&self.policy)
            .map_err(|error| CliError::Node(error.into()))?;
        let rules = policy.rules().map_or(0, <[_]>::len);
        output::result(&format!(
            "rule {rules} of {}:\n{}",
            self.policy.display(),
            allowance.text()
        ))?;
        let before: Vec<String> = policy.before_last().map(ToString::to_string).collect();
        if !before.is_empty() {
            output::message(&format!(
                "note: {} before it may fit the same migrations, and then decides about them",
                before.join(", ")
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The name of a peer as certificates have it; patterns and words stay as they are.
fn written(peer: &str) -> Result<String, CliError> {
    if peer.contains('*') || matches!(peer, "local" | "anyone") {
        return Ok(peer.to_owned());
    }
    let name: Name = peer
        .parse()
        .map_err(|error| CliError::Usage(format!("no certificate has the name {peer:?}: {error}")))?;
    Ok(name.as_str().to_owned())
}

impl Way {
    const fn direction(self) -> Direction {
        match self {
            Self::In => Direction::In,
            Self::Out => Direction::Out,
        }
    }
}

impl CheckArgs {
    fn run(self) -> Result<ExitCode, CliError> {
        let policy = Policy::load(Some(&self.file)).map_err(|error| CliError::Node(error.into()))?;
        let peer = self.peer.as_deref().map(|peer| match peer {
            "local" => Peer::new(true, None),
            "unknown" => Peer::new(false, None),
            identity => Peer::new(false, Some(identity)),
        });
        let verdict = match (&peer, &self.guest, self.direction) {
            (Some(peer), Some(guest), Some(direction)) => Some(policy.decide(&Request {
                direction: direction.direction(),
                peer,
                guest,
                memory: self.memory,
            })),
            _ => None,
        };
        let rules = policy.rules().map_or(0, <[_]>::len);
        if self.json {
            output::json(&document(rules, verdict.as_ref()))?;
        } else {
            output::result(&words(rules, verdict.as_ref()))?;
        }
        let refused = verdict.is_some_and(|verdict| !verdict.is_allowed());
        Ok(ExitCode::from(u8::from(refused)))
    }
}

fn document(rules: usize, verdict: Option<&Verdict<'_>>) -> Document {
    let limits = verdict.map(Verdict::limits).unwrap_or_default();
    let rule = verdict.and_then(Verdict::rule);
    Document {
        schema: "dunlin.policy-check.v1",
        rules,
        allowed: verdict.map(Verdict::is_allowed),
        rule: rule.map(|rule| rule.number),
        line: rule.map(|rule| rule.line),
        verdict: verdict.map(ToString::to_string),
        memory: limits.memory.map(|memory| memory.0),
        migrations: limits.migrations,
        bandwidth: limits.bandwidth.map(|bandwidth| bandwidth.0),
    }
}

fn words(rules: usize, verdict: Option<&Verdict<'_>>) -> String {
    let Some(verdict) = verdict else {
        return format!("fine: {rules} rules\n");
    };
    let mut text = format!("{verdict}\n");
    let limits = verdict.limits();
    let mut limit = |what: &str, value: Option<String>| {
        if let Some(value) = value {
            text += &format!("  {what} {value}\n");
        }
    };
    limit("memory at most", limits.memory.map(|memory| bytes(memory.0)));
    limit(
        "migrations at once at most",
        limits.migrations.map(|most| most.to_string()),
    );
    limit(
        "bandwidth at most",
        limits.bandwidth.map(|bandwidth| crate::report::rate(bandwidth.0)),
    );
    text
}
