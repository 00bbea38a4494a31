//! `cargo xtask build [--check]`: what is built for machines without an operating system, and committed, or built and compared. `cargo xtask
//! build agent`: the agent of Linux guests.
//!
//! The guest payload and the eBPF programs need `core` for targets that most machines have no library for, so they are
//! committed prebuilt, each with the toolchain that built it recorded beside. The same toolchain gives the same bytes
//! wherever the checkout lies; with another one what is new is examined and tested instead of compared.

mod payload;
mod programs;
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use dunlin_tests::process::{self, workspace_root};
use tempfile::TempDir;

use crate::command::{cargo, succeeds_with_lines};
use toolchain::{Toolchain, output, target_dir};

/// What to build.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Something else, which is not committed
    #[arg(value_enum)]
    what: Option<Other>,
    /// Compare with what is committed instead, changing nothing
    #[arg(long, conflicts_with = "what")]
    check: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Other {
    /// dunlin-agent, a static program for Linux guests
    Agent,
}

/// One thing that is committed prebuilt.
pub(crate) struct Prebuilt {
    /// What it is, for messages.
    pub(crate) name: &'static str,
    /// Its package, its binary and its folder below that of what cargo builds.
    package: &'static str,
    target: &'static str,
    profile: &'static str,
    /// Where it is committed, and under which name; the record lies beside.
    folder: &'static str,
    file: &'static str,
    /// Compiler flags.
    flags: &'static [&'static str],
    /// What the packages' own build scripts and macros are told.
    environment: &'static [(&'static str, &'static str)],
    /// The linker beside a compiler of this sysroot and host, and its version.
    linker: fn(&Path, &str) -> Option<(PathBuf, String)>,
    /// How to get what is missing.
    advice: &'static str,
    /// Checks what was built, and that it tells nothing about the machine that built it.
    examine: fn(&[u8]) -> anyhow::Result<()>,
    /// A test program of `dunlin` and a filter for its tests, to run with what cannot be compared.
    test: [&'static str; 2],
    /// The variable that makes them take another file than the committed one, if they can; else they are built anew with it.
    variable: Option<&'static str>,
}

/// All of them.
pub(crate) const ALL: [&Prebuilt; 2] = [&payload::PAYLOAD, &programs::PROGRAMS];

/// Builds everything that is committed and puts it in its place, or compares it, or builds something else.
///
/// # Errors
/// As [`run_one`].
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    match options.what {
        Some(Other::Agent) => agent(),
        None => ALL.iter().try_for_each(|prebuilt| run_one(prebuilt, options.check)),
    }
}

fn agent() -> anyhow::Result<()> {
    let path = process::build_agent()?;
    let bytes = fs::metadata(path)?.len();
    println!("{} ({bytes} bytes)", path.display());
    Ok(())
}

/// Builds one thing and puts it in its place; with `check`, compares it with what is there, changing nothing.
///
/// # Errors
/// If there is no toolchain for it, it does not build, or it is not what is committed.
pub(crate) fn run_one(prebuilt: &Prebuilt, check: bool) -> anyhow::Result<()> {
    let name = prebuilt.name;
    let folder = workspace_root().join(prebuilt.folder);
    let (committed, record) = (folder.join(prebuilt.file), folder.join("TOOLCHAIN"));
    let recorded = fs::read_to_string(&record).unwrap_or_default();
    let toolchain = Toolchain::find(prebuilt, &recorded)?;
    let built = toolchain.build()?;
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    examine(prebuilt, &bytes).with_context(|| format!("the new {name} {} is wrong", built.display()))?;
    if !check {
        fs::create_dir_all(&folder)?;
        fs::write(&committed, &bytes).with_context(|| format!("cannot write {}", committed.display()))?;
        fs::write(&record, toolchain.to_string()).with_context(|| format!("cannot write {}", record.display()))?;
        println!("wrote {} ({} bytes)", committed.display(), bytes.len());
        return Ok(());
    }
    let old = fs::read(&committed)
        .with_context(|| format!("cannot read {}: run `cargo xtask build`", committed.display()))?;
    examine(prebuilt, &old).with_context(|| format!("the committed {name} is wrong: run `cargo xtask build`"))?;
    if toolchain.to_string() == recorded {
        ensure!(
            old == bytes,
            "{} is not what the source gives: run `cargo xtask build` and commit the result (compare with {})",
            committed.display(),
            built.display()
        );
        println!("the committed {name} is what the source gives, byte for byte");
    } else {
        println!("the committed {name} was built by another toolchain, so bytes are not compared");
        println!("recorded:\n{recorded}here:\n{toolchain}");
        test(prebuilt, &built).with_context(|| format!("the {name} that this toolchain builds fails its test"))?;
        println!("the {name} that this toolchain builds passes its test");
    }
    Ok(())
}

/// Why it cannot be built here, if it cannot.
pub(crate) fn obstacle(prebuilt: &Prebuilt) -> Option<anyhow::Error> {
    Toolchain::find(prebuilt, "").err()
}

/// Checks what holds for everything that is committed, then what holds for this.
fn examine(prebuilt: &Prebuilt, bytes: &[u8]) -> anyhow::Result<()> {
    (prebuilt.examine)(bytes)?;
    let private = [Some(workspace_root().to_path_buf()), std::env::home_dir()]
        .into_iter()
        .flatten();
    for place in private.filter(|place| place.components().count() > 1) {
        let place = place.to_string_lossy().into_owned();
        let found = bytes.windows(place.len()).any(|window| window == place.as_bytes());
        ensure!(!found, "it contains the path {place}");
    }
    Ok(())
}

/// Runs tests with what another toolchain has built.
fn test(prebuilt: &Prebuilt, built: &Path) -> anyhow::Result<()> {
    let [program, filter] = prebuilt.test;
    let Some(variable) = prebuilt.variable else {
        let copy = copied(prebuilt, built)?;
        let mut tests = cargo(&["test", "--package", "dunlin", "--test", program, "--locked", filter]);
        return passes(tests.current_dir(copy.path()).env("CARGO_TARGET_DIR", target_dir()));
    };
    // No `--package`: the same features as in a build of all default members, so that nothing is compiled twice.
    let mut tests = cargo(&["test", "--test", program, "--locked", filter]);
    passes(tests.env(variable, built))
}

/// A copy of the checkout with what another toolchain has built, so that nothing here is changed.
fn copied(prebuilt: &Prebuilt, built: &Path) -> anyhow::Result<TempDir> {
    let root = workspace_root();
    let copy = tempfile::tempdir().context("cannot make a folder for a copy of the checkout")?;
    let files = output(Command::new("git").current_dir(root).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))
    .context("`git ls-files` fails: what another toolchain has built can only be tested in a git checkout")?;
    for file in files
        .split_terminator('\0')
        .map(Path::new)
        .filter(|file| root.join(file).is_file())
    {
        let target = copy.path().join(file);
        fs::create_dir_all(target.parent().context("every file is in a folder")?)?;
        fs::copy(root.join(file), &target).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    fs::copy(built, copy.path().join(prebuilt.folder).join(prebuilt.file))?;
    Ok(copy)
}

/// That there are tests, and none fails.
fn passes(tests: &mut Command) -> anyhow::Result<()> {
    let mut passed = 0;
    let succeeded = succeeds_with_lines(tests, |line| {
        let count = line
            .strip_prefix("test result: ok. ")
            .and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
        passed += count.unwrap_or(0);
    })?;
    ensure!(succeeded, "tests with it fail: the messages are above");
    ensure!(passed > 0, "no test ran");
    Ok(())
}
