//! The fault matrix, live: whatever is done to the network, to the storage or to one of the processes, at whatever place of a
//! migration, the guest ends with the memory of one that was left alone. Where nothing could save it, the side that is left
//! says so and runs nothing.
//!
//! An all-pairs cover of faults, places, strategies and workloads, and all of it with `cargo xtask test --full`. A failure
//! prints the command that repeats its run.

mod case;
mod cuts;
mod pool;
mod storage;
mod verdict;

use case::Case;
use dunlin_tests::{Capability, require};

#[test]
fn faults_of_the_network_and_of_processes() {
    if can() {
        pool::run_all("faults_of_the_network", &Case::seeds(), |seed| {
            verdict::run(&Case::of(seed))
        });
    }
}

/// Post-copy needs both.
fn can() -> bool {
    require(Capability::Kvm) && require(Capability::Uffd)
}
