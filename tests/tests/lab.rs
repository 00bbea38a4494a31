//! What holds where KVM runs guests on the processor, and is different, or not to be seen, where it emulates. `cargo xtask lab`
//! runs these on an emulated processor with the kernel of a distribution; elsewhere they run where the machine is so.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dunlin::guest::kvm::{Backend, KvmGuest};
use dunlin::guest::{Fill, Guest as _, GuestConfig, GuestKind, Tracking};
use dunlin::trace::TraceReader;
use dunlin::trace::ebpf::{Config, Counters, Hooks, Mode, Tracer};
use dunlin::track::ring::ENTRIES_MIN;
use dunlin_core::record;
use dunlin_core::tracefile::Item;
use dunlin_core::units::{Bytes, Gfn, PAGE_SIZE};
use dunlin_core::workload::layout::WORKLOAD;
use dunlin_tests::scene::{GuestOptions, Kind, PATIENCE, Scene};
use dunlin_tests::stock::Stock;
use dunlin_tests::{Capability, require};
use serde_json::Value;

/// No other mapping of a test's process has this size, so that it is found in `/proc/self/maps`.
const MEMORY: Bytes = Bytes(21 << 20);

/// Steps between two looks at what a guest has written: each writes a page of the working set.
const WINDOW_STEPS: u64 = 3000;

fn config() -> GuestConfig {
    GuestConfig {
        name: "lab".into(),
        kind: GuestKind::Kvm,
        memory: MEMORY,
        vcpus: 1,
        workload: "uniform,ws=12MiB".into(),
        seed: 5,
        steps: None,
        fill: Fill::Zero,
        irqchip: false,
    }
}

/// Lets the guest do some steps, and pauses it.
fn run_a_while(guest: &KvmGuest) -> anyhow::Result<()> {
    let steps = || guest.progress().vcpus.iter().map(|vcpu| vcpu.steps).sum::<u64>();
    let until = steps() + WINDOW_STEPS;
    guest.resume()?;
    let deadline = Instant::now() + PATIENCE;
    while steps() < until {
        ensure!(Instant::now() < deadline, "the guest does not get on");
        thread::sleep(Duration::from_millis(1));
    }
    guest.pause()?;
    Ok(())
}

/// A hash of each page.
fn pages(guest: &KvmGuest) -> anyhow::Result<Vec<u64>> {
    let memory = guest.memory();
    let pages = 0..memory.layout().pages().0;
    pages.map(|page| Ok(memory.hash_page(Gfn(page))?)).collect()
}

/// Pages of the workload that differ. The payload's own stack is written with what it held, too.
fn changed(before: &[u64], after: &[u64]) -> BTreeSet<u64> {
    let pages = (0..).zip(before.iter().zip(after));
    of_the_workload(
        pages
            .filter(|(_, (before, after))| before != after)
            .map(|(page, _)| page),
    )
}

fn of_the_workload(pages: impl Iterator<Item = u64>) -> BTreeSet<u64> {
    pages.filter(|page| *page >= WORKLOAD / PAGE_SIZE).collect()
}

fn bits(words: &[u64]) -> impl Iterator<Item = u64> {
    let pages = 0..words.len() as u64 * 64;
    pages.filter(|page| words[(page / 64) as usize] >> (page % 64) & 1 == 1)
}

/// Compares what was tracked with what differs. On a processor the page is marked when the guest faults on it: one that is
/// paused between the fault and the write leaves a page that is marked and does not differ yet. (Marking it again when it is written
/// is up to the next window.)
fn expect_changed(tracked: &BTreeSet<u64>, changed: &BTreeSet<u64>) -> anyhow::Result<()> {
    ensure!(changed.len() > 1000, "only {} pages differ", changed.len());
    let missed: Vec<_> = changed.difference(tracked).collect();
    ensure!(missed.is_empty(), "not tracked: {missed:?}");
    let too_many: Vec<_> = tracked.difference(changed).collect();
    ensure!(too_many.len() <= 1, "tracked, but the same as before: {too_many:?}");
    Ok(())
}

/// The probe of `dunlin doctor` that is called `name`.
fn doctor(name: &str) -> anyhow::Result<(Value, Value)> {
    let finished = Scene::new()?.dunlin(["doctor", "--json"])?.wait(PATIENCE)?;
    let report = finished.json()?;
    let probes = report["probes"].as_array().context("there are no probes")?;
    let probe = probes.iter().find(|probe| probe["name"] == name);
    let probe = probe.with_context(|| format!("doctor tries no {name}: {report}"))?;
    Ok((probe.clone(), report.clone()))
}

/// Whether this kernel is at least of that version.
fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    (next(), next()) >= (major, minor)
}

