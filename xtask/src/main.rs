//! The project's tasks, one file each. `cargo xtask --help` lists them.

mod bench;
mod build;
mod calibrate;
mod command;
mod demo;
mod experiment;
mod fuzz;
mod lab;
mod setup;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Dunlin's tasks")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the full test set needs from the distribution's packages (as root), or print the command that does
    Setup,
    /// Move a steady guest and one with a growing load by four strategies, and show what it cost
    Demo(demo::Options),
    /// Measure every figure of README beside its baseline
    Bench(bench::Options),
    /// Simulate the papers' figures and tables, or measure their claims with guests that are moved for real
    Experiment(experiment::Options),
    /// The rate at which a workload does to a link what was published of it
    Calibrate(calibrate::Options),
    /// Run tests on a KVM that behaves as on hardware, in an emulated machine
    Lab(lab::Options),
    /// Build the bare-metal guest payload and the eBPF programs and put them in their places
    Build(build::Options),
    /// Fuzz whatever parses what others wrote, on from the inputs that are kept
    Fuzz(fuzz::Options),
    /// Format, lints, documentation, builds without std, all tests, a short fuzz run
    Test(test::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup => setup::run(),
        Task::Bench(options) => bench::run(&options),
        Task::Experiment(options) => experiment::run(&options),
        Task::Calibrate(options) => calibrate::run(&options),
        Task::Lab(options) => lab::run(&options),
        Task::Build(options) => build::run(&options).map(|()| ExitCode::SUCCESS),
        Task::Demo(options) => demo::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Test(options) => test::run(&options),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
