//! `dunlin simulate`: a migration in virtual time, or a sweep of them.

mod plan;

use super::{
    CliError, output,
    values::{self, Micros},
};
use crate::{
    report::{count, migration_table},
    sim::{CutAt, RECORDED_WRITES_MAX, Recording, SimSetup, VCPUS_MAX, Work, simulate},
};
use dunlin_core::{
    choose::{Goal, GoalError},
    migrate::Advisor,
    strategy::{Strategy, StrategyError, SwitchRule},
    units::{Bytes, BytesPerSec, Nanos},
    workload::Fill,
};
use std::{path::PathBuf, process::ExitCode};

/// `dunlin simulate` as typed.
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct Args {
    /// Simulate all that this file asks for, instead of one migration
    ///
    /// A plan is TOML: a guest, a link, limits, a sweep over any of them, and the strategies to compare (`[[arm]]`).
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["workload", "memory", "strategy", "bandwidth"])]
    plan: Option<PathBuf>,

    /// What the guest does, as for `dunlin guest`, or trace:FILE for what a guest did that was recorded
    #[arg(long, value_name = "SPEC", value_parser = Work::parse, required_unless_present = "plan")]
    workload: Option<Work>,

    /// All of its memory: 512MiB, 32GiB [default: that of the recorded guest]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    memory: Option<Bytes>,

    /// Number of vCPUs, 1 to 64 [default: 1, or those of the recorded guest]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(VCPUS_MAX)))]
    vcpus: Option<u32>,

    /// What the pages hold that the guest has not written
    #[arg(long, value_enum, default_value = "random")]
    fill: FillArg,

    /// Of the workload, and of jitter and losses: one seed, one result
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// How to move it: a preset or a composition, as for `dunlin migrate`, or auto
    #[arg(long, value_name = "PRESET|COMPOSITION", value_parser = strategy, required_unless_present = "plan")]
    strategy: Option<Named>,

    /// With auto: what the migration is to be good at, as for `dunlin migrate`
    #[arg(long, value_name = "GOAL", value_parser = goal)]
    goal: Option<Goal>,

    /// Rate of the network
    #[arg(long, value_name = "RATE", value_parser = values::rate, allow_hyphen_values = true, required_unless_present = "plan")]
    bandwidth: Option<BytesPerSec>,

    /// Rate at which the storage directory is written [default: that of the network]
    #[arg(long, value_name = "RATE", value_parser = values::rate, allow_hyphen_values = true)]
    storage_bandwidth: Option<BytesPerSec>,

    /// What the network takes each way
    #[arg(long, value_name = "TIME", default_value = "50us", value_parser = values::time, allow_hyphen_values = true)]
    latency: Micros,

    /// By how much later something may arrive
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = values::time, allow_hyphen_values = true)]
    jitter: Micros,

    /// Chunks of a million that are lost and sent again
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=500_000))]
    loss_ppm: u32,

    /// Cut the network in post-copy, that long after the guest runs at the target
    #[arg(long, value_name = "TIME", value_parser = values::time, allow_hyphen_values = true)]
    cut: Option<Micros>,

    /// How long it stays cut [default: for good]
    #[arg(long, value_name = "TIME", requires = "cut", value_parser = values::time, allow_hyphen_values = true)]
    cut_lasts: Option<Micros>,

    /// The longest pause that pre-copy aims at [default: 300ms, or what --goal allows if that is less]
    #[arg(long, value_name = "TIME", value_parser = values::positive_time, allow_hyphen_values = true)]
    downtime: Option<Micros>,

    /// The most rounds of pre-copy
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    max_rounds: u32,

    /// The shortest round of pre-copy
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = values::time, allow_hyphen_values = true)]
    min_round: Micros,

    /// How long strategies that look ahead observe the guest [default: 8s; with auto as long as one copy takes, from 2 to 8 s]
    #[arg(long, value_name = "TIME", value_parser = values::time, allow_hyphen_values = true)]
    profile: Option<Micros>,

    /// How long the guest runs before it is moved
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = values::time, allow_hyphen_values = true)]
    warm_up: Micros,

    /// What a step takes a vCPU that does nothing else, in nanoseconds
    #[arg(long, value_name = "NS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    step_cost_ns: u64,

    /// What a post-copy fault takes, beside the way there and back
    #[arg(long, value_name = "TIME", default_value = "100us", value_parser = values::time, allow_hyphen_values = true)]
    fault_service: Micros,

    /// What pausing and starting the guest takes, beside the way there and back
    #[arg(long, value_name = "TIME", default_value = "2ms", value_parser = values::time, allow_hyphen_values = true)]
    handover: Micros,

    /// Follow the content of every page, and compare in the end
    #[arg(long)]
    verify: bool,

    /// Print the report as JSON, as `dunlin migrate` does; of a plan a line for every migration
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum FillArg {
    Zero,
    Random,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        if let Some(path) = &self.plan {
            return plan::run(path, self.json);
        }
        let recorded = self.workload.as_ref().and_then(Work::recorded_guest);
        let memory = self.memory.or(recorded.map(|(_, pages)| pages.bytes()));
        let (Some(workload), Some(memory), Some(strategy), Some(bandwidth)) =
            (&self.workload, memory, &self.strategy, self.bandwidth)
        else {
            let message = "--workload, --memory, --strategy and --bandwidth say what to simulate, or --plan does";
            return Err(CliError::Usage(message.into()));
        };
        if self.goal.is_some() && strategy.strategy.is_some() {
            let message = "--goal is what auto chooses a strategy for: write --strategy auto, or leave it out";
            return Err(CliError::Usage(message.into()));
        }
        let begins_as = strategy.strategy.unwrap_or(Strategy::with_switch(SwitchRule::Never));
        if let Work::Recorded(recording) = workload {
            say_what_is_played(recording);
        }
        let mut basis = SimSetup::of(workload.clone(), memory, begins_as, bandwidth);
        if strategy.strategy.is_none() {
            basis.goal = Some(self.goal.clone().unwrap_or(Goal::BALANCED));
            basis.learning = Advisor::observation(memory, bandwidth);
        }
        let setup = self.setup(basis);
        let mut result = simulate(&setup).map_err(|error| CliError::Usage(error.to_string()))?;
        if let Some(choice) = &result.choice {
            eprintln!("{choice}");
        }
        result.report.strategy.clone_from(&strategy.text);
        if self.json {
            output::json(&result.report)?;
        } else {
            output::result(&migration_table(&result.report, output::paint()))?;
        }
        Ok(if result.report.is_success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn setup(&self, basis: SimSetup) -> SimSetup {
        let nanos = |Micros(micros): Micros| Nanos::from_micros(micros);
        SimSetup {
            vcpus: self.vcpus.unwrap_or(basis.vcpus),
            seed: self.seed,
            fill: match self.fill {
                FillArg::Zero => Fill::Zero,
                FillArg::Random => Fill::Random,
            },
            storage_bandwidth: self.storage_bandwidth.unwrap_or(basis.bandwidth),
            latency: nanos(self.latency),
            jitter: nanos(self.jitter),
            loss_ppm: self.loss_ppm,
            cut: self.cut.map(|after| CutAt {
                after: nanos(after),
                lasts: self.cut_lasts.map(nanos),
            }),
            step_cost: Nanos(self.step_cost_ns),
            fault_service: nanos(self.fault_service),
            handover: nanos(self.handover),
            warm_up: nanos(self.warm_up),
            downtime: nanos(values::downtime(self.downtime, self.goal.as_ref())),
            max_rounds: self.max_rounds,
            min_round: nanos(self.min_round),
            learning: self.profile.map_or(basis.learning, nanos),
            check: self.verify,
            ..basis
        }
    }
}

fn say_what_is_played(recording: &Recording) {
    let source = recording.head().source;
    output::message(&format!("{recording}; what it cannot see: {}", source.cannot_see()));
    if !recording.is_whole() {
        output::message(&format!(
            "only its first {} writes are used",
            count(RECORDED_WRITES_MAX)
        ));
    }
}

fn goal(text: &str) -> Result<Goal, GoalError> {
    text.parse()
}

/// A strategy, and as it was typed.
#[derive(Clone, Debug)]
struct Named {
    text: String,
    /// `None` for one that is chosen.
    strategy: Option<Strategy>,
}

/// With a storage directory: whatever needs one finds it.
fn strategy(text: &str) -> Result<Named, StrategyError> {
    let strategy = match text {
        "auto" => None,
        text => Some(Strategy::parse(text)?),
    };
    Ok(Named {
        text: text.to_owned(),
        strategy,
    })
}
