//! Whether a target can take a VM: decided from the source's hello before anything is changed or allocated.

use crate::message::{
    CPUID_ENTRY_BYTES, Capabilities, Hello, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Refusal, check_regions, end_gfn,
};
use crate::units::{Bytes, PAGE_SIZE};

/// What a target offers.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// Everything it can do.
    pub capabilities: Capabilities,
    /// Most memory of one VM.
    pub max_memory: Bytes,
    /// Most vCPUs of one VM.
    pub max_vcpus: u8,
    /// CPUID it can give a guest, encoded as in [`Hello::cpuid`].
    pub cpuid: &'a [u8],
    /// Rate of its TSC in kHz if it cannot be scaled, otherwise 0.
    pub fixed_tsc_khz: u32,
    /// Version of the vCPU state it reads.
    pub state_version: u16,
    /// It holds or receives a VM already.
    pub busy: bool,
}

/// Rates closer than this count as equal, in parts per million (KVM's own tolerance, `arch/x86/kvm/x86.c`, `tsc_tolerance_ppm`).
const TSC_TOLERANCE_PPM: u64 = 250;

/// Most pages that a VM's holes may have together: 4 GiB, the hole below 4 GiB at its largest. Sets of pages are flat: without a
/// limit a tiny VM at the end of the address space would ask for petabytes of them.
const HOLES_MAX: u64 = 1 << 20;

/// Which bits of which CPUID leaf are features: what the VM has there the target must have too. Everything else (topology, caches,
/// names, sizes) is given to the guest as it was on the source.
/// Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; Linux `Documentation/virt/kvm/x86/cpuid.rst` for leaf
/// 0x40000001.
const FEATURES: [(u32, u32, [u32; 4]); 11] = [
    // ecx without OSXSAVE, which follows the guest's CR4.
    (0x1, 0, [0, 0, !(1 << 27), !0]),
    // ecx without OSPKE, which follows it too.
    (0x7, 0, [0, !0, !(1 << 4), !0]),
    (0x7, 1, [!0; 4]),
    (0x7, 2, [0, 0, 0, !0]),
    // Supported bits of XCR0 in eax and edx, of IA32_XSS in ecx and edx.
    (0xd, 0, [!0, 0, 0, !0]),
    (0xd, 1, [!0, 0, !0, !0]),
    (0x4000_0001, 0, [!0, 0, 0, 0]),
    (0x8000_0001, 0, [0, 0, !0, !0]),
    (0x8000_0007, 0, [0, 0, 0, !0]),
    (0x8000_0008, 0, [0, !0, 0, 0]),
    (0x8000_0021, 0, [!0, 0, 0, 0]),
];

/// The newest version that both sides speak: to be settled before anything else of a hello is interpreted.
///
/// # Errors
/// [`Refusal::Version`].
pub fn agree_on_version(hello: &Hello<'_>) -> Result<u16, Refusal> {
    let version = hello.protocol_max.min(PROTOCOL_VERSION);
    if version < hello.protocol_min.max(PROTOCOL_VERSION_MIN) {
        return Err(Refusal::Version {
            min: PROTOCOL_VERSION_MIN,
            max: PROTOCOL_VERSION,
        });
    }
    Ok(version)
}

