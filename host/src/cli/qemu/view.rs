//! Progress on stderr: a line that moves on a terminal, a line per round elsewhere.

use std::io::{self, IsTerminal as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::super::output;
use crate::qemu::{Info, News, Phase, progress_line, turn_line};

/// How often the line is drawn, per second.
const REFRESH_HZ: u8 = 10;
const MILLI: u128 = 1000;

/// Shows how a migration goes.
#[derive(Debug)]
pub(super) struct View {
    bar: Option<ProgressBar>,
}

impl View {
    pub(super) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr_with_hz(REFRESH_HZ));
            let style = ProgressStyle::with_template("{bar:24} {msg}").expect("a valid template");
            bar.set_style(style.progress_chars("█▌░"));
            bar
        });
        Self { bar }
    }

    pub(super) fn show(&self, news: &News) {
        match news {
            News::Found(finding) => self.say(&finding.to_string()),
            News::Turn(turn) => self.say(&turn_line(turn)),
            News::Message(message) => self.say(message),
            News::Phase(Phase::Active | Phase::Setup | Phase::None) => {}
            News::Phase(phase) => self.say(&phase.to_string()),
            News::Progress(info) => self.progress(info),
        }
    }

    pub(super) fn progress(&self, info: &Info) {
        if let Some(bar) = &self.bar {
            let done = u128::from(info.total.0.saturating_sub(info.remaining.0)) * MILLI;
            bar.set_message(progress_line(info));
            bar.set_position(done.checked_div(info.total.0.into()).unwrap_or(0) as u64);
        }
    }

    pub(super) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::message(text)),
            None => output::message(text),
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