#[test]
fn doctor_names_the_processor_s_virtualisation() -> anyhow::Result<()> {
    if !require(Capability::Hardware) {
        return Ok(());
    }
    let (probe, report) = doctor("kvm backend")?;
    let backend = Backend::find().context("there is none")?;
    assert_eq!(probe["verdict"], "ok", "{probe}");
    assert_eq!(probe["finding"], backend.to_string());
    let migrations = report["migrations"].as_array().context("there is a list")?;
    for migration in ["kvm pre-copy", "kvm post-copy"] {
        assert!(migrations.iter().any(|it| it == migration), "{report}");
    }
    Ok(())
}

/// Before Linux 6.7 written pages of threads cannot be found; who asks for it is told what is missing.
#[test]
fn an_older_kernel_s_lack_of_pagemap_scan_has_a_name() -> anyhow::Result<()> {
    if !require(Capability::Hardware) {
        return Ok(());
    }
    let (probe, report) = doctor("PAGEMAP_SCAN")?;
    let guests = report["guests"].as_array().context("there is a list")?;
    let has_threads = guests.iter().any(|kind| kind == "thread");
    if kernel_is_at_least(6, 7) {
        assert_eq!((&probe["verdict"], has_threads), (&"ok".into(), true), "{report}");
        return Ok(());
    }
    assert_eq!((&probe["verdict"], has_threads), (&"missing".into(), false), "{report}");
    assert!(probe["fix"].to_string().contains("Linux 6.7"), "{probe}");

    let scene = Scene::new()?;
    let mut guest = scene.guest("threads", &GuestOptions::new(Kind::Thread, "seq,rate=100"))?;
    let target = scene.receiver("target", &[])?;
    let mut migration = scene.start_migration(&guest, target.listening()?, "precopy", &[])?;
    let finished = migration.wait(PATIENCE)?;
    ensure!(
        finished.code != Some(0) && finished.to_string().contains("6.7"),
        "not told what is missing: {finished}"
    );
    assert!(
        guest.process.is_running(),
        "a migration that cannot begin harms no guest"
    );
    Ok(())
}

/// Window by window, the dirty log has the pages that differ from the window before.
#[test]
fn the_dirty_log_is_exact() -> anyhow::Result<()> {
    if !require(Capability::Hardware) {
        return Ok(());
    }
    let guest = KvmGuest::create(config(), Tracking::Bitmap)?;
    guest.start_tracking()?;
    run_a_while(&guest)?;
    let mut dirty = vec![0; guest.memory().layout().words()];
    guest.harvest(&mut dirty)?;
    let mut before = pages(&guest)?;
    for window in 0..4 {
        run_a_while(&guest)?;
        dirty.fill(0);
        guest.harvest(&mut dirty)?;
        let after = pages(&guest)?;
        expect_changed(&of_the_workload(bits(&dirty)), &changed(&before, &after))
            .with_context(|| format!("window {window}"))?;
        before = after;
    }
    Ok(())
}

/// Looks at a guest of this process while it makes some steps.
fn looked_at(guest: &KvmGuest, hooks: Hooks) -> anyhow::Result<Counters> {
    let threads = guest.vcpu_threads();
    let tracer = Tracer::attach(Config {
        process: std::process::id(),
        hooks: vec![hooks],
        regions: Config::regions_of(guest.memory()),
        vcpus: threads.into_iter().zip(0..).collect(),
        mode: Mode::Windows { counts: false },
        repeats: true,
        measure: false,
    })?;
    run_a_while(guest)?;
    guest.harvest(&mut vec![0; guest.memory().layout().words()])?;
    // Pages are protected by now, and writable again by the end.
    run_a_while(guest)?;
    Ok(tracer.counters()?)
}

/// Each place in the kernel says something of a guest that the processor runs.
#[test]
fn every_tracepoint_of_a_guest_fires() -> anyhow::Result<()> {
    if !require(Capability::Hardware) || !require(Capability::Ebpf) {
        return Ok(());
    }
    let bitmap = KvmGuest::create(config(), Tracking::Bitmap)?;
    bitmap.start_tracking()?;
    let ring = KvmGuest::create(config(), Tracking::Ring { entries: ENTRIES_MIN })?;
    ring.start_tracking()?;
    let before = ring.tracking_state().overruns;
    for (guest, hooks) in [
        (&bitmap, Hooks::Mmu),
        (&bitmap, Hooks::GuestFaults),
        (&bitmap, Hooks::Exits),
        (&ring, Hooks::DirtyRing),
    ] {
        let counters = looked_at(guest, hooks).with_context(|| hooks.to_string())?;
        // A ring is full only while nobody harvests it: see the test of that, which runs in the lab, too.
        for kind in hooks.kinds().iter().filter(|kind| **kind != record::Kind::RingExit) {
            ensure!(
                counters.events(*kind) > 0,
                "{hooks}: {} is silent: {counters:?}",
                kind.hook()
            );
        }
        ensure!(
            counters.lost() == 0 && counters.unreadable() == 0,
            "{hooks}: {counters:?}"
        );
    }
    ensure!(ring.tracking_state().overruns == before, "a ring overran");
    Ok(())
}

