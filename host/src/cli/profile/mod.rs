//! `dunlin profile`: what `record`, `report` and `predict` do, in one, with a live view on a terminal.

mod screen;
mod view;

use std::fs::File;
use std::io::{self, IsTerminal as _, Seek as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use dunlin_core::tracefile::{Head, Item};
use dunlin_core::units::{Nanos, PAGE_SIZE};

use super::migrate::catch_signals;
use super::predict::{Asked, exit_code};
use super::record::Watched;
use super::values::{self, Micros};
use super::{CliError, output, report};
use crate::channel::Cancel;
use crate::control::EndReason;
use crate::profile::{Analysis, ProfileError, Tables};
use crate::report::chart::number;
use crate::report::html::{PageParts, trace_page};
use crate::report::{TraceReport, bytes, count, duration, prediction_table, trace_table};
use crate::trace::recording::{Limits, Sink};
use crate::trace::{TraceError, TraceReader, TraceWriter};
use crate::track::process_cpu;

use screen::Screen;
use view::Plan;

/// How often the view is drawn, and how often a line is written where there is none.
const DRAW_EVERY: Duration = Duration::from_millis(250);
const SAY_EVERY: Duration = Duration::from_secs(2);
/// `dunlin profile` as typed.
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct Args {
    #[command(flatten)]
    watched: Watched,

    /// How long to record; q, Ctrl-C or an interrupt ends it before
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = values::positive_time, allow_hyphen_values = true)]
    duration: Micros,

    #[command(flatten)]
    asked: Asked,

    /// Keep the trace in this file [default: it is thrown away]
    #[arg(long, value_name = "FILE.dtrace")]
    trace: Option<PathBuf>,

    /// Write one page of HTML that needs nothing beside itself
    #[arg(short, long, value_name = "report.html")]
    output: Option<PathBuf>,

    /// Print two lines of JSON, the report and the prediction; no live view
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        self.watched.confine()?;
        let interrupt = catch_signals()?;
        let watching = self.watched.start(&interrupt)?;
        let (mut file, name) = self.file()?;
        let mut tables = None;
        let mut live = Live {
            name: &name,
            file: &file,
            writer: None,
            tables: Some(&mut tables),
            analysis: None,
            refused: None,
            show: Show::choose(self.json, &interrupt),
            whole_us: self.duration.0,
            shown: Instant::now(),
            cpu: process_cpu(),
            interrupt: &interrupt,
        };
        let limits = Limits {
            duration: Some(Duration::from_micros(self.duration.0)),
            interrupt: &interrupt,
        };
        let recorded = watching.record(&mut live, limits, &mut |_| {});
        live.finish()?;
        let reason = recorded?.reason;
        if reason != EndReason::Stopped {
            output::message(&format!("the recording ended early: {reason}"));
        }
        file.rewind().map_err(|source| unusable("read", &name, source))?;
        let mut reader = TraceReader::new(file, &name)?;
        let head = reader.head().clone();
        let (trace, prediction) = self.asked.of_items(&name, &head, &mut reader)?;
        if let Some(path) = &self.output {
            let page = trace_page(PageParts {
                traces: std::slice::from_ref(&trace),
                predictions: std::slice::from_ref(&prediction),
                ..PageParts::default()
            });
            report::write(path, &page)?;
        }
        if self.json {
            if output::offer_json(&trace)? {
                output::json(&prediction)?;
            }
        } else {
            let (paint, pictures) = (output::paint(), io::stdout().is_terminal());
            output::result(&format!(
                "{}\n{}",
                trace_table(&trace, paint, pictures),
                prediction_table(&prediction, paint)
            ))?;
        }
        Ok(exit_code(&prediction))
    }

    /// Where the trace goes: without a name, a file that nobody else finds and that is gone with this process, however it ends.
    fn file(&self) -> Result<(File, String), CliError> {
        let mut options = File::options();
        options.read(true).write(true);
        if let Some(path) = &self.trace {
            let name = path.display().to_string();
            let made = options.create(true).truncate(true).open(path);
            return Ok((made.map_err(|source| unusable("make", &name, source))?, name));
        }
        let path = std::env::temp_dir().join(format!("dunlin-profile-{}.dtrace", std::process::id()));
        let name = path.display().to_string();
        let made = options.create_new(true).mode(0o600).open(&path);
        let file = made.map_err(|source| unusable("make", &name, source))?;
        std::fs::remove_file(&path).map_err(|source| unusable("remove", &name, source))?;
        Ok((file, "recorded just now".into()))
    }
}

