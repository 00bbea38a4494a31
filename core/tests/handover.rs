//! Deterministic simulation of whole migrations: the real state machines, the real wire encoding, virtual memory and time.
//!
//! A failure prints the command that makes its world again and shows every step of it.
#![cfg(feature = "wire")]

mod sim;

use sim::{ADJACENT, Choices, Fault, HOLE, ONE_PAGE, Shape, TWO_MISSING, TargetActs, World, named_world};

const STRATEGIES: [&str; 11] = [
    "precopy",
    "hybrid:1",
    "as-hybrid",
    "postcopy",
    "postcopy,push=bubble:3",
    "hybrid:1,push=bubble",
    "par-migrate",
    "pa-hybrid,cut=reconnect",
    "hybrid:1,first=parallel,hold=hot",
    "postcopy,cut=pbdata",
    "hybrid:1,first=parallel,cut=reconnect,split=speed",
];
/// The same and those that do not come back after a cut.
const ALL_STRATEGIES: [&str; 22] = [
    "precopy",
    "hybrid:1",
    "as-hybrid",
    "postcopy",
    "postcopy,push=bubble:3",
    "hybrid:1,push=bubble",
    "hybrid:1,push=bubble:7,cut=fail",
    "hybrid:1,cut=fail",
    "postcopy,cut=fail",
    "par-migrate",
    "hybrid:1,first=parallel,cut=reconnect",
    "pa-hybrid",
    "hybrid:1,cut=both",
    "postcopy,cut=pbdata",
    "par-migrate,hold=hot",
    "markov-sdf:0.5",
    "switch=sdf:0.3,filter=markov",
    "hybrid:2,filter=hazard",
    "filter=frequency",
    "postcopy,push=forecast",
    "hybrid:2,first=parallel,filter=ppm,push=forecast",
    "par-migrate,hold=hot,split=speed",
];
const SHAPES: [Shape; 3] = [HOLE, ADJACENT, ONE_PAGE];

/// Every boundary is tried with so many seeds: they decide about interleaving, writes and what a cut loses.
fn seeds() -> u64 {
    if full() { 8 } else { 2 }
}

/// The whole of the matrices is asked for.
fn full() -> bool {
    std::env::var_os("DUNLIN_FULL").is_some_and(|value| value != "0")
}

fn every_boundary(fault: Fault, at_least: u64) {
    every_boundary_of(&STRATEGIES, fault, at_least);
}

fn every_boundary_of(strategies: &[&str], fault: Fault, at_least: u64) {
    for &strategy in strategies {
        for seed in 0..seeds() {
            let mut boundary = 0;
            loop {
                let mut world = World::new(strategy, seed, &[(fault, boundary)]);
                world.run();
                if !world.all_faults_happened() {
                    world.assert_runs_whole_on_target();
                    break;
                }
                world.assert_saved_or_unsavable();
                boundary += 1;
            }
            assert!(
                boundary >= at_least,
                "{strategy}, {fault:?}: only {boundary} boundaries were tried"
            );
        }
    }
}

#[test]
fn without_faults_the_vm_arrives_whole() {
    for strategy in ALL_STRATEGIES {
        for shape in SHAPES {
            for seed in 0..40 {
                let mut world = World::shaped(strategy, seed, shape, &[]);
                world.run();
                world.assert_runs_whole_on_target();
                world.assert_verified();
            }
        }
    }
}

/// The same with an agent in the guest: nothing that is in use is lost, whatever it says and whenever the guest uses what it freed.
#[test]
fn with_hints_the_vm_arrives_whole() {
    for strategy in ALL_STRATEGIES {
        let (mut taken, mut heard) = (0, 0);
        for agent in ["honest", "liar", "silent"] {
            for shape in SHAPES {
                for seed in 0..30 {
                    let mut world = World::shaped(&format!("{strategy}+{agent}"), seed, shape, &[]);
                    world.run();
                    world.assert_runs_whole_on_target();
                    world.assert_verified();
                    assert_eq!(world.hinted_requests(), 0, "{strategy}+{agent}, seed {seed}");
                    if agent == "honest" {
                        taken += world.hinted().0.0;
                        heard += world.hinted().1;
                    }
                }
            }
        }
        assert!(taken > 500 && heard > 100, "{strategy}: {taken} pages by {heard} hints");
    }
}

#[test]
fn faults_with_hints() {
    for fault in [
        Fault::Cut,
        Fault::SourceActionFails,
        Fault::TargetActionFails,
        Fault::Stall,
    ] {
        every_boundary_of(
            &[
                "precopy+honest",
                "postcopy+honest",
                "hybrid:1+liar",
                "par-migrate+honest",
            ],
            fault,
            8,
        );
    }
}