/// Settles on a protocol version, or says why the VM cannot be taken.
///
/// Linear in the CPUID leaves of the VM times those offered (both at most a hundred or so).
///
/// # Errors
/// The first reason found, in the order: version, busy, capabilities, page size, regions, memory, vCPUs, state version, TSC, CPUID.
pub fn check(hello: &Hello<'_>, offer: &Offer<'_>) -> Result<u16, Refusal> {
    let version = agree_on_version(hello)?;
    if offer.busy {
        return Err(Refusal::Busy);
    }
    let lacking = hello.capabilities.difference(offer.capabilities);
    if !lacking.is_empty() {
        return Err(Refusal::Capabilities {
            lacking: lacking.bits(),
        });
    }
    if u64::from(hello.page_size) != PAGE_SIZE {
        return Err(Refusal::PageSize {
            expected: PAGE_SIZE as u32,
        });
    }
    check_regions(&hello.regions)?;
    if end_gfn(&hello.regions).0 - hello.total_pages().0 > HOLES_MAX {
        return Err(Refusal::Regions);
    }
    let asked = hello.total_pages().bytes();
    if asked > offer.max_memory {
        return Err(Refusal::Memory {
            asked,
            max: offer.max_memory,
        });
    }
    if hello.vcpus == 0 || hello.vcpus > offer.max_vcpus {
        return Err(Refusal::Vcpus {
            asked: hello.vcpus,
            max: offer.max_vcpus,
        });
    }
    if hello.state_version != offer.state_version {
        return Err(Refusal::StateVersion {
            expected: offer.state_version,
        });
    }
    check_tsc(hello.tsc_khz, offer.fixed_tsc_khz)?;
    check_cpuid(hello.cpuid, offer.cpuid)?;
    Ok(version)
}

fn check_tsc(wanted: u32, fixed: u32) -> Result<(), Refusal> {
    let apart = u64::from(wanted.abs_diff(fixed));
    if wanted != 0 && fixed != 0 && apart * 1_000_000 > u64::from(fixed) * TSC_TOLERANCE_PPM {
        return Err(Refusal::Tsc { expected: fixed });
    }
    Ok(())
}

fn check_cpuid(wanted: &[u8], offered: &[u8]) -> Result<(), Refusal> {
    if !wanted.len().is_multiple_of(CPUID_ENTRY_BYTES) || !offered.len().is_multiple_of(CPUID_ENTRY_BYTES) {
        return Err(Refusal::CpuidMalformed);
    }
    for leaf in leaves(wanted) {
        let Some((_, _, masks)) = FEATURES.iter().find(|(function, index, _)| leaf.is(*function, *index)) else {
            continue;
        };
        let have = leaves(offered)
            .find(|other| other.is(leaf.function, leaf.index))
            .map_or([0; 4], |other| other.registers);
        for register in 0..4u8 {
            let at = usize::from(register);
            let missing = leaf.registers[at] & masks[at] & !have[at];
            if missing != 0 {
                return Err(Refusal::Cpuid {
                    function: leaf.function,
                    index: leaf.index,
                    register,
                    missing,
                });
            }
        }
    }
    Ok(())
}

struct Leaf {
    function: u32,
    index: u32,
    registers: [u32; 4],
}

impl Leaf {
    fn is(&self, function: u32, index: u32) -> bool {
        self.function == function && self.index == index
    }
}

