//! The processors as a guest sees them.

use dunlin_core::message::CPUID_ENTRY_BYTES;

use super::GuestError;

/// One leaf of CPUID.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuidEntry {
    /// Leaf: eax before the instruction.
    pub function: u32,
    /// Subleaf: ecx before the instruction, where it matters.
    pub index: u32,
    /// KVM_CPUID_FLAG bits; bit 0 says that the subleaf matters.
    pub flags: u32,
    /// The answer: eax, ebx, ecx, edx.
    pub registers: [u32; 4],
}

/// What a guest's processors look like to it. Whether a host can offer that is decided from the
/// [`Hello`](dunlin_core::message::Hello) that carries it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Machine {
    /// CPUID; empty for guests without.
    pub cpuid: Vec<CpuidEntry>,
    /// Rate of the time stamp counter in kHz; 0 for guests without.
    pub tsc_khz: u32,
    /// Version of what [`save_state`](super::Guest::save_state) writes.
    pub state_version: u16,
}

impl Machine {
    /// CPUID as a hello carries it.
    pub fn encode_cpuid(&self) -> Vec<u8> {
        let words = self.cpuid.iter().flat_map(|entry| {
            let [eax, ebx, ecx, edx] = entry.registers;
            [entry.function, entry.index, entry.flags, eax, ebx, ecx, edx]
        });
        words.flat_map(u32::to_le_bytes).collect()
    }

    /// The machine that a hello describes.
    ///
    /// # Errors
    /// [`GuestError::CpuidMalformed`] when the bytes are not whole leaves.
    pub fn decode(cpuid: &[u8], tsc_khz: u32, state_version: u16) -> Result<Self, GuestError> {
        let (leaves, []) = cpuid.as_chunks::<CPUID_ENTRY_BYTES>() else {
            return Err(GuestError::CpuidMalformed);
        };
        let cpuid = leaves
            .iter()
            .map(|leaf| {
                let word = |index: usize| u32::from_le_bytes(leaf.as_chunks().0[index]);
                CpuidEntry {
                    function: word(0),
                    index: word(1),
                    flags: word(2),
                    registers: [word(3), word(4), word(5), word(6)],
                }
            })
            .collect();
        Ok(Self {
            cpuid,
            tsc_khz,
            state_version,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuid_arrives_as_it_was_sent() {
        let entry = |function| CpuidEntry {
            function,
            index: 2,
            flags: 3,
            registers: [4, 5, 6, u32::MAX],
        };
        let machine = Machine {
            cpuid: vec![entry(1), entry(0x8000_0001)],
            tsc_khz: 7,
            state_version: 8,
        };
        let bytes = machine.encode_cpuid();
        assert_eq!(bytes.len(), 2 * CPUID_ENTRY_BYTES);
        assert_eq!(bytes[28..32], [1, 0, 0, 0x80]);
        assert_eq!(Machine::decode(&bytes, 7, 8).unwrap(), machine);
        assert!(matches!(
            Machine::decode(&bytes[1..], 7, 8),
            Err(GuestError::CpuidMalformed)
        ));
    }
}
