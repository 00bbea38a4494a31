//! Dirty rings under load: a guest that overruns them, where KVM lets it, goes on, and nothing of it is missed.

use super::*;
use dunlin::memory::MemoryLayout;

/// With so high a rate a batch has a thousand steps, each of which takes more entries than one; the smallest ring holds two thousand.
const OVERRUNNING: &str = "uniform,rate=1000000";

fn harvest(guest: &AnyGuest) -> Vec<u64> {
    let mut words = vec![0; guest.memory().layout().words()];
    guest.harvest(&mut words).unwrap();
    dunlin::track::runs::runs(&words)
        .flat_map(|run| run.first.0..run.end().0)
        .collect()
}

#[test]
fn nothing_is_missed_by_rings_that_are_too_small() {
    if !require(Capability::Kvm) || !require(Capability::DirtyRing) {
        return;
    }
    for vcpus in [1, 2] {
        let config = GuestConfig {
            steps: None,
            ..config(GuestKind::Kvm, vcpus, OVERRUNNING, 1)
        };
        let guest = AnyGuest::create_tracked(config.clone(), Tracking::Ring { entries: 2048 }).unwrap();
        let replica = GuestMemory::new(MemoryLayout::new(config.memory).unwrap()).unwrap();
        guest.resume().unwrap();
        guest.start_tracking().unwrap();
        copy_all(guest.memory(), &replica);
        for _ in 0..10 {
            wait_for_steps(&guest, guest.progress().steps() + 2000);
            for gfn in harvest(&guest) {
                copy(guest.memory(), &replica, page(gfn));
            }
        }
        guest.pause().unwrap();
        for gfn in harvest(&guest) {
            copy(guest.memory(), &replica, page(gfn));
        }
        assert_eq!(differing(guest.memory(), &replica), [0; 0], "{vcpus} vCPUs");
        // Switched off and on again it is exact where it can be: nothing runs.
        guest.stop_tracking().unwrap();
        guest.start_tracking().unwrap();
        assert_eq!(harvest(&guest), [0; 0]);
    }
}

#[test]
fn a_guest_with_small_rings_does_all_its_steps() {
    if !require(Capability::Kvm) || !require(Capability::DirtyRing) {
        return;
    }
    let config = config(GuestKind::Kvm, 2, OVERRUNNING, 20_000);
    let guest = AnyGuest::create_tracked(config.clone(), Tracking::Ring { entries: 2048 }).unwrap();
    guest.start_tracking().unwrap();
    assert_eq!(
        finish(&guest),
        undisturbed(&config),
        "the memory of one that was not tracked"
    );
    guest.stop_tracking().unwrap();
}

#[test]
fn a_size_that_kvm_does_not_make_is_named() {
    if !require(Capability::Kvm) || !require(Capability::DirtyRing) {
        return;
    }
    for entries in [1024, 5000, 1 << 20] {
        let config = config(GuestKind::Kvm, 1, "seq", 1);
        let error = AnyGuest::create_tracked(config, Tracking::Ring { entries })
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("a power of two from 2048 to"), "{error}");
    }
}
