//! One slot of a record file.

use super::record::Record;
use crate::block::{BLOCK_BYTES, Block, Format};

/// One slot's size.
pub(super) const SLOT_BYTES: usize = BLOCK_BYTES;

const FORMAT: Format = Format {
    magic: *b"DUNLREC",
    version: 1,
};

/// What stands in a slot; no record is the mark of a new file, older than any record.
pub(super) type Slot = Block<Option<Record>>;

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
    FORMAT.encode(&record)
}

/// What the bytes of a slot say. Never fails on any bytes.
pub(super) fn decode(slot: &[u8; SLOT_BYTES]) -> Slot {
    FORMAT.decode(slot)
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
    }

    #[test]
    fn a_new_file_is_older_than_any_record() {
        let slot = encode(None).unwrap();
        assert_eq!(decode(&slot), Slot::Valid(None));
        assert_eq!(decode(&slot).sequence(), Some(0));
        assert_eq!(decode(&[0; SLOT_BYTES]).sequence(), None);
    }
}
