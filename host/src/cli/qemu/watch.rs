//! `dunlin qemu watch`: a migration that somebody else steers.

use std::process::ExitCode;
use std::time::Duration;

use dunlin_core::strategy::SwitchRule;
use serde_json::json;

use super::super::migrate::catch_signals;
use super::super::values::{self, Micros};
use super::super::{CliError, output};
use super::view::View;
use crate::qemu::{Address, Phase, Sight, Watch, look_json, look_lines};
use crate::replay::example_rules;

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// QMP socket of the QEMU whose guest is moved; one that nobody else is connected to
    #[arg(long, value_name = "QMP")]
    source: Address,

    /// A rule that is asked what it would do; may be repeated [default: each of several]
    #[arg(long = "rule", value_name = "RULE")]
    rules: Vec<SwitchRule>,

    /// Longest pause that is taken for good [default: QEMU's downtime-limit]
    #[arg(long, value_name = "TIME", value_parser = values::positive_time)]
    downtime: Option<Micros>,

    /// A JSON object for each round on stdout, which `dunlin replay` reads
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let interrupt = catch_signals()?;
        let watch = Watch {
            source: self.source,
            rules: if self.rules.is_empty() {
                example_rules()
            } else {
                self.rules
            },
            downtime: self.downtime.map(|Micros(micros)| Duration::from_micros(micros)),
        };
        let view = View::new();
        let (mut failure, mut told, mut followed) = (None, false, false);
        let ended = watch.run(&interrupt, |sight| match sight {
            Sight::Phase(Phase::None, _) => {
                view.say("no migration is going on; waiting for one");
                true
            }
            Sight::Phase(phase, _) if !followed && !phase.is_going_on() => {
                view.say(&format!("the last migration is {phase}; waiting for the next one"));
                true
            }
            Sight::Phase(phase, total) => {
                followed = true;
                view.say(&phase.to_string());
                if !self.json || told || total.0 == 0 {
                    return true;
                }
                told = true;
                offered(
                    output::offer_json(&json!({ "schema": "dunlin.qemu-watch.v1", "total_pages": total.0 })),
                    &mut failure,
                )
            }
            Sight::Look(look) if self.json => offered(output::offer_json(&look_json(&look)), &mut failure),
            Sight::Look(look) => {
                look_lines(&look).iter().for_each(|line| view.say(line));
                true
            }
            Sight::Progress(info) => {
                view.progress(&info);
                true
            }
        });
        view.finish();
        if let Some(failure) = failure {
            return Err(failure);
        }
        let info = ended.map_err(|error| CliError::Node(Box::new(error)))?;
        Ok(match info.phase {
            Phase::Failed | Phase::Cancelled => ExitCode::FAILURE,
            _ => ExitCode::SUCCESS,
        })
    }
}

/// Whether to go on.
fn offered(result: Result<bool, CliError>, failure: &mut Option<CliError>) -> bool {
    result.unwrap_or_else(|error| {
        *failure = Some(error);
        false
    })
}
