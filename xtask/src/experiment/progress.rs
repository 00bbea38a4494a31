//! How far a measurement is, on stderr: a bar on a terminal, a line per run elsewhere.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the bar is drawn, per second.
const REFRESH_HZ: u8 = 4;

/// Progress in seconds that runs were expected to take, or in work of any kind.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    total: f64,
    done: f64,
    /// Seconds that a unit of work is expected to take before any is done; `None` if that is not known.
    pace: Option<f64>,
    /// What is done now.
    what: String,
    started: Instant,
}

impl Progress {
    pub(super) fn new(total_seconds: f64) -> Self {
        Self::with_pace(total_seconds, Some(1.0))
    }

    /// Of work that takes nobody knows how long.
    pub(super) fn of_work(total: f64) -> Self {
        Self::with_pace(total, None)
    }

    fn with_pace(total: f64, pace: Option<f64>) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let target = ProgressDrawTarget::stderr_with_hz(REFRESH_HZ);
            let bar = ProgressBar::with_draw_target(Some(total as u64), target);
            let style = ProgressStyle::with_template("{bar:24} {msg}").expect("a valid template");
            bar.set_style(style.progress_chars("█▌░"));
            bar
        });
        Self {
            bar,
            total,
            done: 0.0,
            pace,
            what: String::new(),
            started: Instant::now(),
        }
    }

    /// A run begins.
    pub(super) fn begin(&mut self, what: &str) {
        self.what = what.to_owned();
        let text = self.text();
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None => eprintln!("{text}"),
        }
    }

    fn text(&self) -> String {
        match left(self.total, self.done, self.pace, self.started.elapsed()) {
            Some(left) => format!("{}, {} left", self.what, minutes(left.as_secs_f64())),
            None => self.what.clone(),
        }
    }

    /// A run that was expected to take so long is over.
    pub(super) fn end(&mut self, seconds: f64) {
        self.done += seconds;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done as u64);
            bar.set_message(self.text());
        }
    }

    /// Writes a message without tearing the bar.
    pub(super) fn message(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The expected time of what is left, corrected by how long the past took against what was expected of it.
fn left(total: f64, done: f64, pace: Option<f64>, elapsed: Duration) -> Option<Duration> {
    let pace = if done > 0.0 {
        elapsed.as_secs_f64() / done
    } else {
        pace?
    };
    Some(Duration::from_secs_f64((total - done).max(0.0) * pace))
}

/// A time for people.
pub(super) fn minutes(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        _ => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_the_pace_of_what_is_done() {
        let left = |done, pace, elapsed| left(100.0, done, pace, Duration::from_secs(elapsed));
        let after = |done, elapsed| left(done, Some(1.0), elapsed).expect("known").as_secs_f64();
        assert_eq!((after(0.0, 0), after(50.0, 100), after(110.0, 10)), (100.0, 100.0, 0.0));
        assert_eq!(left(0.0, None, 10), None, "nothing is known yet");
        assert_eq!(left(50.0, None, 100), Some(Duration::from_secs(100)));
    }

    #[test]
    fn times_are_short() {
        assert_eq!(
            (minutes(59.4), minutes(60.0), minutes(3599.6)),
            ("59 s".into(), "1 min 0 s".into(), "60 min 0 s".into())
        );
    }
}