/// Functions of the kernel proper can be traced here; those of KVM, a module, can or are refused by name.
#[test]
fn functions_of_the_kernel_are_traced() -> anyhow::Result<()> {
    if !require(Capability::Hardware) || !require(Capability::Ebpf) {
        return Ok(());
    }
    let guest = KvmGuest::create(config(), Tracking::Bitmap)?;
    guest.start_tracking()?;
    match looked_at(&guest, Hooks::MarkDirty) {
        Ok(counters) => ensure!(counters.events(Hooks::MarkDirty.kinds()[0]) > 0, "{counters:?}"),
        Err(error) => ensure!(error.to_string().contains("mark_page_dirty_in_slot"), "{error}"),
    }
    let scene = Scene::new()?;
    let source = scene.guest("source", &GuestOptions::new(Kind::Kvm, "uniform,rate=500,ws=4MiB"))?;
    let target = scene.receiver("target", &[])?;
    let tracer = Tracer::attach(Config {
        process: target.process.id(),
        hooks: vec![Hooks::Waits],
        regions: vec![],
        vcpus: vec![],
        mode: Mode::Stream { buffer: Bytes(1 << 20) },
        repeats: true,
        measure: false,
    })?;
    let report = scene.migrate(&source, &target, "postcopy", &["--bandwidth", "4MB/s"])?;
    let faults = report["postcopy"]["faults"].as_u64().context("post-copy has faults")?;
    let counters = tracer.counters()?;
    let [begun, ended] = [0, 1].map(|kind| counters.events(Hooks::Waits.kinds()[kind]));
    ensure!(
        faults > 0 && begun >= faults && begun == ended,
        "{faults} faults, {begun} waits begun, {ended} ended"
    );
    Ok(())
}

/// Whoever looks at the process only, as at that of any hypervisor, sees what the guest writes while its log is on.
#[test]
fn a_guest_is_recorded_from_outside() -> anyhow::Result<()> {
    if !require(Capability::Hardware) || !require(Capability::Ebpf) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let guest = scene.guest("somebody", &GuestOptions::new(Kind::Kvm, "uniform,rate=2000,ws=4MiB"))?;
    let (inside, outside) = (
        scene.folder().join("inside.dtrace"),
        scene.folder().join("outside.dtrace"),
    );
    let [inside_arg, outside_arg, control] = [&inside, &outside, &guest.control].map(|path| path.display().to_string());
    let mut logging = scene.dunlin([
        "record",
        "--control",
        &control,
        "--source",
        "bitmap",
        "--duration",
        "1h",
        "-o",
        &inside_arg,
    ])?;
    let deadline = Instant::now() + PATIENCE;
    while scene.status(&guest)?["recording"]["windows"].as_u64() < Some(3) {
        ensure!(Instant::now() < deadline, "the log is not on");
        thread::sleep(Duration::from_millis(20));
    }
    let pid = guest.process.id().to_string();
    let args = [
        "record",
        "--pid",
        &pid,
        "--duration",
        "3s",
        "--json",
        "-o",
        &outside_arg,
    ];
    let finished = scene.dunlin(args)?.wait(PATIENCE)?;
    ensure!(finished.code == Some(0), "{finished}");
    let report = finished.json()?;
    ensure!(
        report["source"] == "ebpf:kvm_mmu" && report["lost_events"] == 0,
        "{report}"
    );
    logging.signal(rustix::process::Signal::INT)?;
    let ended = logging.wait(PATIENCE)?;
    ensure!(ended.code == Some(0), "{ended}");
    let (mut logged, mut seen, mut events) = (BTreeSet::new(), BTreeSet::new(), 0);
    for item in TraceReader::open(&inside)? {
        if let Item::Dirty { run } = item? {
            logged.extend(run.first.0..run.end().0);
        }
    }
    for item in TraceReader::open(&outside)? {
        if let Item::Write { vcpu, gfn, .. } = item? {
            ensure!(vcpu == 0, "vCPU {vcpu} wrote");
            seen.insert(gfn.0);
            events += 1;
        }
    }
    ensure!(
        events > seen.len() && seen.len() > 500,
        "{events} events of {} pages",
        seen.len()
    );
    let unknown: Vec<_> = seen.difference(&logged).collect();
    ensure!(unknown.is_empty(), "seen from outside only: {unknown:?}");
    Ok(())
}

