//! A program that is run again and again.

use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// How often somebody looks whether it has ended.
const TICK: Duration = Duration::from_millis(10);

/// A program that may be running.
#[derive(Default)]
pub(crate) struct Run(Option<Child>);

impl Run {
    /// Whether none is.
    pub(crate) const fn is_over(&self) -> bool {
        self.0.is_none()
    }

    /// Starts another; what it prints is kept, so it should be little.
    pub(crate) fn start(&mut self, command: &mut Command) -> anyhow::Result<()> {
        let started = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        self.0 = Some(started.with_context(|| format!("cannot start {}", command.get_program().display()))?);
        Ok(())
    }

    /// Waits for its end, but only until `until`.
    pub(crate) fn wait(&mut self, until: Instant) -> anyhow::Result<Option<(ExitStatus, String)>> {
        while let Some(child) = &mut self.0 {
            if child.try_wait()?.is_some() {
                return self.end().map(Some);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(TICK));
        }
        Ok(None)
    }

    fn end(&mut self) -> anyhow::Result<(ExitStatus, String)> {
        let child = self.0.take().context("it runs")?;
        let Output { status, stdout, stderr } = child.wait_with_output()?;
        let said = [stdout, stderr].concat();
        Ok((status, String::from_utf8_lossy(&said).into_owned()))
    }
}
