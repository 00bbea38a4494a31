//! Frame headers.

use crc::{CRC_32_ISCSI, Crc, Table};

use super::WireError;
use crate::message::CONTROL_PAYLOAD_MAX;
use crate::units::Gfn;

/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 40;
/// First four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"DNLN";
/// Most pages of one run of data: 2 MiB.
pub const RUN_PAGES_MAX: u32 = 512;
/// Most pages of one zero run or announcement: they carry no data.
pub const ZERO_RUN_PAGES_MAX: u32 = 1 << 30;

/// CRC32C, the polynomial of iSCSI (RFC 3720).
const CRC32C: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISCSI);
const FLAG_CHECKSUM: u8 = 1;

/// CRC32C of a message's bytes, as its header carries it.
pub fn checksum_message(payload: &[u8]) -> u64 {
    u64::from(CRC32C.checksum(payload))
}

/// What follows a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    /// A message of `count` bytes.
    Control,
    /// `count` pages of data for the frames from `first` on.
    Pages,
    /// Nothing: the `count` frames from `first` on are zero.
    Zero,
    /// Nothing: data for the `count` frames from `first` on comes soon; memory may be made ready.
    Announce,
    /// Nothing: the frame `first` is needed at once.
    PageRequest,
    /// Nothing: the sender is alive.
    Heartbeat,
}

impl FrameKind {
    const fn code(self) -> u8 {
        match self {
            Self::Control => 1,
            Self::Pages => 2,
            Self::Zero => 3,
            Self::Announce => 4,
            Self::PageRequest => 5,
            Self::Heartbeat => 6,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Control,
            2 => Self::Pages,
            3 => Self::Zero,
            4 => Self::Announce,
            5 => Self::PageRequest,
            6 => Self::Heartbeat,
            _ => return None,
        })
    }

    /// Smallest and largest count, whether a frame number is carried, whether a checksum may be.
    const fn limits(self) -> (u32, u32, bool, bool) {
        match self {
            Self::Control => (1, CONTROL_PAYLOAD_MAX as u32, false, true),
            Self::Pages => (1, RUN_PAGES_MAX, true, true),
            Self::Zero | Self::Announce => (1, ZERO_RUN_PAGES_MAX, true, false),
            Self::PageRequest => (1, 1, true, false),
            Self::Heartbeat => (0, 0, false, false),
        }
    }
}

/// A decoded frame header. Every value that [`FrameHeader::decode`] returns satisfies the limits of its kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// What follows.
    pub kind: FrameKind,
    /// Stream the frame travels on.
    pub stream: u16,
    /// Number of the frame in its direction and stream.
    pub sequence: u32,
    /// Pages of a run, or bytes of a message.
    pub count: u32,
    /// First frame number of a run.
    pub first: Gfn,
    /// XXH3-64 of the pages if there is one; for messages always their CRC32C.
    pub checksum: Option<u64>,
    /// Round the data belongs to, 0 outside rounds.
    pub round: u32,
}

impl FrameHeader {
    /// The header's bytes. Constant time.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = self.kind.code();
        bytes[5] = if self.checksum.is_some() { FLAG_CHECKSUM } else { 0 };
        bytes[6..8].copy_from_slice(&self.stream.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.count.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.checksum.unwrap_or(0).to_le_bytes());
        bytes[32..36].copy_from_slice(&self.round.to_le_bytes());
        let crc = CRC32C.checksum(&bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header. Constant time.
    ///
    /// # Errors
    /// Any [`WireError`] but those of messages and sequence.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        if bytes[..4] != MAGIC {
            return Err(WireError::Magic);
        }
        if CRC32C.checksum(&bytes[..36]) != u32_at(bytes, 36) {
            return Err(WireError::HeaderChecksum);
        }
        let kind = FrameKind::from_code(bytes[4]).ok_or(WireError::Kind(bytes[4]))?;
        let (min, max, has_first, may_checksum) = kind.limits();
        let flags = bytes[5];
        let has_checksum = flags & FLAG_CHECKSUM != 0;
        let must_checksum = kind == FrameKind::Control;
        if flags & !FLAG_CHECKSUM != 0 || (has_checksum && !may_checksum) || (must_checksum && !has_checksum) {
            return Err(WireError::Flags(flags));
        }
        let count = u32_at(bytes, 12);
        if count < min || count > max {
            return Err(WireError::Count { found: count, max });
        }
        let first = u64_at(bytes, 16);
        let checksum = u64_at(bytes, 24);
        if (!has_first && first != 0)
            || (!has_checksum && checksum != 0)
            || first.checked_add(u64::from(count)).is_none()
        {
            return Err(WireError::Reserved);
        }
        Ok(Self {
            kind,
            stream: u16::from_le_bytes([bytes[6], bytes[7]]),
            sequence: u32_at(bytes, 8),
            count,
            first: Gfn(first),
            checksum: has_checksum.then_some(checksum),
            round: u32_at(bytes, 32),
        })
    }
}