/// Soft-dirty bits are the process's, and a guest writes past its page tables; KVM must be made to ask for each page again.
/// It is.
#[test]
fn soft_dirty_bits_name_what_a_guest_writes() -> anyhow::Result<()> {
    if !require(Capability::Hardware) || !require(Capability::SoftDirty) {
        return Ok(());
    }
    let guest = KvmGuest::create(config(), Tracking::Bitmap)?;
    run_a_while(&guest)?;
    let start = mapping(MEMORY)?;
    let before = pages(&guest)?;
    fs::write("/proc/self/clear_refs", "4").context("cannot clear soft-dirty bits")?;
    assert_eq!(soft_dirty(start)?, BTreeSet::new(), "nobody has written");
    run_a_while(&guest)?;
    expect_changed(&soft_dirty(start)?, &changed(&before, &pages(&guest)?))
}

/// Where the only mapping of this size begins.
fn mapping(bytes: Bytes) -> anyhow::Result<u64> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let ranges = maps.lines().filter_map(|line| {
        let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    });
    let fitting: Vec<_> = ranges.filter(|(start, end)| end - start == bytes.0).collect();
    match fitting[..] {
        [(start, _)] => Ok(start),
        _ => anyhow::bail!("not one mapping of {} bytes:\n{maps}", bytes.0),
    }
}

/// Pages of the guest's workload that are soft-dirty (Documentation/admin-guide/mm/soft-dirty.rst).
fn soft_dirty(start: u64) -> anyhow::Result<BTreeSet<u64>> {
    const SOFT_DIRTY: u64 = 1 << 55;
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut bytes = vec![0; (MEMORY.0 / PAGE_SIZE * 8) as usize];
    pagemap.read_exact_at(&mut bytes, start / PAGE_SIZE * 8)?;
    let entries = bytes.as_chunks().0.iter().map(|entry| u64::from_le_bytes(*entry));
    let dirty = (0..).zip(entries).filter(|(_, entry)| entry & SOFT_DIRTY != 0);
    Ok(of_the_workload(dirty.map(|(page, _)| page)))
}

/// Stock QEMU keeps its dirty log for as long as it is recorded, and what the processor lets the kernel see is what the guest wrote.
#[test]
fn a_guest_of_stock_qemu_is_recorded() -> anyhow::Result<()> {
    if !require(Capability::Hardware) || !require(Capability::Ebpf) || !require(Capability::Qemu) {
        return Ok(());
    }
    let mut stock = Stock::start(&config())?;
    let scene = Scene::new()?;
    let file = scene.folder().join("stock.dtrace");
    let [socket, output] = [&stock.socket(), &file].map(|path| path.display().to_string());
    let before = stock.steps()?;
    let args = ["record", "--qmp", &socket, "--duration", "4s", "--json", "-o", &output];
    let finished = scene.dunlin(args)?.wait(PATIENCE)?;
    ensure!(finished.code == Some(0), "{finished}");
    let steps = stock.steps()? - before;
    let report = finished.json()?;
    ensure!(
        report["source"] == "ebpf:kvm_mmu" && report["lost_events"] == 0,
        "{report}"
    );
    let (mut working_set, mut windows) = (BTreeSet::new(), 0);
    let plan = config().boot_block()?.plan()?;
    let mut written: BTreeSet<u64> = (0..plan.ws().0).map(|page| plan.gfn(page).0).collect();
    // What the guest keeps of each page lies in front of them.
    written.extend(WORKLOAD / PAGE_SIZE..plan.gfn(0).0);
    for item in TraceReader::open(&file)? {
        match item? {
            Item::Write { vcpu, gfn, .. } => {
                ensure!(vcpu == 0, "vCPU {vcpu} wrote");
                if gfn.0 >= WORKLOAD / PAGE_SIZE {
                    ensure!(written.contains(&gfn.0), "the guest has no page {gfn:?}");
                    working_set.insert(gfn.0);
                }
            }
            Item::WindowEnd { .. } => windows += 1,
            _ => {}
        }
    }
    // Four seconds are many thousand steps, and protect every page at least twice.
    ensure!(steps > WINDOW_STEPS, "the guest did {steps} steps only");
    ensure!(
        working_set.len() == written.len() && windows > 1,
        "{} of {} pages in {windows} windows: {report}",
        working_set.len(),
        written.len()
    );
    let status = stock.qmp.execute("query-dirty-rate", &serde_json::json!({}))?;
    ensure!(status["status"] == "measured", "the dirty log is still on: {status}");
    Ok(())
}
