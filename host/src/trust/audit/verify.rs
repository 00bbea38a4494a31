//! Whether a log is whole, and whether it agrees with the hand-over records.

use super::{
    AuditError,
    line::decode,
    log::Lines,
    record::{Event, Header, Place, Places, Record, TornLine},
};
use crate::journal::{self, HandOver, JournalError};
use dunlin_core::message::SessionId;
use serde::Serialize;
use std::{fmt, fs::File, io::ErrorKind, path::Path};

/// What is wrong with a log, and where first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The first line that is not as it was, from 1; with [`Flaw::Removed`] the first after what is gone.
    pub line: u64,
    /// How.
    #[serde(flatten)]
    pub flaw: Flaw,
}

/// Ways in which a log can be other than it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Flaw {
    /// The first line does not begin a log.
    NoHeader,
    /// The line's own hash does not fit it: bytes of it were changed.
    Edited,
    /// The line's own hash fits, but not the one that the next line has of it.
    Replaced,
    /// Records are missing before this line.
    Removed {
        /// The number of the first one.
        first: u64,
        /// The number of the last one.
        last: u64,
    },
    /// A line that was torn is missing before this one.
    TornRemoved,
    /// The record has its place further down.
    Reordered {
        /// The number of the record that should stand here.
        expected: u64,
    },
    /// The record stood further up already.
    Repeated {
        /// Its number.
        number: u64,
    },
    /// No line has the hash that was kept elsewhere: the end was cut off, or all of it replaced.
    HeadMissing,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line;
        match &self.flaw {
            Flaw::NoHeader => write!(f, "line {line} does not begin an audit log"),
            Flaw::Edited => write!(f, "line {line} was edited: its hash does not fit it"),
            Flaw::Replaced => write!(
                f,
                "line {line} was replaced by another: its own hash fits, the one in line {} does not",
                line + 1
            ),
            Flaw::Removed { first, last } if first == last => {
                write!(f, "record {first} was removed before line {line}")
            }
            Flaw::Removed { first, last } => write!(f, "records {first} to {last} were removed before line {line}"),
            Flaw::TornRemoved => write!(f, "a torn line was removed before line {line}"),
            Flaw::Reordered { expected } => {
                write!(
                    f,
                    "line {line} was moved: record {expected} belongs there, and stands further down"
                )
            }
            Flaw::Repeated { number } => write!(f, "line {line} was moved or repeated: record {number} came before"),
            Flaw::HeadMissing => write!(
                f,
                "the kept hash is in none of the {line} lines: records were cut off at the end, or the whole log was replaced"
            ),
        }
    }
}

/// Goes through the lines of a log.
#[derive(Clone, Debug, Default)]
pub(super) struct Walk {
    lines: u64,
    records: u64,
    head: String,
    /// A line that is none, which only the next can explain.
    waiting: Option<TornLine>,
}

impl Walk {
    /// The next line, without its end. The first gives no record, nor does one that the next must explain.
    pub(super) fn take(&mut self, line: &[u8]) -> Result<Option<Record>, Problem> {
        self.lines += 1;
        if !self.has_header() {
            let (_, hash) = decode::<Header>(line).ok_or_else(|| self.no_header())?;
            self.head = hash;
            return Ok(None);
        }
        let Some((record, hash)) = decode::<Record>(line) else {
            if self.is_waiting() {
                return Err(self.at(self.lines - 1, Flaw::Edited));
            }
            self.waiting = Some(TornLine {
                bytes: line.len() as u64,
                blake3: blake3::hash(line).to_hex().to_string(),
            });
            return Ok(None);
        };
        let explained = record.entry.torn.as_ref();
        match (&self.waiting, explained) {
            (Some(waiting), explained) if explained != Some(waiting) => {
                return Err(self.at(self.lines - 1, Flaw::Edited));
            }
            (None, Some(_)) => return Err(self.at(self.lines, Flaw::TornRemoved)),
            _ => {}
        }
        let expected = self.records + 1;
        match record.number {
            number if number > expected => {
                return Err(self.at(
                    self.lines,
                    Flaw::Removed {
                        first: expected,
                        last: number - 1,
                    },
                ));
            }
            number if number < expected => return Err(self.at(self.lines, Flaw::Repeated { number })),
            _ if record.previous != self.head => return Err(self.at(self.lines - 1, Flaw::Replaced)),
            number => (self.records, self.head, self.waiting) = (number, hash, None),
        }
        Ok(Some(record))
    }

