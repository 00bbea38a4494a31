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

use std::collections::BTreeSet;
use std::sync::Mutex;

use case::Case;
use dunlin_tests::relay::Place;
use dunlin_tests::{Capability, require};

#[test]
fn faults_of_the_network_and_of_processes() {
    if !can() {
        return;
    }
    let struck = Mutex::new(BTreeSet::new());
    let endings = pool::run_all("faults_of_the_network", &Case::seeds(), |seed| {
        let case = Case::of(seed);
        let ending = verdict::run(&case)?;
        if ending == verdict::NEVER_STRUCK {
            println!("never struck: seed {seed}: {case}");
        } else {
            struck.lock().expect("no panic").insert(format!("{:?}", case.place));
        }
        Ok(ending)
    });
    // A place that nothing ever strikes at is none.
    if endings.values().sum::<usize>() > 1 {
        let struck = struck.into_inner().expect("no panic");
        assert_eq!(struck.len(), Place::ALL.len(), "{struck:?}");
    }
}

/// Post-copy needs both.
fn can() -> bool {
    require(Capability::Kvm) && require(Capability::Uffd)
}
