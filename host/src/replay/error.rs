//! What can be wrong with a round log.

use super::log::{HEADER, HEADER_WITH_ZEROS, STATIC_DONE_AFTER};
use std::{fmt, io};

/// Most characters of a wrong value that a message repeats.
const EXCERPT_CHARS: usize = 40;

/// Why a log cannot be replayed, or not further.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file or stream itself.
    #[error("cannot be read; give a file with a round log, or - for standard input")]
    Io(#[from] io::Error),
    /// What stands in it.
    #[error("{place}: {fault}")]
    Wrong {
        /// Where.
        place: Place,
        /// What.
        fault: Fault,
    },
}

/// Where something stands in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1; blank lines and the comment count.
    pub line: u64,
    /// Character of the line at which the value begins, or would have to, from 1. A byte order mark does not count.
    pub column: u64,
    /// Which value, if it is one.
    pub name: Option<Column>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)?;
        match self.name {
            Some(name) => write!(f, " ({})", name.name()),
            None => Ok(()),
        }
    }
}

/// A column of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// `round`.
    Round,
    /// `duration_us`.
    DurationUs,
    /// `sent_pages`.
    SentPages,
    /// `dirty_pages`.
    DirtyPages,
    /// `zero_pages`, which may be left out.
    ZeroPages,
}

impl Column {
    /// In their order.
    pub const ALL: [Self; 5] = [
        Self::Round,
        Self::DurationUs,
        Self::SentPages,
        Self::DirtyPages,
        Self::ZeroPages,
    ];

    /// How many of them every log has.
    pub const REQUIRED: usize = 4;

    /// As the header has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Round => "round",
            Self::DurationUs => "duration_us",
            Self::SentPages => "sent_pages",
            Self::DirtyPages => "dirty_pages",
            Self::ZeroPages => "zero_pages",
        }
    }
}

/// What is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing but blank lines, or a comment.
    NoHeader,
    /// A header, and nothing after it.
    NoRounds,
    /// A name that is not that of its column.
    WrongHeader(String),
    /// A header that ends early.
    ShortHeader,
    /// A header with more names than there are columns.
    LongHeader(String),
    /// A first line with # that is not `# static_done_after=K`.
    WrongComment,
    /// A # further down.
    LateComment,
    /// A line of a log in JSON lines that is no object.
    NoObject,
    /// A line with fewer values than the header has names.
    Missing {
        /// How many that has.
        columns: usize,
    },
    /// A line with more.
    ExtraValue {
        /// The first of them.
        text: String,
        /// How many names the header has.
        columns: usize,
    },
    /// No value between two commas.
    NoValue,
    /// Below zero.
    Negative(String),
    /// A number with a decimal point.
    Fraction(String),
    /// No number at all.
    NotANumber(String),
    /// A number beyond what can be counted.
    TooLarge {
        /// As it stands there.
        text: String,
        /// The largest there may be.
        max: u64,
    },
    /// A round that is not the one after the last.
    OutOfOrder {
        /// As it stands there.
        round: u64,
        /// What should stand there.
        expected: u64,
    },
    /// More pages than the guest has.
    MoreThanAll {
        /// As it stands there.
        pages: u64,
        /// What the guest has.
        total: u64,
    },
    /// Pages that took no time.
    NoTime {
        /// How many.
        sent: u64,
    },
    /// Rounds that together last longer than can be counted.
    TooLong,
    /// A quotation mark without its partner.
    OpenQuote,
    /// A carriage return within a line.
    CarriageReturn,
    /// Bytes that are no text.
    NotUtf8,
    /// A line that cannot be one of a round log.
    LongLine {
        /// How many bytes one may have.
        max: usize,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader => write!(f, "there is no header: the log begins with {HEADER}"),
            Self::NoRounds => {
                f.write_str("the log has a header and no rounds: write a line for every round, from 1 on")
            }
            Self::WrongHeader(name) => write!(
                f,
                "{} is not the name of this column: the header is {HEADER}",
                Excerpt(name)
            ),
            Self::ShortHeader => write!(f, "the header ends here: it is {HEADER}"),
            Self::LongHeader(name) => write!(f, "{} is a column too many: the header is {HEADER}", Excerpt(name)),
            Self::WrongComment => write!(
                f,
                "this comment has no meaning: write # {STATIC_DONE_AFTER}=K, or leave it out"
            ),
            Self::NoObject => write!(
                f,
                "this is no JSON object: a log in JSON lines has one in each line, with round, duration_us, sent_pages and dirty_pages"
            ),
            Self::LateComment => write!(
                f,
                "a comment stands in the first line only, and says # {STATIC_DONE_AFTER}=K: leave this one out"
            ),
            Self::Missing { columns } => write!(
                f,
                "the line ends before this value: a line has {columns}, {}",
                header(*columns)
            ),
            Self::ExtraValue { text, columns } => write!(
                f,
                "{} is a value too many: a line has {columns}, {}, and numbers have no separators",
                Excerpt(text),
                header(*columns)
            ),
            Self::NoValue => f.write_str("there is no value: write a number, 0 if it is none"),
            Self::Negative(text) => write!(f, "{} is negative: write a number from 0 on", Excerpt(text)),
            Self::Fraction(text) => write!(f, "{} is not a whole number: round it", Excerpt(text)),
            Self::NotANumber(text) => write!(f, "{} is not a number: write decimal digits only", Excerpt(text)),
            Self::TooLarge { text, max } => write!(f, "{} is too large: at most {max} can be counted", Excerpt(text)),
            Self::OutOfOrder { round, expected: 1 } => write!(
                f,
                "the log begins with round {round}: it must begin with round 1, the copy of the whole guest"
            ),
            Self::OutOfOrder { round, expected } => write!(
                f,
                "round {round} stands where round {expected} should: rounds follow each other by one, without gaps or repeats"
            ),
            Self::MoreThanAll { pages, total } => write!(
                f,
                "{pages} pages are more than the {total} that the guest has: correct the value or --total-pages"
            ),
            Self::NoTime { sent } => write!(
                f,
                "{sent} pages in no time would be a link without limits: write how long they took, at least 1"
            ),
            Self::TooLong => {
                f.write_str("the rounds up to here last longer than 584 years together: durations are in microseconds")
            }
            Self::OpenQuote => f.write_str("a quotation mark that does not end in this line: numbers need none"),
            Self::CarriageReturn => f.write_str("a carriage return within a line: end lines with LF or CRLF"),
            Self::NotUtf8 => f.write_str("this is no character of UTF-8: save the log as plain text"),
            Self::LongLine { max } => write!(
                f,
                "the line is longer than {max} bytes, as no line of a round log is: is this the right file?"
            ),
        }
    }
}

const fn header(columns: usize) -> &'static str {
    if columns == Column::REQUIRED {
        HEADER
    } else {
        HEADER_WITH_ZEROS
    }
}

/// The beginning of a text that was not understood, quoted and escaped.
struct Excerpt<'a>(&'a str);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(EXCERPT_CHARS) {
            Some((end, _)) => write!(f, "{:?}…", &self.0[..end]),
            None => write!(f, "{:?}", self.0),
        }
    }
}
