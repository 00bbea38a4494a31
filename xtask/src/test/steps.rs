//! The steps of `cargo xtask test`, each a headline and a function.

use std::process::Command;

use anyhow::{Context as _, ensure};
use dunlin_tests::Capability;
use dunlin_tests::capability::{self, BAREMETAL_TARGET};
use rustix::process::setpriority_process;

use super::tally::Tally;
use crate::build;
use crate::command::{cargo, cargo_of, describe, succeeds, succeeds_with_lines};
use crate::fuzz;
use crate::lab::{self, Outcome};

/// What a step may want to know.
pub(crate) struct Context<'a> {
    /// The whole product of the test matrices, or a part of it.
    pub(crate) full: Option<&'a str>,
    pub(crate) test_filter: Option<&'a str>,
}

/// One step.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) purpose: &'static str,
    pub(crate) work: Work,
}

/// How a step is done.
pub(crate) enum Work {
    /// To its end, before the next one.
    Alone(fn(&Context<'_>, &mut Tally) -> anyhow::Result<()>),
    /// Begun, and done beside all that follow, which give way to it. `None` if there is nothing more to do.
    Beside(fn(&mut Tally) -> anyhow::Result<Option<Rest>>),
}

/// Waits for the end of what was begun.
pub(crate) type Rest = Box<dyn FnOnce(&mut Tally) -> anyhow::Result<()>>;

/// The step that runs the tests proper.
pub(crate) const TESTS: &str = "tests";

/// In the order in which they run: what fails fast comes first.
pub(crate) const STEPS: &[Step] = &[
    Step {
        name: "format",
        purpose: "one style",
        work: Work::Alone(format),
    },
    Step {
        name: "clippy",
        purpose: "no warnings in any target",
        work: Work::Alone(clippy),
    },
    Step {
        name: "docs",
        purpose: "documentation without broken links",
        work: Work::Alone(docs),
    },
    Step {
        name: "features",
        purpose: "core builds with each of its features",
        work: Work::Alone(features),
    },
    Step {
        name: "baremetal",
        purpose: "core needs no operating system",
        work: Work::Alone(baremetal),
    },
    Step {
        name: TESTS,
        purpose: "all tests of the default members",
        work: Work::Alone(tests),
    },
    Step {
        name: "lab",
        purpose: "tests on a KVM that behaves as on hardware, in an emulated machine",
        work: Work::Beside(lab),
    },
    Step {
        name: "prebuilt",
        purpose: "the committed guest payload and eBPF programs are what the source gives",
        work: Work::Alone(prebuilt),
    },
    Step {
        name: "fuzz",
        purpose: "a short run of every fuzz target",
        work: Work::Alone(fuzz_all),
    },
];

/// Features of core.
const CORE_FEATURES: [&str; 5] = ["wire", "workload", "tracefile", "record", "defmt"];

/// Seconds for each fuzz target: enough to find what a change breaks coarsely.
const FUZZ_SECONDS: u32 = 4;
/// The nice value of what runs beside something with limits of time.
const GIVES_WAY: i32 = 10;

fn format(_: &Context<'_>, tally: &mut Tally) -> anyhow::Result<()> {
    run(tally, "format", &mut cargo(&["fmt", "--all", "--check"]))?;
    run(
        tally,
        "format of the fuzz targets",
        &mut cargo(&["fmt", "--manifest-path", fuzz::MANIFEST, "--check"]),
    )
}

fn clippy(_: &Context<'_>, tally: &mut Tally) -> anyhow::Result<()> {
    run(
        tally,
        "clippy",
        &mut cargo(&["clippy", "--all-targets", "--", "--deny", "warnings"]),
    )
}

fn docs(_: &Context<'_>, tally: &mut Tally) -> anyhow::Result<()> {
    run(
        tally,
        "docs",
        cargo(&["doc", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings"),
    )
}

fn features(context: &Context<'_>, tally: &mut Tally) -> anyhow::Result<()> {
    let sets = match context.full {
        Some(_) => combinations(&CORE_FEATURES),
        None => none_each_and_all(&CORE_FEATURES),
    };
    for features in sets {
        let args = [
            "clippy",
            "--package",
            "dunlin-core",
            "--no-default-features",
            "--features",
            &features,
        ];
        let deny = ["--", "--deny", "warnings"];
        run(
            tally,
            &format!("features `{features}`"),
            &mut cargo(&[args.as_slice(), &deny].concat()),
        )?;
    }
    Ok(())
}

fn baremetal(_: &Context<'_>, tally: &mut Tally) -> anyhow::Result<()> {
    if is_skipped(tally, "baremetal", Capability::Baremetal) {
        return Ok(());
    }
    let toolchain = capability::baremetal_toolchain().context("the toolchain was there a moment ago")?;
    // That each builds was seen before; here it is about what they stand on.
    let features = CORE_FEATURES.join(",");
    let tail = [
        "build",
        "--package",
        "dunlin-core",
        "--no-default-features",
        "--features",
        &features,
    ];
    let mut command = match &toolchain.toolchain {
        Some(name) => cargo_of(name, &tail),
        None => cargo(&tail),
    };
    command
        .args(&toolchain.args)
        .envs(toolchain.env.iter().map(|(name, value)| (name, value)));
    run(tally, &format!("baremetal for {BAREMETAL_TARGET}"), &mut command)
}

fn prebuilt(_: &Context<'_>, tally: &mut Tally) -> anyhow::Result<()> {
    for prebuilt in build::ALL {
        let name = format!("prebuilt {}", prebuilt.name);
        if let Some(obstacle) = build::obstacle(prebuilt) {
            skip_or_fail(tally, &name, Capability::Baremetal, &obstacle.to_string());
            continue;
        }
        build::run_one(prebuilt, true)?;
        tally.pass();
    }
    Ok(())
}

fn tests(context: &Context<'_>, tally: &mut Tally) -> anyhow::Result<()> {
    let mut command = cargo(&["test", "--no-fail-fast"]);
    if let Some(filter) = context.test_filter {
        command.args(["--", filter]);
    }
    command.env(capability::SKIP_LOG, tally.skip_log());
    if let Some(part) = context.full {
        command.env(capability::FULL, part);
    }
    println!("> {}", describe(&command));
    let failed_before = tally.failed();
    let mut results = 0;
    let succeeded = succeeds_with_lines(&mut command, |line| results += u32::from(tally.harness_line(line)))?;
    tally.collect_skips()?;
    // A test program that does not compile, or crashes, prints no failed test.
    ensure!(
        succeeded || tally.failed() > failed_before,
        "`{}` failed",
        describe(&command)
    );
    ensure!(results > 0, "no test program reported a result");
    Ok(())
}

fn fuzz_all(_: &Context<'_>, tally: &mut Tally) -> anyhow::Result<()> {
    if is_skipped(tally, "fuzz", Capability::Fuzz) {
        return Ok(());
    }
    for target in fuzz::targets()? {
        let mut command = fuzz::command(&target, &[&format!("-max_total_time={FUZZ_SECONDS}")])?;
        println!("> {}", describe(&command));
        // A fuzzer tells much of no interest unless it found something.
        let output = command.output()?;
        if !output.status.success() {
            println!("{}", String::from_utf8_lossy(&output.stderr));
        }
        tally.count(&format!("fuzz {target}"), output.status.success());
    }
    Ok(())
}

fn lab(tally: &mut Tally) -> anyhow::Result<Option<Rest>> {
    if is_skipped(tally, "lab", Capability::Lab) {
        return Ok(None);
    }
    let running = lab::begin()?;
    // From here on only what this thread starts: the emulated processor takes one CPU, and its tests have limits of time.
    setpriority_process(None, GIVES_WAY).context("cannot lower the priority of what follows")?;
    Ok(Some(Box::new(|tally| {
        let report = running
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        for result in report.results {
            let name = format!("in the lab, {}", result.name);
            match result.outcome {
                Outcome::Ok => tally.pass(),
                Outcome::Failed => tally.fail(&name, &result.reason),
                Outcome::Skipped => tally.skip(&name, &result.reason),
            }
        }
        Ok(())
    })))
}

fn run(tally: &mut Tally, name: &str, command: &mut Command) -> anyhow::Result<()> {
    println!("> {}", describe(command));
    tally.count(name, succeeds(command)?);
    Ok(())
}

/// True when the machine lacks `capability`.
fn is_skipped(tally: &mut Tally, name: &str, capability: Capability) -> bool {
    let Err(why) = capability.probe() else { return false };
    skip_or_fail(tally, name, capability, &why);
    true
}

/// A named skip, or a failure when `DUNLIN_REQUIRE` lists the capability.
fn skip_or_fail(tally: &mut Tally, name: &str, capability: Capability, why: &str) {
    if capability.is_required() {
        tally.fail(name, &format!("{} demands {capability}: {why}", capability::REQUIRE));
    } else {
        tally.skip(name, &format!("needs {capability}: {why}"));
    }
}

/// No feature, each alone, and all together, comma separated.
fn none_each_and_all(features: &[&str]) -> Vec<String> {
    let mut sets = vec![String::new()];
    sets.extend(features.iter().map(|&feature| feature.to_owned()));
    sets.push(features.join(","));
    sets
}

/// Every subset of `features`, comma separated, the empty one first.
fn combinations(features: &[&str]) -> Vec<String> {
    let chosen = |set: usize| features.iter().enumerate().filter(move |(bit, _)| set >> bit & 1 == 1);
    let join = |set| chosen(set).map(|(_, feature)| *feature).collect::<Vec<_>>().join(",");
    (0..1_usize << features.len()).map(join).collect()
}

#[cfg(test)]
mod tests {
    use super::{combinations, none_each_and_all};

    #[test]
    fn every_combination_stands_once() {
        assert_eq!(
            combinations(&["wire", "workload"]),
            ["", "wire", "workload", "wire,workload"]
        );
    }

    #[test]
    fn a_cover_has_each_alone_and_all() {
        assert_eq!(
            none_each_and_all(&["wire", "workload"]),
            ["", "wire", "workload", "wire,workload"]
        );
    }
}
