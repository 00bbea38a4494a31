//! Reading a trace file.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use dunlin_core::tracefile::{
    Decoder, FRAME_BYTES_MAX, FrameHeader, HEADER_BYTES, Head, Item, ItemError, MAGIC, START_BYTES, TracefileError,
    check_start, find_frame,
};
use dunlin_core::units::Nanos;

use super::TraceError;
use super::seconds;

/// Bytes that are read at a time.
const BUFFER_BYTES: usize = 256 * 1024;

/// How a trace file ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// With the end of the recording.
    Complete {
        /// When.
        at: Nanos,
        /// CPU time that tracing took.
        overhead: Nanos,
    },
    /// Before that: the recorder was killed, or the file copied too early. All whole frames were read.
    CutOff {
        /// Time of the last item.
        after: Nanos,
        /// Bytes behind the last whole frame.
        bytes: u64,
    },
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete { at, .. } => write!(f, "complete, {} s", seconds(*at)),
            Self::CutOff { after, .. } => write!(f, "cut off after {} s", seconds(*after)),
        }
    }
}

/// Reads a trace, item by item. Memory: a quarter of a MiB.
///
/// Where a part of the file is damaged, that is what comes in the place of its items ([`TraceError::Damaged`]), and then what
/// follows. Whoever stops at the first error has all that comes before. After any other error nothing comes.
pub struct TraceReader<R: Read = File> {
    from: R,
    path: PathBuf,
    head: Head,
    decoder: Decoder,
    buffer: Buffer,
    /// Bytes of the payload that the decoder is in, with which what the buffer holds begins.
    payload: usize,
    last: FrameHeader,
    /// The time that was read to.
    after: Nanos,
    /// Frames are missing and somebody was told.
    gap_is_known: bool,
    is_done: bool,
    ending: Option<Ending>,
    damage: Damage,
}

/// What of a trace is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Damage {
    /// Parts of the file.
    pub parts: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl TraceReader<File> {
    /// Opens a file and reads its head.
    ///
    /// # Errors
    /// [`TraceError::Io`], [`Unreadable`](TraceError::Unreadable), [`NoHead`](TraceError::NoHead).
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        let file = File::open(path).map_err(|error| TraceError::io("open", path, error))?;
        Self::with(file, path.into())
    }
}

impl<R: Read> TraceReader<R> {
    /// Reads from anything; `name` stands in errors. Reads are large, so nothing has to be buffered.
    ///
    /// # Errors
    /// As [`open`](TraceReader::open).
    pub fn new(from: R, name: &str) -> Result<Self, TraceError> {
        Self::with(from, name.into())
    }

    fn with(mut from: R, path: PathBuf) -> Result<Self, TraceError> {
        let mut buffer = Buffer::new();
        let unreadable = |fault| TraceError::Unreadable {
            path: path.clone(),
            fault,
        };
        let no_head = || TraceError::NoHead { path: path.clone() };
        buffer.fill(&mut from, START_BYTES + HEADER_BYTES, &path)?;
        let Some((start, rest)) = buffer.bytes().split_first_chunk() else {
            let begins = buffer.bytes();
            let is_ours = MAGIC.starts_with(begins) || begins.starts_with(&MAGIC);
            return Err(match is_ours {
                true => no_head(),
                false => unreadable(TracefileError::Magic),
            });
        };
        check_start(start).map_err(unreadable)?;
        let Some(header) = rest.first_chunk() else {
            return Err(no_head());
        };
        let header = FrameHeader::decode(header).map_err(unreadable)?;
        buffer.skip(START_BYTES + HEADER_BYTES);
        let length = header.bytes as usize;
        buffer.fill(&mut from, length, &path)?;
        let payload = buffer.bytes().get(..length).ok_or_else(no_head)?;
        let head = Head::decode(&header, payload).map_err(unreadable)?;
        buffer.skip(length);
        Ok(Self {
            from,
            path,
            decoder: Decoder::new(&head),
            head,
            buffer,
            payload: 0,
            last: header,
            after: Nanos::ZERO,
            gap_is_known: false,
            is_done: false,
            ending: None,
            damage: Damage::default(),
        })
    }

