//! What can be wrong with a trace, and with what somebody wants to put into one.

use core::fmt;

use super::{VCPUS_MAX, VERSION};
use crate::units::{Gfn, Nanos, Pages};

/// Why bytes are no trace, or no frame of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TracefileError {
    /// The file does not begin as a trace does.
    Magic,
    /// It begins as one, but line ends or the eighth bit were changed.
    CopiedAsText,
    /// Its integers are big-endian.
    ForeignEndian,
    /// The start's own checksum does not match.
    StartChecksum,
    /// Of a version that this one does not read.
    Version {
        /// What the file says.
        found: u16,
    },
    /// No frame begins here.
    FrameMagic,
    /// The frame header's own checksum does not match.
    HeaderChecksum,
    /// A frame of a kind that there is none of, or a field with a value that it cannot have.
    Header {
        /// Which field.
        field: &'static str,
        /// What stands there.
        found: u64,
    },
    /// Frames are missing, or out of order.
    Sequence {
        /// The number that should have come.
        expected: u32,
        /// The number that came.
        found: u32,
    },
    /// A frame whose times begin before those of the last end.
    TimeFalls {
        /// Where the last ended.
        last: Nanos,
        /// Where this one begins.
        found: Nanos,
    },
    /// The payload's checksum does not match.
    PayloadChecksum,
    /// The first frame is no head, or a later one is.
    HeadPlace,
    /// The head cannot be decoded, or bytes are left over.
    HeadEncoding,
    /// The head names a source that this version does not know.
    Source,
    /// What the head says cannot be.
    Head(HeadError),
    /// What an item says cannot be, though the checksum matches.
    Item(ItemError),
}

/// What cannot be of a trace's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeadError {
    /// No RAM at all.
    NoRegions,
    /// A region without pages, or beyond the largest frame number.
    Region,
    /// Regions that overlap or do not ascend.
    Order,
    /// No vCPU, or more than [`VCPUS_MAX`].
    Vcpus(u32),
    /// More pages in use than there are.
    Used {
        /// In use.
        used: Pages,
        /// That there are.
        total: Pages,
    },
}

/// What cannot be of an item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ItemError {
    /// A tag that no item has.
    Tag(u8),
    /// The payload ends within an item.
    Short,
    /// More or fewer items than the header says, or not up to the time that it says.
    Count,
    /// A time before that of the item before, or beyond the largest.
    Time {
        /// Of the item before.
        last: Nanos,
    },
    /// A page that is not below the head's span.
    Page {
        /// The page, or the first of a run.
        gfn: Gfn,
        /// Pages of the run; 1 for a write.
        count: Pages,
        /// What it has to end in.
        span: Pages,
    },
    /// A run without pages.
    EmptyRun,
    /// A vCPU that the guest does not have.
    Vcpu {
        /// Which.
        vcpu: u32,
        /// How many it has.
        vcpus: u32,
    },
    /// Something behind the end.
    AfterEnd,
}

/// Why something is not put into a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EncodeError {
    /// The buffer has no room for a head.
    Buffer {
        /// Bytes that it has.
        found: usize,
        /// Bytes that it needs.
        least: usize,
    },
    /// The frame is full: [take it](super::Encoder::frame) and try again.
    Full,
    /// The head cannot be.
    Head(HeadError),
    /// The item cannot be, or not here.
    Item(ItemError),
}

impl From<HeadError> for TracefileError {
    fn from(error: HeadError) -> Self {
        Self::Head(error)
    }
}

impl From<ItemError> for TracefileError {
    fn from(error: ItemError) -> Self {
        Self::Item(error)
    }
}

impl From<HeadError> for EncodeError {
    fn from(error: HeadError) -> Self {
        Self::Head(error)
    }
}

impl From<ItemError> for EncodeError {
    fn from(error: ItemError) -> Self {
        Self::Item(error)
    }
}

impl fmt::Display for TracefileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("this is no .dtrace file; `dunlin convert` makes one of a CSV or JSON-lines file"),
            Self::CopiedAsText => f.write_str("this was a .dtrace file before something copied it as text: copy it as binary"),
            Self::ForeignEndian => f.write_str(
                "this trace is big-endian, as Dunlin never writes it: export it as CSV with the program that made it, and import that with `dunlin convert`",
            ),
            Self::StartChecksum => f.write_str("the first bytes of the file are damaged (CRC32C differs)"),
            Self::Version { found } => write!(
                f,
                "this trace has version {found} of the format, and this Dunlin reads version {VERSION}: use a newer Dunlin, or export the trace as CSV with the one that recorded it"
            ),
            Self::FrameMagic => f.write_str("no frame begins here"),
            Self::HeaderChecksum => f.write_str("the header of a frame is damaged (CRC32C differs)"),
            Self::Header { field, found } => write!(f, "a frame says {found} as its {field}, which cannot be"),
            Self::Sequence { expected, found } => write!(f, "frame {found} stands where frame {expected} should"),
            Self::TimeFalls { last, found } => {
                write!(f, "a frame begins at {found} ns, but the one before ends at {last} ns")
            }
            Self::PayloadChecksum => f.write_str("a frame is damaged (CRC32C differs)"),
            Self::HeadPlace => f.write_str("a trace begins with its head and has only one"),
            Self::HeadEncoding => f.write_str("the head cannot be decoded"),
            Self::Source => f.write_str("the trace was recorded by a source that this Dunlin does not know: use a newer one"),
            Self::Head(error) => error.fmt(f),
            Self::Item(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRegions => f.write_str("the guest has no memory: a trace needs at least one region"),
            Self::Region => f.write_str("a region of memory is empty, or ends beyond the largest frame number"),
            Self::Order => f.write_str("regions of memory overlap, or do not ascend"),
            Self::Vcpus(vcpus) => write!(f, "{vcpus} vCPUs: a trace tells 1 to {VCPUS_MAX} apart"),
            Self::Used { used, total } => write!(f, "{used} pages are in use, but there are only {total}"),
        }
    }
}

impl fmt::Display for ItemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, "no item has the tag {tag:#04x}"),
            Self::Short => f.write_str("a frame ends within an item"),
            Self::Count => f.write_str("a frame has other items than its header says"),
            Self::Time { last } => write!(
                f,
                "an item lies before the one before, which was at {last} ns, or beyond the largest time: items are sorted by time"
            ),
            Self::Page { gfn, count, span } if count.0 == 1 => {
                write!(
                    f,
                    "page {gfn} is outside the guest's memory, which ends before page {span}"
                )
            }
            Self::Page { gfn, count, span } => write!(
                f,
                "{count} pages from {gfn} on are not all in the guest's memory, which ends before page {span}"
            ),
            Self::EmptyRun => f.write_str("a run of pages has at least one"),
            Self::Vcpu { vcpu, vcpus } => write!(f, "there is no vCPU {vcpu}: the guest has {vcpus}, counted from 0"),
            Self::AfterEnd => f.write_str("nothing follows the end of a trace"),
        }
    }
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Buffer { found, least } => {
                write!(
                    f,
                    "a buffer of {found} bytes is too small for a frame: give at least {least}"
                )
            }
            Self::Full => f.write_str("the frame is full: take it, and try again"),
            Self::Head(error) => error.fmt(f),
            Self::Item(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for TracefileError {}
impl core::error::Error for HeadError {}
impl core::error::Error for ItemError {}
impl core::error::Error for EncodeError {}
