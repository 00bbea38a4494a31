//! What can be wrong with a trace that is text.

use std::fmt;
use std::io;

use dunlin_core::tracefile::{HeadError, ItemError, Source};
use dunlin_core::units::Nanos;

/// Most characters of a wrong value that a message repeats.
const EXCERPT_CHARS: usize = 40;

/// Why a text is no trace, or not from here on.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The file or stream itself.
    #[error("cannot be read")]
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

/// Where something stands in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1; blank lines and comments count.
    pub line: u64,
    /// Character of the line, from 1.
    pub column: u64,
    /// Which value, if it is one.
    pub field: Option<Field>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)?;
        match self.field {
            Some(field) => write!(f, " ({})", field.name()),
            None => Ok(()),
        }
    }
}

/// A value of an item: a column of CSV, a key of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `kind`.
    Kind,
    /// `at_ns`, or with another unit.
    At(Unit),
    /// `vcpu`.
    Vcpu,
    /// `gfn`.
    Gfn,
    /// `address`.
    Address,
    /// `pages`.
    Pages,
    /// `value`.
    Value,
}

/// A unit of time, by the places of its decimal fraction that are nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Nanoseconds.
    Nanos,
    /// Microseconds.
    Micros,
    /// Milliseconds.
    Millis,
    /// Seconds.
    Seconds,
}

impl Unit {
    /// Decimal places down to nanoseconds.
    pub(super) const fn places(self) -> usize {
        match self {
            Self::Nanos => 0,
            Self::Micros => 3,
            Self::Millis => 6,
            Self::Seconds => 9,
        }
    }
}

impl Field {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Kind,
        Self::At(Unit::Nanos),
        Self::At(Unit::Micros),
        Self::At(Unit::Millis),
        Self::At(Unit::Seconds),
        Self::Vcpu,
        Self::Gfn,
        Self::Address,
        Self::Pages,
        Self::Value,
    ];

    /// As it is called in a text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kind => "kind",
            Self::At(Unit::Nanos) => "at_ns",
            Self::At(Unit::Micros) => "at_us",
            Self::At(Unit::Millis) => "at_ms",
            Self::At(Unit::Seconds) => "at_s",
            Self::Vcpu => "vcpu",
            Self::Gfn => "gfn",
            Self::Address => "address",
            Self::Pages => "pages",
            Self::Value => "value",
        }
    }

    /// The one with this name.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }

    /// Of those with the same number an item has one.
    pub(super) const fn slot(self) -> usize {
        match self {
            Self::Kind => 0,
            Self::At(_) => 1,
            Self::Vcpu => 2,
            Self::Gfn | Self::Address => 3,
            Self::Pages => 4,
            Self::Value => 5,
        }
    }

    /// How many different [slots](Self::slot) there are.
    pub(super) const SLOTS: usize = 6;
}

