//! `dunlin replay`: what rules would have decided about a recorded log of rounds.

mod comparison;
mod rounds;

use super::{
    CliError, output,
    values::{self, Micros},
};
use crate::{
    replay::{LogError, RoundLog, Trial, example_rules},
    report::{Paint, bytes, count, duration},
};
use dunlin_core::{
    strategy::{StrategyError, SwitchRule},
    switch::{Decision, RoundEnd, SwitchSetting},
    units::{Bytes, Nanos, PAGE_SIZE, Pages},
};
use serde::Serialize;
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Seek},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

/// What a log looks like, and what becomes of it.
const LOG_HELP: &str = "\
The log is CSV: a line for every round of pre-copy, from the first on.

  round,duration_us,sent_pages,dirty_pages
  1,4096000,32768,12000
  2,1500000,12000,4100

dirty_pages is what is dirty when the round ends: what the next would send.
A fifth column, zero_pages, may tell of pages that went as a few bytes: they
are no part of what the round had to send.
Before the header may stand a line that tells of a static copy beside the
rounds, merged at the end of round K. Nothing is decided before that:

  # static_done_after=K

A file is checked as a whole before anything is decided. Standard input is
decided about line by line, as it comes, and read to its end.

With --json there is a line for every round,

  {\"round\":2,\"decision\":\"continue\",\"score_milli\":341,\"reason\":\"…\"}

up to the first decision that is stop-copy or post-copy. With several rules
each line names its own in \"rule\". The score is what the rule measured of
the round, λ or SDF for example, in thousandths.

Exit codes: 0 decided, or the log ended before that; 1 the result could not
be written; 2 wrong usage or a wrong log.";

/// `dunlin replay` as typed.
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true, after_help = LOG_HELP)]
pub(super) struct Args {
    /// Which rule decides when pre-copy ends, or all; may be given several times, to compare
    #[arg(long = "rule", value_name = "RULE", required = true, value_parser = rule, long_help = rule_help())]
    rules: Vec<Rule>,

    /// How many pages the guest has
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=TOTAL_PAGES_MAX))]
    total_pages: u64,

    /// Size of a page, a power of two
    #[arg(long, value_name = "SIZE", default_value_t = Bytes(PAGE_SIZE), value_parser = page_size, allow_hyphen_values = true)]
    page_size: Bytes,

    /// The longest pause that pre-copy aims at
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = values::time, allow_hyphen_values = true)]
    downtime: Micros,

    /// The most rounds of pre-copy, for rules that heed a limit
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    max_rounds: u32,

    /// How long a post-copy fault holds a vCPU up, for rules that weigh faults against transfers
    #[arg(long, value_name = "TIME", default_value = "500us", value_parser = values::time, allow_hyphen_values = true)]
    fault_stall: Micros,

    /// Print a JSON line for every round and rule
    #[arg(long)]
    json: bool,

    /// The log, or - for standard input
    #[arg(value_name = "FILE.csv")]
    file: PathBuf,
}

/// 1 PiB in the smallest pages: up to there every rule is exact.
const TOTAL_PAGES_MAX: u64 = 1 << 38;

/// `--rule` as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    All,
    One(SwitchRule),
}

fn rule(text: &str) -> Result<Rule, StrategyError> {
    match text {
        "all" => Ok(Rule::All),
        _ => SwitchRule::parse(text).map(Rule::One),
    }
}

fn rule_help() -> String {
    format!(
        "Which rule decides when pre-copy ends, or all; may be given several times, to compare\n\nRules: {}. `all` takes every \
         rule once, one with a number with a usual one",
        SwitchRule::AVAILABLE.join(", ")
    )
}

fn page_size(text: &str) -> Result<Bytes, String> {
    const LARGEST: u64 = 1 << 30;
    match values::size(text).map_err(|error| error.to_string())? {
        Bytes(size) if size.is_power_of_two() && (PAGE_SIZE..=LARGEST).contains(&size) => Ok(Bytes(size)),
        _ => Err("not a size of pages: write a power of two from 4KiB to 1GiB".into()),
    }
}