    const fn at(&self, line: u64, flaw: Flaw) -> Problem {
        Problem { line, flaw }
    }

    pub(super) const fn has_header(&self) -> bool {
        !self.head.is_empty()
    }

    pub(super) const fn no_header(&self) -> Problem {
        Problem {
            line: 1,
            flaw: Flaw::NoHeader,
        }
    }

    /// Whether the last line was none.
    pub(super) const fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    pub(super) const fn waiting(&self) -> Option<&TornLine> {
        self.waiting.as_ref()
    }

    pub(super) const fn flaw_of_waiting(&self) -> Problem {
        self.at(self.lines, Flaw::Edited)
    }

    pub(super) const fn records(&self) -> u64 {
        self.records
    }

    /// The hash of the last line that counts.
    pub(super) fn head(&self) -> &str {
        &self.head
    }
}

/// What [`verify()`] found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Records that are as they were written, from the beginning.
    pub records: u64,
    /// The hash of the last of them: kept elsewhere, it later shows whether the end was cut off.
    pub head: String,
    /// When the first of them was written.
    pub first: Option<String>,
    /// When the last of them was written.
    pub last: Option<String>,
    /// Lines that were torn and ended by a record.
    pub torn_lines: u64,
    /// Bytes after the last line: a process died while it wrote them, or writes them now.
    pub unfinished_bytes: u64,
    /// Records after the one whose hash was given.
    pub since_head: Option<u64>,
    /// Signatures under commit records.
    pub signatures: Signatures,
    /// The first thing that is wrong.
    pub problem: Option<Problem>,
}

/// Signatures under commit records, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Signatures {
    /// Those that fit what they stand under, by the certificate beside them.
    pub good: u64,
    /// Those that do not.
    pub bad: u64,
    /// Sides of commit records that have none.
    pub missing: u64,
}

/// Every record of the log at `path`, up to the first thing that is wrong.
///
/// # Errors
/// [`AuditError`] when it cannot be read.
pub fn read(path: &Path) -> Result<(Vec<Record>, Report), AuditError> {
    let mut records = Vec::new();
    let report = walk(path, None, &mut |record| records.push(record))?;
    Ok((records, report))
}

/// Checks the log at `path`; with a `head`, also that the line with this hash is in it.
///
/// # Errors
/// [`AuditError`] when it cannot be read.
pub fn verify(path: &Path, head: Option<&str>) -> Result<Report, AuditError> {
    walk(path, head, &mut |_| {})
}

fn walk(path: &Path, head: Option<&str>, each: &mut dyn FnMut(Record)) -> Result<Report, AuditError> {
    let io = |source| AuditError::io("read", path, source);
    let file = File::open(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => AuditError::Missing(path.into()),
        _ => io(source),
    })?;
    let (mut walk, mut lines) = (Walk::default(), Lines::new(&file, 0));
    let mut report = Report {
        records: 0,
        head: String::new(),
        first: None,
        last: None,
        torn_lines: 0,
        unfinished_bytes: 0,
        since_head: None,
        signatures: Signatures::default(),
        problem: None,
    };
    let mut problem = None;
    while let Some((line, whole)) = lines.next().map_err(io)? {
        if !whole {
            report.unfinished_bytes = line.len() as u64;
            // Whole but for its end it counts.
            if decode::<Record>(&line).is_none() {
                break;
            }
        }
        match walk.take(&line) {
            Ok(taken) => {
                if head.is_some_and(|head| !walk.is_waiting() && head == walk.head()) {
                    report.since_head = Some(walk.records());
                }
                let Some(record) = taken else { continue };
                report.first.get_or_insert_with(|| record.time.clone());
                report.last = Some(record.time.clone());
                report.torn_lines += u64::from(record.entry.event == Event::Torn);
                if let Some(commit) = &record.entry.commit {
                    commit.count(&mut report.signatures);
                }
                each(record);
            }
            Err(found) => {
                problem = Some(looked_ahead(found, &mut lines, &walk).map_err(io)?);
                break;
            }
        }
    }
    report.problem = problem.or_else(|| walk.is_waiting().then(|| walk.flaw_of_waiting()));
    if report.problem.is_none() && !walk.has_header() {
        report.problem = Some(walk.no_header());
    }
    (report.records, report.head) = (walk.records(), walk.head().to_owned());
    if head.is_some() {
        match report.since_head {
            Some(number) => report.since_head = Some(walk.records() - number),
            None if report.problem.is_none() => {
                report.problem = Some(Problem {
                    line: walk.lines,
                    flaw: Flaw::HeadMissing,
                });
            }
            None => {}
        }
    }
    Ok(report)
}

