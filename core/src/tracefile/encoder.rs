//! Putting items into frames.

use super::frame::{self, FRAME_BYTES_MAX, HEADER_BYTES, START_BYTES};
use super::layout::{self, Context, ITEM_BYTES_MAX, Limits};
use super::{EncodeError, FrameHeader, FrameKind, Head, Item, ItemError};
use crate::units::Nanos;

/// The least that a buffer has to have: room for start and head, and for a frame of one item.
const BUFFER_BYTES_MIN: usize = 1024;

/// Encodes a trace into a buffer of the caller's, which [`frame`](Self::frame) hands out frame by frame.
///
/// ```
/// use dunlin_core::message::Region;
/// use dunlin_core::tracefile::{EncodeError, Encoder, Head, Item, Source};
/// use dunlin_core::units::{Gfn, Nanos, Pages};
///
/// let memory = Region { first: Gfn(0), pages: Pages(1024) };
/// let head = Head {
///     source: Source::Generator,
///     regions: [memory].into_iter().collect(),
///     used: Pages(1024),
///     vcpus: 1,
///     window: Nanos(0),
///     started_unix_ns: 0,
///     guest: heapless::String::new(),
/// };
/// let mut file = Vec::new();
/// let mut encoder = Encoder::new([0; 4096], &head)?;
/// for number in 0..10_000 {
///     let item = Item::Write { at: Nanos(number * 20_000), vcpu: 0, gfn: Gfn(number * 7 % 1024) };
///     if encoder.push(&item) == Err(EncodeError::Full) {
///         file.extend_from_slice(encoder.frame());
///         encoder.push(&item)?;
///     }
/// }
/// encoder.push(&Item::End { at: Nanos(200_000_000), overhead: Nanos(0) })?;
/// file.extend_from_slice(encoder.frame());
/// assert!(file.len() < 60_000);
/// # Ok::<(), EncodeError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Encoder<B> {
    buffer: B,
    /// Bytes that are to be handed out, those of the open frame included.
    length: usize,
    /// Where the open frame begins.
    begin: usize,
    items: u32,
    sequence: u32,
    from: Nanos,
    last: Nanos,
    ended: bool,
    limits: Limits,
    context: Context,
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Encoder<B> {
    /// Begins a trace: the first bytes that [`frame`](Self::frame) hands out are the start of the file and its head. Of the buffer at
    /// most [`FRAME_BYTES_MAX`] is used; larger frames cost less a write, 1 % at 4 KiB.
    ///
    /// # Errors
    /// [`EncodeError::Buffer`] if it has less than 1 KiB, [`EncodeError::Head`].
    pub fn new(buffer: B, head: &Head) -> Result<Self, EncodeError> {
        head.check()?;
        let mut encoder = Self {
            buffer,
            length: 0,
            begin: 0,
            items: 0,
            sequence: 0,
            from: Nanos::ZERO,
            last: Nanos::ZERO,
            ended: false,
            limits: head.limits(),
            context: Context::new(Nanos::ZERO),
        };
        let bytes = encoder.buffer.as_mut();
        let too_small = EncodeError::Buffer {
            found: bytes.len(),
            least: BUFFER_BYTES_MIN,
        };
        if bytes.len() < BUFFER_BYTES_MIN {
            return Err(too_small);
        }
        bytes[..START_BYTES].copy_from_slice(&frame::start());
        let length = head.encode(&mut bytes[START_BYTES..]).ok_or(too_small)?;
        encoder.length = START_BYTES + length;
        encoder.begin = encoder.length;
        Ok(encoder)
    }

    /// Adds an item to the open frame. Constant time.
    ///
    /// # Errors
    /// [`EncodeError::Full`] if there is no room for any item: take the [`frame`](Self::frame) and push it again.
    /// [`EncodeError::Item`] if it cannot be, and the trace is as it was: an item before the last, outside the head's memory or vCPUs,
    /// or behind the end.
    pub fn push(&mut self, item: &Item) -> Result<(), EncodeError> {
        if self.ended {
            return Err(ItemError::AfterEnd.into());
        }
        self.limits.check(item)?;
        if let Some(at) = item.at()
            && at < self.last
        {
            return Err(ItemError::Time { last: self.last }.into());
        }
        if self.items == 0 {
            self.open()?;
        }
        let most = self.buffer.as_ref().len().min(self.begin + FRAME_BYTES_MAX);
        if self.length + ITEM_BYTES_MAX > most {
            return Err(EncodeError::Full);
        }
        let mut bytes = Bytes::default();
        bytes.put(item, &mut self.context);
        let end = self.length + bytes.length;
        self.buffer.as_mut()[self.length..end].copy_from_slice(&bytes.array[..bytes.length]);
        self.length = end;
        self.items += 1;
        self.last = item.at().unwrap_or(self.last);
        self.ended = matches!(item, Item::End { .. });
        Ok(())
    }

    /// Items in the open frame.
    pub const fn items(&self) -> u32 {
        self.items
    }

    /// When the last item was, and what the times of the open frame go on from.
    pub const fn times(&self) -> (Nanos, Nanos) {
        (self.last, self.from)
    }

    /// Closes the open frame and hands out all that has not been yet: whole frames, or nothing. They are to be written as they are,
    /// one after the other. Linear.
    pub fn frame(&mut self) -> &[u8] {
        if self.items > 0 {
            self.close();
        }
        let length = core::mem::take(&mut self.length);
        self.begin = 0;
        &self.buffer.as_ref()[..length]
    }

    fn open(&mut self) -> Result<(), EncodeError> {
        let room = self.buffer.as_ref().len() - self.length;
        if room < HEADER_BYTES + ITEM_BYTES_MAX {
            return Err(EncodeError::Full);
        }
        self.begin = self.length;
        self.length += HEADER_BYTES;
        self.from = self.last;
        self.context = Context::new(self.from);
        Ok(())
    }

    fn close(&mut self) {
        self.sequence = self.sequence.wrapping_add(1);
        let (header, payload) = self.buffer.as_mut()[self.begin..self.length].split_at_mut(HEADER_BYTES);
        let described = FrameHeader {
            kind: FrameKind::Items,
            sequence: self.sequence,
            bytes: payload.len() as u32,
            items: self.items,
            checksum: frame::checksum(payload),
            from: self.from,
            to: self.last,
        };
        header.copy_from_slice(&described.encode());
        self.items = 0;
    }
}