/// Strategies that never hold anything back here, or never share a copy, would prove nothing.
#[test]
fn pages_are_held_back_and_copies_are_split() {
    for (strategy, held_least, split_least) in [
        ("par-migrate,hold=hot", 20, 0),
        ("hybrid:1,first=parallel,split=speed", 0, 20),
        // A split copy is soon there.
        ("par-migrate,hold=hot,split=speed", 2, 20),
    ] {
        let (mut held, mut split) = (0, 0);
        for seed in 0..40 {
            let mut world = World::new(strategy, seed, &[]);
            world.run();
            held += u32::from(world.held_back());
            split += u32::from(world.static_was_split());
        }
        assert!(held >= held_least, "{strategy}: held back in {held} of 40");
        assert!(split >= split_least, "{strategy}: split in {split} of 40");
    }
}

#[test]
fn a_vm_of_zeros_arrives_whole() {
    for strategy in STRATEGIES {
        let mut world = World::new(strategy, 1, &[]).silent();
        world.run();
        world.assert_runs_whole_on_target();
        world.assert_verified();
    }
}

/// Whatever order the demands of a guest, their answers and the push come in, each page is installed once and is right, and
/// both sides notice that nothing is missing any more.
#[test]
fn every_order_of_demands_and_pushes_ends_well() {
    for strategy in ["postcopy", "postcopy,push=bubble"] {
        for target in [TargetActs::AtOnce, TargetActs::Last] {
            for touched in [&[0, 1][..], &[1, 1], &[0, 1, 1]] {
                every_order_ends_well(strategy, target, touched);
            }
        }
    }
}

fn every_order_ends_well(strategy: &str, target: TargetActs, touched: &[u64]) {
    let mut choices = Choices::default();
    let (mut orders, mut all_demanded, mut all_pushed) = (0, 0, 0);
    loop {
        let mut world = World::shaped(strategy, 2, TWO_MISSING, &[]);
        world.post_copy_by(&mut choices, touched, target);
        world.run();
        world.assert_runs_whole_on_target();
        let (demanded, pushed) = world.demanded_and_pushed();
        assert_eq!(demanded + pushed, 2, "{world}: {demanded} demanded, {pushed} pushed");
        orders += 1;
        all_demanded += u64::from(pushed == 0);
        all_pushed += u64::from(demanded == 0);
        if !choices.advance() {
            break;
        }
    }
    assert!(
        orders > 9_000,
        "{strategy}, {touched:?}, target acts {target:?}: only {orders} orders"
    );
    // Page 0 can only be demanded by who touches it.
    let demands_win = touched.contains(&0);
    assert_eq!(all_demanded > 0, demands_win, "{strategy}, {touched:?}: {all_demanded}");
    assert!(all_pushed > 0, "{strategy}, {touched:?}: the push was never first");
}

#[test]
fn a_cut_is_harmless_everywhere() {
    every_boundary(Fault::Cut, 30);
    every_boundary(Fault::CutFaultChannel, 30);
}

#[test]
fn a_black_hole_is_harmless_everywhere() {
    every_boundary(Fault::BlackHole, 30);
}

/// Longer or shorter than the silence that is endured; in the first case the late bytes meet a connection that has replaced theirs.
#[test]
fn a_stall_is_harmless_everywhere() {
    every_boundary(Fault::Stall, 30);
}

/// The streams are independent: whatever comes late on one, the other must not rely on it.
#[test]
fn late_streams_are_harmless_everywhere() {
    every_boundary(Fault::LateMigration, 30);
    every_boundary(Fault::LateDemands, 30);
}

#[test]
fn half_open_connections_are_harmless_everywhere() {
    every_boundary(Fault::HalfOpenAtSource, 30);
    every_boundary(Fault::HalfOpenAtTarget, 30);
}

#[test]
fn a_side_that_hangs_up_is_harmless_everywhere() {
    every_boundary(Fault::SourceHangsUp, 30);
    every_boundary(Fault::TargetHangsUp, 30);
}

#[test]
fn damage_is_harmless_everywhere() {
    every_boundary(Fault::DamageToSource, 30);
    every_boundary(Fault::DamageToTarget, 30);
}

#[test]
fn a_cancel_leaves_the_vm_on_one_side() {
    every_boundary(Fault::Cancel, 30);
}

#[test]
fn a_crash_loses_only_what_nothing_could_save() {
    every_boundary(Fault::CrashTarget, 30);
    every_boundary(Fault::CrashSource, 30);
}

#[test]
fn records_that_cannot_be_written_leave_the_vm_on_one_side() {
    every_boundary(Fault::SourceDiskFull, 2);
    every_boundary(Fault::TargetDiskFull, 3);
}

