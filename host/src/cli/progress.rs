//! Progress on stderr: a bar on a terminal, a line per round elsewhere.

use super::output;
use crate::report::{Progress, State};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal};

/// How often the bar is drawn, per second.
const REFRESH_HZ: u8 = 10;

/// Shows how far a migration is.
#[derive(Debug)]
pub(super) enum ProgressView {
    /// For people.
    Bar(ProgressBar),
    /// For log files.
    Lines { last: Option<(State, u32)> },
}

impl ProgressView {
    pub(super) fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Self::Lines { last: None };
        }
        let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr_with_hz(REFRESH_HZ));
        let style = ProgressStyle::with_template("{bar:24} {msg}").expect("a valid template");
        bar.set_style(style.progress_chars("█▌░"));
        Self::Bar(bar)
    }

    pub(super) fn show(&mut self, progress: &Progress) {
        match self {
            Self::Bar(bar) => {
                // Drawn with the position.
                bar.set_message(progress.to_string());
                bar.set_position(progress.done_milli());
            }
            Self::Lines { last } => {
                let now = (progress.phase, progress.round);
                if last.replace(now) != Some(now) {
                    output::message(&progress.to_string());
                }
            }
        }
    }

    /// Writes a message without tearing the bar.
    pub(super) fn message(&self, text: &str) {
        match self {
            Self::Bar(bar) => bar.suspend(|| output::message(text)),
            Self::Lines { .. } => output::message(text),
        }
    }

    /// Takes the bar away, so that the result stands alone.
    pub(super) fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// A bar that counts something, for people; hidden where stderr is no terminal.
pub(super) fn counting(total: u64, what: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("{bar:24} {pos} of {len} {msg} · {elapsed} · ETA {eta}");
    bar.set_style(style.expect("a valid template").progress_chars("█▌░"));
    bar.set_message(what.to_owned());
    bar
}
