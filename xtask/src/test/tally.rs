//! Counts of what passed, failed and did not run.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use tempfile::NamedTempFile;

/// Counts over all steps.
pub(crate) struct Tally {
    passed: u64,
    failures: Vec<String>,
    skips: Vec<String>,
    skip_log: NamedTempFile,
}

impl Tally {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let skip_log = NamedTempFile::new().context("cannot make a file for the skips")?;
        Ok(Self {
            passed: 0,
            failures: vec![],
            skips: vec![],
            skip_log,
        })
    }

    /// The file to which tests append what they skip.
    pub(crate) fn skip_log(&self) -> &Path {
        self.skip_log.path()
    }

    pub(crate) fn failed(&self) -> usize {
        self.failures.len()
    }

    pub(crate) fn pass(&mut self) {
        self.passed += 1;
    }

    pub(crate) fn fail(&mut self, name: &str, why: &str) {
        self.failures.push(format!("{name}: {why}"));
    }

    pub(crate) fn skip(&mut self, name: &str, why: &str) {
        println!("SKIP {name}: {why}");
        self.skips.push(format!("SKIP {name}: {why}"));
    }

    /// Passes or fails as `succeeded` says.
    pub(crate) fn count(&mut self, name: &str, succeeded: bool) {
        if succeeded {
            self.pass()
        } else {
            self.fail(name, "see its messages above")
        }
    }

    /// Takes a line of a test harness' output into account; true when it was a result line.
    pub(crate) fn harness_line(&mut self, line: &str) -> bool {
        if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.fail(name, "test failed");
        }
        let Some(passed) = passed_tests(line) else { return false };
        self.passed += passed;
        true
    }

    /// Moves the tests that skipped themselves from the passed to the skipped ones.
    pub(crate) fn collect_skips(&mut self) -> anyhow::Result<()> {
        let text = fs::read_to_string(self.skip_log.path()).context("cannot read the skip log")?;
        let (tests, skips) = self_skipped(&text);
        self.passed = self.passed.saturating_sub(tests);
        self.skips.extend(skips);
        fs::write(self.skip_log.path(), "").context("cannot empty the skip log")
    }

    /// Prints failures, skips and the counts.
    pub(crate) fn conclude(self) -> ExitCode {
        self.skips.iter().for_each(|skip| println!("{skip}"));
        self.failures.iter().for_each(|failure| println!("FAILED {failure}"));
        let ran_nothing = self.passed == 0 && self.failures.is_empty();
        if ran_nothing {
            println!("nothing ran: no step and no test has such a name, or all were skipped");
        }
        println!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failures.len(),
            self.skips.len()
        );
        if ran_nothing || !self.failures.is_empty() {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }
}

/// The number in `test result: ok. 11 passed; 0 failed; …`.
fn passed_tests(line: &str) -> Option<u64> {
    let counts = line.strip_prefix("test result: ")?;
    let (_, counts) = counts.split_once(". ")?;
    counts.split_once(" passed")?.0.parse().ok()
}

/// The number of tests that a skip log names, and its lines without repetition: one test may skip several parts.
fn self_skipped(log: &str) -> (u64, BTreeSet<String>) {
    let lines: BTreeSet<String> = log.lines().map(str::to_owned).collect();
    let test_of = |line: &String| line.split(": ").next().unwrap_or_default().to_owned();
    let tests: BTreeSet<String> = lines.iter().map(test_of).collect();
    (tests.len() as u64, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_of_the_harness_are_counted() {
        let mut tally = Tally::new().expect("a file");
        assert!(tally.harness_line("test result: ok. 11 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out"));
        assert!(tally.harness_line("test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out"));
        assert!(!tally.harness_line("test a::b ... FAILED"));
        assert!(!tally.harness_line("test a::c ... ok"));
        assert_eq!(
            (tally.passed, tally.failures.as_slice()),
            (13, ["a::b: test failed".to_owned()].as_slice())
        );
    }

    #[test]
    fn a_test_that_skipped_itself_has_not_passed() {
        let mut tally = Tally::new().expect("a file");
        tally.harness_line("test result: ok. 3 passed; 0 failed; 0 ignored");
        let log = "SKIP a: needs kvm: none\nSKIP b: needs kvm: none\nSKIP b: needs kvm: none\n";
        fs::write(tally.skip_log(), log).expect("written");
        tally.collect_skips().expect("read");
        tally.collect_skips().expect("a second time finds nothing new");
        assert_eq!((tally.passed, tally.skips.len()), (1, 2));
    }
}
