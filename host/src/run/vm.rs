//! A VM in the protocol's terms.

use dunlin_core::message::{CPUID_ENTRY_BYTES, Hello, Region, Regions};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};
use dunlin_core::workload::layout;
use heapless::Vec as FixedVec;

use crate::guest::{CpuidEntry, Machine};
use crate::memory::MemoryLayout;

/// The regions of a memory layout; layouts have at most two.
pub(super) fn regions(layout: &MemoryLayout) -> Regions {
    layout
        .regions()
        .iter()
        .map(|run| Region {
            first: run.first,
            pages: run.count,
        })
        .collect()
}

/// Pages that hosts read themselves: the boot block, the progress page and the mailbox.
pub(super) fn host_pages() -> FixedVec<Run, 8> {
    let first = layout::BOOT_BLOCK / PAGE_SIZE;
    let last = layout::MAILBOX / PAGE_SIZE;
    [Run::new(Gfn(first), Pages(last - first + 1))].into_iter().collect()
}

/// CPUID leaves as the hello carries them.
pub(super) fn encode_cpuid(entries: &[CpuidEntry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * CPUID_ENTRY_BYTES);
    for entry in entries {
        let head = [entry.function, entry.index, entry.flags];
        bytes.extend(head.iter().chain(&entry.registers).flat_map(|word| word.to_le_bytes()));
    }
    bytes
}

/// The reverse of [`encode_cpuid`]; whole entries only.
pub(super) fn decode_cpuid(bytes: &[u8]) -> Vec<CpuidEntry> {
    let entry = |bytes: &[u8; CPUID_ENTRY_BYTES]| {
        let word =
            |at: usize| u32::from_le_bytes([bytes[at * 4], bytes[at * 4 + 1], bytes[at * 4 + 2], bytes[at * 4 + 3]]);
        CpuidEntry {
            function: word(0),
            index: word(1),
            flags: word(2),
            registers: [word(3), word(4), word(5), word(6)],
        }
    };
    bytes.as_chunks::<CPUID_ENTRY_BYTES>().0.iter().map(entry).collect()
}

/// The processors that a VM expects.
pub(super) fn machine(hello: &Hello<'_>) -> Machine {
    Machine {
        cpuid: decode_cpuid(hello.cpuid),
        tsc_khz: hello.tsc_khz,
        state_version: hello.state_version,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuid_survives_the_way() {
        let entries = [
            CpuidEntry {
                function: 1,
                index: 2,
                flags: 3,
                registers: [4, 5, 6, 7],
            },
            CpuidEntry {
                function: u32::MAX,
                index: 0,
                flags: 1,
                registers: [0; 4],
            },
        ];
        assert_eq!(decode_cpuid(&encode_cpuid(&entries)), entries);
    }
}