/// Finds frames that are lost, repeated or out of order on one stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SequenceCheck {
    next: u32,
}

impl SequenceCheck {
    /// Takes the next frame's number.
    ///
    /// # Errors
    /// [`WireError::Sequence`] if it is not the one after the last.
    pub fn accept(&mut self, header: &FrameHeader) -> Result<(), WireError> {
        if header.sequence != self.next {
            return Err(WireError::Sequence {
                expected: self.next,
                found: header.sequence,
            });
        }
        self.next = self.next.wrapping_add(1);
        Ok(())
    }
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = FrameKind> {
        prop::sample::select(&[
            FrameKind::Control,
            FrameKind::Pages,
            FrameKind::Zero,
            FrameKind::Announce,
            FrameKind::PageRequest,
            FrameKind::Heartbeat,
        ])
    }

    prop_compose! {
        fn headers()(kind in kinds(), stream: u16, sequence: u32, count: u32, first in 0..u64::MAX / 2, sum: Option<u64>, round: u32) -> FrameHeader {
            let (min, max, has_first, may_checksum) = kind.limits();
            FrameHeader {
                kind,
                stream,
                sequence,
                count: if max == 0 { 0 } else { min + count % (max - min + 1) },
                first: Gfn(if has_first { first } else { 0 }),
                checksum: if kind == FrameKind::Control { Some(sum.unwrap_or(7)) } else if may_checksum { sum } else { None },
                round,
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(header in headers()) {
            prop_assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn one_damaged_bit_is_found(header in headers(), byte in 0..HEADER_BYTES, bit in 0..8u32) {
            let mut bytes = header.encode();
            bytes[byte] ^= 1 << bit;
            prop_assert!(FrameHeader::decode(&bytes).is_err());
        }

        #[test]
        fn garbage_is_never_a_panic(bytes in prop::array::uniform32(any::<u8>()), fix_crc: bool) {
            let mut header = [0; HEADER_BYTES];
            header[..32].copy_from_slice(&bytes);
            header[..4].copy_from_slice(&MAGIC);
            if fix_crc {
                let crc = CRC32C.checksum(&header[..36]);
                header[36..].copy_from_slice(&crc.to_le_bytes());
            }
            if let Ok(decoded) = FrameHeader::decode(&header) {
                let (min, max, ..) = decoded.kind.limits();
                prop_assert!((min..=max).contains(&decoded.count));
            }
        }
    }

    #[test]
    fn repeated_lost_and_late_frames_are_named() {
        let frame = |sequence| FrameHeader {
            kind: FrameKind::Heartbeat,
            stream: 0,
            sequence,
            count: 0,
            first: Gfn(0),
            checksum: None,
            round: 0,
        };
        let mut check = SequenceCheck::default();
        assert_eq!(check.accept(&frame(0)), Ok(()));
        assert_eq!(
            check.accept(&frame(0)),
            Err(WireError::Sequence { expected: 1, found: 0 })
        );
        assert_eq!(
            check.accept(&frame(2)),
            Err(WireError::Sequence { expected: 1, found: 2 })
        );
        assert_eq!(check.accept(&frame(1)), Ok(()));
        let mut wrapping = SequenceCheck { next: u32::MAX };
        assert_eq!(wrapping.accept(&frame(u32::MAX)), Ok(()));
        assert_eq!(wrapping.accept(&frame(0)), Ok(()));
    }
}
