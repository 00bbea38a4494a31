//! The vm stressor of stress-ng, which writes and verifies memory.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::load::{Fault, Load};
use crate::runs::Run;

/// How long a run takes: stress-ng says what it did at the end only.
const SECONDS: u64 = 2;

/// Runs of the stressor.
pub(crate) struct Stress {
    run: Run,
    mebibytes: u64,
    operations: u64,
}

impl Stress {
    pub(crate) fn new(mebibytes: &str) -> anyhow::Result<Self> {
        Ok(Self {
            run: Run::default(),
            mebibytes: mebibytes.parse()?,
            operations: 0,
        })
    }
}

impl Load for Stress {
    fn work(&mut self, until: Instant) -> Result<(), Fault> {
        while Instant::now() < until {
            if self.run.is_over() {
                let mut command = Command::new("stress-ng");
                command
                    .args(["--vm", "1", "--vm-bytes", &format!("{}M", self.mebibytes)])
                    .args(["--timeout", &format!("{SECONDS}s"), "--verify", "--metrics-brief"])
                    .current_dir("/tmp");
                self.run.start(&mut command)?;
            }
            if let Some((status, said)) = self.run.wait(until)? {
                if !status.success() || said.contains("fail:") {
                    return Err(Fault::Corrupt(format!(
                        "the stressor found an error ({status}): {said}"
                    )));
                }
                let operations = operations(&said).with_context(|| format!("stress-ng gives no result: {said}"))?;
                self.operations += operations;
            }
        }
        Ok(())
    }

    fn steps(&self) -> u64 {
        self.operations
    }

    fn check(&mut self) -> Result<u64, Fault> {
        let before = self.operations;
        while self.operations == before {
            self.work(Instant::now() + Duration::from_millis(100))?;
        }
        Ok(self.mebibytes << 8)
    }
}

/// The operations of a run, which are in a line of its own: `stress-ng: metrc: [7] vm   4096   2.00 …`.
fn operations(said: &str) -> Option<u64> {
    let words = said
        .lines()
        .map(|line| line.split_ascii_whitespace().skip_while(|word| *word != "vm"));
    words.filter_map(|mut words| words.nth(1)?.parse().ok()).next()
}

#[cfg(test)]
mod tests {
    use super::operations;

    #[test]
    fn operations_are_read_from_what_stress_ng_says() {
        let said = "stress-ng: info:  [7] dispatching hogs: 1 vm\n\
                    stress-ng: metrc: [7] stressor       bogo ops real time  usr time\n\
                    stress-ng: metrc: [7] vm                 9876      2.01      1.90\n";
        assert_eq!(operations(said), Some(9876));
        assert_eq!(operations("stress-ng: info: [7] dispatching hogs: 1 vm"), None);
    }
}
