//! Traces in whatever form they come.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use dunlin_core::tracefile::{Head, Item, MAGIC};
use dunlin_core::units::{Nanos, Pages};

use super::file::{Damage, Ending, TraceError, TraceReader, TraceWriter};
use super::text::{Said, Survey, TextFormat, TextReader, TextWriter};

/// Bytes that are read at a time.
const BUFFER_BYTES: usize = 256 * 1024;

/// Forms of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileFormat {
    /// A trace file, see [`dunlin_core::tracefile`].
    Dtrace,
    /// CSV, see [`text`](super::text).
    Csv,
    /// JSON lines, see there.
    JsonLines,
}

impl FileFormat {
    /// The one that the file's extension names: `dtrace`, `csv` or `jsonl`.
    pub fn from_extension(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "dtrace" => Some(Self::Dtrace),
            "csv" => Some(Self::Csv),
            "jsonl" => Some(Self::JsonLines),
            _ => None,
        }
    }

    /// The one that begins so. What is nothing else may be CSV.
    pub(crate) fn from_beginning(bytes: &[u8]) -> Self {
        // What a copy as text changes does not make it another form.
        if bytes.get(1..).is_some_and(|rest| rest.starts_with(&MAGIC[1..5])) {
            return Self::Dtrace;
        }
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        match text.trim_ascii_start().first() {
            Some(b'{') => Self::JsonLines,
            _ => Self::Csv,
        }
    }
}

/// What is known of a guest whose trace does not say it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Assumed {
    /// Pages of its memory, which begins at page 0.
    pub memory: Option<Pages>,
    /// How many vCPUs it has.
    pub vcpus: Option<u32>,
}

/// Opens a file once more.
type Reopen<'a> = dyn Fn() -> Result<Box<dyn BufRead>, TraceError> + 'a;

/// Reads a trace of any form, item by item: a trace file as [`TraceReader`] does, a text as [`TextReader`] does. A text of another
/// program, which does not say where its times begin, has an [`Item::End`] at its last time.
pub struct AnyReader {
    path: PathBuf,
    form: Form,
}

enum Form {
    Trace(Box<TraceReader<Box<dyn Read>>>),
    Text(Box<Text>),
}

struct Text {
    reader: TextReader<Box<dyn BufRead>>,
    head: Head,
    format: TextFormat,
    last: Nanos,
    is_foreign: bool,
    ending: Option<Ending>,
}

impl AnyReader {
    /// Opens a file, and reads it once as a whole if it is a text that does not say what guest it is of.
    ///
    /// # Errors
    /// As [`TraceReader::open`], or [`TraceError::Text`]; [`TraceError::SaysTooLittle`] if it has to be read twice and is no file.
    pub fn open(path: &Path, assumed: Assumed) -> Result<Self, TraceError> {
        let open =
            || -> Result<File, TraceError> { File::open(path).map_err(|error| TraceError::io("open", path, error)) };
        let file = open()?;
        let can_be_opened_again = file.metadata().is_ok_and(|data| data.is_file());
        let again = || -> Result<Box<dyn BufRead>, TraceError> { Ok(buffered(open()?)) };
        let again: Option<&Reopen<'_>> = if can_be_opened_again { Some(&again) } else { None };
        Self::with(buffered(file), path, assumed, again)
    }

    /// Reads what can be read only once; `name` stands in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn new(from: impl Read + 'static, name: &str, assumed: Assumed) -> Result<Self, TraceError> {
        Self::with(buffered(from), Path::new(name), assumed, None)
    }

    fn with(
        mut from: Box<dyn BufRead>,
        path: &Path,
        assumed: Assumed,
        again: Option<&Reopen<'_>>,
    ) -> Result<Self, TraceError> {
        let beginning = from.fill_buf().map_err(|error| TraceError::io("read", path, error))?;
        // What is called a trace file is one, or is said not to be.
        let named = FileFormat::from_extension(path).filter(|format| *format == FileFormat::Dtrace);
        let format = match named.unwrap_or_else(|| FileFormat::from_beginning(beginning)) {
            FileFormat::Csv => TextFormat::Csv,
            FileFormat::JsonLines => TextFormat::JsonLines,
            FileFormat::Dtrace => {
                let from: Box<dyn Read> = Box::new(from);
                let reader = TraceReader::new(from, &path.to_string_lossy())?;
                return Ok(Self {
                    path: path.into(),
                    form: Form::Trace(Box::new(reader)),
                });
            }
        };
        let wrong = |error| TraceError::text(path, error);
        let mut reader = TextReader::open(from, format).map_err(wrong)?;
        let said = with_assumed(reader.said(), assumed);
        let is_foreign = !said.from_start;
        let mut survey = Survey::default();
        if said.needs_survey() {
            let again = again.ok_or_else(|| TraceError::SaysTooLittle { path: path.into() })?;
            for item in reader.by_ref() {
                survey.add(&item.map_err(wrong)?);
            }
            let head = said.head(&survey).map_err(|fault| wrong(reader.wrong(fault)))?;
            reader = TextReader::open(again()?, format).map_err(wrong)?;
            reader.check_against(head);
        }
        let head = said.head(&survey).map_err(|fault| wrong(reader.wrong(fault)))?;
        reader.check_against(head.clone());
        let text = Text {
            reader,
            head,
            format,
            last: Nanos::ZERO,
            is_foreign,
            ending: None,
        };
        Ok(Self {
            path: path.into(),
            form: Form::Text(Box::new(text)),
        })
    }

    /// What the trace says of itself, or what was found out.
    pub fn head(&self) -> &Head {
        match &self.form {
            Form::Trace(reader) => reader.head(),
            Form::Text(text) => &text.head,
        }
    }

    /// In which form it comes.
    pub fn format(&self) -> FileFormat {
        match &self.form {
            Form::Trace(_) => FileFormat::Dtrace,
            Form::Text(text) => match text.format {
                TextFormat::Csv => FileFormat::Csv,
                TextFormat::JsonLines => FileFormat::JsonLines,
            },
        }
    }

    /// How it ended, once all items have come.
    pub fn ending(&self) -> Option<Ending> {
        match &self.form {
            Form::Trace(reader) => reader.ending(),
            Form::Text(text) => text.ending,
        }
    }

    /// What was of no use so far.
    pub fn damage(&self) -> Damage {
        match &self.form {
            Form::Trace(reader) => reader.damage(),
            Form::Text(_) => Damage::default(),
        }
    }
}

