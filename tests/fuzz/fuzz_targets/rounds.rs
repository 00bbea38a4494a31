//! See the check.
#![no_main]

#[path = "../checks/rounds.rs"]
mod check;
// The one module, because the crate around it takes minutes to build for a fuzzer.
#[path = "../../../host/src/replay/mod.rs"]
#[expect(dead_code, unused_imports, reason = "what the command shows is of no use here")]
mod replay;

libfuzzer_sys::fuzz_target!(|input: &[u8]| check::check(input));
