//! The steps of `cargo xtask test`, each a headline and a function.

use std::process::Command;

use anyhow::{Context as _, ensure};
use dunlin_tests::Capability;
use dunlin_tests::capability::{self, BAREMETAL_TARGET};

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
    pub(crate) run: fn(&Context<'_>, &mut Tally) -> anyhow::Result<()>,
}

/// The step that runs the tests proper.
pub(crate) const TESTS: &str = "tests";

/// In the order in which they run: what fails fast comes first.
pub(crate) const STEPS: &[Step] = &[
    Step {
        name: "format",
        purpose: "one style",
        run: format,
    },
    Step {
        name: "clippy",
        purpose: "no warnings in any target",
        run: clippy,
    },
    Step {
        name: "docs",
        purpose: "documentation without broken links",
        run: docs,
    },
    Step {
        name: "features",
        purpose: "core builds with every combination of its features",
        run: features,
    },
    Step {
        name: "baremetal",
        purpose: "core needs no operating system",
        run: baremetal,
    },
    Step {
        name: "prebuilt",
        purpose: "the committed guest payload and eBPF programs are what the source gives",
        run: prebuilt,
    },
    Step {
        name: TESTS,
        purpose: "all tests of the default members",
        run: tests,
    },
    Step {
        name: "fuzz",
        purpose: "a short run of every fuzz target",
        run: fuzz_all,
    },
    Step {
        name: "lab",
        purpose: "tests on a KVM that behaves as on hardware, in an emulated machine",
        run: lab,
    },
];

/// Features of core, of which every combination is built.
const CORE_FEATURES: [&str; 4] = ["wire", "workload", "tracefile", "defmt"];
/// Features that touch no other, so that each is built alone.
const CORE_FEATURES_ALONE: [&str; 1] = ["record"];

/// Seconds for each fuzz target: enough to find what a change breaks coarsely.
const FUZZ_SECONDS: u32 = 4;

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

fn features(_: &Context<'_>, tally: &mut Tally) -> anyhow::Result<()> {
    for features in core_feature_sets() {
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
    // That the combinations build was seen before; here it is about what they stand on.
    let all = [&CORE_FEATURES[..], &CORE_FEATURES_ALONE].concat().join(",");
    for features in [String::new(), all] {
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
        run(
            tally,
            &format!("baremetal `{features}` for {BAREMETAL_TARGET}"),
            &mut command,
        )?;
    }
    Ok(())
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

fn lab(_: &Context<'_>, tally: &mut Tally) -> anyhow::Result<()> {
    if is_skipped(tally, "lab", Capability::Lab) {
        return Ok(());
    }
    for result in lab::run_all()?.results {
        let name = format!("in the lab, {}", result.name);
        match result.outcome {
            Outcome::Ok => tally.pass(),
            Outcome::Failed => tally.fail(&name, &result.reason),
            Outcome::Skipped => tally.skip(&name, &result.reason),
        }
    }
    Ok(())
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

/// What core is built with.
fn core_feature_sets() -> Vec<String> {
    let mut sets = combinations(&CORE_FEATURES);
    sets.extend(CORE_FEATURES_ALONE.map(str::to_owned));
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
    use super::combinations;

    #[test]
    fn every_combination_stands_once() {
        assert_eq!(
            combinations(&["wire", "workload"]),
            ["", "wire", "workload", "wire,workload"]
        );
    }
}
