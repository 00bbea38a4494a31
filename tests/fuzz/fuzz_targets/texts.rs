//! See the check.
#![no_main]

#[path = "../checks/texts.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|input: &[u8]| check::check(input));
