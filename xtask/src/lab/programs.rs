//! Which tests run in the lab, and the programs they are in.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::command::{cargo, describe};

/// Tests of one program that mean something only, or something else, where KVM behaves as on hardware.
struct Chosen {
    /// Name and kind of the target, as cargo calls them.
    target: &'static str,
    kind: &'static str,
    /// Tests whose names begin so; an empty one stands for all.
    tests: &'static [&'static str],
}

/// In the order in which they run.
const CHOSEN: [Chosen; 4] = [
    Chosen {
        target: "lab",
        kind: "test",
        tests: &[""],
    },
    Chosen {
        target: "dunlin",
        kind: "lib",
        tests: &["guest::kvm::ring::tests::a_ring_that_nobody_harvests"],
    },
    Chosen {
        target: "record",
        kind: "test",
        tests: &["programs_in_the_kernel_see_what_kvm_logs", "overruns_are_said"],
    },
    Chosen {
        target: "oracle",
        kind: "test",
        // One processor: a guest in a hurry would halt before others get to move it.
        tests: &[
            "kvm_precopy",
            "kvm_postcopy",
            "kvm_hybrid_1",
            "kvm_as_hybrid",
            "kvm_pa_hybrid",
            "kvm_markov_sdf",
            "kvm_auto",
        ],
    },
];

/// A test to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Test {
    /// Its name in results: the program's and its own.
    pub(super) name: String,
    /// Its name in the program.
    pub(super) path: String,
    /// Which of [`Tests::programs`] it is in.
    pub(super) program: usize,
}

/// What is to run.
pub(super) struct Tests {
    /// Test programs on this machine.
    pub(super) programs: Vec<PathBuf>,
    pub(super) tests: Vec<Test>,
}

impl Tests {
    /// Builds the programs, which takes what it takes, and lists their tests; of these, the ones with `filter` in their
    /// names.
    pub(super) fn build(filter: Option<&str>) -> anyhow::Result<Self> {
        // No `-p`: the same features as in a build of all default members, so that nothing is compiled twice.
        let mut command = cargo(&[
            "test",
            "--no-run",
            "--quiet",
            "--message-format=json-render-diagnostics",
        ]);
        for chosen in &CHOSEN {
            match chosen.kind {
                "lib" => command.arg("--lib"),
                _ => command.args(["--test", chosen.target]),
            };
        }
        let output = command
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot start `{}`", describe(&command)))?;
        ensure!(output.status.success(), "`{}` failed", describe(&command));
        let messages = String::from_utf8_lossy(&output.stdout);
        let mut found = Self {
            programs: vec![],
            tests: vec![],
        };
        for chosen in &CHOSEN {
            let program = executable(&messages, chosen)
                .with_context(|| format!("cargo did not say where it put the tests of {}", chosen.target))?;
            found.add(chosen, &program, filter)?;
        }
        ensure!(
            !found.tests.is_empty(),
            "no test of the lab has `{}` in its name",
            filter.unwrap_or_default()
        );
        Ok(found)
    }

    fn add(&mut self, chosen: &Chosen, program: &Path, filter: Option<&str>) -> anyhow::Result<()> {
        let list = Command::new(program)
            .args(["--list", "--format", "terse"])
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let paths = listed(&String::from_utf8_lossy(&list.stdout));
        let index = self.programs.len();
        let before = self.tests.len();
        for prefix in chosen.tests {
            let chosen_here: Vec<&String> = paths.iter().filter(|path| path.starts_with(prefix)).collect();
            ensure!(
                !chosen_here.is_empty(),
                "{} has no test that begins with `{prefix}`",
                chosen.target
            );
            self.tests.extend(chosen_here.into_iter().filter_map(|path| {
                let name = format!("{}::{path}", chosen.target);
                filter.is_none_or(|filter| name.contains(filter)).then(|| Test {
                    name,
                    path: path.clone(),
                    program: index,
                })
            }));
        }
        if self.tests.len() > before {
            self.programs.push(program.to_owned());
        }
        Ok(())
    }
}

/// Where cargo put a test program.
fn executable(messages: &str, chosen: &Chosen) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let target = &message["target"];
        let is_it =
            target["name"] == chosen.target && target["kind"][0] == chosen.kind && message["profile"]["test"] == true;
        is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
    })
}

/// The names in a test program's terse list.
fn listed(list: &str) -> Vec<String> {
    let tests = list.lines().filter_map(|line| line.strip_suffix(": test"));
    tests.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_and_test_programs_are_understood() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"dunlin"},"profile":{"test":false},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"dunlin"},"profile":{"test":true},"executable":"/t/dunlin-1"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let chosen = |target| Chosen {
            target,
            kind: "lib",
            tests: &[],
        };
        assert_eq!(
            executable(messages, &chosen("dunlin")),
            Some(PathBuf::from("/t/dunlin-1"))
        );
        assert_eq!(executable(messages, &chosen("other")), None);
        assert_eq!(listed("a::b: test\nc: bench\nd: test\n"), ["a::b", "d"]);
    }
}
