//! `dunlin predict`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use dunlin_core::choose::{Bound, Goal, GoalError, Limits, Metric};
use dunlin_core::strategy::{Strategy, StrategyError};
use dunlin_core::tracefile::{Head, Item};
use dunlin_core::units::{BytesPerSec, Nanos};

use super::progress::counting;
use super::values::{self, Micros};
use super::{CliError, output};
use crate::predict::{PredictError, Question, STARTS, predict};
use crate::profile::{Analysis, Tables};
use crate::report::html::{PageParts, trace_page};
use crate::report::{Keeping, PredictionReport, TraceReport, chain, count, prediction_table};
use crate::sim::{Recording, WorkError};
use crate::trace::{AnyReader, Assumed, TraceError};

const HELP: &str = "\
Each strategy is simulated with the recorded writes from several points of the
recording on, and forecast from the guest's working-set curve alone. The table
has the simulated costs; the recommendation is what `dunlin migrate --strategy
auto` would choose, and where the simulation objects, that is said.

With --json there is one object (dunlin.prediction.v1).

Exit codes: 0 predicted; 1 no strategy is likely to keep the goal over one of
the links; 2 wrong usage, or a trace that nothing can be predicted from.";

/// Links that are asked about where nobody says which: 1, 10 and 25 Gbit/s.
const LINKS: [BytesPerSec; 3] = [
    BytesPerSec(125_000_000),
    BytesPerSec(1_250_000_000),
    BytesPerSec(3_125_000_000),
];

/// `dunlin predict` as typed.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// What was recorded
    #[arg(long, value_name = "FILE.dtrace")]
    trace: PathBuf,

    #[command(flatten)]
    asked: Asked,

    /// Write one page of HTML that needs nothing beside itself
    #[arg(short, long, value_name = "report.html")]
    output: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is asked of a recording.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Asked {
    /// Rates of the network, separated by commas [default: those of 1, 10 and 25 Gbit/s]
    #[arg(long, value_name = "RATE,…", value_delimiter = ',', value_parser = values::rate, allow_hyphen_values = true)]
    bandwidth: Vec<BytesPerSec>,

    /// What a migration is to be good at, as for `dunlin migrate` [default: the downtime that is wanted]
    #[arg(long, value_name = "GOAL", value_parser = goal)]
    goal: Option<Goal>,

    /// Which strategies, instead of those that auto chooses from; may be given several times
    #[arg(long = "strategy", value_name = "PRESET|COMPOSITION", value_parser = strategy)]
    strategies: Vec<Strategy>,

    /// Rate of a storage directory that both hosts mount: strategies that copy over it are predicted too
    #[arg(long, value_name = "RATE", value_parser = values::rate, allow_hyphen_values = true)]
    storage_bandwidth: Option<BytesPerSec>,

    /// The longest pause that pre-copy aims at [default: 300ms, or what --goal allows if that is less]
    #[arg(long, value_name = "TIME", value_parser = values::positive_time, allow_hyphen_values = true)]
    downtime: Option<Micros>,

    /// The most rounds of pre-copy
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    max_rounds: u32,

    /// The shortest round of pre-copy
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = values::time, allow_hyphen_values = true)]
    min_round: Micros,

    /// What the network takes each way
    #[arg(long, value_name = "TIME", default_value = "50us", value_parser = values::time, allow_hyphen_values = true)]
    latency: Micros,

    /// What pausing and starting the guest takes, beside the way there and back
    #[arg(long, value_name = "TIME", default_value = "2ms", value_parser = values::time, allow_hyphen_values = true)]
    handover: Micros,

    /// From how many points of the recording on each strategy is simulated
    #[arg(long, value_name = "N", default_value_t = STARTS, value_parser = clap::value_parser!(u32).range(1..=1000))]
    starts: u32,
}

fn goal(text: &str) -> Result<Goal, GoalError> {
    text.parse()
}