#[test]
fn a_slow_disk_is_harmless() {
    every_boundary(Fault::SlowSourceDisk, 2);
    every_boundary(Fault::SlowTargetDisk, 3);
}

#[test]
fn hosts_that_fail_leave_the_vm_on_one_side() {
    every_boundary(Fault::SourceActionFails, 10);
    every_boundary(Fault::TargetActionFails, 6);
}

/// Dirty bits that a sample has taken are not lost: whoever gets the VM gets what was written, and it was looked at.
#[test]
fn what_is_sampled_is_sent() {
    for strategy in ALL_STRATEGIES {
        let looks_ahead = ["filter", "forecast", "markov"]
            .iter()
            .any(|part| strategy.contains(part));
        let mut in_rounds = 0;
        for seed in 0..20 {
            let mut world = World::new(strategy, seed, &[]);
            world.run();
            world.assert_runs_whole_on_target();
            let samples = world.samples();
            assert_eq!(samples.0 > 0, looks_ahead, "{world}: {samples:?} samples");
            in_rounds += samples.1;
        }
        let rounds = looks_ahead && !strategy.starts_with("postcopy");
        assert_eq!(in_rounds > 5, rounds, "{strategy}: {in_rounds} samples in rounds");
    }
}

/// Between a sample and the end of its round, too: its boundaries are other ones.
#[test]
fn trouble_while_looking_ahead_is_harmless() {
    for fault in [Fault::Cut, Fault::Cancel, Fault::SourceActionFails, Fault::CrashTarget] {
        every_boundary_of(&["markov-sdf:0.5"], fault, 20);
    }
}

/// Whatever becomes of the static copy, the VM is moved as if it had not been tried.
#[test]
fn a_static_copy_that_fails_costs_time_alone() {
    const PARALLEL: [&str; 4] = [
        "par-migrate",
        "pa-hybrid,cut=reconnect",
        "hybrid:1,first=parallel",
        "pa-hybrid,cut=reconnect,hold=hot,split=speed",
    ];
    every_boundary_of(&PARALLEL, Fault::StorageFull, 10);
    every_boundary_of(&PARALLEL, Fault::StorageDamaged, 10);
    every_boundary_of(&PARALLEL, Fault::StorageElsewhere, 10);
    every_boundary_of(&PARALLEL, Fault::StorageSlow, 10);
    every_boundary_of(&PARALLEL, Fault::StorageLate, 10);
    every_boundary_of(&PARALLEL, Fault::StorageVanishes, 10);
}

/// The final dirty set is on the storage channel, and so is where either side stands: no network is needed any more.
#[test]
fn a_network_that_never_comes_back_loses_nothing() {
    const STORED: [&str; 4] = [
        "pa-hybrid",
        "hybrid:1,cut=both",
        "postcopy,cut=pbdata",
        "hybrid:1,cut=pbdata",
    ];
    every_boundary_of(&STORED, Fault::NetworkGone, 30);
}

/// Two faults of any kind anywhere.
#[test]
fn two_faults_lose_only_what_nothing_could_save() {
    let mut struck_twice = 0;
    for seed in 0..two_fault_runs() {
        let mut world = two_faults(seed);
        world.run();
        struck_twice += u64::from(world.all_faults_happened());
        world.assert_saved_or_unsavable();
    }
    assert!(
        struck_twice >= two_fault_runs() / 3,
        "only {struck_twice} runs had both faults"
    );
}

fn two_fault_runs() -> u64 {
    if full() { 80_000 } else { 8000 }
}

/// Runs the world that a failure has named, and shows every step.
#[test]
fn replay() {
    if let Some(world) = named_world() {
        let mut world = world.traced();
        world.run();
        if world.all_faults_happened() {
            world.assert_saved_or_unsavable();
        } else {
            world.assert_runs_whole_on_target();
        }
    }
}

fn two_faults(seed: u64) -> World {
    // SplitMix64: neighbouring seeds must not give neighbouring runs.
    let mut state = seed;
    let mut below = |limit: u64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    };
    let strategy = ALL_STRATEGIES[below(ALL_STRATEGIES.len() as u64) as usize];
    let shape = SHAPES[below(SHAPES.len() as u64) as usize];
    let mut plan = |part: u64| {
        let faults = Fault::of(strategy.parse().expect("a strategy"));
        let fault = faults[below(faults.len() as u64) as usize];
        (fault, below(fault.boundaries() / part))
    };
    // The second counts from the first: often it strikes in the middle of what the first set off.
    let plans = [plan(1), plan(3)];
    World::shaped(strategy, seed, shape, &plans)
}