    /// What the trace says of itself.
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// How the file ended, once all items have come.
    pub const fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// What was of no use so far.
    pub const fn damage(&self) -> Damage {
        self.damage
    }

    /// The last item of a frame has come.
    #[cold]
    fn end_frame(&mut self, item: Item) {
        self.after = self.last.to;
        if let Item::End { at, overhead } = item {
            self.ending = Some(Ending::Complete { at, overhead });
        }
    }

    /// Items that are none, behind a checksum that matches.
    #[cold]
    fn refuse_items(&mut self, fault: ItemError) -> TraceError {
        self.after = self.last.to;
        let offset = self.buffer.offset - HEADER_BYTES as u64;
        self.damaged(offset, (HEADER_BYTES + self.payload) as u64, fault.into())
    }

    fn damaged(&mut self, offset: u64, bytes: u64, fault: TracefileError) -> TraceError {
        self.damage.parts += 1;
        self.damage.bytes += bytes;
        TraceError::Damaged {
            path: self.path.clone(),
            offset,
            bytes,
            after: self.after,
            fault,
        }
    }

    /// Begins the next frame. False at the end of the file.
    #[cold]
    fn next_frame(&mut self) -> Result<bool, TraceError> {
        if self.is_done {
            return Ok(false);
        }
        self.buffer.skip(self.payload);
        self.payload = 0;
        self.fill(HEADER_BYTES)?;
        let bytes = self.buffer.bytes();
        let decoded = match bytes.first_chunk() {
            Some(header) => FrameHeader::decode(header),
            None if looks_cut(bytes) => {
                self.cut_off(bytes.len());
                return Ok(false);
            }
            None => Err(TracefileError::FrameMagic),
        };
        let header = match decoded {
            Ok(header) => header,
            Err(fault) => return self.lose_place(fault)?.map_or(Ok(false), Err),
        };
        let length = header.bytes as usize;
        self.fill(HEADER_BYTES + length)?;
        let Some(payload) = self.buffer.bytes().get(HEADER_BYTES..HEADER_BYTES + length) else {
            self.cut_off(self.buffer.bytes().len());
            return Ok(false);
        };
        let offset = self.buffer.offset;
        if let Err(fault) = header.follows(&self.last) {
            let only_missing = matches!(fault, TracefileError::Sequence { expected, found } if found > expected);
            if !only_missing {
                return Err(self.skip_frame(length, fault));
            }
            // The frame itself is good, and comes when it is asked for again.
            if !self.gap_is_known {
                self.gap_is_known = true;
                return Err(self.damaged(offset, 0, fault));
            }
        }
        if let Err(fault) = self.decoder.begin(&header, payload) {
            // Where writing failed, the next frame may stand in the middle of this.
            self.fill(2 * HEADER_BYTES + length)?;
            let inside = self.buffer.bytes().get(HEADER_BYTES..).and_then(find_frame);
            let inside = inside.map_or(length, |place| place.min(length));
            self.last = FrameHeader {
                to: self.last.to,
                ..header
            };
            return Err(self.skip_frame(inside, fault));
        }
        self.gap_is_known = false;
        self.last = header;
        self.buffer.skip(HEADER_BYTES);
        self.payload = length;
        Ok(true)
    }

    /// Leaves a frame out, or the header and as much of the payload.
    fn skip_frame(&mut self, payload: usize, fault: TracefileError) -> TraceError {
        let (offset, bytes) = (self.buffer.offset, HEADER_BYTES + payload);
        self.buffer.skip(bytes);
        self.gap_is_known = true;
        self.damaged(offset, bytes as u64, fault)
    }

