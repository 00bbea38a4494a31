//! Page faults on guest memory that is write-protected: the ordered source for guests whose tracker is a bitmap.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use dunlin::guest::{AnyGuest, Fill, Guest, GuestConfig, GuestKind};
use dunlin::memory::GuestMemory;
use dunlin::trace::ebpf::{Config, Hooks, Mode};
use dunlin::trace::foreign::Vmm;
use dunlin::track::pagemap::PagemapTracker;
use dunlin_core::record::Kind;
use dunlin_core::tracefile::{Item, VCPU_UNKNOWN};
use dunlin_core::units::{Bytes, PAGE_SIZE};
use dunlin_core::workload::{Ram, Runner};
use dunlin_tests::{Capability, require};

use crate::{attach, items, stream};

const PATIENCE: Duration = Duration::from_secs(120);

fn config(name: &str, kind: GuestKind, vcpus: u32, workload: &str, steps: u64) -> GuestConfig {
    GuestConfig {
        name: name.into(),
        kind,
        memory: Bytes(16 << 20),
        vcpus,
        workload: workload.into(),
        seed: 7,
        steps: Some(steps),
        fill: Fill::Zero,
        irqchip: false,
    }
}

/// The threads of a guest of this process, found by the names that they give themselves when they begin.
fn threads(guest: &str, vcpus: u32) -> Vec<(u32, u32)> {
    // The kernel keeps 15 bytes of a name.
    let names = (0..vcpus).map(|vcpu| format!("vcpu{vcpu} {guest}").chars().take(15).collect::<String>());
    let names: Vec<String> = names.collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut threads = vec![];
        for entry in std::fs::read_dir("/proc/self/task").unwrap() {
            let entry = entry.unwrap();
            let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let vcpu = (0..).zip(&names).find(|(_, name)| *name == comm.trim_end());
            let thread = entry.file_name().to_str().unwrap().parse().unwrap();
            threads.extend(vcpu.map(|(vcpu, _)| (thread, vcpu)));
        }
        if threads.len() == names.len() {
            return threads;
        }
        assert!(Instant::now() < deadline, "{guest}: {threads:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn pages(words: &[u64]) -> BTreeSet<u64> {
    let bits = |(index, word): (usize, &u64)| {
        let word = *word;
        let set = (0..64).filter(move |bit| word >> bit & 1 == 1);
        set.map(move |bit| index as u64 * 64 + bit)
    };
    words.iter().enumerate().flat_map(bits).collect()
}

fn harvest(memory: &GuestMemory, harvest: impl FnOnce(&mut [u64])) -> BTreeSet<u64> {
    let mut words = vec![0; memory.layout().words()];
    harvest(&mut words);
    pages(&words)
}

fn written(items: &[Item]) -> Vec<(u32, u64)> {
    let write = |item: &Item| match item {
        Item::Write { vcpu, gfn, .. } => Some((*vcpu, gfn.0)),
        _ => None,
    };
    items.iter().filter_map(write).collect()
}

/// Waits until the guest has done so many more steps.
fn wait_for_steps(guest: &AnyGuest, steps: u64) {
    let (deadline, goal) = (Instant::now() + PATIENCE, guest.progress().steps() + steps);
    while guest.progress().steps() < goal && !guest.progress().all_halted() {
        assert!(Instant::now() < deadline, "no progress: {:?}", guest.progress());
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Guests of both kinds: the events of each window are the pages that the guest's own tracker found in it.
#[test]
fn a_window_s_events_are_what_the_dirty_log_has() {
    if !require(Capability::Ebpf) || !require(Capability::Uffd) {
        return;
    }
    let mut kinds = vec![GuestKind::Thread];
    if require(Capability::Kvm) {
        kinds.push(GuestKind::Kvm);
    }
    for kind in kinds {
        let guest = AnyGuest::create(config("windows", kind, 2, "uniform,ws=8MiB", u64::MAX >> 1)).unwrap();
        let memory = guest.memory();
        let protection = (kind == GuestKind::Kvm).then(|| PagemapTracker::start(memory.clone()).unwrap());
        guest.start_tracking().unwrap();
        harvest(memory, |words| guest.harvest(words).unwrap());
        let config = stream(Hooks::Faults, Config::regions_of(memory), threads("windows", 2));
        let mut tracer = attach(config).unwrap();
        for window in 1..=5 {
            guest.resume().unwrap();
            wait_for_steps(&guest, 700);
            guest.pause().unwrap();
            let events = items(&mut tracer);
            tracer.protect();
            let logged = harvest(memory, |words| guest.harvest(words).unwrap());
            if let Some(protection) = &protection {
                let unprotected = harvest(memory, |words| protection.harvest(words).unwrap());
                assert_eq!(unprotected, logged, "window {window}");
            }
            let writes = written(&events);
            let traced: BTreeSet<u64> = writes.iter().map(|(_, page)| *page).collect();
            assert_eq!(traced, logged, "{kind:?}, window {window}");
            assert!(logged.len() > 300, "{kind:?}: {}", logged.len());
            assert!(writes.iter().all(|(vcpu, _)| *vcpu < 2), "{kind:?}: {writes:?}");
            let ends = events.iter().filter(|item| matches!(item, Item::WindowEnd { .. }));
            assert_eq!(ends.count(), usize::from(window > 1), "{kind:?}, window {window}");
            assert!(events.is_sorted_by_key(Item::at));
        }
        let counters = tracer.counters().unwrap();
        assert_eq!(counters.lost(), 0);
        println!("{kind:?}: {}", tracer.overhead().unwrap());
    }
}

/// A guest's memory that notes which page each write goes to.
struct Model {
    words: Vec<u64>,
    writes: Vec<u64>,
}

impl Ram for Model {
    fn read_u64(&self, address: u64) -> u64 {
        self.words[(address / 8) as usize]
    }

    fn write_u64(&mut self, address: u64, value: u64) {
        self.words[(address / 8) as usize] = value;
        self.writes.push(address / PAGE_SIZE);
    }
}

/// The pages of the working set in the order in which a guest of one vCPU writes each for the first time.
fn first_writes(config: &GuestConfig) -> Vec<u64> {
    let boot = config.boot_block().unwrap();
    let mut model = Model {
        words: vec![0; (config.memory.0 / 8) as usize],
        writes: vec![],
    };
    let mut runner = Runner::new(&boot, 0).unwrap();
    let frames = runner.plan().ws_frames();
    while !runner.finished() {
        runner.run_batch(&mut model).unwrap();
    }
    let mut seen = BTreeSet::new();
    let in_set = |page: &u64| frames.iter().any(|range| (range.start.0..range.end.0).contains(page));
    model.writes.retain(|page| in_set(page) && seen.insert(*page));
    model.writes
}

#[test]
fn the_order_is_the_guest_s_own() {
    if !require(Capability::Kvm) || !require(Capability::Ebpf) || !require(Capability::Uffd) {
        return;
    }
    for workload in ["uniform,ws=4MiB", "seq,ws=2MiB", "zipf:1.0,ws=8MiB"] {
        let config = config("order", GuestKind::Kvm, 1, workload, 2000);
        let expected = first_writes(&config);
        assert!(expected.len() > 400, "{workload}: {}", expected.len());
        let guest = AnyGuest::create(config).unwrap();
        let _protection = PagemapTracker::start(guest.memory().clone()).unwrap();
        let regions = Config::regions_of(guest.memory());
        let mut tracer = attach(stream(Hooks::Faults, regions, threads("order", 1))).unwrap();
        guest.resume().unwrap();
        assert!(guest.wait_halted(PATIENCE).unwrap());
        let mut seen = BTreeSet::new();
        let events = written(&items(&mut tracer));
        let traced: Vec<u64> = events
            .into_iter()
            .filter(|(vcpu, page)| *vcpu == 0 && seen.insert(*page))
            .map(|(_, page)| page)
            .filter(|page| expected.contains(page))
            .collect();
        assert_eq!(traced, expected, "{workload}");
    }
}

/// What the tables of one tracer say of each window is what the stream of another one said.
#[test]
fn tables_in_the_kernel_say_what_the_stream_says() {
    if !require(Capability::Kvm) || !require(Capability::Ebpf) || !require(Capability::Uffd) {
        return;
    }
    let guest = AnyGuest::create(config("tables", GuestKind::Kvm, 2, "uniform,ws=8MiB", u64::MAX >> 1)).unwrap();
    let memory = guest.memory();
    let protection = PagemapTracker::start(memory.clone()).unwrap();
    let config = stream(Hooks::Faults, Config::regions_of(memory), threads("tables", 2));
    let mut stream = attach(config.clone()).unwrap();
    let mut tables = attach(Config {
        mode: Mode::Windows { counts: true },
        ..config
    })
    .unwrap();
    let words = memory.layout().words();
    let (mut bits, mut counts) = (vec![0; words], vec![0; words * 64]);
    for window in 1..=4 {
        guest.resume().unwrap();
        wait_for_steps(&guest, 500);
        guest.pause().unwrap();
        bits.fill(0);
        counts.fill(0);
        tables.turn_over(&mut bits, Some(&mut counts)).unwrap();
        let mut expected = vec![0; words * 64];
        written(&items(&mut stream))
            .iter()
            .for_each(|(_, page)| expected[*page as usize] += 1);
        assert_eq!(counts, expected, "window {window}");
        let counted: BTreeSet<u64> = (0..)
            .zip(&counts)
            .filter(|(_, count)| **count > 0)
            .map(|(page, _)| page)
            .collect();
        assert_eq!(pages(&bits), counted, "window {window}");
        assert!(counted.len() > 100);
        stream.protect();
        tables.protect();
        harvest(memory, |words| protection.harvest(words).unwrap());
    }
    assert!(tables.drain(|_| {}).is_err());
    assert!(stream.turn_over(&mut bits, None).is_err());
}

#[test]
fn what_the_buffer_cannot_hold_is_counted() {
    if !require(Capability::Ebpf) || !require(Capability::Uffd) {
        return;
    }
    let guest = AnyGuest::create(config("lossy", GuestKind::Thread, 1, "seq,ws=4MiB", 1024)).unwrap();
    guest.start_tracking().unwrap();
    let mut config = stream(Hooks::Faults, Config::regions_of(guest.memory()), threads("lossy", 1));
    config.mode = Mode::Stream { buffer: Bytes(1) };
    let mut tracer = attach(config).unwrap();
    assert_eq!(tracer.capacity(), 128);
    guest.resume().unwrap();
    assert!(guest.wait_halted(PATIENCE).unwrap());
    let items = items(&mut tracer);
    let counters = tracer.counters().unwrap();
    let streamed = written(&items).len() as u64;
    let lost = |item: &Item| match item {
        Item::Lost { events, .. } => *events,
        _ => 0,
    };
    assert_eq!(items.iter().map(lost).sum::<u64>(), counters.lost());
    assert!(counters.lost() > 800 && streamed < 128, "{counters:?}");
    let events = counters.events(Kind::UserFault) + counters.events(Kind::KernelFault);
    assert_eq!(events, streamed + counters.lost());
    assert_eq!(counters.lost_by_processor().iter().sum::<u64>(), counters.lost());
}

#[test]
fn other_processes_and_other_memory_are_not_seen() {
    if !require(Capability::Ebpf) || !require(Capability::Uffd) {
        return;
    }
    let guest = AnyGuest::create(config("others", GuestKind::Thread, 1, "seq,ws=4MiB", 512)).unwrap();
    guest.start_tracking().unwrap();
    let mut config = stream(Hooks::Faults, Config::regions_of(guest.memory()), vec![]);
    let mut regions = config.regions.clone();
    regions[0].run.count.0 = 512 + 64;
    let mut part = attach(Config {
        regions,
        ..config.clone()
    })
    .unwrap();
    let mut all = attach(config.clone()).unwrap();
    // Nobody's process.
    config.process = u32::MAX;
    let mut none = attach(config).unwrap();
    guest.resume().unwrap();
    assert!(guest.wait_halted(PATIENCE).unwrap());
    let writes = written(&items(&mut all));
    assert!(writes.iter().all(|(vcpu, _)| *vcpu == VCPU_UNKNOWN));
    assert!(writes.iter().any(|(_, page)| *page >= 576));
    let partial: Vec<_> = writes.into_iter().filter(|(_, page)| *page < 576).collect();
    assert_eq!(written(&items(&mut part)), partial);
    assert_eq!(items(&mut none), []);
    assert_eq!(none.counters().unwrap().all_events(), 0);
}

#[test]
fn a_guest_of_this_process_is_found_as_a_hypervisor_s() {
    if !require(Capability::Kvm) {
        return;
    }
    let guest = AnyGuest::create(config("found", GuestKind::Kvm, 2, "seq,ws=1MiB", 10)).unwrap();
    let threads = threads("found", 2);
    let found = Vmm::find(std::process::id()).unwrap();
    assert!(found.machines >= 1 && found.vcpus >= 2, "{found:?}");
    for thread in threads {
        assert!(found.threads.contains(&thread), "{found:?}");
    }
    drop(guest);
}
