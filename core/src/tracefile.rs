//! Recorded page writes: what a trace says of itself, what is in it, and how it is stored.
//!
//! A trace is a [`Head`] and then [`Item`]s in the order of their times. Two sorts of sources fill it: those that see single
//! writes ([`Item::Write`]), and those that see which pages were written in a window ([`Item::Dirty`], one for each run of pages,
//! closed by an [`Item::WindowEnd`]). Whatever a source missed stands in the trace as well.
//!
//! # The file
//!
//! A `.dtrace` file is a start of [`START_BYTES`] and then frames, the first of which is the head. A frame is whole or it is not
//! there: whoever records hands out whole frames only ([`Encoder`]), so that a file that ends anywhere is readable up to its last
//! whole frame. All integers are little-endian.
//!
//! **Start**
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic: `89` `DTRC` `0d 0a 1a`; what copies files as texts damages it |
//! | 8 | 4 | order mark: `04 03 02 01`; a program that wrote in the machine's order on a big-endian one left `01 02 03 04` |
//! | 12 | 2 | version of the format, [`VERSION`] |
//! | 14 | 2 | zero |
//! | 16 | 4 | CRC32C of the 16 bytes before |
//!
//! **Frame**: a header of [`HEADER_BYTES`], then its payload; together at most [`FRAME_BYTES_MAX`].
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `DTFR`: whoever lost the place looks for it |
//! | 4 | 1 | kind: 1 head, 2 items |
//! | 5 | 3 | zero |
//! | 8 | 4 | number of the frame: 0 is the head |
//! | 12 | 4 | bytes of the payload, at least 1 |
//! | 16 | 4 | items in it; of a head 0 |
//! | 20 | 4 | CRC32C of the payload |
//! | 24 | 8 | time, in nanoseconds, that the payload's times go on from: that of the last item before; of a head 0 |
//! | 32 | 8 | time of the payload's last item, or the same as the field before if none says when it was |
//! | 40 | 4 | CRC32C of the 40 bytes before |
//!
//! **Payload of a head**: a [postcard](https://postcard.jamesmunns.com/wire-format) structure, that is, one field after the other,
//! integers as varints (seven bits a byte, the lowest first, the top bit set in all but the last), texts as a length and UTF-8:
//! the [name](Source::name) of the source; the number of regions and of each its first frame number and its pages; `used`; `vcpus`;
//! `window` in nanoseconds; `started_unix_ns`; the guest's name.
//!
//! **Payload of items**: one item after the other, a tag of one byte each and what it announces. Every frame begins anew: time is
//! that of the header, the last vCPU is 0, and the last page of every vCPU and the end of the last run are 0. A length in a tag has
//! three bits: 0 to 6 for so many bytes, 7 for eight.
//!
//! | tag, highest bit first | then | item |
//! |---|---|---|
//! | `0 v ggg ttt` | if `v`: vCPU · `t` bytes: time since the last item · `g` bytes: page | [`Item::Write`] |
//! | `10 nnn ggg` | `g` bytes: first page, less the end of the last run · `n` bytes: pages, less one | [`Item::Dirty`] |
//! | `11 000 ttt` | `t` bytes: time · 2 bytes: vCPU, `ffff` if unknown | [`Item::WindowEnd`] |
//! | `11 001 ttt` | `t` bytes: time · 8 bytes: events | [`Item::Lost`] |
//! | `11 010 ttt` | `t` bytes: time · 2 bytes: vCPU, `ffff` if unknown · 8 bytes: steps | [`Item::Steps`] |
//! | `11 011 ttt` | `t` bytes: time · 8 bytes: overhead in nanoseconds | [`Item::End`] |
//!
//! The vCPU of a write is that of the write before unless `v` is set; then it is one byte, or `ff` and two bytes, where `ffff`
//! is an unknown one. Its page is the difference to the last page of the vCPUs whose number is the same modulo [`SLOTS`], as a
//! zigzag number: twice the difference if that is not negative, otherwise one less than twice its absolute value. Differences wrap at
//! 2^64. The end of the last run is 0 again behind an [`Item::WindowEnd`].
//!
//! So a write takes 3 to 8 bytes: 5 where each of 4 vCPUs goes through memory in order, 6 by one vCPU at random in 1 GiB, 7 by four in
//! 64 GiB, 8 by 64 in 1 TiB. At 50 000 a second an hour is 0.9 to 1.5 GB.
//!
//! What is decoded is checked: times never fall, pages are below [`Head::span`], vCPUs are those of the head, nothing follows
//! an [`Item::End`]. Whoever uses a trace may index tables with what is in it.

mod decoder;
mod encoder;
mod error;
mod frame;
mod head;
mod item;
mod layout;

#[cfg(test)]
mod tests;

pub use decoder::{Decoder, Items};
pub use encoder::Encoder;
pub use error::{EncodeError, HeadError, ItemError, TracefileError};
pub use frame::{FRAME_BYTES_MAX, FrameHeader, FrameKind, HEADER_BYTES, MAGIC, START_BYTES, check_start, find_frame};
pub use head::{GUEST_NAME_MAX, Head, Resolution, Source, VCPUS_MAX};
pub use item::{Item, VCPU_UNKNOWN};
pub use layout::SLOTS;

/// Version of the format that is written, and the only one that is read.
pub const VERSION: u16 = 1;
