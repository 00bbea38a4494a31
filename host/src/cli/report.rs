//! `dunlin report`

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dunlin_core::tracefile::{Head, Item};
use indicatif::{ProgressBar, ProgressStyle};

use super::{CliError, output};
use crate::profile::{Agreement, Analysis, FirstTouch};
use crate::push_order::{self, PAGES_MAX};
use crate::report::html::{PageParts, trace_page};
use crate::report::{
    MigrationReport, MigrationSchema, SimilarPair, SimilarityReport, SimilaritySchema, TraceReport, chain,
    migration_table, similarity_table, trace_charts, trace_table,
};
use crate::trace::{AnyReader, Assumed, FileFormat, TraceError, TraceReader};

/// So much of a file tells what it is.
const BEGINNING: u64 = 4096;

/// What comes out.
const HELP: &str = "\
A FILE is a trace that `dunlin record` wrote, a trace of another program as
`dunlin convert` reads them, or what `dunlin migrate --json` printed.

With --json there is a line for each trace (dunlin.report.v1), a line for each
migration as it was, and, with several traces, one for how far they agree
(dunlin.similarity.v1).

Exit codes: 0 reported; 1 the result could not be written; 2 wrong usage, or a
file that cannot be read.";

/// `dunlin report` as typed.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Recorded traces, and reports of migrations
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// Write one page of HTML that needs nothing beside itself
    #[arg(short, long, value_name = "report.html")]
    output: Option<PathBuf>,

    /// Write each chart of the trace as SVG into this directory; for one trace
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,

    /// Write the pages of the trace in the order of their first write, as push=recorded:FILE reads them; for one trace
    #[arg(long, value_name = "FILE")]
    first_touch: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What the files are.
