//! `cargo xtask fuzz`: the fuzz targets of `tests/fuzz`, on from the inputs that are kept, for as long as one likes. `cargo xtask test` runs each
//! for a moment.
//!
//! `tests/fuzz/corpus` is committed and small; what a run finds besides goes to the build folder of the fuzzers, from which the next run goes
//! on as well, and into the commit only by `--keep`.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};
use dunlin_tests::Capability;
use dunlin_tests::process::workspace_root;

use crate::command::{cargo_of, describe, succeeds};

/// The fuzz targets are a workspace of their own.
pub(crate) const FOLDER: &str = "tests/fuzz";
/// Its manifest.
pub(crate) const MANIFEST: &str = "tests/fuzz/Cargo.toml";

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,
    /// Then add to the committed corpus what reaches code that nothing in it does
    #[arg(long)]
    keep: bool,
    /// Only this target
    target: Option<String>,
}

/// Runs the targets; fails when one of them found something.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    Capability::Fuzz
        .probe()
        .map_err(|why| anyhow::anyhow!("fuzzing needs a nightly toolchain and cargo-fuzz: {why}"))?;
    let all = targets()?;
    let chosen: Vec<&String> = match &options.target {
        Some(name) => all.iter().filter(|target| *target == name).collect(),
        None => all.iter().collect(),
    };
    ensure!(
        !chosen.is_empty(),
        "there is no such target; there are: {}",
        all.join(", ")
    );
    let mut found = Vec::new();
    for target in chosen {
        let mut command = command(target, &[&format!("-max_total_time={}", options.minutes * 60)])?;
        println!("> {}", describe(&command));
        if !succeeds(&mut command)? {
            found.push(target.as_str());
        } else if options.keep {
            keep(target)?;
        }
    }
    if found.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "error: {} found something; the inputs are in {FOLDER}/artifacts: mend it, and put each into {FOLDER}/corpus",
        found.join(", ")
    );
    Ok(ExitCode::FAILURE)
}

/// The names of all targets.
pub(crate) fn targets() -> anyhow::Result<Vec<String>> {
    let list = cargo_of("+nightly", &["fuzz", "list", "--fuzz-dir", FOLDER]).output()?;
    ensure!(
        list.status.success(),
        "cargo-fuzz lists no targets: {}",
        String::from_utf8_lossy(&list.stderr)
    );
    let names = String::from_utf8(list.stdout).context("target names are text")?;
    let targets: Vec<String> = names.lines().map(str::to_owned).collect();
    ensure!(!targets.is_empty(), "{FOLDER} has no targets");
    Ok(targets)
}

/// A run of a target that begins with all inputs that are kept, and keeps what it finds out of the commit.
pub(crate) fn command(target: &str, arguments: &[&str]) -> anyhow::Result<Command> {
    let (working, committed) = corpora(target)?;
    let mut command = cargo_of("+nightly", &["fuzz", "run", "--fuzz-dir", FOLDER, target]);
    // The first folder is the one that is written to.
    command.arg(working).arg(committed).arg("--").args(arguments);
    Ok(command)
}

/// Adds to the committed corpus what reaches more.
fn keep(target: &str) -> anyhow::Result<()> {
    let (working, committed) = corpora(target)?;
    let mut command = cargo_of("+nightly", &["fuzz", "run", "--fuzz-dir", FOLDER, target]);
    command.arg(committed).arg(working).args(["--", "-merge=1"]);
    println!("> {}", describe(&command));
    ensure!(succeeds(&mut command)?, "the corpora of {target} cannot be merged");
    Ok(())
}

/// What was found on this machine, and what is committed.
fn corpora(target: &str) -> anyhow::Result<(PathBuf, PathBuf)> {
    let folder = workspace_root().join(FOLDER);
    let (working, committed) = (
        folder.join("target/corpus").join(target),
        folder.join("corpus").join(target),
    );
    for folder in [&working, &committed] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    Ok((working, committed))
}
