//! Deterministic simulation of whole migrations: the real state machines, the real wire encoding, virtual memory and time. Every
//! run can have one fault, at any message or record boundary. A failure names strategy, seed, fault and boundary.
#![cfg(feature = "wire")]

mod sim;

use sim::{Fault, World};

const STRATEGIES: [&str; 4] = ["precopy", "hybrid:1", "as-hybrid", "postcopy"];
/// Every boundary is tried with each of these seeds: they decide about interleaving, writes and what a cut loses.
const SEEDS: u64 = 6;

fn every_boundary(fault: Fault, at_least: u64, check: impl Fn(&World)) {
    for strategy in STRATEGIES {
        for seed in 0..SEEDS {
            let mut boundary = 0;
            loop {
                let mut world = World::new(strategy, seed, Some((fault, boundary)));
                world.run();
                check(&world);
                if !world.fault_happened() {
                    break;
                }
                boundary += 1;
            }
            assert!(
                boundary >= at_least,
                "{strategy}: only {boundary} boundaries were tried"
            );
        }
    }
}

#[test]
fn without_faults_the_vm_arrives_whole() {
    for strategy in STRATEGIES {
        for seed in 0..200 {
            let mut world = World::new(strategy, seed, None);
            world.run();
            world.assert_runs_whole_on_target();
            world.assert_verified();
        }
    }
}

#[test]
fn a_cut_link_is_harmless_everywhere() {
    every_boundary(Fault::Cut, 20, World::assert_runs_whole_somewhere);
}

#[test]
fn a_black_hole_is_harmless_everywhere() {
    every_boundary(Fault::BlackHole, 20, World::assert_runs_whole_somewhere);
}

#[test]
fn a_cancel_leaves_the_vm_on_one_side() {
    every_boundary(Fault::Cancel, 20, World::assert_runs_whole_somewhere);
}

#[test]
fn a_crash_of_the_target_before_it_took_the_vm_leaves_it_on_the_source() {
    every_boundary(Fault::CrashTarget, 20, |world| {
        if !world.fault_happened() {
            world.assert_runs_whole_on_target();
        } else if world.target_took() {
            world.assert_lost_with_target();
        } else {
            world.assert_runs_whole_on_source();
        }
    });
}

#[test]
fn a_crash_of_the_source_never_runs_stale_memory() {
    every_boundary(Fault::CrashSource, 20, World::assert_after_source_crash);
}

#[test]
fn records_that_cannot_be_written_leave_the_vm_on_one_side() {
    every_boundary(Fault::SourceRecordFails, 2, World::assert_runs_whole_somewhere);
    every_boundary(Fault::TargetRecordFails, 3, World::assert_runs_whole_somewhere);
}

#[test]
fn a_guest_that_cannot_be_prepared_on_the_target_goes_on_on_the_source() {
    every_boundary(Fault::TargetActionFails, 2, World::assert_runs_whole_somewhere);
}
