//! What the machine says about its tests, line by line, and what became of each.

use std::fmt;

use serde::Serialize;

use super::programs::Test;

/// Longest output that is kept of one test, in lines: the last ones.
const LINES_MAX: usize = 400;
/// Longest line that is kept, in bytes: the beginning.
const LINE_BYTES_MAX: usize = 2000;

/// What became of a test.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Ok,
    Failed,
    Skipped,
}

/// One test.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct TestResult {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    /// By the machine's own clock; `None` for one that did not end.
    pub(crate) time_ms: Option<u64>,
    /// Why it failed or was skipped; empty for one that passed.
    pub(crate) reason: String,
    /// What a test that failed has said.
    pub(crate) output: Vec<String>,
}

impl fmt::Display for TestResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = match self.outcome {
            Outcome::Ok => "ok",
            Outcome::Failed => "FAILED",
            Outcome::Skipped => "skipped",
        };
        write!(f, "{outcome:<8} {}", self.name)?;
        if let Some(time_ms) = self.time_ms {
            write!(f, " ({}.{} s)", time_ms / 1000, time_ms % 1000 / 100)?;
        }
        if !self.reason.is_empty() {
            write!(f, ": {}", self.reason)?;
        }
        self.output.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// Something to tell whoever waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Event {
    /// The machine is up.
    Booted,
    /// A test runs.
    Begun(String),
    /// A test is over.
    Ended(TestResult),
}

/// Takes the machine's lines, gives results.
pub(super) struct Collector<'a> {
    tests: &'a [Test],
    results: Vec<TestResult>,
    /// The machine's clock when it was ready and when the last test ended.
    booted_ms: Option<u64>,
    last_ms: u64,
    running: Option<usize>,
    output: Vec<String>,
}

impl<'a> Collector<'a> {
    pub(super) const fn new(tests: &'a [Test]) -> Self {
        Self {
            tests,
            results: Vec::new(),
            booted_ms: None,
            last_ms: 0,
            running: None,
            output: Vec::new(),
        }
    }

    /// What the machine's clock showed when it was ready.
    pub(super) const fn booted_ms(&self) -> Option<u64> {
        self.booted_ms
    }

    /// Takes one line of what the machine sends. Words that begin with `@` are the first process's; all others are the
    /// running test's.
    pub(super) fn line(&mut self, line: &str) -> Option<Event> {
        match Message::parse(line) {
            Some(Message::Ready { uptime_ms }) if self.booted_ms.is_none() => {
                (self.booted_ms, self.last_ms) = (Some(uptime_ms), uptime_ms);
                Some(Event::Booted)
            }
            Some(Message::Begin { number }) if self.running.is_none() => {
                let test = self.tests.get(number)?;
                self.running = Some(number);
                Some(Event::Begun(test.name.clone()))
            }
            Some(Message::End {
                number,
                code,
                uptime_ms,
            }) if self.running == Some(number) => {
                let test = self.tests.get(number)?;
                let time_ms = uptime_ms.saturating_sub(self.last_ms);
                self.last_ms = uptime_ms;
                self.running = None;
                let result = judge(test, code, time_ms, std::mem::take(&mut self.output));
                self.results.push(result.clone());
                Some(Event::Ended(result))
            }
            _ => {
                if self.running.is_some() {
                    self.output
                        .push(line[..line.floor_char_boundary(LINE_BYTES_MAX)].to_owned());
                    let surplus = self.output.len().saturating_sub(LINES_MAX);
                    self.output.drain(..surplus);
                }
                None
            }
        }
    }

    /// All results, when the machine has ended; `how_ended` says of tests without one why they have none, and `console`
    /// what the machine said last.
    pub(super) fn finish(mut self, how_ended: &str, console: &str) -> Vec<TestResult> {
        let last_words = || console.lines().rev().take(20).map(str::to_owned);
        let is_first_missing = |number: usize, running: Option<usize>, given: usize| match running {
            Some(running) => number == running,
            None => number == given,
        };
        let given = self.results.len();
        for (number, test) in self.tests.iter().enumerate() {
            if self.results.iter().any(|result| result.name == test.name) {
                continue;
            }
            let was_running = self.running == Some(number);
            let mut output = if was_running {
                std::mem::take(&mut self.output)
            } else {
                vec![]
            };
            if is_first_missing(number, self.running, given) {
                let mut console: Vec<String> = last_words().collect();
                console.reverse();
                output.extend(console.into_iter().map(|line| format!("console: {line}")));
            }
            let when = if was_running { "while it ran" } else { "before it ran" };
            self.results.push(TestResult {
                name: test.name.clone(),
                outcome: Outcome::Failed,
                time_ms: None,
                reason: format!("{how_ended} {when}"),
                output,
            });
        }
        self.results
    }
}

