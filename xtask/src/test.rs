//! `cargo xtask test`: everything a change must pass, in one command.

mod steps;
mod tally;

use std::process::ExitCode;
use std::time::Instant;

use steps::{STEPS, Step, Work};
use tally::Tally;

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The whole product of the test matrices instead of an all-pairs cover, and every combination of core's features
    #[arg(long)]
    full: bool,
    /// Every N-th row of that from the I-th on: the whole takes hours
    #[arg(long, value_name = "I/N", requires = "full")]
    shard: Option<String>,
    /// Only steps with this in their name; if there is none, only tests with this in their name
    filter: Option<String>,
}

/// Runs the steps. Fails when one of them did, and when nothing ran.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let filter = options.filter.as_deref();
    let chosen = |name: &str| filter.is_none_or(|filter| name.contains(filter));
    let any_step = STEPS.iter().any(|step| chosen(step.name));
    let mut tally = Tally::new()?;
    let context = steps::Context {
        full: options.full.then(|| options.shard.as_deref().unwrap_or("1")),
        test_filter: filter.filter(|_| !any_step),
    };
    let mut beside = Vec::new();
    for step in STEPS {
        let runs = if any_step {
            chosen(step.name)
        } else {
            step.name == steps::TESTS
        };
        if !runs {
            continue;
        }
        println!("\n=== {}: {}", step.name, step.purpose);
        match step.work {
            Work::Alone(work) => judged(step, &mut tally, |tally| work(&context, tally)),
            Work::Beside(begin) => match begin(&mut tally) {
                Ok(rest) => beside.extend(rest.map(|rest| (step, rest))),
                Err(error) => tally.fail(step.name, &format!("{error:#}")),
            },
        }
    }
    for (step, rest) in beside {
        println!("\n=== {}: what is left of it", step.name);
        judged(step, &mut tally, rest);
    }
    println!("\n=== summary after {:.0} s", started.elapsed().as_secs_f64());
    Ok(tally.conclude())
}

/// Does a step, or what is left of it, and says what came of it.
fn judged(step: &Step, tally: &mut Tally, work: impl FnOnce(&mut Tally) -> anyhow::Result<()>) {
    let started = Instant::now();
    let before = tally.failed();
    if let Err(error) = work(tally) {
        tally.fail(step.name, &format!("{error:#}"));
    }
    let outcome = if tally.failed() == before { "ok" } else { "FAILED" };
    println!(
        "=== {}: {outcome} in {:.0} s",
        step.name,
        started.elapsed().as_secs_f64()
    );
}
