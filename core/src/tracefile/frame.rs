//! The start of a file, and the headers of its frames.

use crc::{CRC_32_ISCSI, Crc, Table};

use super::{TracefileError, VERSION};
use crate::units::Nanos;

/// Bytes of a file before its first frame.
pub const START_BYTES: usize = 20;
/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 44;
/// Most bytes of a frame, its header included.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// First bytes of a file.
pub const MAGIC: [u8; 8] = *b"\x89DTRC\r\n\x1a";
const ORDER_MARK: u32 = 0x0102_0304;
const FRAME_MAGIC: [u8; 4] = *b"DTFR";
/// Most bytes of a payload.
pub(super) const PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX - HEADER_BYTES;

/// CRC32C, the polynomial of iSCSI (RFC 3720), sixteen bytes at a time: a trace has many.
const CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// CRC32C of some bytes.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    CRC32C.checksum(bytes)
}

/// The first bytes of a file.
pub(super) fn start() -> [u8; START_BYTES] {
    let mut bytes = [0; START_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&ORDER_MARK.to_le_bytes());
    bytes[12..14].copy_from_slice(&VERSION.to_le_bytes());
    let crc = checksum(&bytes[..16]);
    bytes[16..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Checks that a file begins as a trace of a version that can be read. Constant time.
///
/// # Errors
/// [`TracefileError::Magic`], [`CopiedAsText`](TracefileError::CopiedAsText),
/// [`ForeignEndian`](TracefileError::ForeignEndian), [`StartChecksum`](TracefileError::StartChecksum) or
/// [`Version`](TracefileError::Version).
pub fn check_start(bytes: &[u8; START_BYTES]) -> Result<(), TracefileError> {
    if bytes[..8] != MAGIC {
        let like_ours = bytes[1..5] == MAGIC[1..5];
        return Err(match like_ours {
            true => TracefileError::CopiedAsText,
            false => TracefileError::Magic,
        });
    }
    let mark = u32_at(bytes, 8);
    if mark == ORDER_MARK.swap_bytes() {
        return Err(TracefileError::ForeignEndian);
    }
    if mark != ORDER_MARK || checksum(&bytes[..16]) != u32_at(bytes, 16) {
        return Err(TracefileError::StartChecksum);
    }
    match u16::from_le_bytes([bytes[12], bytes[13]]) {
        VERSION => Ok(()),
        found => Err(TracefileError::Version { found }),
    }
}

/// What a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    /// The head.
    Head,
    /// Items.
    Items,
}

impl FrameKind {
    const fn code(self) -> u8 {
        match self {
            Self::Head => 1,
            Self::Items => 2,
        }
    }
}

/// A decoded frame header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// What the frame holds.
    pub kind: FrameKind,
    /// Its number, from 0.
    pub sequence: u32,
    /// Bytes of the payload that follows, 1 to [`FRAME_BYTES_MAX`] less [`HEADER_BYTES`].
    pub bytes: u32,
    /// Items in it.
    pub items: u32,
    /// CRC32C of the payload.
    pub checksum: u32,
    /// What the times of its items go on from.
    pub from: Nanos,
    /// When the last of its items was.
    pub to: Nanos,
}

impl FrameHeader {
    /// The header's bytes. Constant time.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&FRAME_MAGIC);
        bytes[4] = self.kind.code();
        bytes[8..12].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.items.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.checksum.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.from.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.to.0.to_le_bytes());
        let crc = checksum(&bytes[..40]);
        bytes[40..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header. Constant time.
    ///
    /// # Errors
    /// [`TracefileError::FrameMagic`], [`HeaderChecksum`](TracefileError::HeaderChecksum) or
    /// [`Header`](TracefileError::Header).
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, TracefileError> {
        if bytes[..4] != FRAME_MAGIC {
            return Err(TracefileError::FrameMagic);
        }
        if checksum(&bytes[..40]) != u32_at(bytes, 40) {
            return Err(TracefileError::HeaderChecksum);
        }
        let wrong = |field, found| TracefileError::Header { field, found };
        let kind = match bytes[4] {
            1 => FrameKind::Head,
            2 => FrameKind::Items,
            code => return Err(wrong("kind", code.into())),
        };
        if bytes[5..8] != [0; 3] {
            return Err(wrong(
                "reserved byte",
                bytes[5..8].iter().copied().max().unwrap_or(0).into(),
            ));
        }
        let header = Self {
            kind,
            sequence: u32_at(bytes, 8),
            bytes: u32_at(bytes, 12),
            items: u32_at(bytes, 16),
            checksum: u32_at(bytes, 20),
            from: Nanos(u64_at(bytes, 24)),
            to: Nanos(u64_at(bytes, 32)),
        };
        if header.bytes == 0 || header.bytes as usize > PAYLOAD_BYTES_MAX {
            return Err(wrong("number of bytes", header.bytes.into()));
        }
        // An item has at least a byte.
        if header.items > header.bytes || (kind == FrameKind::Items) != (header.items > 0) {
            return Err(wrong("number of items", header.items.into()));
        }
        if header.to < header.from || (kind == FrameKind::Head && header.to != Nanos::ZERO) {
            return Err(wrong("time", header.to.0));
        }
        Ok(header)
    }

    /// Checks a payload against the header. Linear in the payload, about a byte in a third of a nanosecond.
    ///
    /// # Errors
    /// [`TracefileError::PayloadChecksum`].
    pub fn check_payload(&self, payload: &[u8]) -> Result<(), TracefileError> {
        if payload.len() == self.bytes as usize && checksum(payload) == self.checksum {
            return Ok(());
        }
        Err(TracefileError::PayloadChecksum)
    }

    /// Checks that this frame comes right after `last`.
    ///
    /// # Errors
    /// [`TracefileError::Sequence`], [`TimeFalls`](TracefileError::TimeFalls), or [`HeadPlace`](TracefileError::HeadPlace) if it is
    /// a head.
    pub fn follows(&self, last: &Self) -> Result<(), TracefileError> {
        if self.kind == FrameKind::Head {
            return Err(TracefileError::HeadPlace);
        }
        if self.from < last.to {
            return Err(TracefileError::TimeFalls {
                last: last.to,
                found: self.from,
            });
        }
        let expected = last.sequence.wrapping_add(1);
        if self.sequence != expected {
            return Err(TracefileError::Sequence {
                expected,
                found: self.sequence,
            });
        }
        Ok(())
    }
}

/// Where in these bytes the next frame begins: the first place with a header that is whole and undamaged. For readers that lost
/// theirs. Linear.
pub fn find_frame(bytes: &[u8]) -> Option<usize> {
    let mut headers = bytes.windows(HEADER_BYTES);
    headers.position(|window| {
        window
            .first_chunk()
            .is_some_and(|header| FrameHeader::decode(header).is_ok())
    })
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
