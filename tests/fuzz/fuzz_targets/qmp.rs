//! See the check.
#![no_main]

#[path = "../checks/qmp.rs"]
mod check;
#[path = "../stubs/qemu.rs"]
mod qemu;

libfuzzer_sys::fuzz_target!(|input: &[u8]| check::check(input));
