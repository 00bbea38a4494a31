//! See the check.
#![no_main]

#[path = "../checks/storage.rs"]
mod check;
// These modules alone, because the crate around them takes minutes to build for a fuzzer.
#[path = "../../../host/src/block.rs"]
#[expect(dead_code, reason = "not all that blocks are for is stored")]
mod block;
#[path = "../stubs/memory.rs"]
mod memory;
#[path = "../../../host/src/storage/mod.rs"]
#[expect(
    dead_code,
    unused_imports,
    reason = "what a migration needs besides is of no use here"
)]
mod storage;

libfuzzer_sys::fuzz_target!(|input: &[u8]| check::check(input));
