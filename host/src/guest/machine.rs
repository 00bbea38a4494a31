//! The processors as a guest sees them, and whether another host can offer the same.

use serde::{Deserialize, Serialize};

/// One leaf of CPUID.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
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

/// A processor feature that a guest uses and a host does not offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "The guest's processor has features that this host lacks (CPUID {function:#x}.{index:#x} register {register}: bits {missing:#x}); move it to a host with the same or a newer processor"
)]
pub struct CpuidGap {
    /// CPUID function.
    pub function: u32,
    /// CPUID index.
    pub index: u32,
    /// 0 to 3 for eax to edx.
    pub register: u8,
    /// The bits that are missing.
    pub missing: u32,
}

/// What a guest's processors look like to it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// CPUID; empty for guests without.
    pub cpuid: Vec<CpuidEntry>,
    /// Rate of the time stamp counter in kHz; 0 for guests without.
    pub tsc_khz: u32,
    /// Version of what [`save_state`](super::Guest::save_state) writes.
    pub state_version: u16,
}

/// Leaves whose registers are feature bits, with the registers that are: every bit the guest sees must be there. The
/// others identify, count or describe, and may differ.
///
/// Intel SDM 2A "CPUID", AMD APM 3 appendix E, and for 0x40000001 Documentation/virt/kvm/x86/cpuid.rst.
const FEATURES: [(u32, u32, [bool; 4]); 10] = [
    (0x1, 0, [false, false, true, true]),
    (0x7, 0, [false, true, true, true]),
    (0x7, 1, [true, true, true, true]),
    (0xd, 0, [true, false, false, true]),
    (0xd, 1, [true, false, true, true]),
    (0x4000_0001, 0, [true, false, false, false]),
    (0x8000_0001, 0, [false, false, true, true]),
    (0x8000_0007, 0, [false, false, false, true]),
    (0x8000_0008, 0, [false, true, false, false]),
    (0x8000_0021, 0, [true, false, false, false]),
];

/// OSXSAVE and OSPKE show the guest's own CR4, not the processor.
const OWN_STATE: [(u32, usize, u32); 2] = [(0x1, 2, 1 << 27), (0x7, 2, 1 << 4)];

impl Machine {
    /// Whether a host that offers `host` can run a guest that sees `self`.
    ///
    /// # Errors
    /// The first [`CpuidGap`].
    pub fn covered_by(&self, host: &[CpuidEntry]) -> Result<(), CpuidGap> {
        for (function, index, registers) in FEATURES {
            let Some(wanted) = find(&self.cpuid, function, index) else {
                continue;
            };
            let offered = find(host, function, index).unwrap_or_default();
            for register in (0..4).filter(|register| registers[*register]) {
                let own = OWN_STATE
                    .iter()
                    .find(|own| (own.0, own.1) == (function, register))
                    .map_or(0, |own| own.2);
                let missing = wanted[register] & !offered[register] & !own;
                if missing != 0 {
                    return Err(CpuidGap {
                        function,
                        index,
                        register: register as u8,
                        missing,
                    });
                }
            }
        }
        Ok(())
    }
}

fn find(entries: &[CpuidEntry], function: u32, index: u32) -> Option<[u32; 4]> {
    entries
        .iter()
        .find(|entry| (entry.function, entry.index) == (function, index))
        .map(|entry| entry.registers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> CpuidEntry {
        CpuidEntry {
            function,
            index,
            flags: 1,
            registers,
        }
    }

    #[test]
    fn every_feature_of_the_guest_must_be_offered() {
        let guest = Machine {
            cpuid: vec![entry(1, 0, [0x9, 0, 0x11, 0x22]), entry(7, 0, [0, 0b110, 0, 0])],
            ..Machine::default()
        };
        let same = guest.cpuid.clone();
        assert_eq!(guest.covered_by(&same), Ok(()));
        let richer = [entry(1, 0, [0x1, 7, 0x1f, 0xff]), entry(7, 0, [0, u32::MAX, 0, 0])];
        assert_eq!(
            guest.covered_by(&richer),
            Ok(()),
            "other models and further features do not matter"
        );
        let poorer = [entry(1, 0, [0x9, 0, 0x11, 0x22]), entry(7, 0, [0, 0b010, 0, 0])];
        let gap = CpuidGap {
            function: 7,
            index: 0,
            register: 1,
            missing: 0b100,
        };
        assert_eq!(guest.covered_by(&poorer), Err(gap));
        assert!(gap.to_string().contains("0x7.0x0 register 1: bits 0x4"));
        assert_eq!(guest.covered_by(&[]).unwrap_err().missing, 0x11);
    }

    #[test]
    fn what_the_guest_switched_on_itself_is_no_feature() {
        let guest = Machine {
            cpuid: vec![entry(1, 0, [0, 0, 1 << 27, 0])],
            ..Machine::default()
        };
        assert_eq!(guest.covered_by(&[]), Ok(()));
    }
}
