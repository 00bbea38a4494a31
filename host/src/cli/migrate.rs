//! `dunlin migrate`: a client of the process that holds the guest.

use super::{
    ANSWER_PATIENCE, CliError, output,
    progress::ProgressView,
    security::SecurityArgs,
    values::{self, Micros},
};
use crate::{
    channel::{Address, Cancel, ChannelError, Wait},
    control::{Client, ControlError, Event, MigrateRequest},
    push_order::split_file,
    report::{MigrationReport, migration_table},
    trust::Name,
};
use dunlin_core::{
    choose::{Goal, GoalError},
    strategy::{Strategy, StrategyError},
    units::BytesPerSec,
};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

/// `dunlin migrate` as typed.
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct Args {
    /// Ask the process that serves this control socket
    #[arg(long, value_name = "SOCK")]
    control: PathBuf,

    /// Where `dunlin receive` listens: host:port or unix:PATH
    #[arg(long, value_name = "ADDR")]
    to: Address,

    #[command(flatten)]
    security: SecurityArgs,

    /// Whom the target's certificate must name, by DNS name or URI [default: the host in --to]
    #[arg(long, value_name = "NAME")]
    peer: Option<Name>,

    /// How to move: precopy, postcopy, hybrid:N, pa-hybrid, another preset, a composition, or auto
    ///
    /// Presets: precopy, postcopy, hybrid:N, dyn-hybrid, heuristic-hybrid, as-hybrid, par-migrate, pa-hybrid, markov-sdf:A.
    ///
    /// auto observes the guest, forecasts what each strategy would cost, takes the best one for --goal, and another one on the
    /// way where the rounds show that it is better from there.
    ///
    /// A composition is key=value,…, possibly after a preset: hybrid:2,cut=fail. Keys: first, filter, switch, push, cut, slow,
    /// clear, hold, split; a wrong value is answered with those there are. push=recorded:FILE goes by a file of --record-order, or by a trace.
    #[arg(long, value_name = "PRESET|COMPOSITION", value_parser = strategy)]
    strategy: String,

    /// A directory that the target's host mounts, too, for strategies that copy in parallel
    ///
    /// With it, every strategy that can enter post-copy also survives the end of the network there (cut=both) unless it says
    /// otherwise: what the guest lacks is written to the directory as well.
    #[arg(long, value_name = "DIR")]
    storage: Option<PathBuf>,

    /// Limit for what is written there [default: unlimited]
    #[arg(long, value_name = "RATE", requires = "storage", value_parser = values::rate, allow_hyphen_values = true)]
    storage_bandwidth: Option<BytesPerSec>,

    /// What --strategy auto is to choose by [default: downtime<DOWNTIME]
    ///
    /// Bounds such as downtime<300ms or bytes<2GiB, and weighted:time=1,downtime=10,bytes=1, separated by commas.
    #[arg(long, value_name = "GOAL", value_parser = goal)]
    goal: Option<String>,

    /// Limit for all bytes on the network [default: unlimited]
    ///
    /// Pages that the guest waits for in post-copy never wait for it; what follows makes up for them.
    #[arg(long, value_name = "RATE", value_parser = values::rate, allow_hyphen_values = true)]
    bandwidth: Option<BytesPerSec>,

    /// The longest pause that pre-copy aims at [default: 300ms, or what --goal allows if that is less]
    #[arg(long, value_name = "TIME", value_parser = values::positive_time, allow_hyphen_values = true)]
    downtime: Option<Micros>,

    /// The most rounds of pre-copy; after them the guest is paused however much is dirty
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    max_rounds: u32,

    /// The shortest round of pre-copy: one that is done earlier waits for more pages to get dirty
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = values::time, allow_hyphen_values = true)]
    min_round: Micros,

    /// How long to observe the guest before anything is copied, for strategies that look ahead [default: 8s]
    ///
    /// These are the ones with a filter or push=forecast, and auto [default: as long as one copy of all memory takes at --bandwidth, at
    /// least 2s and at most 8s]. More than 8 s is of no use to markov, which remembers as much.
    #[arg(long, value_name = "TIME", value_parser = values::time, allow_hyphen_values = true)]
    profile: Option<Micros>,

    /// How long the network may be silent before it counts as cut
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = values::positive_time, allow_hyphen_values = true)]
    network_timeout: Micros,

    /// How long the agent in the guest may take to say which pages need not move; 0s asks nobody
    ///
    /// Pages that it calls free are not sent: they are zero on the target until the guest uses them. The copy begins when it has said all, or after
    /// this time. A guest of `dunlin guest` has an agent if its pages have a life (--workload …,life=N).
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = values::time, allow_hyphen_values = true)]
    hint_timeout: Micros,

    /// Compare both memories, page by page, after completion
    #[arg(long)]
    verify: bool,

    /// Write the order in which the guest needs pages in post-copy to this file, for push=recorded:FILE later
    #[arg(long, value_name = "FILE")]
    record_order: Option<PathBuf>,

    /// Send pages without checksums
    #[arg(long)]
    no_checksum: bool,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let protection = self.security.protect(&self.to)?;
        if self.peer.is_some() && protection.tls_dir.is_none() {
            return Err(CliError::Usage(
                "--peer says whom a certificate must name, and in plain there is none: add --tls-dir, or leave --peer out".into(),
            ));
        }
        let interrupt = catch_signals()?;
        let mut client = Client::connect(&self.control, Wait::within(ANSWER_PATIENCE, &interrupt))?;
        client.start_migration(&self.request(), Wait::within(ANSWER_PATIENCE, &interrupt))?;
        let mut view = ProgressView::new();
        let ended = follow(&mut client, &self.control, &interrupt, &mut view);
        view.finish();
        let report = ended?;
        if self.json {
            output::json(&report)?;
        } else {
            output::result(&migration_table(&report, output::paint()))?;
        }
        Ok(if report.is_success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn request(&self) -> MigrateRequest {
        let (strategy, push_order) = split_file(&self.strategy);
        let protection = self.security.protection(&self.to);
        MigrateRequest {
            tls_dir: protection.tls_dir,
            insecure: protection.insecure,
            peer: self.peer.clone(),
            goal: self.goal.clone(),
            bandwidth: self.bandwidth.map(|BytesPerSec(rate)| rate),
            storage: self.storage.clone().map(absolute),
            storage_bandwidth: self.storage_bandwidth.map(|BytesPerSec(rate)| rate),
            push_order: push_order.map(absolute),
            record_order: self.record_order.clone().map(absolute),
            downtime_us: values::downtime(
                self.downtime,
                self.goal.as_deref().and_then(|goal| goal.parse().ok()).as_ref(),
            )
            .0,
            max_rounds: self.max_rounds,
            min_round_us: self.min_round.0,
            profile_us: self.profile.map(|Micros(micros)| micros),
            network_timeout_us: self.network_timeout.0,
            hint_timeout_us: self.hint_timeout.0,
            verify: self.verify,
            checksum: !self.no_checksum,
            ..MigrateRequest::new(self.to.clone(), strategy)
        }
    }
}

