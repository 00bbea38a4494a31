//! See the check.
#![no_main]

#[path = "../checks/policy.rs"]
mod check;
// This module alone, because the crate around it takes minutes to build for a fuzzer.
#[path = "../stubs/cli.rs"]
mod cli;
#[path = "../stubs/report.rs"]
mod report;
#[path = "../stubs/trust.rs"]
mod trust;

libfuzzer_sys::fuzz_target!(|input: &[u8]| check::check(input));