fn strategy(text: &str) -> Result<Strategy, StrategyError> {
    Strategy::parse(text)
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let (trace, prediction) = self.asked.of_trace(&self.trace)?;
        if let Some(path) = &self.output {
            let page = trace_page(PageParts {
                traces: &[trace],
                predictions: std::slice::from_ref(&prediction),
                ..PageParts::default()
            });
            super::report::write(path, &page)?;
        }
        if self.json {
            output::json(&prediction)?;
        } else {
            output::result(&prediction_table(&prediction, output::paint()))?;
        }
        Ok(exit_code(&prediction))
    }
}

/// Whether there is a strategy for every link.
pub(super) fn exit_code(prediction: &PredictionReport) -> ExitCode {
    let keeps = |link: &crate::report::LinkPrediction| link.recommendation.keeps <= Keeping::Likely;
    if prediction.links.iter().all(keeps) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

impl Asked {
    /// Reads a trace, analyses it, and predicts from it.
    pub(super) fn of_trace(&self, path: &Path) -> Result<(TraceReport, PredictionReport), CliError> {
        let mut reader = AnyReader::open(path, Assumed::default())?;
        let head = reader.head().clone();
        self.of_items(&path.display().to_string(), &head, &mut reader)
    }

    /// The same of a trace that is open.
    pub(super) fn of_items(
        &self,
        name: &str,
        head: &Head,
        items: impl Iterator<Item = Result<Item, TraceError>>,
    ) -> Result<(TraceReport, PredictionReport), CliError> {
        let mut tables = Tables::for_guest(head)?;
        let mut analysis = Analysis::new(head, &mut tables);
        let items = items.filter_map(|item| match item {
            Ok(item) => {
                analysis.take(&item);
                Some(Ok(item))
            }
            Err(error @ TraceError::Damaged { .. }) => {
                output::message(&format!("warning: {}", chain(&error)));
                analysis.on_gap(chain(&error));
                None
            }
            Err(error) => Some(Err(error)),
        });
        let recording = Recording::collect(head, items).map_err(WorkError::from)?;
        let question = self.question();
        let migrations = question.strategies.len() * question.bandwidths.len() * question.starts as usize;
        let bar = counting(migrations as u64, "migrations");
        let prediction = predict(name, &analysis.profile(), &Arc::new(recording), &question, &|| {
            bar.inc(1)
        });
        bar.finish_and_clear();
        let (trace, mut prediction) = (analysis.report(name), prediction?);
        if trace.lost_events != Some(0) {
            let lost = trace.lost_events.map_or_else(|| "some".to_owned(), count);
            let words = format!(
                "{lost} events of the trace were lost, or parts of it are: the load is higher, and costs are, than is said here"
            );
            prediction.notes.insert(0, words);
        }
        Ok((trace, prediction))
    }

    fn question(&self) -> Question {
        let nanos = |Micros(micros): Micros| Nanos::from_micros(micros);
        let downtime = nanos(values::downtime(self.downtime, self.goal.as_ref()));
        let goal = self.goal.clone().unwrap_or_else(|| wanted(downtime));
        let bandwidths = if self.bandwidth.is_empty() {
            LINKS.to_vec()
        } else {
            self.bandwidth.clone()
        };
        let mut question = Question::new(goal, bandwidths, self.storage_bandwidth);
        if !self.strategies.is_empty() {
            question.strategies.clone_from(&self.strategies);
        }
        Question {
            limits: Limits {
                downtime,
                max_rounds: self.max_rounds,
                min_round: nanos(self.min_round),
                handover: nanos(self.handover),
            },
            latency: nanos(self.latency),
            starts: self.starts,
            ..question
        }
    }
}

/// The downtime that is wanted, as a goal.
fn wanted(downtime: Nanos) -> Goal {
    let mut goal = Goal::BALANCED;
    let bound = Bound {
        metric: Metric::Downtime,
        limit: downtime.0,
    };
    goal.add(bound).expect("there is room for the first");
    goal
}

impl From<PredictError> for CliError {
    fn from(error: PredictError) -> Self {
        Self::Usage(chain(&error))
    }
}

impl From<WorkError> for CliError {
    fn from(error: WorkError) -> Self {
        Self::Usage(error.to_string())
    }
}