/// The process that holds the guest may have another working directory.
pub(super) fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// Why a text is not what `--strategy` takes.
#[derive(Debug, thiserror::Error)]
enum StrategyTextError {
    #[error("auto chooses every part of the strategy itself: write auto alone")]
    PartOfAuto,
    #[error("{0}; or auto")]
    Unknown(StrategyError),
    #[error("{0}")]
    Strategy(StrategyError),
}

/// The text as it was given, if it is a strategy or leaves it open.
fn strategy(text: &str) -> Result<String, StrategyTextError> {
    if text == "auto" {
        return Ok(text.to_owned());
    }
    if text.starts_with("auto,") {
        return Err(StrategyTextError::PartOfAuto);
    }
    match Strategy::parse(&split_file(text).0) {
        Ok(_) => Ok(text.to_owned()),
        Err(error @ (StrategyError::UnknownPreset { .. } | StrategyError::Empty)) => {
            Err(StrategyTextError::Unknown(error))
        }
        Err(error) => Err(StrategyTextError::Strategy(error)),
    }
}

/// The text as it was given, if it is a goal.
fn goal(text: &str) -> Result<String, GoalError> {
    text.parse::<Goal>().map(|_| text.to_owned())
}

/// A flag that Ctrl-C and a polite kill raise.
pub(super) fn catch_signals() -> Result<Cancel, CliError> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&flag)).map_err(CliError::Signals)?;
    }
    Ok(Cancel::from(flag))
}