/// What is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No header of CSV.
    NoHeader,
    /// A column or key that means nothing.
    UnknownField(String),
    /// A column or key that stands there twice, or in two units.
    Twice {
        /// The first.
        first: Field,
        /// The second.
        second: Field,
    },
    /// A header without a time or a page.
    NoColumn(&'static str),
    /// A line with fewer values than the header has names.
    ShortLine {
        /// How many the header has.
        columns: usize,
    },
    /// A line with more.
    LongLine {
        /// How many the header has.
        columns: usize,
    },
    /// An item without a value that it has to have.
    Missing(&'static str),
    /// An item with a value that it cannot have.
    NoPlace {
        /// The kind of item.
        kind: &'static str,
    },
    /// No kind of item.
    Kind(String),
    /// No number.
    NotANumber(String),
    /// Below zero.
    Negative(String),
    /// A number with a decimal point or an exponent.
    Fraction(String),
    /// A number that cannot be counted.
    TooLarge(String),
    /// A write of more than one page.
    WidePage(u64),
    /// A time before the one before.
    Earlier {
        /// The one before.
        last: Nanos,
    },
    /// An item that cannot be in this trace.
    Item(ItemError),
    /// A wrong comment or first line about the trace.
    Said {
        /// Of which key.
        key: &'static str,
        /// What to write.
        write: &'static str,
    },
    /// What is said of the trace cannot be.
    Head(HeadError),
    /// A source that nobody knows.
    Source(String),
    /// A line that is no JSON object.
    Json(String),
    /// A quotation mark without its partner.
    OpenQuote,
    /// A carriage return within a line.
    CarriageReturn,
    /// Bytes that are no text.
    NotUtf8,
    /// A line that is too long for one.
    EndlessLine {
        /// How many bytes it may have.
        max: usize,
    },
    /// Nothing that a guest could be made of.
    Empty,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader => f.write_str(
                "there is no header: write the names of the columns in the first line, kind,at_ns,vcpu,gfn,pages,value or at least at_ns,gfn",
            ),
            Self::UnknownField(name) => write!(
                f,
                "{} has no meaning here: there are kind, a time (at_ns, at_us, at_ms or at_s), vcpu, a page (gfn or address), pages and value; leave others out, and rename what means the same",
                Excerpt(name)
            ),
            Self::Twice { first, second } if first == second => write!(f, "{} stands here twice", first.name()),
            Self::Twice { first, second } => write!(
                f,
                "{} stands here beside {}, which says the same: leave one of them out",
                second.name(),
                first.name()
            ),
            Self::NoColumn(what) => write!(f, "no column says {what}"),
            Self::ShortLine { columns } => write!(f, "the line ends here, but the header names {columns} columns"),
            Self::LongLine { columns } => write!(f, "a value too many: the header names {columns} columns"),
            Self::Missing(what) => write!(f, "nothing says {what}"),
            Self::NoPlace { kind } => write!(f, "{kind} has no such value: leave it empty"),
            Self::Kind(text) => write!(
                f,
                "{} is no kind of item: write write, dirty, window-end, lost, steps or end, or leave the column out for writes",
                Excerpt(text)
            ),
            Self::NotANumber(text) => write!(
                f,
                "{} is no number: write decimal digits; pages and addresses may be hexadecimal behind 0x",
                Excerpt(text)
            ),
            Self::Negative(text) => write!(f, "{} is negative: write a number from 0 on", Excerpt(text)),
            Self::Fraction(text) => write!(
                f,
                "{} is not a whole number: only at_us, at_ms and at_s may have a decimal point, and nothing an exponent",
                Excerpt(text)
            ),
            Self::TooLarge(text) => write!(f, "{} is more than can be counted here", Excerpt(text)),
            Self::WidePage(pages) => write!(
                f,
                "a write is of one page, not of {pages}: write a line for each, or kind=dirty with a window-end behind"
            ),
            Self::Earlier { last } => write!(
                f,
                "this is before the item before, which is at {last} ns of the trace: sort the lines by time"
            ),
            Self::Item(error) => error.fmt(f),
            Self::Said { key, write } => write!(f, "what is said of {key} has no meaning: write {write}"),
            Self::Head(error) => error.fmt(f),
            Self::Source(text) => {
                write!(f, "{} is no source: there are ", Excerpt(text))?;
                let mut names = Source::ALL.into_iter().map(Source::name);
                if let Some(first) = names.next() {
                    f.write_str(first)?;
                }
                names.try_for_each(|name| write!(f, ", {name}"))
            }
            Self::Json(reason) => write!(f, "this is no JSON object of one line: {reason}"),
            Self::OpenQuote => f.write_str("a quotation mark that does not end in this line"),
            Self::CarriageReturn => f.write_str("a carriage return within a line: end lines with LF or CRLF"),
            Self::NotUtf8 => f.write_str("this is no character of UTF-8: save the trace as plain text"),
            Self::EndlessLine { max } => {
                write!(f, "the line is longer than {max} bytes, as none of a trace is: is this the right file?")
            }
            Self::Empty => f.write_str(
                "no line names a page, so that nothing says how much memory the guest has: say it with --memory",
            ),
        }
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
