//! Taking items out of frames.

use super::layout::{self, Context, ITEM_BYTES_MAX, Limits};
use super::{FrameHeader, FrameKind, Head, Item, ItemError, TracefileError};
use crate::pageset::Run;
use crate::units::{Gfn, Nanos, Pages};

/// Bytes that are looked at for an item, more than one has.
const WINDOW: usize = 32;
const _: () = assert!(WINDOW >= ITEM_BYTES_MAX);

/// Where a reader of a trace is in a frame. It does not hold the frame, so that it can stand beside the buffer that does; for a
/// frame in a slice [`Items`] is simpler. About 600 bytes.
#[derive(Clone, Debug)]
pub struct Decoder {
    limits: Limits,
    context: Context,
    position: usize,
    left: u32,
    to: Nanos,
    ended: bool,
}

impl Decoder {
    /// For the frames of a trace with this head. There are no items before [`begin`](Self::begin).
    pub fn new(head: &Head) -> Self {
        Self {
            limits: head.limits(),
            context: Context::new(Nanos::ZERO),
            position: 0,
            left: 0,
            to: Nanos::ZERO,
            ended: false,
        }
    }

    /// Begins a frame, whatever was left of the last. Linear in the payload, whose checksum is compared.
    ///
    /// # Errors
    /// [`TracefileError::HeadPlace`] if it holds no items, [`PayloadChecksum`](TracefileError::PayloadChecksum); there are no items then.
    pub fn begin(&mut self, header: &FrameHeader, payload: &[u8]) -> Result<(), TracefileError> {
        self.left = 0;
        if header.kind != FrameKind::Items {
            return Err(TracefileError::HeadPlace);
        }
        header.check_payload(payload)?;
        self.context = Context::new(header.from);
        (self.position, self.left, self.to) = (0, header.items, header.to);
        Ok(())
    }

    /// Items of the frame that are still to come.
    pub const fn left(&self) -> u32 {
        self.left
    }

    /// The next item of the frame that was begun; `payload` is the same as there. Constant time.
    ///
    /// # Errors
    /// [`ItemError`], as the last that comes of this frame.
    #[inline]
    pub fn next(&mut self, payload: &[u8]) -> Option<Result<Item, ItemError>> {
        self.left = self.left.checked_sub(1)?;
        let window = payload.get(self.position..).and_then(<[u8]>::first_chunk::<WINDOW>);
        let item = match window {
            Some(window) => self.decode(window, WINDOW),
            None => self.decode_last(payload),
        };
        let item = item.and_then(|item| match self.left {
            0 => self.check_end(payload).map(|()| item),
            _ => Ok(item),
        });
        if item.is_err() {
            self.left = 0;
        }
        Some(item)
    }

    /// An item near the end of the payload, with zeros behind it.
    #[cold]
    fn decode_last(&mut self, payload: &[u8]) -> Result<Item, ItemError> {
        let rest = payload.get(self.position..).unwrap_or_default();
        let mut window = [0; WINDOW];
        let length = rest.len().min(WINDOW);
        window[..length].copy_from_slice(&rest[..length]);
        self.decode(&window, length)
    }

    #[cold]
    fn check_end(&self, payload: &[u8]) -> Result<(), ItemError> {
        let whole = self.position == payload.len() && self.context.at == self.to.0;
        if whole { Ok(()) } else { Err(ItemError::Count) }
    }

    /// The item at the beginning of `bytes`, of which `length` are there.
    #[inline(always)]
    fn decode(&mut self, bytes: &[u8; WINDOW], length: usize) -> Result<Item, ItemError> {
        let tag = bytes[0];
        let (item, used) = if tag < layout::DIRTY {
            self.decode_write(bytes)?
        } else if tag < layout::OTHER {
            self.decode_dirty(bytes)?
        } else {
            self.decode_other(bytes)?
        };
        if used > length {
            return Err(ItemError::Short);
        }
        if self.ended {
            return Err(ItemError::AfterEnd);
        }
        self.position += used;
        self.limits.check(&item)?;
        self.ended = matches!(item, Item::End { .. });
        Ok(item)
    }

