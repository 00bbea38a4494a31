//! `dunlin convert`: a trace of page writes from one form into another.

use super::{CliError, output, values};
use crate::{
    report::{count, duration},
    trace::{AnyReader, AnyWriter, Assumed, Ending, FileFormat, TraceError},
};
use dunlin_core::{
    tracefile::{Item, VCPUS_MAX},
    units::{Bytes, PAGE_SIZE, Pages},
};
use std::{
    fs::File,
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// What is read and written.
const FORMS: &str = "\
Traces of page writes have three forms: .dtrace, which is small and which
other commands read, and .csv and .jsonl for other programs. What is read is
known by its content, what is written by its extension or --to.

Any CSV can be read that has a time and a page in each line, sorted by time:

  at_us,address                      at_ns,vcpu,gfn
  1200.5,0x7f3000                    0,0,2035
  1207.2,0x7f4000                    20000,1,77

The time is at_ns, at_us, at_ms or at_s and of any clock; the page is gfn or
address (decimal or 0x…). vcpu may be left out. What only knows which pages
were written in a window says so with a column kind:

  kind,at_ms,gfn,pages
  dirty,,100,3
  dirty,,200,1
  window-end,1000,,

Further kinds are lost (value: how many), steps (vcpu, value: how many) and
end (value: overhead in ns). JSON lines have the same names as keys:

  {\"at_us\":1200.5,\"address\":\"0x7f3000\"}

Comments before the header say what the trace is of; all may be left out:

  # source=imported                  # vcpus=4
  # regions=0+262144                 # guest=\"web-1\"

Exit codes: 0 converted; 1 converted but for a damaged part, or the result
could not be written; 2 wrong usage, or nothing that can be read.";

/// `dunlin convert` as typed.
#[derive(Debug, clap::Args)]
#[command(after_help = FORMS)]
pub(super) struct Args {
    /// The trace, or - for standard input
    #[arg(value_name = "IN")]
    from: PathBuf,

    /// Where to: a file whose extension is dtrace, csv or jsonl, or - for standard output
    #[arg(value_name = "OUT")]
    to: PathBuf,

    /// The form to write, whatever the extension
    #[arg(long = "to", value_name = "FORM", value_enum)]
    form: Option<Form>,

    /// Memory of the guest, if the text does not say it [default: up to the highest page, where the text can be read twice]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    memory: Option<Bytes>,

    /// vCPUs of the guest, if the text does not say it [default: up to the highest]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(VCPUS_MAX)))]
    vcpus: Option<u32>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Form {
    Dtrace,
    Csv,
    Jsonl,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, CliError> {
        let format = self.format()?;
        let assumed = self.assumed()?;
        let stream = Path::new("-");
        let mut reader = if self.from == stream {
            AnyReader::new(io::stdin().lock(), "standard input", assumed)?
        } else {
            AnyReader::open(&self.from, assumed)?
        };
        if reader.format() == FileFormat::Dtrace && assumed != Assumed::default() {
            let message = "--memory and --vcpus are for texts: a .dtrace file says itself what its guest has";
            return Err(CliError::Usage(message.into()));
        }
        let converted = if self.to == stream {
            convert(&mut reader, Box::new(io::stdout().lock()), "standard output", format)
        } else {
            self.check_other_file()?;
            let file = File::create(&self.to).map_err(|error| TraceError::io("make", &self.to, error))?;
            let converted = convert(&mut reader, Box::new(file), &self.to.to_string_lossy(), format);
            if converted.is_err() {
                // A half would be taken for a whole.
                let _ = std::fs::remove_file(&self.to);
            }
            converted
        };
        match converted {
            Ok(Some(converted)) => Ok(converted.say(&reader)),
            Ok(None) => Ok(ExitCode::SUCCESS),
            Err(error) => Err(error.into()),
        }
    }

    fn format(&self) -> Result<FileFormat, CliError> {
        match self.form {
            Some(Form::Dtrace) => Ok(FileFormat::Dtrace),
            Some(Form::Csv) => Ok(FileFormat::Csv),
            Some(Form::Jsonl) => Ok(FileFormat::JsonLines),
            None => FileFormat::from_extension(&self.to).ok_or_else(|| {
                let to = self.to.display();
                CliError::Usage(format!(
                    "{to} does not say what to write: end it with .dtrace, .csv or .jsonl, or say it with --to"
                ))
            }),
        }
    }

    fn assumed(&self) -> Result<Assumed, CliError> {
        let memory = match self.memory {
            Some(Bytes(bytes)) if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) => {
                let message = format!("--memory of {bytes} B is no whole number of pages: write 512MiB for example");
                return Err(CliError::Usage(message));
            }
            memory => memory.map(|Bytes(bytes)| Pages(bytes / PAGE_SIZE)),
        };
        Ok(Assumed {
            memory,
            vcpus: self.vcpus,
        })
    }

    /// Writing empties the file that is read.
    fn check_other_file(&self) -> Result<(), CliError> {
        let place = |path: &Path| path.canonicalize().ok();
        match (place(&self.from), place(&self.to)) {
            (Some(from), Some(to)) if from == to => {
                let message = format!(
                    "{} would be written over while it is read: give another file",
                    to.display()
                );
                Err(CliError::Usage(message))
            }
            _ => Ok(()),
        }
    }
}

/// What was in a trace.
#[derive(Default)]
struct Converted {
    items: u64,
    writes: u64,
    lost: u64,
    is_damaged: bool,
}

/// Copies all items. `None` if the reader of the result has gone away.
fn convert(
    reader: &mut AnyReader,
    to: Box<dyn Write>,
    name: &str,
    format: FileFormat,
) -> Result<Option<Converted>, TraceError> {
    let mut converted = Converted::default();
    let copied = copy(reader, to, name, format, &mut converted);
    match copied {
        Ok(()) => Ok(Some(converted)),
        Err(TraceError::Io {
            what: "write", source, ..
        }) if source.kind() == ErrorKind::BrokenPipe => Ok(None),
        Err(error) => Err(error),
    }
}

fn copy(
    reader: &mut AnyReader,
    to: Box<dyn Write>,
    name: &str,
    format: FileFormat,
    converted: &mut Converted,
) -> Result<(), TraceError> {
    let mut writer = AnyWriter::new(to, name, format, reader.head())?;
    for item in reader {
        let item = match item {
            Ok(item) => item,
            Err(error) => {
                let TraceError::Damaged { after, .. } = error else {
                    return Err(error);
                };
                output::message(&format!("warning: {error}"));
                converted.is_damaged = true;
                // Nobody knows how many.
                Item::Lost {
                    at: after,
                    events: u64::MAX,
                }
            }
        };
        converted.items += 1;
        match item {
            Item::Write { .. } => converted.writes += 1,
            Item::Lost { events, .. } => converted.lost = converted.lost.saturating_add(events),
            _ => {}
        }
        writer.push(&item)?;
    }
    writer.finish()
}

impl Converted {
    fn say(&self, reader: &AnyReader) -> ExitCode {
        let (time, is_cut) = match reader.ending() {
            Some(Ending::Complete { at, .. }) => (at, false),
            Some(Ending::CutOff { after, .. }) => (after, true),
            None => Default::default(),
        };
        let mut text = format!(
            "{} items, {} of them writes, in {}",
            count(self.items),
            count(self.writes),
            duration(Duration::from_nanos(time.0))
        );
        if is_cut {
            text += ", where the trace is cut off";
        }
        match self.lost {
            0 => {}
            u64::MAX => text += "; an unknown number of events is lost",
            lost => text += &format!("; {} events are lost", count(lost)),
        }
        output::message(&text);
        if self.is_damaged {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }
}