fn unusable(what: &'static str, name: &str, source: io::Error) -> CliError {
    CliError::File {
        what,
        path: name.into(),
        source,
    }
}

/// The recording under way: into a file, and before somebody's eyes.
struct Live<'a> {
    name: &'a str,
    file: &'a File,
    writer: Option<TraceWriter<&'a File>>,
    /// Until the recording begins.
    tables: Option<&'a mut Option<Tables>>,
    analysis: Option<Analysis<'a>>,
    /// Why nothing is shown.
    refused: Option<ProfileError>,
    show: Show,
    whole_us: u64,
    shown: Instant,
    cpu: Nanos,
    interrupt: &'a Cancel,
}

impl Sink for Live<'_> {
    fn begin(&mut self, head: &Head) -> Result<(), TraceError> {
        self.writer = Some(TraceWriter::new(self.file, self.name, head)?);
        match (Tables::for_guest(head), self.tables.take()) {
            (Ok(tables), Some(place)) => self.analysis = Some(Analysis::new(head, place.insert(tables))),
            (Err(error), _) => {
                self.refused = Some(error);
                self.interrupt.raise();
            }
            (Ok(_), None) => {}
        }
        Ok(())
    }

    fn push(&mut self, item: &Item) -> Result<(), TraceError> {
        if let Some(writer) = &mut self.writer {
            writer.push(item)?;
        }
        if let Some(analysis) = &mut self.analysis {
            analysis.take(item);
            if matches!(item, Item::WindowEnd { .. }) && self.shown.elapsed() >= self.show.every() {
                self.shown = Instant::now();
                let report = analysis.report(self.name);
                let cpu = process_cpu().saturating_sub(self.cpu);
                self.show.news(&report, self.whole_us, cpu);
            }
        }
        Ok(())
    }
}

impl Live<'_> {
    /// Writes what is left, and gives the terminal back.
    fn finish(self) -> Result<(), CliError> {
        drop(self.show);
        if let Some(writer) = self.writer {
            writer.finish()?;
        }
        self.refused.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// How people are told.
enum Show {
    /// A terminal that is drawn on.
    Screen(Box<Screen>),
    /// A line now and then, on stderr.
    Lines,
}

impl Show {
    fn choose(json: bool, interrupt: &Cancel) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if json || dumb || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return Self::Lines;
        }
        // A terminal that cannot be drawn on can still be written to.
        Screen::open(interrupt).map_or(Self::Lines, |screen| Self::Screen(Box::new(screen)))
    }

    const fn every(&self) -> Duration {
        match self {
            Self::Screen(_) => DRAW_EVERY,
            Self::Lines => SAY_EVERY,
        }
    }

    fn news(&mut self, report: &TraceReport, whole_us: u64, cpu: Nanos) {
        let cpu_milli = (cpu.0).checked_div(report.duration_us).unwrap_or(0);
        match self {
            Self::Screen(screen) => {
                if screen.draw(report, Plan { whole_us, cpu_milli }).is_err() {
                    *self = Self::Lines;
                }
            }
            Self::Lines => output::message(&line(report, whole_us)),
        }
    }
}

/// What is known, in a line.
fn line(report: &TraceReport, whole_us: u64) -> String {
    let micros = |micros| duration(Duration::from_micros(micros));
    let rate = report.rate.as_ref().map_or(0.0, |rate| rate.windows.mean_pages_per_s);
    let lost = match report.lost_events {
        Some(0) => String::new(),
        Some(lost) => format!(", {} events lost", count(lost)),
        None => ", some events lost".into(),
    };
    format!(
        "{} of {}: {} pages/s, {} written so far{lost}",
        micros(report.duration_us),
        micros(whole_us),
        number(rate),
        bytes(report.guest.written_pages * PAGE_SIZE)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::tests::{head, reported, writes};
    use dunlin_core::tracefile::Source;

    #[test]
    fn a_line_says_how_it_goes() {
        let items = writes("seq", 1024, 1, 3_000, Nanos::from_millis(1));
        let report = reported(&head(Source::Generator, 1024, 1), &items);
        assert_eq!(
            line(&report, 10_000_000),
            "3.00 s of 10.0 s: 1,000 pages/s, 4.00 MiB written so far"
        );
    }
}