    #[inline(always)]
    fn decode_write(&mut self, bytes: &[u8; WINDOW]) -> Result<(Item, usize), ItemError> {
        let tag = bytes[0];
        let (mut vcpu, mut place) = (self.context.vcpu, 1);
        if tag & layout::WRITE_VCPU != 0 {
            (vcpu, place) = (u32::from(bytes[1]), 2);
            if bytes[1] == layout::VCPU_ESCAPE {
                (vcpu, place) = (layout::long_vcpu(u16::from_le_bytes([bytes[2], bytes[3]])), 4);
            }
        }
        let (time, place) = number(bytes, place, tag);
        let (page, place) = number(bytes, place, tag >> 3);
        let at = self.advance(time)?;
        let slot = &mut self.context.pages[layout::slot(vcpu)];
        *slot = slot.wrapping_add(layout::unzigzag(page));
        self.context.vcpu = vcpu;
        let gfn = Gfn(*slot);
        Ok((Item::Write { at, vcpu, gfn }, place))
    }

    #[inline(always)]
    fn decode_dirty(&mut self, bytes: &[u8; WINDOW]) -> Result<(Item, usize), ItemError> {
        let (gap, place) = number(bytes, 1, bytes[0]);
        let (more, place) = number(bytes, place, bytes[0] >> 3);
        let first = Gfn(self.context.run_end.wrapping_add(gap));
        let run = Run::new(first, Pages(more.saturating_add(1)));
        self.context.run_end = run.end().0;
        Ok((Item::Dirty { run }, place))
    }

    fn decode_other(&mut self, bytes: &[u8; WINDOW]) -> Result<(Item, usize), ItemError> {
        let tag = bytes[0];
        let (time, place) = number(bytes, 1, tag);
        let at = self.advance(time)?;
        let short = |place: usize| layout::long_vcpu(u16::from_le_bytes([bytes[place], bytes[place + 1]]));
        let long = |place: usize| number(bytes, place, 7);
        Ok(match tag >> 3 & 7 {
            layout::WINDOW_END => {
                self.context.run_end = 0;
                let vcpu = short(place);
                (Item::WindowEnd { at, vcpu }, place + 2)
            }
            layout::LOST => {
                let (events, place) = long(place);
                (Item::Lost { at, events }, place)
            }
            layout::STEPS => {
                let vcpu = short(place);
                let (steps, place) = long(place + 2);
                (Item::Steps { at, vcpu, steps }, place)
            }
            layout::END => {
                let (nanos, place) = long(place);
                let overhead = Nanos(nanos);
                (Item::End { at, overhead }, place)
            }
            _ => return Err(ItemError::Tag(tag)),
        })
    }

    #[inline(always)]
    fn advance(&mut self, time: u64) -> Result<Nanos, ItemError> {
        let at = self.context.at.checked_add(time).ok_or(ItemError::Time {
            last: Nanos(self.context.at),
        })?;
        self.context.at = at;
        Ok(Nanos(at))
    }
}

/// The number at a place, as long as the last three bits of `code` say, and where it ends.
#[inline(always)]
fn number(bytes: &[u8; WINDOW], place: usize, code: u8) -> (u64, usize) {
    let code = usize::from(code & 7);
    // Places are below 16; saying so spares a comparison.
    let from = place & 15;
    let word = bytes[from..from + 8]
        .first_chunk()
        .copied()
        .map_or(0, u64::from_le_bytes);
    (word & layout::MASKS[code], place + usize::from(layout::LENGTHS[code]))
}

/// The items of one frame.
#[derive(Clone, Debug)]
pub struct Items<'a> {
    decoder: Decoder,
    payload: &'a [u8],
}

impl<'a> Items<'a> {
    /// Those of this frame, in a trace with this head. Linear, as [`Decoder::begin`].
    ///
    /// # Errors
    /// As [`Decoder::begin`].
    pub fn new(head: &Head, header: &FrameHeader, payload: &'a [u8]) -> Result<Self, TracefileError> {
        let mut decoder = Decoder::new(head);
        decoder.begin(header, payload)?;
        Ok(Self { decoder, payload })
    }
}

impl Iterator for Items<'_> {
    type Item = Result<Item, ItemError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.decoder.next(self.payload)
    }
}