fn leaves(bytes: &[u8]) -> impl Iterator<Item = Leaf> {
    bytes.as_chunks::<CPUID_ENTRY_BYTES>().0.iter().map(|entry| {
        let word =
            |at: usize| u32::from_le_bytes([entry[at * 4], entry[at * 4 + 1], entry[at * 4 + 2], entry[at * 4 + 3]]);
        Leaf {
            function: word(0),
            index: word(1),
            registers: [word(3), word(4), word(5), word(6)],
        }
    })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::message::{Region, Regions, SessionId, VmId};
    use crate::units::{Gfn, Nanos, Pages};
    use std::vec::Vec;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> Vec<u8> {
        [function, index, 0]
            .into_iter()
            .chain(registers)
            .flat_map(u32::to_le_bytes)
            .collect()
    }

    fn hello(cpuid: &[u8]) -> Hello<'_> {
        Hello {
            protocol_min: 1,
            protocol_max: 1,
            capabilities: Capabilities::CHECKSUM,
            session: SessionId(1),
            vm: VmId(1),
            page_size: 4096,
            regions: Regions::from_slice(&[Region {
                first: Gfn(0),
                pages: Pages(256),
            }])
            .expect("fits"),
            vcpus: 2,
            tsc_khz: 2_000_000,
            state_version: 1,
            network_timeout: Nanos(3),
            cpuid,
            config: &[],
        }
    }

    fn offer(cpuid: &[u8]) -> Offer<'_> {
        Offer {
            capabilities: Capabilities::all(),
            max_memory: Bytes(1 << 20),
            max_vcpus: 4,
            cpuid,
            fixed_tsc_khz: 2_000_400,
            state_version: 1,
            busy: false,
        }
    }

    #[test]
    fn a_vm_with_holes_is_taken_if_they_are_small() {
        let mut fitting = hello(&[]);
        fitting.regions[0].first = Gfn(HOLES_MAX);
        assert_eq!(check(&fitting, &offer(&[])), Ok(1));
    }

    #[test]
    fn a_fitting_vm_is_taken() {
        let wanted = [leaf(1, 0, [9, 9, 1 << 27 | 0b01, 1]), leaf(4, 0, [5; 4])].concat();
        let offered = leaf(1, 0, [0, 0, 0b11, 3]);
        assert_eq!(check(&hello(&wanted), &offer(&offered)), Ok(1));
    }

    #[test]
    fn every_misfit_has_its_name() {
        let refused = |change: &dyn Fn(&mut Hello<'_>, &mut Offer<'_>)| {
            let (mut hello, mut offer) = (hello(&[]), offer(&[]));
            change(&mut hello, &mut offer);
            check(&hello, &offer).expect_err("must be refused")
        };
        assert_eq!(
            refused(&|hello, _| (hello.protocol_min, hello.protocol_max) = (2, 3)),
            Refusal::Version { min: 1, max: 1 }
        );
        assert_eq!(
            refused(&|hello, _| (hello.protocol_min, hello.protocol_max) = (0, 0)),
            Refusal::Version { min: 1, max: 1 }
        );
        assert_eq!(refused(&|_, offer| offer.busy = true), Refusal::Busy);
        assert_eq!(
            refused(&|hello, _| hello.capabilities = Capabilities::from_bits_retain(1 << 9)),
            Refusal::Capabilities { lacking: 1 << 9 }
        );
        assert_eq!(
            refused(&|hello, _| hello.page_size = 16384),
            Refusal::PageSize { expected: 4096 }
        );
        assert_eq!(refused(&|hello, _| hello.regions.clear()), Refusal::Regions);
        assert_eq!(
            refused(&|hello, _| hello.regions[0].first = Gfn(HOLES_MAX + 1)),
            Refusal::Regions
        );
        assert_eq!(
            refused(&|hello, _| hello.regions[0].pages = Pages(257)),
            Refusal::Memory {
                asked: Bytes((1 << 20) + 4096),
                max: Bytes(1 << 20)
            }
        );
        assert_eq!(
            refused(&|hello, _| hello.vcpus = 0),
            Refusal::Vcpus { asked: 0, max: 4 }
        );
        assert_eq!(
            refused(&|hello, _| hello.vcpus = 5),
            Refusal::Vcpus { asked: 5, max: 4 }
        );
        assert_eq!(
            refused(&|hello, _| hello.state_version = 2),
            Refusal::StateVersion { expected: 1 }
        );
        assert_eq!(
            refused(&|hello, _| hello.tsc_khz = 1_999_000),
            Refusal::Tsc { expected: 2_000_400 }
        );
        assert_eq!(refused(&|hello, _| hello.cpuid = &[0; 27]), Refusal::CpuidMalformed);
    }

    #[test]
    fn a_missing_processor_feature_is_named() {
        let wanted = leaf(7, 0, [0, 0b1100, 0, 0]);
        let offered = leaf(7, 0, [0, 0b0100, 0, 0]);
        let expected = Refusal::Cpuid {
            function: 7,
            index: 0,
            register: 1,
            missing: 0b1000,
        };
        assert_eq!(check(&hello(&wanted), &offer(&offered)), Err(expected));
        let leaf_absent = Refusal::Cpuid {
            function: 7,
            index: 0,
            register: 1,
            missing: 0b1100,
        };
        assert_eq!(check(&hello(&wanted), &offer(&[])), Err(leaf_absent));
    }
}
