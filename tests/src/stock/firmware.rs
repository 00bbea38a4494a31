//! A firmware that does what Dunlin does for a guest of its own: from reset straight to 64-bit mode, at the payload's entry.
//!
//! Whoever starts it has put payload, boot block and page tables into memory. Opcodes: Intel SDM 2A to 2C.

use dunlin_core::workload::layout::{PAYLOAD, PML4, STACK_BYTES, STACKS};

/// QEMU maps the last 64 KiB of a firmware below 4 GiB, where a processor starts, and again below 1 MiB.
pub(super) const BYTES: usize = 0x1_0000;
/// Where the page tables map it one to one: without that, the step to paging would lead nowhere.
const ADDRESS: u32 = 0xf_0000;
/// Where a processor starts, in the image.
const RESET: u16 = 0xfff0;
/// Where the code begins, in the image.
const CODE: u16 = 0;
/// The descriptor table and, behind it, what says where it is.
const TABLE: u16 = 0x100;

/// Null, 64-bit code and flat data, their accessed bits set in advance: a processor cannot set them in ROM. Intel SDM 3A 3.4.5.
const DESCRIPTORS: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;

// As a guest of Dunlin starts with. CR0: PE, MP, ET, NE, WP, PG. CR4: PAE. EFER: LME, to which the processor adds LMA.
const CR0: u32 = 0x8001_0033;
const CR4: u32 = 0x20;
const EFER: u32 = 0xc000_0080;
const EFER_VALUE: u32 = 0x100;

/// Nothing should come to where nothing is.
const HLT: u8 = 0xf4;

/// What goes to `-bios`. It starts vCPU 0, whose number is the payload's argument.
pub(super) fn image() -> Vec<u8> {
    let mut image = vec![HLT; BYTES];
    let mut put = |at: u16, bytes: &[u8]| image[usize::from(at)..][..bytes.len()].copy_from_slice(bytes);
    put(CODE, &code());
    let table = DESCRIPTORS.map(u64::to_le_bytes).concat();
    let size = table.len() as u16;
    put(TABLE, &table);
    put(TABLE + size, &(size - 1).to_le_bytes());
    put(TABLE + size + 2, &(ADDRESS + u32::from(TABLE)).to_le_bytes());
    // jmp ADDRESS / 16 : CODE
    put(RESET, &[0xea]);
    put(RESET + 1, &CODE.to_le_bytes());
    put(RESET + 3, &((ADDRESS >> 4) as u16).to_le_bytes());
    image
}

/// First 16-bit code, then 64-bit code.
fn code() -> Vec<u8> {
    let mut code = vec![];
    let mut add = |parts: &[&[u8]]| code.extend_from_slice(&parts.concat());
    let pointer = TABLE + size_of_val(&DESCRIPTORS) as u16;
    // cli; lgdt cs:[pointer], its whole 32 bits
    add(&[&[0xfa], &[0x2e, 0x66, 0x0f, 0x01, 0x16], &pointer.to_le_bytes()]);
    // mov eax, CR4; mov cr4, eax
    add(&[&[0x66, 0xb8], &CR4.to_le_bytes(), &[0x0f, 0x22, 0xe0]]);
    // mov eax, PML4; mov cr3, eax
    add(&[&[0x66, 0xb8], &(PML4 as u32).to_le_bytes(), &[0x0f, 0x22, 0xd8]]);
    // mov ecx, EFER; mov eax, EFER_VALUE; xor edx, edx; wrmsr
    add(&[
        &[0x66, 0xb9],
        &EFER.to_le_bytes(),
        &[0x66, 0xb8],
        &EFER_VALUE.to_le_bytes(),
    ]);
    add(&[&[0x66, 0x31, 0xd2], &[0x0f, 0x30]]);
    // mov eax, CR0; mov cr0, eax
    add(&[&[0x66, 0xb8], &CR0.to_le_bytes(), &[0x0f, 0x22, 0xc0]]);
    let wide = far_jump_to_next(code.len());
    code.extend_from_slice(&wide);
    let mut add = |parts: &[&[u8]]| code.extend_from_slice(&parts.concat());
    // mov ax, DATA_SELECTOR; mov to ds, es, ss, fs, gs
    add(&[&[0x66, 0xb8], &DATA_SELECTOR.to_le_bytes()]);
    add(&[
        &[0x8e, 0xd8],
        &[0x8e, 0xc0],
        &[0x8e, 0xd0],
        &[0x8e, 0xe0],
        &[0x8e, 0xe8],
    ]);
    // xor edi, edi; mov esp, the end of the first stack
    add(&[&[0x31, 0xff], &[0xbc], &((STACKS + STACK_BYTES) as u32).to_le_bytes()]);
    // mov eax, the entry, at which the payload is linked; jmp rax
    add(&[&[0xb8], &(PAYLOAD as u32).to_le_bytes(), &[0xff, 0xe0]]);
    code
}

/// jmp CODE_SELECTOR : what follows on this instruction, which stands at `at` in the code: with it begins 64-bit code.
fn far_jump_to_next(at: usize) -> [u8; 8] {
    let mut jump = [0x66, 0xea, 0, 0, 0, 0, 0, 0];
    let next = ADDRESS + u32::from(CODE) + (at + jump.len()) as u32;
    jump[2..6].copy_from_slice(&next.to_le_bytes());
    jump[6..].copy_from_slice(&CODE_SELECTOR.to_le_bytes());
    jump
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(image: &[u8], at: usize) -> u16 {
        u16::from_le_bytes([image[at], image[at + 1]])
    }

    fn word(image: &[u8], at: usize) -> u32 {
        u32::from(half(image, at)) | u32::from(half(image, at + 2)) << 16
    }

    #[test]
    fn a_reset_leads_to_the_code_below_one_mebibyte() {
        let image = image();
        assert_eq!(image.len(), BYTES);
        let reset = usize::from(RESET);
        assert_eq!(image[reset], 0xea);
        let target = u32::from(half(&image, reset + 3)) * 16 + u32::from(half(&image, reset + 1));
        assert_eq!(target, ADDRESS + u32::from(CODE));
        assert_eq!(image[usize::from(CODE)], 0xfa);
        assert!(image[reset + 5..].iter().all(|byte| *byte == HLT));
    }

    #[test]
    fn the_code_finds_its_descriptors_and_its_second_half() {
        let image = image();
        let code = code();
        assert!(usize::from(CODE) + code.len() <= usize::from(TABLE));
        // lgdt is the second instruction.
        let pointer = usize::from(half(&code, 6));
        assert_eq!(half(&image, pointer), 23);
        let table = (word(&image, pointer + 2) - ADDRESS) as usize;
        for (index, descriptor) in DESCRIPTORS.iter().enumerate() {
            assert_eq!(image[table + index * 8..][..8], descriptor.to_le_bytes());
        }
        let jump = code.windows(2).position(|pair| pair == [0x66, 0xea]).unwrap();
        let second = (word(&code, jump + 2) - ADDRESS) as usize - usize::from(CODE);
        assert_eq!(half(&code, jump + 6), CODE_SELECTOR);
        // mov ax, DATA_SELECTOR
        assert_eq!((second, &code[second..][..2]), (jump + 8, &[0x66, 0xb8][..]));
        // The entry, and the jump there, come last.
        assert_eq!(u64::from(word(&code, code.len() - 6)), PAYLOAD);
        assert_eq!(code[code.len() - 2..], [0xff, 0xe0]);
    }
}