#[derive(Default)]
struct Found {
    traces: Vec<(TraceReport, FirstTouch)>,
    migrations: Vec<(String, MigrationReport)>,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let mut found = Found::default();
        for path in &self.files {
            found.read(path)?;
        }
        if (self.svg.is_some() || self.first_touch.is_some()) && found.traces.len() != 1 {
            let message = format!(
                "--svg and --first-touch are for one trace, and there are {}",
                found.traces.len()
            );
            return Err(CliError::Usage(message));
        }
        if let (Some(path), Some((_, touch))) = (&self.first_touch, found.traces.first()) {
            // What is not in it is pushed all the same, later.
            push_order::write(path, "in which they were first written", touch.pages().take(PAGES_MAX))?;
        }
        if let (Some(directory), Some((report, _))) = (&self.svg, found.traces.first()) {
            write_charts(directory, report)?;
        }
        let similarity = similarity(&found.traces);
        if let Some(path) = &self.output {
            let traces: Vec<TraceReport> = found.traces.iter().map(|(report, _)| report.clone()).collect();
            let page = trace_page(PageParts {
                traces: &traces,
                similarity: similarity.as_ref(),
                migrations: &found.migrations,
                ..PageParts::default()
            });
            write(path, &page)?;
        }
        if self.json {
            found.print_json(similarity.as_ref())?;
        } else if self.output.is_none() || io::stdout().is_terminal() {
            found.print(similarity.as_ref())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Found {
    fn read(&mut self, path: &Path) -> Result<(), CliError> {
        match beginning(path)? {
            Beginning::Migrations => self.read_migrations(path),
            Beginning::Trace => {
                let name = path.display().to_string();
                let file = open(path)?;
                let bar = progress(&file, &name);
                let mut reader = TraceReader::new(bar.wrap_read(file), &name)?;
                let head = reader.head().clone();
                self.analyse(name, &head, &mut reader, &bar)
            }
            Beginning::Text => {
                let mut reader = AnyReader::open(path, Assumed::default())?;
                let head = reader.head().clone();
                self.analyse(path.display().to_string(), &head, &mut reader, &ProgressBar::hidden())
            }
        }
    }

    fn analyse(
        &mut self,
        name: String,
        head: &Head,
        items: impl Iterator<Item = Result<Item, TraceError>>,
        bar: &ProgressBar,
    ) -> Result<(), CliError> {
        let mut tables = None;
        let analysis = Analysis::of_trace(head, items, &mut tables, |damage| {
            bar.suspend(|| output::message(&format!("warning: {}", chain(damage))));
        })?;
        bar.finish_and_clear();
        self.traces
            .push((analysis.report(&name), analysis.first_touch().clone()));
        Ok(())
    }

    fn read_migrations(&mut self, path: &Path) -> Result<(), CliError> {
        let text = std::fs::read_to_string(path).map_err(|source| unreadable(path, source))?;
        for document in serde_json::Deserializer::from_str(&text).into_iter::<MigrationReport>() {
            let report = document.map_err(|error| {
                CliError::Usage(format!(
                    "{} is no report of a migration: {error}; give what `dunlin migrate --json` printed",
                    path.display()
                ))
            })?;
            self.migrations.push((path.display().to_string(), report));
        }
        Ok(())
    }

    fn print(&self, similarity: Option<&SimilarityReport>) -> Result<(), CliError> {
        let paint = output::paint();
        let pictures = io::stdout().is_terminal();
        let traces = self
            .traces
            .iter()
            .map(|(report, _)| trace_table(report, paint, pictures));
        let similarity = similarity.map(|similarity| similarity_table(similarity, paint));
        let migrations = self.migrations.iter().map(|(_, report)| migration_table(report, paint));
        let parts: Vec<String> = traces.chain(similarity).chain(migrations).collect();
        output::result(&parts.join("\n"))
    }

    fn print_json(&self, similarity: Option<&SimilarityReport>) -> Result<(), CliError> {
        for (report, _) in &self.traces {
            if !output::offer_json(report)? {
                return Ok(());
            }
        }
        for (_, report) in &self.migrations {
            if !output::offer_json(report)? {
                return Ok(());
            }
        }
        similarity.map_or(Ok(()), output::json)
    }
}

/// Every pair; `None` for fewer than two traces.
fn similarity(traces: &[(TraceReport, FirstTouch)]) -> Option<SimilarityReport> {
    let mut pairs = Vec::new();
    for (index, (one, touched)) in traces.iter().enumerate() {
        for (other, also) in &traces[index + 1..] {
            let agreement = Agreement::between(touched, also);
            pairs.push(SimilarPair {
                one: one.trace.clone(),
                other: other.trace.clone(),
                common_pages: agreement.common,
                jaccard_milli: agreement.jaccard_milli(),
                order_milli: agreement.order_milli(),
            });
        }
    }
    (!pairs.is_empty()).then_some(SimilarityReport {
        schema: SimilaritySchema,
        pairs,
    })
}

/// What a file is.
enum Beginning {
    Migrations,
    Trace,
    Text,
}

/// By how the file begins.
fn beginning(path: &Path) -> Result<Beginning, CliError> {
    let mut bytes = Vec::new();
    let read = open(path)?.take(BEGINNING).read_to_end(&mut bytes);
    read.map_err(|source| unreadable(path, source))?;
    let says_migration =
        bytes.first() == Some(&b'{') && String::from_utf8_lossy(&bytes).contains(MigrationSchema::NAME);
    Ok(match FileFormat::from_beginning(&bytes) {
        FileFormat::Dtrace => Beginning::Trace,
        FileFormat::JsonLines if says_migration => Beginning::Migrations,
        FileFormat::JsonLines | FileFormat::Csv => Beginning::Text,
    })
}

fn open(path: &Path) -> Result<File, CliError> {
    File::open(path).map_err(|source| unreadable(path, source))
}

fn unreadable(path: &Path, source: io::Error) -> CliError {
    CliError::File {
        what: "read",
        path: path.into(),
        source,
    }
}

/// How much of the file is read, for people who wait for it.
fn progress(file: &File, name: &str) -> ProgressBar {
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    if !io::stderr().is_terminal() || length == 0 {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    let style = ProgressStyle::with_template("{bar:24} {bytes} of {total_bytes} of {msg} · ETA {eta}");
    bar.set_style(style.expect("a valid template").progress_chars("█▌░"));
    bar.set_message(name.to_owned());
    bar
}

fn write_charts(directory: &Path, report: &TraceReport) -> Result<(), CliError> {
    std::fs::create_dir_all(directory).map_err(|source| CliError::File {
        what: "make",
        path: directory.into(),
        source,
    })?;
    for figure in trace_charts(report) {
        write(&directory.join(figure.name).with_extension("svg"), &figure.svg)?;
    }
    Ok(())
}

pub(super) fn write(path: &Path, text: &str) -> Result<(), CliError> {
    std::fs::write(path, text).map_err(|source| CliError::File {
        what: "write",
        path: path.into(),
        source,
    })
}