/// What became of a test by its exit code and what it said.
fn judge(test: &Test, code: u32, time_ms: u64, output: Vec<String>) -> TestResult {
    /// What a shell says of a process that was ended by SIGKILL.
    const KILLED: u32 = 128 + 9;
    let skip = output.iter().find_map(|line| line.strip_prefix("SKIP "));
    let passed = output.iter().any(|line| line.starts_with("test result: ok. 1 passed"));
    let (outcome, reason) = match (code, skip) {
        (0, Some(skip)) => {
            let reason = skip.split_once(": ").map_or(skip, |(_, reason)| reason);
            (Outcome::Skipped, reason.to_owned())
        }
        (0, None) if passed => (Outcome::Ok, String::new()),
        (0, None) => (Outcome::Failed, "its program did not run it".to_owned()),
        (KILLED, _) => (Outcome::Failed, "it did not end in time".to_owned()),
        (code, _) => (Outcome::Failed, format!("exit code {code}")),
    };
    TestResult {
        name: test.name.clone(),
        outcome,
        time_ms: Some(time_ms),
        reason,
        output: if outcome == Outcome::Failed { output } else { vec![] },
    }
}

/// What the first process says itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Message {
    Ready { uptime_ms: u64 },
    Begin { number: usize },
    End { number: usize, code: u32, uptime_ms: u64 },
}

impl Message {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let message = match words.next()? {
            "@ready" => Self::Ready {
                uptime_ms: milliseconds(words.next()?)?,
            },
            "@begin" => Self::Begin {
                number: words.next()?.parse().ok()?,
            },
            "@end" => Self::End {
                number: words.next()?.parse().ok()?,
                code: words.next()?.parse().ok()?,
                uptime_ms: milliseconds(words.next()?)?,
            },
            _ => return None,
        };
        words.next().is_none().then_some(message)
    }
}

/// Of seconds with two digits after the point, as in `/proc/uptime`.
fn milliseconds(uptime: &str) -> Option<u64> {
    let (seconds, hundredths) = uptime.split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * 1000 + hundredths.parse::<u64>().ok()? * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tests(names: &[&str]) -> Vec<Test> {
        let test = |name: &&str| Test {
            name: format!("lab::{name}"),
            path: (*name).to_owned(),
            program: 0,
        };
        names.iter().map(test).collect()
    }

    fn after(tests: &[Test], lines: &str) -> Vec<TestResult> {
        let mut collector = Collector::new(tests);
        for line in lines.lines() {
            collector.line(line);
        }
        collector.finish("the machine ended", "panic: no init\nend")
    }

    #[test]
    fn passed_failed_and_skipped_tests_are_told_apart() {
        let tests = tests(&["a", "b", "c", "d"]);
        let lines = "\
@ready 20.50
@begin 0
test result: ok. 1 passed; 0 failed

@end 0 0 21.75
@begin 1
thread panicked
@end 1 101 22.00
@begin 2
SKIP c: needs qemu: there is none
test result: ok. 1 passed; 0 failed
@end 2 0 22.10
@begin 3
working
@end 3 137 99.00
@done";
        let results = after(&tests, lines);
        let found: Vec<_> = results
            .iter()
            .map(|result| {
                (
                    result.outcome,
                    result.time_ms,
                    result.reason.as_str(),
                    result.output.len(),
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                (Outcome::Ok, Some(1250), "", 0),
                (Outcome::Failed, Some(250), "exit code 101", 1),
                (Outcome::Skipped, Some(100), "needs qemu: there is none", 0),
                (Outcome::Failed, Some(76_900), "it did not end in time", 1),
            ]
        );
        assert_eq!(results[0].to_string(), "ok       lab::a (1.2 s)");
        assert_eq!(
            results[1].to_string(),
            "FAILED   lab::b (0.2 s): exit code 101\n    thread panicked"
        );
    }

    #[test]
    fn tests_without_a_result_failed_and_the_first_has_the_console() {
        let tests = tests(&["a", "b"]);
        let died = after(&tests, "@ready 1.00\n@begin 0\nhello");
        assert_eq!(died[0].reason, "the machine ended while it ran");
        assert_eq!(died[0].output, ["hello", "console: panic: no init", "console: end"]);
        assert_eq!(died[1].reason, "the machine ended before it ran");
        assert!(died[1].output.is_empty());
        let never_up = after(&tests, "");
        assert_eq!(never_up[0].output.len(), 2);
    }

    #[test]
    fn only_well_formed_words_are_the_first_process_s() {
        let tests = tests(&["a"]);
        let mut collector = Collector::new(&tests);
        for line in ["@begin 7", "@end 0 0 1.00", "@begin", "@ready soon", "plain"] {
            assert_eq!(collector.line(line), None, "{line}");
        }
        assert_eq!(collector.line("@begin 0"), Some(Event::Begun("lab::a".into())));
        for line in ["@end 0", "@end 1 0 1.00", "@end 0 0 1.00 and more"] {
            assert_eq!(collector.line(line), None, "{line}");
        }
        assert!(matches!(collector.line("@end 0 1 1.00"), Some(Event::Ended(result)) if result.output.len() == 3));
    }

    #[test]
    fn a_program_that_ran_nothing_has_not_passed() {
        let tests = tests(&["a"]);
        let results = after(&tests, "@begin 0\ntest result: ok. 0 passed\n@end 0 0 1.00");
        assert_eq!(results[0].outcome, Outcome::Failed);
    }
}