/// The bytes of one item.
#[derive(Default)]
struct Bytes {
    array: [u8; ITEM_BYTES_MAX + 8],
    length: usize,
}

impl Bytes {
    fn put(&mut self, item: &Item, context: &mut Context) {
        match *item {
            Item::Write { at, vcpu, gfn } => {
                let time = at.0 - context.at;
                let slot = layout::slot(vcpu);
                let page = layout::zigzag(gfn.0.wrapping_sub(context.pages[slot]));
                let (time_code, page_code) = (layout::length_code(time), layout::length_code(page));
                let tag = page_code << 3 | time_code;
                if vcpu == context.vcpu {
                    self.byte(tag);
                } else {
                    self.byte(tag | layout::WRITE_VCPU);
                    match u8::try_from(vcpu) {
                        Ok(short) if short != layout::VCPU_ESCAPE => self.byte(short),
                        _ => {
                            self.byte(layout::VCPU_ESCAPE);
                            self.fixed(&layout::short_vcpu(vcpu).to_le_bytes());
                        }
                    }
                }
                self.number(time, time_code);
                self.number(page, page_code);
                (context.at, context.vcpu, context.pages[slot]) = (at.0, vcpu, gfn.0);
            }
            Item::Dirty { run } => {
                let gap = run.first.0.wrapping_sub(context.run_end);
                let more = run.count.0 - 1;
                let (gap_code, more_code) = (layout::length_code(gap), layout::length_code(more));
                self.byte(layout::DIRTY | more_code << 3 | gap_code);
                self.number(gap, gap_code);
                self.number(more, more_code);
                context.run_end = run.end().0;
            }
            Item::WindowEnd { at, vcpu } => {
                self.other(layout::WINDOW_END, at, context);
                self.fixed(&layout::short_vcpu(vcpu).to_le_bytes());
                context.run_end = 0;
            }
            Item::Lost { at, events } => {
                self.other(layout::LOST, at, context);
                self.fixed(&events.to_le_bytes());
            }
            Item::Steps { at, vcpu, steps } => {
                self.other(layout::STEPS, at, context);
                self.fixed(&layout::short_vcpu(vcpu).to_le_bytes());
                self.fixed(&steps.to_le_bytes());
            }
            Item::End { at, overhead } => {
                self.other(layout::END, at, context);
                self.fixed(&overhead.0.to_le_bytes());
            }
        }
    }

    fn other(&mut self, kind: u8, at: Nanos, context: &mut Context) {
        let time = at.0 - context.at;
        let code = layout::length_code(time);
        self.byte(layout::OTHER | kind << 3 | code);
        self.number(time, code);
        context.at = at.0;
    }

    fn byte(&mut self, byte: u8) {
        self.fixed(&[byte]);
    }

    fn fixed<const N: usize>(&mut self, bytes: &[u8; N]) {
        self.array[self.length..self.length + N].copy_from_slice(bytes);
        self.length += N;
    }

    /// Eight bytes, of which as many count as the code says.
    fn number(&mut self, number: u64, code: u8) {
        let end = self.length + 8;
        self.array[self.length..end].copy_from_slice(&number.to_le_bytes());
        self.length += usize::from(layout::LENGTHS[usize::from(code)]);
    }
}
