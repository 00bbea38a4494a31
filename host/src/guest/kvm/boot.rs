//! A KVM guest before its first instruction: page tables, payload, boot block, registers.

use dunlin_core::units::PAGE_SIZE;
use dunlin_core::workload::BootBlock;
use dunlin_core::workload::layout::{
    BOOT_BLOCK, PAGE_DIRECTORIES, PAYLOAD, PAYLOAD_BYTES, PDPT, PML4, STACK_BYTES, STACKS,
};
use elf::ElfBytes;
use elf::abi::{EM_X86_64, PT_LOAD};
use elf::endian::LittleEndian;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::super::GuestError;
use crate::memory::GuestMemory;

/// The bare-metal payload, with the symbols that its log needs.
pub(super) static PAYLOAD_ELF: &[u8] = &ALIGNED_ELF.0;

/// Who reads the symbols expects an ELF file where its numbers are aligned.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static ALIGNED_ELF: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../../guest-agent/prebuilt/microguest.elf"));

const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;
// Page table entries: Intel SDM 3A 4.5.
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
/// Set in advance, so that the processor never writes to a page table: when it would, no seed decides.
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;

/// Writes everything that a guest finds in its memory when it starts, and returns where it starts.
pub(super) fn load(memory: &GuestMemory, boot: &BootBlock) -> Result<u64, GuestError> {
    write_page_tables(memory);
    memory.write(BOOT_BLOCK, &boot.encode())?;
    load_payload(memory)
}

/// Identity mapping of all guest-physical memory by 2 MiB pages.
fn write_page_tables(memory: &GuestMemory) {
    let end = memory.end_gfn().0 * PAGE_SIZE;
    memory.write_u64(PML4, PDPT | PRESENT | WRITABLE | ACCESSED);
    for gib in 0..end.div_ceil(GIB) {
        let directory = PAGE_DIRECTORIES + gib * PAGE_SIZE;
        memory.write_u64(PDPT + gib * 8, directory | PRESENT | WRITABLE | ACCESSED);
        for entry in 0..GIB / LARGE_PAGE {
            let address = gib * GIB + entry * LARGE_PAGE;
            memory.write_u64(
                directory + entry * 8,
                address | PRESENT | WRITABLE | ACCESSED | DIRTY | LARGE,
            );
        }
    }
}

/// Copies the payload's segments to where they are linked.
fn load_payload(memory: &GuestMemory) -> Result<u64, GuestError> {
    let room = PAYLOAD..PAYLOAD + PAYLOAD_BYTES;
    let elf = ElfBytes::<LittleEndian>::minimal_parse(PAYLOAD_ELF).map_err(|_| GuestError::Payload("no ELF file"))?;
    if elf.ehdr.e_machine != EM_X86_64 || !room.contains(&elf.ehdr.e_entry) {
        return Err(GuestError::Payload("built for another machine"));
    }
    let segments = elf.segments().ok_or(GuestError::Payload("no segments"))?;
    for segment in segments.iter().filter(|segment| segment.p_type == PT_LOAD) {
        let fits = segment
            .p_paddr
            .checked_add(segment.p_memsz)
            .is_some_and(|end| end <= room.end);
        if segment.p_paddr < room.start || !fits || segment.p_filesz > segment.p_memsz {
            return Err(GuestError::Payload("a segment lies outside its room"));
        }
        let bytes = elf
            .segment_data(&segment)
            .map_err(|_| GuestError::Payload("a segment is cut off"))?;
        // What the file leaves out is zero already.
        memory.write(segment.p_paddr, bytes)?;
    }
    Ok(elf.ehdr.e_entry)
}

/// 64-bit mode with flat segments, their accessed bits set in advance. There are no descriptor tables: nothing loads a
/// segment, and any exception ends the guest.
pub(super) fn set_sregs(sregs: &mut kvm_sregs) {
    // CR0: PE, MP, ET, NE, WP, PG. CR4: PAE. EFER: LME, LMA. Intel SDM 3A 2.5, 9.8.5.
    sregs.cr0 = 0x8001_0033;
    sregs.cr3 = PML4;
    sregs.cr4 = 0x20;
    sregs.efer = 0x500;
    let flat = kvm_segment {
        limit: u32::MAX,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: 0x08,
        type_: 11,
        l: 1,
        ..flat
    };
    let data = kvm_segment {
        selector: 0x10,
        type_: 3,
        db: 1,
        ..flat
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
}

/// At the payload's entry, with the vCPU's number as its argument.
pub(super) fn regs(entry: u64, vcpu: u32) -> kvm_regs {
    kvm_regs {
        rip: entry,
        rdi: u64::from(vcpu),
        rsp: STACKS + (u64::from(vcpu) + 1) * STACK_BYTES,
        // Bit 1 is always set; interrupts are off.
        rflags: 2,
        ..Default::default()
    }
}