/// What seems removed may only have been moved further down.
fn looked_ahead(problem: Problem, lines: &mut Lines<'_>, walk: &Walk) -> std::io::Result<Problem> {
    let Flaw::Removed { first, .. } = problem.flaw else {
        return Ok(problem);
    };
    while let Some((line, true)) = lines.next()? {
        let found = decode::<Record>(&line);
        if found.is_some_and(|(record, _)| record.number == first && record.previous == walk.head()) {
            return Ok(Problem {
                flaw: Flaw::Reordered { expected: first },
                ..problem
            });
        }
    }
    Ok(problem)
}

/// A VM of which log and hand-over record say different things.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disagreement {
    /// Its name.
    pub guest: String,
    /// Where it is by its hand-over record.
    pub recorded: Place,
    /// Where it is by the log, which may say nothing of it.
    pub audited: Option<Place>,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (guest, recorded) = (&self.guest, self.recorded);
        write!(f, "VM {guest:?} is {recorded} by its hand-over record, but ")?;
        match self.audited {
            Some(audited) => write!(f, "{audited} by the audit log"),
            None => f.write_str(
                "the audit log says nothing of it: it is the log of another host, or its beginning or end is missing",
            ),
        }
    }
}

/// Compares the log at `path` with the hand-over records in `directory`: how many VMs are in both, and which disagree. A record of
/// a VM that was moved, and of which the log says nothing, is one that disagrees.
///
/// # Errors
/// [`AuditError`] and [`JournalError`] for what cannot be read.
pub fn against_journals(
    path: &Path,
    directory: &Path,
) -> Result<(usize, Vec<Disagreement>), Box<dyn std::error::Error + Send + Sync>> {
    // Records that are the same before and after were so all the while: what changes meanwhile is no disagreement.
    let (mut listed, mut records) = (recorded(directory)?, read(path)?.0);
    for _ in 0..LOOKS_MAX {
        let again = recorded(directory)?;
        if again == listed {
            break;
        }
        (listed, records) = (again, read(path)?.0);
    }
    let mut places = Places::default();
    records.iter().for_each(|record| places.note(&record.entry));
    let (mut both, mut disagreements) = (0, Vec::new());
    for (guest, hand_over) in listed {
        let recorded = Place::of(hand_over.role, hand_over.phase);
        let audited = places.get(hand_over.vm_id, hand_over.role);
        both += usize::from(audited.is_some());
        // A process that dies as it begins may leave a record that no line speaks of yet.
        let has_begun = hand_over.session != SessionId::default();
        if audited.map_or(has_begun, |audited| recorded.contradicts(audited)) {
            disagreements.push(Disagreement {
                guest,
                recorded,
                audited,
            });
        }
    }
    Ok((both, disagreements))
}

/// How often records are read that change all the while.
const LOOKS_MAX: u32 = 20;

/// What the hand-over records in `directory` say last.
fn recorded(directory: &Path) -> Result<Vec<(String, HandOver)>, JournalError> {
    let mut all = Vec::new();
    for listed in journal::list(directory)? {
        all.extend(listed.reading?.record.map(|record| (listed.vm_name, record.hand_over)));
    }
    Ok(all)
}
