//! The bare machine: entry and halt, ports, memory.

use core::arch::asm;

use dunlin_core::units::PAGE_SIZE;
use dunlin_core::workload::BootBlock;
use dunlin_core::workload::layout::{BOOT_BLOCK, MAILBOX, MAILBOX_BYTES, MAILBOX_ROOM};

/// Guest memory, mapped one to one.
pub(crate) struct Ram;

impl dunlin_core::workload::Ram for Ram {
    #[inline(always)]
    fn read_u64(&self, address: u64) -> u64 {
        // SAFETY: all of RAM is mapped one to one and readable, and callers pass aligned addresses of words that no
        // Rust object occupies: the workload's memory, the progress page and the mailbox lie outside payload and
        // stacks. While a vCPU reads a word no other writes it, and what the host does to it, it does while the vCPU
        // stands.
        unsafe { (address as *const u64).read() }
    }

    #[inline(always)]
    fn write_u64(&mut self, address: u64, value: u64) {
        // SAFETY: as for reading; the memory is writable. Volatile, as the host reads it.
        unsafe { (address as *mut u64).write_volatile(value) }
    }

    fn clear_page(&mut self, start: u64) {
        // SAFETY: as for writing 64 bits, of all words of the page. One instruction, since each is emulated where there is no processor
        // for it; the direction flag is clear in all Rust code.
        unsafe {
            asm!(
                "rep stosq",
                inout("rcx") PAGE_SIZE / 8 => _,
                inout("rdi") start => _,
                in("rax") 0_u64,
                options(nostack, preserves_flags)
            )
        }
    }

    #[inline(always)]
    fn read_u16(&self, address: u64) -> u16 {
        // SAFETY: as for reading 64 bits.
        unsafe { (address as *const u16).read() }
    }

    #[inline(always)]
    fn write_u16(&mut self, address: u64, value: u16) {
        // SAFETY: as for writing 64 bits.
        unsafe { (address as *mut u16).write_volatile(value) }
    }
}

/// The boot block's bytes, not yet checked.
pub(crate) fn boot_block() -> &'static [u8] {
    // SAFETY: the page is RAM that the host wrote before the first vCPU started and that nobody writes afterwards.
    unsafe { core::slice::from_raw_parts(BOOT_BLOCK as *const u8, BootBlock::BYTES) }
}

/// Zeroes the part of the mailbox page that belongs to this vCPU.
pub(crate) fn clear_mailbox(vcpu: u32) {
    use dunlin_core::workload::Ram as _;

    let start = MAILBOX + MAILBOX_BYTES * u64::from(vcpu);
    for address in (start..start + MAILBOX_BYTES).step_by(8) {
        Ram.write_u64(address, 0);
    }
}

/// Takes what the host has put into the mailbox of vCPU 0: how many bytes of `buffer` it takes.
pub(crate) fn take_mail(buffer: &mut [u8; MAILBOX_ROOM as usize]) -> usize {
    use dunlin_core::workload::Ram as _;

    let length = Ram.read_u64(MAILBOX).min(MAILBOX_ROOM) as usize;
    if length == 0 {
        return 0;
    }
    for (word, address) in buffer.as_chunks_mut::<8>().0.iter_mut().zip((MAILBOX + 8..).step_by(8)) {
        *word = Ram.read_u64(address).to_le_bytes();
    }
    Ram.write_u64(MAILBOX, 0);
    length
}

/// Writes 32 bits to an I/O port; the host may take its time before the guest goes on.
#[inline(always)]
pub(crate) fn out32(port: u16, value: u32) {
    // SAFETY: port writes are how the guest talks to its host; they touch neither memory nor flags of the guest.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) }
}

/// Writes bytes to an I/O port, one after the other.
pub(crate) fn out_bytes(port: u16, bytes: &[u8]) {
    for byte in bytes {
        // SAFETY: as in `out32`.
        unsafe { asm!("out dx, al", in("dx") port, in("al") *byte, options(nomem, nostack, preserves_flags)) }
    }
}

/// Writes bytes to an I/O port in one instruction, of which the host sees many at once.
pub(crate) fn out_string(port: u16, bytes: &[u8]) {
    // SAFETY: the instruction reads as many bytes as there are, upwards, as the direction flag is clear in all Rust code.
    unsafe {
        asm!(
            "rep outsb",
            in("dx") port,
            inout("rcx") bytes.len() => _,
            inout("rsi") bytes.as_ptr() => _,
            options(readonly, nostack, preserves_flags)
        )
    }
}

#[cfg(target_os = "none")]
mod bare {
    use core::arch::{asm, global_asm};

    use dunlin_core::workload::layout::{HALT_PANIC, PORT_HALT, PROGRESS, PROGRESS_LINE, STACK_BYTES, STACKS};
    use dunlin_core::workload::{Progress, State};

    use crate::Halt;

    // Entry: the stack of this vCPU, then Rust. Back from it, rax holds the halt code and, in its upper half, the state
    // for the progress line. Clearing the stack must be the last use of it, so the rest keeps to registers.
    global_asm!(
        ".section .text.start, \"ax\"",
        ".globl _start",
        "_start:",
        "lea rax, [rdi + 1]",
        "shl rax, {stack_shift}",
        "lea rsp, [rax + {stacks}]",
        "mov r12, rdi",
        "xor ebp, ebp",
        "call {main}",
        "mov rdx, rax",
        "lea rdi, [rsp - {stack_bytes}]",
        "mov ecx, {stack_bytes} / 8",
        "xor eax, eax",
        "cld",
        "rep stosq",
        "shl r12, {line_shift}",
        "mov rax, rdx",
        "shr rax, 32",
        "mov [r12 + {progress} + 8], rax",
        "mov eax, edx",
        "out {port}, eax",
        "2: cli",
        "hlt",
        "jmp 2b",
        stacks = const STACKS,
        stack_bytes = const STACK_BYTES,
        stack_shift = const STACK_BYTES.trailing_zeros(),
        line_shift = const PROGRESS_LINE.trailing_zeros(),
        progress = const PROGRESS,
        port = const PORT_HALT,
        main = sym main,
    );

    extern "C" fn main(vcpu: u64) -> u64 {
        let Halt { code, state } = crate::run(vcpu as u32);
        state.code() << 32 | u64::from(code)
    }

    #[panic_handler]
    fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
        let stack: u64;
        // SAFETY: reads a register.
        unsafe { asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack, preserves_flags)) }
        let vcpu = ((stack - STACKS) / STACK_BYTES) as u32;
        // The build leaves out lines.
        let file = info.location().map_or("?", |at| at.file());
        defmt::error!("vCPU {=u32}: panicked in {=str}", vcpu, file);
        let steps = Progress::read(vcpu, &super::Ram).steps;
        Progress {
            steps,
            state: State::Panicked,
            error: None,
        }
        .write(vcpu, &mut super::Ram);
        super::out32(PORT_HALT, HALT_PANIC);
        loop {
            // SAFETY: stops this vCPU for good: interrupts are off.
            unsafe { asm!("cli", "hlt") }
        }
    }
}