/// A line of `--json`.
#[derive(Debug, Serialize)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    round: u32,
    decision: String,
    score_milli: i64,
    reason: String,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        if self.file.as_os_str() == "-" {
            self.replay(io::stdin().lock())?;
        } else {
            let file = self.checked_file().map_err(|error| self.wrong(error))?;
            self.replay(BufReader::new(file))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The file at its start, once it is known to be right to its end. What can be read only once is not checked.
    fn checked_file(&self) -> Result<File, LogError> {
        let mut file = File::open(&self.file)?;
        if file.metadata()?.is_file() {
            for end in RoundLog::open(BufReader::new(&file), Pages(self.total_pages))? {
                end?;
            }
            file.rewind()?;
        }
        Ok(file)
    }

    fn replay(&self, reader: impl BufRead) -> Result<(), CliError> {
        let total = Pages(self.total_pages);
        let log = RoundLog::open(reader, total).map_err(|error| self.wrong(error))?;
        let setting = SwitchSetting {
            downtime: Nanos::from_micros(self.downtime.0),
            max_rounds: self.max_rounds,
            memory: Bytes(self.total_pages.saturating_mul(self.page_size.0)),
            fault_stall: Nanos::from_micros(self.fault_stall.0),
            static_done_after: log.static_done_after(),
            ..SwitchSetting::new(total)
        };
        let mut trials: Vec<_> = self
            .chosen()
            .into_iter()
            .map(|rule| Trial::new(rule, setting))
            .collect();
        let log = log.map(|end| end.map_err(|error| self.wrong(error)));
        let scene = Scene {
            setting,
            page_size: self.page_size,
        };
        match &mut trials[..] {
            trials if self.json => print_lines(log, trials),
            [trial] => rounds::show(log, trial, scene),
            trials => comparison::show(log, trials, scene),
        }
    }

    /// Every rule once, in the order given.
    fn chosen(&self) -> Vec<SwitchRule> {
        let mut chosen = Vec::new();
        for rule in &self.rules {
            let rules = match *rule {
                Rule::All => example_rules(),
                Rule::One(rule) => vec![rule],
            };
            for rule in rules {
                if !chosen.contains(&rule) {
                    chosen.push(rule);
                }
            }
        }
        chosen
    }

    fn wrong(&self, source: LogError) -> CliError {
        let name = match self.file.to_string_lossy() {
            name if name == "-" => "standard input".into(),
            name => name.into_owned(),
        };
        CliError::Log { name, source }
    }
}

fn print_lines(log: impl Iterator<Item = Result<RoundEnd, CliError>>, trials: &mut [Trial]) -> Result<(), CliError> {
    let several = trials.len() > 1;
    let mut rounds = 0;
    for end in log {
        let end = end?;
        rounds = end.round;
        for trial in &mut *trials {
            let Some(verdict) = trial.on_round(&end) else { continue };
            let line = Line {
                rule: several.then(|| trial.rule().to_string()),
                round: end.round,
                decision: verdict.decision.to_string(),
                score_milli: verdict.score_milli,
                reason: verdict.reason.to_string(),
            };
            if !output::offer_json(&line)? {
                return Ok(());
            }
        }
    }
    for trial in trials.iter().filter(|trial| trial.ending().is_none()) {
        output::message(&format!(
            "the log ends after round {rounds} without a decision by {}",
            trial.rule()
        ));
    }
    Ok(())
}

/// What all rules are told, for people.
#[derive(Clone, Copy, Debug)]
struct Scene {
    setting: SwitchSetting,
    page_size: Bytes,
}

impl Scene {
    /// `32,768 pages of 4.00 KiB (128 MiB), downtime 300 ms, at most 30 rounds`
    fn describe(&self) -> String {
        let mut text = format!(
            "{} pages of {} ({}), downtime {}, at most {} rounds",
            count(self.setting.total.0),
            bytes(self.page_size.0),
            self.size(self.setting.total),
            time(self.setting.downtime),
            self.setting.max_rounds,
        );
        if self.setting.static_done_after > 0 {
            text += &format!(", static copy merged after round {}", self.setting.static_done_after);
        }
        text
    }

    fn size(&self, pages: Pages) -> String {
        bytes(pages.0.saturating_mul(self.page_size.0))
    }

    /// `1,234 pages (4.82 MiB)`
    fn pages(&self, pages: Pages) -> String {
        let unit = if pages.0 == 1 { "page" } else { "pages" };
        format!("{} {unit} ({})", count(pages.0), self.size(pages))
    }
}

fn time(time: Nanos) -> String {
    duration(Duration::from_nanos(time.0))
}

/// A time that may not be known.
fn time_if_known(nanos: Option<Nanos>) -> String {
    nanos.map_or("—".into(), time)
}

/// What a decision looks like: a plain stop, a switch, or neither yet.
fn painted(decision: Decision, text: &str, paint: Paint) -> String {
    match decision {
        Decision::Continue => text.into(),
        Decision::StopCopy => paint.good(text),
        Decision::PostCopy => paint.warn(text),
    }
}