    /// Looks for the next frame. What was left out is an error unless it is the zeros that a crash leaves at the end of a file.
    fn lose_place(&mut self, fault: TracefileError) -> Result<Option<TraceError>, TraceError> {
        let offset = self.buffer.offset;
        let mut is_zero = true;
        loop {
            let bytes = self.buffer.bytes();
            let found = bytes.get(1..).and_then(find_frame).map(|place| place + 1);
            // A header may begin in the last bytes, and go on in those that follow.
            let useless = found.unwrap_or_else(|| bytes.len().saturating_sub(HEADER_BYTES - 1).max(1).min(bytes.len()));
            let useless = if self.buffer.is_at_end && found.is_none() {
                bytes.len()
            } else {
                useless
            };
            is_zero &= bytes[..useless].iter().all(|byte| *byte == 0);
            self.buffer.skip(useless);
            if found.is_none() && !self.buffer.is_at_end {
                self.fill(FRAME_BYTES_MAX)?;
                continue;
            }
            let bytes = self.buffer.offset - offset;
            if found.is_none() && is_zero {
                self.cut_off(bytes as usize);
                return Ok(None);
            }
            self.gap_is_known = true;
            return Ok(Some(self.damaged(offset, bytes, fault)));
        }
    }

    /// Nothing whole follows.
    fn cut_off(&mut self, bytes: usize) {
        self.is_done = true;
        self.ending.get_or_insert(Ending::CutOff {
            after: self.after,
            bytes: bytes as u64,
        });
    }

    fn fill(&mut self, least: usize) -> Result<(), TraceError> {
        let filled = self.buffer.fill(&mut self.from, least, &self.path);
        self.is_done |= filled.is_err();
        filled
    }
}

impl<R: Read> Iterator for TraceReader<R> {
    type Item = Result<Item, TraceError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let payload = self.buffer.bytes().get(..self.payload).unwrap_or_default();
            match self.decoder.next(payload) {
                Some(Ok(item)) => {
                    if self.decoder.left() == 0 {
                        self.end_frame(item);
                    }
                    return Some(Ok(item));
                }
                Some(Err(fault)) => return Some(Err(self.refuse_items(fault))),
                None => match self.next_frame() {
                    Ok(true) => {}
                    Ok(false) => return None,
                    Err(error) => return Some(Err(error)),
                },
            }
        }
    }
}

/// Whether these bytes, fewer than a header has, may be the beginning of one, or zeros of a crash.
fn looks_cut(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0) || bytes.starts_with(b"DTFR") || b"DTFR".starts_with(bytes)
}

impl<R: Read> fmt::Debug for TraceReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceReader")
            .field("path", &self.path)
            .field("head", &self.head)
            .field("ending", &self.ending)
            .field("damage", &self.damage)
            .finish_non_exhaustive()
    }
}

/// A window on a file.
struct Buffer {
    memory: Vec<u8>,
    start: usize,
    end: usize,
    /// Of `start`, in the file.
    offset: u64,
    /// The file has no more.
    is_at_end: bool,
}

impl Buffer {
    fn new() -> Self {
        Self {
            memory: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            offset: 0,
            is_at_end: false,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    fn skip(&mut self, bytes: usize) {
        self.start += bytes;
        self.offset += bytes as u64;
        debug_assert!(self.start <= self.end, "what is skipped was there");
    }

    /// Reads until there are that many bytes, or all.
    fn fill(&mut self, from: &mut impl Read, least: usize, path: &Path) -> Result<(), TraceError> {
        if self.end - self.start >= least || self.is_at_end {
            return Ok(());
        }
        self.memory.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        while self.end < least {
            match from.read(&mut self.memory[self.end..]) {
                Ok(0) => {
                    self.is_at_end = true;
                    return Ok(());
                }
                Ok(bytes) => self.end += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TraceError::io("read", path, error)),
            }
        }
        Ok(())
    }
}
