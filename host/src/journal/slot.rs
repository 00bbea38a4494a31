//! One slot: a record as bytes that show whether they were written in full.
//!
//! Layout, little-endian: magic (7 bytes), format version (1), CRC-32 of everything else in the slot (4), payload
//! length (4), payload (postcard), zeros.

use super::record::Record;

/// One slot's size: a page, and on every disk in use a whole number of sectors.
pub(super) const SLOT_BYTES: usize = 4096;

/// The number of this format.
const VERSION: u8 = 1;
const MAGIC: &[u8; 7] = b"DUNLREC";
const HEADER_BYTES: usize = 16;

/// What stands in a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// A complete record; `None` is the mark of a new file, older than any record.
    Valid(Option<Record>),
    /// Complete, but of another format.
    Newer(u8),
    /// Torn, damaged or never a record.
    Invalid,
}

impl Slot {
    /// What orders slots: the higher is the later.
    pub(super) fn sequence(&self) -> Option<u64> {
        match self {
            Self::Valid(record) => Some(record.as_ref().map_or(0, |record| record.sequence)),
            Self::Newer(_) | Self::Invalid => None,
        }
    }
}

/// The slot's bytes, or the size the record would need.
pub(super) fn encode(record: Option<&Record>) -> Result<[u8; SLOT_BYTES], usize> {
    let mut slot = [0; SLOT_BYTES];
    let payload = postcard::to_stdvec(&record).expect("a record of integers and strings always has an encoding");
    let end = HEADER_BYTES + payload.len();
    slot.get_mut(HEADER_BYTES..end).ok_or(end)?.copy_from_slice(&payload);
    slot[..7].copy_from_slice(MAGIC);
    slot[7] = VERSION;
    slot[12..16].copy_from_slice(&u32::try_from(payload.len()).expect("shorter than a slot").to_le_bytes());
    let checksum = checksum(&slot);
    slot[8..12].copy_from_slice(&checksum.to_le_bytes());
    Ok(slot)
}

/// What the bytes of a slot say. Never fails on any bytes.
pub(super) fn decode(slot: &[u8; SLOT_BYTES]) -> Slot {
    if slot[..7] != *MAGIC || slot[8..12] != checksum(slot).to_le_bytes() {
        return Slot::Invalid;
    }
    if slot[7] != VERSION {
        return Slot::Newer(slot[7]);
    }
    let length = u32::from_le_bytes([slot[12], slot[13], slot[14], slot[15]]) as usize;
    let payload = slot[HEADER_BYTES..].get(..length);
    match payload.and_then(|payload| postcard::from_bytes(payload).ok()) {
        Some(record) => Slot::Valid(record),
        None => Slot::Invalid,
    }
}

fn checksum(slot: &[u8; SLOT_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&slot[..8]);
    hasher.update(&slot[12..]);
    hasher.finalize()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::record::{HandOver, Phase, Role};
    use super::*;
    use dunlin_core::message::{SessionId, VmId};
    use proptest::prelude::*;

    pub(in super::super) fn hand_over() -> impl Strategy<Value = HandOver> {
        let role = prop_oneof![Just(Role::Source), Just(Role::Target)];
        let phase = prop_oneof![
            Just(Phase::Running),
            Just(Phase::Receiving),
            Just(Phase::Ready),
            Just(Phase::GivenUp),
            Just(Phase::Taken),
            Just(Phase::PostCopy),
            Just(Phase::Complete),
            Just(Phase::MovedAway),
            Just(Phase::Aborted),
        ];
        let text = || proptest::option::of("[ -~]{0,40}");
        (any::<u128>(), any::<u128>(), role, phase, text(), text()).prop_map(
            |(vm_id, session, role, phase, peer, control)| HandOver {
                vm_id: VmId(vm_id),
                session: SessionId(session),
                role,
                phase,
                peer,
                control,
            },
        )
    }

    proptest! {
        #[test]
        fn records_come_back(hand_over in hand_over(), sequence: u64, pid: u32, unix_time_s: u64, vm_name in "[a-z]{1,64}") {
            let record = Record { sequence, vm_name, pid, unix_time_s, hand_over };
            let slot = encode(Some(&record)).unwrap();
            prop_assert_eq!(decode(&slot), Slot::Valid(Some(record)));
        }

        #[test]
        fn any_flipped_bit_is_noticed(hand_over in hand_over(), bit in 0..SLOT_BYTES * 8) {
            let record = Record { sequence: 9, vm_name: "vm".into(), pid: 1, unix_time_s: 2, hand_over };
            let mut slot = encode(Some(&record)).unwrap();
            slot[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode(&slot), Slot::Invalid);
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), SLOT_BYTES)) {
            let mut slot: [u8; SLOT_BYTES] = bytes.try_into().unwrap();
            prop_assert_eq!(decode(&slot), Slot::Invalid);
            // Also with a checksum that holds.
            slot[..8].copy_from_slice(b"DUNLREC\x01");
            let sum = checksum(&slot);
            slot[8..12].copy_from_slice(&sum.to_le_bytes());
            decode(&slot);
        }
    }

    #[test]
    fn any_flipped_bit_of_the_header_is_noticed() {
        for bit in 0..HEADER_BYTES * 8 {
            let mut slot = encode(None).unwrap();
            slot[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&slot), Slot::Invalid, "bit {bit}");
        }
    }

    #[test]
    fn another_format_is_not_garbage() {
        let mut slot = encode(None).unwrap();
        assert_eq!(decode(&slot), Slot::Valid(None));
        slot[7] = 2;
        let sum = checksum(&slot);
        slot[8..12].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(decode(&slot), Slot::Newer(2));
        assert_eq!(decode(&[0; SLOT_BYTES]), Slot::Invalid);
    }
}