impl Iterator for AnyReader {
    type Item = Result<Item, TraceError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.form {
            Form::Trace(reader) => reader.next(),
            Form::Text(text) => {
                let item = text.next()?;
                Some(item.map_err(|fault| TraceError::text(&self.path, fault)))
            }
        }
    }
}

impl fmt::Debug for AnyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyReader")
            .field("path", &self.path)
            .field("head", self.head())
            .finish_non_exhaustive()
    }
}

impl Text {
    fn next(&mut self) -> Option<Result<Item, super::text::TextError>> {
        let item = match self.reader.next() {
            Some(Ok(item)) => item,
            Some(Err(error)) => {
                self.is_foreign = false;
                return Some(Err(error));
            }
            None if self.is_foreign && self.ending.is_none() => Item::End {
                at: self.last,
                overhead: Nanos::ZERO,
            },
            None => {
                let (after, bytes) = (self.last, 0);
                self.ending.get_or_insert(Ending::CutOff { after, bytes });
                return None;
            }
        };
        self.last = item.at().unwrap_or(self.last);
        if let Item::End { at, overhead } = item {
            self.ending = Some(Ending::Complete { at, overhead });
        }
        Some(Ok(item))
    }
}

fn buffered(from: impl Read + 'static) -> Box<dyn BufRead> {
    Box::new(BufReader::with_capacity(BUFFER_BYTES, from))
}

fn with_assumed(said: &Said, assumed: Assumed) -> Said {
    let mut said = said.clone();
    if let Some(pages) = assumed.memory {
        said.regions = Some(super::text::one_region(pages));
    }
    said.vcpus = assumed.vcpus.or(said.vcpus);
    said
}

/// Writes a trace in any form.
pub struct AnyWriter {
    path: PathBuf,
    form: Target,
}

enum Target {
    Trace(Box<TraceWriter<Box<dyn Write>>>),
    Text(TextWriter<Box<dyn Write>>),
}

impl fmt::Debug for AnyWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyWriter")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl AnyWriter {
    /// Begins a trace; `name` stands in errors.
    ///
    /// # Errors
    /// [`TraceError::Io`], [`TraceError::Refused`] for a head that cannot be.
    pub fn new(to: Box<dyn Write>, name: &str, format: FileFormat, head: &Head) -> Result<Self, TraceError> {
        let path = PathBuf::from(name);
        let text = |to, format| {
            let writer = TextWriter::new(to, format, head);
            writer.map_err(|error| TraceError::io("write", &path, error))
        };
        let form = match format {
            FileFormat::Dtrace => Target::Trace(Box::new(TraceWriter::new(to, name, head)?)),
            FileFormat::Csv => Target::Text(text(to, TextFormat::Csv)?),
            FileFormat::JsonLines => Target::Text(text(to, TextFormat::JsonLines)?),
        };
        Ok(Self { path, form })
    }

    /// Adds an item. Only a trace file checks it.
    ///
    /// # Errors
    /// As [`TraceWriter::push`].
    pub fn push(&mut self, item: &Item) -> Result<(), TraceError> {
        match &mut self.form {
            Target::Trace(writer) => writer.push(item),
            Target::Text(writer) => writer
                .push(item)
                .map_err(|error| TraceError::io("write", &self.path, error)),
        }
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// [`TraceError::Io`].
    pub fn finish(self) -> Result<(), TraceError> {
        match self.form {
            Target::Trace(writer) => writer.finish().map(drop),
            Target::Text(writer) => writer
                .finish()
                .map_err(|error| TraceError::io("write", &self.path, error)),
        }
    }
}
