//! See the check.
#![no_main]

#[path = "../checks/traces.rs"]
mod check;
// The one module, because the crate around it takes minutes to build for a fuzzer.
#[path = "../../../host/src/trace/text/mod.rs"]
#[expect(dead_code, unused_imports, reason = "what the command needs is of no use here")]
mod text;

libfuzzer_sys::fuzz_target!(|input: &[u8]| check::check(input));
