//! Guests as they are used: started, stopped, tracked, moved and fed with missing pages, of every kind the machine has.

mod faults;
mod life;
mod moves;
mod rings;
mod tracking;
mod windows;

use std::time::{Duration, Instant};

use dunlin::guest::{AnyGuest, Fill, Guest, GuestConfig, GuestKind, Tracking};
use dunlin::memory::{GuestMemory, RunClass};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Bytes, Gfn, PAGE_SIZE, Pages};
use dunlin_tests::{Capability, require};

const MIB: u64 = 1 << 20;

/// No test needs nearly as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A small guest.
fn config(kind: GuestKind, vcpus: u32, workload: &str, steps: u64) -> GuestConfig {
    GuestConfig {
        name: "test".into(),
        kind,
        memory: Bytes(16 * MIB),
        vcpus,
        workload: workload.into(),
        seed: 7,
        steps: Some(steps),
        fill: Fill::Zero,
        irqchip: false,
    }
}

/// Every shape of guest that this machine can run: both kinds, one and two vCPUs, with and without interrupt controllers.
fn shapes(workload: &str, steps: u64) -> Vec<GuestConfig> {
    let mut shapes = Vec::new();
    for vcpus in [1, 2] {
        shapes.push(config(GuestKind::Thread, vcpus, workload, steps));
    }
    if require(Capability::Kvm) {
        for (vcpus, irqchip) in [(1, false), (2, false), (1, true), (2, true)] {
            shapes.push(GuestConfig {
                irqchip,
                ..config(GuestKind::Kvm, vcpus, workload, steps)
            });
        }
    }
    shapes
}

fn shape(config: &GuestConfig) -> String {
    let GuestConfig {
        kind, vcpus, irqchip, ..
    } = config;
    format!("{kind:?} guest, {vcpus} vCPUs, irqchip {irqchip}")
}

/// Lets a guest run to its end and returns the digest of its memory.
fn finish(guest: &AnyGuest) -> blake3::Hash {
    guest.resume().unwrap();
    assert!(
        guest.wait_halted(PATIENCE).unwrap(),
        "{}: no end in sight: {:?}",
        shape(guest.config()),
        guest.progress()
    );
    guest.check_workload().unwrap();
    for vcpu in guest.progress().vcpus {
        assert_eq!((vcpu.steps, vcpu.halted), (guest.config().steps.unwrap(), Some(0)));
    }
    guest.memory().blake3().unwrap()
}

/// The digest after an undisturbed run.
fn undisturbed(config: &GuestConfig) -> blake3::Hash {
    finish(&AnyGuest::create(config.clone()).unwrap())
}

/// Waits until the guest has done so many steps in all, or has ended.
fn wait_for_steps(guest: &AnyGuest, steps: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let progress = guest.progress();
        assert_eq!(progress.failure, None);
        if progress.steps() >= steps || progress.all_halted() {
            return;
        }
        assert!(Instant::now() < deadline, "no progress: {progress:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn page(gfn: u64) -> Run {
    Run::new(Gfn(gfn), Pages(1))
}

/// Copies pages from one memory into another.
fn copy(from: &GuestMemory, to: &GuestMemory, run: Run) {
    let mut buffer = vec![0; (run.count.0 * PAGE_SIZE) as usize];
    from.copy_run(run, &mut buffer).unwrap();
    to.write_run(run, &buffer).unwrap();
}

/// Copies all that is not zero into an empty memory.
fn copy_all(from: &GuestMemory, to: &GuestMemory) {
    for region in from.layout().regions() {
        let mut data = Vec::new();
        from.classify_runs(*region, |run, class| {
            data.extend((class == RunClass::Data).then_some(run))
        })
        .unwrap();
        data.into_iter().for_each(|run| copy(from, to, run));
    }
}

/// The pages in which two memories differ.
fn differing(one: &GuestMemory, other: &GuestMemory) -> Vec<u64> {
    let regions = one.layout().regions().iter();
    regions
        .flat_map(|region| region.first.0..region.end().0)
        .filter(|gfn| one.hash_page(Gfn(*gfn)).unwrap() != other.hash_page(Gfn(*gfn)).unwrap())
        .collect()
}
