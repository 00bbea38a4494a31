//! What trackers find in a window, against what the guest's own steps say was written in it.

use super::*;
use dunlin::track::pagemap::PagemapTracker;
use dunlin::track::rings::RingWindow;
use dunlin_core::workload::{Generator, Kind, Plan, Spec};
use std::collections::BTreeSet;

/// Windows of a guest.
const WINDOWS: usize = 12;

/// The pages that one vCPU writes, step after step.
struct Steps {
    generator: Generator,
    plan: Plan,
}

impl Steps {
    fn new(config: &GuestConfig, vcpu: u32) -> Self {
        let spec: Spec = config.workload.parse().unwrap();
        let plan = Plan::new(&spec, config.memory, config.vcpus).unwrap();
        Self {
            generator: Generator::new(&spec, plan.ws(), config.vcpus, vcpu, config.seed).unwrap(),
            plan,
        }
    }

    /// The pages of steps `from` up to `to`, counted from 0.
    fn pages(config: &GuestConfig, vcpu: u32, from: u64, to: u64) -> Vec<u64> {
        let steps = Self::new(config, vcpu);
        let between = steps.generator.take(to as usize).skip(from as usize);
        between
            .filter(|step| step.kind == Kind::Write)
            .map(|step| steps.plan.gfn(step.page).0)
            .collect()
    }

    /// The most steps that a vCPU may have done and not reported.
    fn batch(config: &GuestConfig) -> u64 {
        Self::new(config, 0).generator.batch()
    }
}

fn set(words: &[u64]) -> BTreeSet<u64> {
    dunlin::track::runs::runs(words)
        .flat_map(|run| run.first.0..run.end().0)
        .collect()
}

/// One window: what was found, and the steps that each vCPU had reported at its end.
struct Window {
    found: BTreeSet<u64>,
    ring: RingWindow,
    steps: Vec<u64>,
}

/// Stops the guest every so often and harvests; in the end lets it halt.
fn record(guest: &AnyGuest, beside: Option<&PagemapTracker>) -> Vec<Window> {
    let mut windows = Vec::new();
    let mut words = vec![0; guest.memory().layout().words()];
    guest.keep_order(true);
    guest.start_tracking().unwrap();
    let steps = guest.config().steps.unwrap() * u64::from(guest.config().vcpus);
    for window in 1..=WINDOWS as u64 {
        guest.resume().unwrap();
        if window == WINDOWS as u64 {
            assert!(guest.wait_halted(PATIENCE).unwrap());
        } else {
            wait_for_steps(guest, steps * window / WINDOWS as u64);
            guest.pause().unwrap();
        }
        words.fill(0);
        let mut ring = RingWindow::default();
        guest.harvest_window(&mut words, &mut ring).unwrap();
        let found = set(&words);
        if let Some(beside) = beside {
            words.fill(0);
            beside.harvest(&mut words).unwrap();
            let other = set(&words);
            assert_eq!(found, other, "window {window}: the dirty log, and write protection");
        }
        let steps = guest.progress().vcpus.iter().map(|vcpu| vcpu.steps).collect();
        windows.push(Window { found, ring, steps });
    }
    guest.stop_tracking().unwrap();
    windows
}

/// Checks each window against the guest's steps, and all together against all steps.
fn check(config: &GuestConfig, windows: &[Window]) {
    let spec: Spec = config.workload.parse().unwrap();
    let plan = Plan::new(&spec, config.memory, config.vcpus).unwrap();
    let working_set: BTreeSet<u64> = (0..plan.ws().0).map(|page| plan.gfn(page).0).collect();
    let batch = Steps::batch(config);
    let mut before = vec![0; config.vcpus as usize];
    let mut all = BTreeSet::new();
    for (index, window) in windows.iter().enumerate() {
        let found: BTreeSet<u64> = window.found.intersection(&working_set).copied().collect();
        let (mut surely, mut perhaps) = (BTreeSet::new(), BTreeSet::new());
        for (vcpu, (from, to)) in (0..).zip(before.iter().zip(&window.steps)) {
            // When it was stopped a vCPU may have done a part of the next batch.
            let not_yet = if index == 0 { 0 } else { batch };
            surely.extend(Steps::pages(config, vcpu, from + not_yet, (*to).max(from + not_yet)));
            perhaps.extend(Steps::pages(config, vcpu, *from, to + batch));
        }
        let missing: Vec<_> = surely.difference(&found).collect();
        assert!(missing.is_empty(), "window {index} lacks {missing:?}");
        let surplus: Vec<_> = found.difference(&perhaps).collect();
        assert!(
            surplus.is_empty(),
            "window {index} has {surplus:?}, which was not written"
        );
        all.extend(found);
        before.clone_from(&window.steps);
    }
    let steps = config.steps.unwrap();
    let written: BTreeSet<u64> = (0..config.vcpus)
        .flat_map(|vcpu| Steps::pages(config, vcpu, 0, steps))
        .collect();
    assert_eq!(all, written, "all windows together are all writes");
}