/// Shows progress until the migration is over. The first interrupt cancels it, a second one leaves it alone.
fn follow(
    client: &mut Client,
    control: &Path,
    interrupt: &Cancel,
    view: &mut ProgressView,
) -> Result<MigrationReport, CliError> {
    let mut cancelled = false;
    loop {
        match client.next_event(Wait::forever(interrupt)) {
            Ok(Event::Progress(progress)) => view.show(&progress),
            Ok(Event::Done(report)) => return Ok(*report),
            Err(ControlError::Channel(ChannelError::Cancelled)) if !cancelled => {
                interrupt.lower();
                cancelled = true;
                view.message("cancelling; interrupt again to leave the migration to itself");
                match cancel(control, interrupt) {
                    // Too late, or over already: its report tells.
                    Err(CliError::Control(ControlError::Failed(failure))) => view.message(&failure.message),
                    Err(CliError::Control(ControlError::Channel(ChannelError::Cancelled))) => {
                        return Err(left_alone(control));
                    }
                    result => result?,
                }
            }
            Err(ControlError::Channel(ChannelError::Cancelled)) => return Err(left_alone(control)),
            Err(error) => return Err(error.into()),
        }
    }
}

fn left_alone(control: &Path) -> CliError {
    let control = control.display();
    let message = format!("the migration is left to itself: `dunlin status --control {control}` shows how it goes");
    ControlError::failed(message).into()
}

/// Asks for the cancellation over another connection: this one waits for the report.
fn cancel(control: &Path, interrupt: &Cancel) -> Result<(), CliError> {
    let wait = Wait::within(ANSWER_PATIENCE, interrupt);
    Client::connect(control, wait)?.cancel(wait)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Command};
    use super::*;
    use clap::Parser;

    fn request(arguments: &str) -> MigrateRequest {
        let fixed = [
            "dunlin",
            "migrate",
            "--control",
            "sock",
            "--to",
            "localhost:7",
            "--strategy",
            "hybrid:2,cut=fail",
        ];
        match Cli::try_parse_from(fixed.into_iter().chain(arguments.split_whitespace()))
            .unwrap()
            .command
        {
            Command::Migrate(args) => args.request(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_protocol() {
        assert_eq!(
            request(""),
            MigrateRequest::new("localhost:7".parse().unwrap(), "hybrid:2,cut=fail")
        );
    }

    #[test]
    fn every_option_arrives() {
        let given = request(
            "--tls-dir /tls --peer host-b --goal time<9s --record-order /o --bandwidth 32MB/s --downtime 50ms --max-rounds 5 --min-round 0s --profile 500ms --network-timeout 10s --hint-timeout 0s --verify --no-checksum",
        );
        let expected = MigrateRequest {
            tls_dir: Some("/tls".into()),
            peer: Some("host-b".parse().unwrap()),
            goal: Some("time<9s".to_owned()),
            record_order: Some("/o".into()),
            bandwidth: Some(32_000_000),
            downtime_us: 50_000,
            max_rounds: 5,
            min_round_us: 0,
            profile_us: Some(500_000),
            network_timeout_us: 10_000_000,
            hint_timeout_us: 0,
            verify: true,
            checksum: false,
            ..request("")
        };
        assert_eq!(given, expected);
    }
}
