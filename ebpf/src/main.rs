//! eBPF programs that say which pages a virtual machine writes, in order.
//!
//! The host loads this object once for each recording, sets the globals of [`filter`], [`emit`] and [`aggregate`], and attaches
//! the programs of one file below: [`ring`], [`mmu`], [`fault`], [`exits`] or [`functions`]. Each program first asks whether
//! the thread belongs to the traced process. Raw tracepoints are used wherever there is one, because they can be attached to
//! a KVM that is a module. Programs use the tracepoints' numbers and read no structure of the kernel, for this compiler has
//! no relocations that would make that safe on another kernel; where a field is indispensable, the host finds out where it
//! lies and sets a global.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![cfg_attr(
    not(target_arch = "bpf"),
    expect(
        dead_code,
        reason = "elsewhere than on the BPF machine it is only checked, never run"
    )
)]

mod aggregate;
mod atomic;
mod emit;
mod exits;
mod fault;
mod filter;
mod functions;
mod mmu;
mod ring;

/// Programs that are not under the GPL, or not also, may not ask the kernel for the time.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier would refuse a program that could get here.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