#[test]
fn the_dirty_bitmap_is_what_the_guest_wrote() {
    for config in shapes("uniform,rate=8000,ws=4MiB", 4000) {
        let guest = AnyGuest::create(config.clone()).unwrap();
        let windows = record(&guest, None);
        check(&config, &windows);
    }
}

#[test]
fn the_dirty_ring_is_what_the_guest_wrote_in_its_order() {
    if !require(Capability::Kvm) || !require(Capability::DirtyRing) {
        return;
    }
    for (vcpus, workload) in [(1, "seq,rate=8000,ws=4MiB"), (2, "uniform,rate=8000,ws=4MiB")] {
        let config = config(GuestKind::Kvm, vcpus, workload, 4000);
        let tracking = Tracking::Ring { entries: 65_536 };
        let guest = AnyGuest::create_tracked(config.clone(), tracking).unwrap();
        let windows = record(&guest, None);
        check(&config, &windows);
        assert_eq!(windows.last().unwrap().ring.overruns, 0);
        in_order(&config, &windows);
    }
}

/// Checks that each vCPU's ring held the pages of its steps in their order.
fn in_order(config: &GuestConfig, windows: &[Window]) {
    let batch = Steps::batch(config) as usize;
    let spec: Spec = config.workload.parse().unwrap();
    let plan = Plan::new(&spec, config.memory, config.vcpus).unwrap();
    let working_set: BTreeSet<u64> = (0..plan.ws().0).map(|page| plan.gfn(page).0).collect();
    let once = |pages: &[u64]| {
        let mut seen = BTreeSet::new();
        pages
            .iter()
            .copied()
            .filter(|page| seen.insert(*page))
            .collect::<Vec<_>>()
    };
    for vcpu in 0..config.vcpus {
        let mut before = 0;
        for (index, window) in windows.iter().enumerate() {
            let passes = window.ring.passes.iter().filter(|pass| pass.vcpu == vcpu);
            let found: Vec<u64> = passes
                .flat_map(|pass| &pass.pages)
                .map(|gfn| gfn.0)
                .filter(|gfn| working_set.contains(gfn))
                .collect();
            let to = window.steps[vcpu as usize];
            let written = Steps::pages(config, vcpu, before, to + batch as u64);
            let begins = 0..=batch.min(written.len());
            let fits = begins.into_iter().any(|skipped| {
                (0..=batch.min(written.len() - skipped))
                    .any(|left| once(&written[skipped..written.len() - left]) == found)
            });
            assert!(fits, "vCPU {vcpu}, window {index}: {found:?} of {written:?}");
            before = to;
        }
    }
}

#[test]
fn write_protection_beside_the_dirty_log_finds_the_same_window_by_window() {
    if !require(Capability::Kvm) {
        return;
    }
    let mut trackings = vec![Tracking::Bitmap];
    if require(Capability::DirtyRing) {
        trackings.push(Tracking::Ring { entries: 65_536 });
    }
    for tracking in trackings {
        for vcpus in [1, 2] {
            let config = config(GuestKind::Kvm, vcpus, "zipf:1,rate=8000,ws=4MiB", 4000);
            let guest = AnyGuest::create_tracked(config.clone(), tracking).unwrap();
            let beside = PagemapTracker::start(guest.memory().clone()).unwrap();
            let windows = record(&guest, Some(&beside));
            check(&config, &windows);
        }
    }
}
