//! `dunlin record`, live: what is in the file is what the guest did, and nothing stays switched on behind it, whatever ends it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dunlin::channel::{Cancel, Wait};
use dunlin::control::{Client, Message, RecordRequest, Service};
use dunlin::guest::kvm::Backend;
use dunlin::trace::recording::{
    Items, Limits, Programs, RecordingError, RecordingSource, Sink, Traced, record as record_session,
};
use dunlin::trace::{Ending, TraceError, TraceReader};
use dunlin_core::tracefile::{Head, Item, Source};
use dunlin_core::units::Bytes;
use dunlin_core::workload::{Generator, Kind as Touch, Plan, Spec};
use dunlin_tests::process::Dunlin;
use dunlin_tests::scene::{GuestOptions, Host, Kind, PATIENCE, Scene};
use dunlin_tests::{Capability, require};
use rustix::process::Signal;
use serde_json::Value;

/// Steps of the whole guest in a second.
const WORKLOAD: &str = "uniform,rate=4000,ws=8MiB";
/// 32 MiB, as [`GuestOptions::new`] has it.
const MEMORY: Bytes = Bytes(32 << 20);
const SEED: u64 = 7;

/// A guest that runs for ever, tracked in this way.
fn guest(scene: &Scene, kind: Kind, vcpus: u32, tracking: &str) -> anyhow::Result<Host> {
    let options = GuestOptions::new(kind, WORKLOAD).vcpus(vcpus);
    let options = match kind {
        Kind::Kvm => options.with(["--tracking", tracking]),
        Kind::Thread => options,
    };
    scene.guest("recorded", &options)
}

fn start(scene: &Scene, host: &Host, file: &str, extra: &[&str]) -> anyhow::Result<(Dunlin, PathBuf)> {
    let path = scene.folder().join(file);
    let control = host.control.display().to_string();
    let output = path.display().to_string();
    let fixed = ["record", "--control", &control, "--output", &output, "--json"];
    Ok((scene.dunlin(fixed.iter().chain(extra))?, path))
}

/// Records to the end; the report, and what is in the file.
fn record(scene: &Scene, host: &Host, file: &str, extra: &[&str]) -> anyhow::Result<(Value, Head, Vec<Item>)> {
    let (mut recorder, path) = start(scene, host, file, extra)?;
    let finished = recorder.wait(PATIENCE)?;
    ensure!(finished.code == Some(0), "{finished}");
    let (head, items) = read(&path)?;
    Ok((finished.json()?, head, items))
}

/// A file that ended as it should.
fn read(path: &Path) -> anyhow::Result<(Head, Vec<Item>)> {
    let mut reader = TraceReader::open(path)?;
    let head = reader.head().clone();
    let items = reader.by_ref().collect::<Result<Vec<_>, _>>()?;
    let ending = reader.ending().context("it has been read to its end")?;
    ensure!(matches!(ending, Ending::Complete { .. }), "{ending:?}");
    Ok((head, items))
}

/// What was found between two looks, each page once.
struct Window {
    /// By whom, where a source tells.
    writes: Vec<(u32, u64)>,
    pages: BTreeSet<u64>,
    /// The steps that each vCPU had reported at its end.
    steps: Vec<u64>,
}

/// Steps follow their window; harvests of a dirty ring may be several in one.
fn windows(items: &[Item], vcpus: u32) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    let (mut pages, mut writes) = (BTreeSet::new(), Vec::new());
    for item in items {
        match item {
            Item::Dirty { run } => pages.extend(run.first.0..run.end().0),
            Item::Write { gfn, vcpu, .. } => {
                if pages.insert(gfn.0) {
                    writes.push((*vcpu, gfn.0));
                }
            }
            Item::Steps { vcpu, steps, .. } => {
                if *vcpu == 0 {
                    windows.push(Window {
                        writes: std::mem::take(&mut writes),
                        pages: std::mem::take(&mut pages),
                        steps: vec![0; vcpus as usize],
                    });
                }
                windows.last_mut().expect("vCPU 0 comes first").steps[*vcpu as usize] = *steps;
            }
            Item::WindowEnd { .. } | Item::Lost { .. } | Item::End { .. } => {}
        }
    }
    windows
}

/// Checks every window but the first against the guest's own steps: which pages, and where they are told, in which order and by whom.
fn check(items: &[Item], vcpus: u32) -> anyhow::Result<()> {
    let spec: Spec = WORKLOAD.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
    let plan = Plan::new(&spec, MEMORY, vcpus)?;
    let working_set: BTreeSet<u64> = (0..plan.ws().0).map(|page| plan.gfn(page).0).collect();
    let windows = windows(items, vcpus);
    ensure!(windows.len() > 10, "only {} windows", windows.len());
    let mut pages = 0;
    for pair in windows.windows(2) {
        let [before, window] = pair else {
            unreachable!("windows of two")
        };
        let found: BTreeSet<u64> = window.pages.intersection(&working_set).copied().collect();
        let (mut surely, mut perhaps) = (BTreeSet::new(), BTreeSet::new());
        for (vcpu, (from, to)) in (0..).zip(before.steps.iter().zip(&window.steps)) {
            let generator = Generator::new(&spec, plan.ws(), vcpus, vcpu, SEED)?;
            // Each vCPU may have done a part of a batch that it has not reported.
            let batch = generator.batch();
            let steps: Vec<(u64, u64)> = generator
                .zip(0..to + batch)
                .filter(|(step, index)| *index >= *from && step.kind == Touch::Write)
                .map(|(step, index)| (index, plan.gfn(step.page).0))
                .collect();
            perhaps.extend(steps.iter().map(|(_, gfn)| *gfn));
            let reported = steps.iter().filter(|(index, _)| (from + batch..*to).contains(index));
            surely.extend(reported.map(|(_, gfn)| *gfn));
            check_order(&window.writes, vcpu, vcpus, &steps, from + batch, &working_set)?;
        }
        ensure!(surely.is_subset(&found), "missing: {:?}", surely.difference(&found));
        ensure!(found.is_subset(&perhaps), "too many: {:?}", found.difference(&perhaps));
        pages += found.len();
    }
    ensure!(pages > 100, "the guest wrote: {pages} pages");
    Ok(())
}

/// What is told of a vCPU is what it did, and of the only one in its order. `steps` may begin before the window does, up to `latest`.
fn check_order(
    writes: &[(u32, u64)],
    vcpu: u32,
    vcpus: u32,
    steps: &[(u64, u64)],
    latest: u64,
    working_set: &BTreeSet<u64>,
) -> anyhow::Result<()> {
    let own = writes
        .iter()
        .filter(|(by, gfn)| *by == vcpu && working_set.contains(gfn));
    let told: Vec<u64> = own.map(|(_, gfn)| *gfn).collect();
    let written: BTreeSet<u64> = steps.iter().map(|(_, gfn)| *gfn).collect();
    ensure!(
        told.iter().all(|gfn| written.contains(gfn)),
        "vCPU {vcpu} did not write {told:?}"
    );
    if vcpus > 1 || told.is_empty() {
        return Ok(());
    }
    let begins_there = |start: usize| {
        let mut seen = BTreeSet::new();
        let order = steps[start..].iter().filter(|(_, gfn)| seen.insert(*gfn));
        let order: Vec<u64> = order.map(|(_, gfn)| *gfn).take(told.len()).collect();
        order == told
    };
    let starts = steps.iter().take_while(|(index, _)| *index <= latest).count();
    ensure!(
        (0..=starts.min(steps.len() - 1)).any(begins_there),
        "another order: {told:?}, and the guest's is {steps:?}"
    );
    Ok(())
}

#[test]
fn every_tracker_records_what_the_guest_wrote() -> anyhow::Result<()> {
    let ebpf = require(Capability::Ebpf);
    let faults = [
        ("auto", Source::WriteProtectFault),
        ("ebpf:faults", Source::WriteProtectFault),
    ];
    let faults = if ebpf { &faults[..] } else { &[] };
    let mut cases = vec![(Kind::Thread, "bitmap", vec![("pagemap", Source::PagemapScan)])];
    cases[0].2.extend(faults);
    if require(Capability::Kvm) {
        let mut sources = vec![("bitmap", Source::Bitmap), ("pagemap", Source::PagemapScan)];
        // Where a processor runs the guest, KVM handles its faults without an exception.
        if Backend::find().is_some_and(|backend| !backend.runs_on_the_processor()) {
            sources.extend(faults);
        }
        cases.push((Kind::Kvm, "bitmap", sources));
    }
    if require(Capability::Kvm) && require(Capability::DirtyRing) {
        let mut sources = vec![("ring", Source::Ring), ("pagemap", Source::PagemapScan)];
        if ebpf {
            sources.extend([("auto", Source::RingPush), ("ebpf:ring", Source::RingPush)]);
        }
        cases.push((Kind::Kvm, "ring", sources));
    }
    for (kind, tracking, sources) in cases {
        for vcpus in [1, 2] {
            let scene = Scene::new()?;
            let host = guest(&scene, kind, vcpus, tracking)?;
            for (name, source) in &sources {
                let case = || format!("{kind:?}, {tracking}, {vcpus} vCPUs, --source {name}");
                let extra = ["--duration", "1s", "--window", "20ms", "--exact", "--source", name];
                let (report, head, items) = record(&scene, &host, "trace.dtrace", &extra).with_context(case)?;
                ensure!(report["source"] == source.name() && head.source == *source, "{report}");
                ensure!(report["lost_events"] == 0 && report["overruns"] == 0, "{report}");
                ensure!(report["ended_early"].is_null(), "{report}");
                let measured = report["overhead"]["kernel"]["runs"].as_u64();
                ensure!(
                    measured.is_some_and(|runs| runs > 0) == source.name().starts_with("ebpf:"),
                    "{report}"
                );
                ensure!(head.vcpus == vcpus && head.total().bytes() == MEMORY, "{head:?}");
                ensure!(
                    report["file_bytes"] == fs::metadata(scene.folder().join("trace.dtrace"))?.len(),
                    "{report}"
                );
                check(&items, vcpus).with_context(case)?;
                expect_off(&scene, &host).with_context(case)?;
            }
        }
    }
    Ok(())
}

/// What a VM does not have is refused by name, and what it has is named.
#[test]
fn a_tracker_that_the_guest_lacks_is_refused() -> anyhow::Result<()> {
    if !require(Capability::Kvm) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let host = guest(&scene, Kind::Kvm, 1, "bitmap")?;
    let (mut recorder, path) = start(&scene, &host, "none.dtrace", &["--source", "ring"])?;
    let finished = recorder.wait(PATIENCE)?;
    ensure!(finished.code == Some(2) && !path.exists(), "{finished}");
    ensure!(
        finished.stderr.contains("no kvm-dirty-ring") && finished.stderr.contains("--tracking ring"),
        "{finished}"
    );
    Ok(())
}

/// Checks that nothing of a recording is left: by the status, and by what the kernel shows of the process.
fn expect_off(scene: &Scene, host: &Host) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = scene.status(host)?;
        let off = status["recording"].is_null() && status["tracking"]["on"] == false;
        let pid = status["pid"].as_u64().context("a process")?;
        if off && !is_write_protected(pid)? && threads(pid)?.iter().all(|name| !name.starts_with("harvest")) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "still on: {status}, {:?}", threads(pid)?);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether some of the process's memory is registered for write protection by userfaultfd (`uw` of proc_pid_smaps(5)).
fn is_write_protected(pid: u64) -> anyhow::Result<bool> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut flags = maps.lines().filter_map(|line| line.strip_prefix("VmFlags:"));
    Ok(flags.any(|flags| flags.split_whitespace().any(|flag| flag == "uw")))
}

fn threads(pid: u64) -> anyhow::Result<Vec<String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    // A thread may end while it is looked at.
    let names = tasks
        .flatten()
        .map(|task| fs::read_to_string(task.path().join("comm")).unwrap_or_default());
    Ok(names.collect())
}

/// Waits until a recording goes on.
fn wait_until_recording(scene: &Scene, host: &mut Host) -> anyhow::Result<Value> {
    scene.poll_status(host, |status| status["recording"]["windows"].as_u64() > Some(3))
}

/// A recorder that is killed cannot tidy up; the process that holds the guest does.
#[test]
fn a_killed_recorder_leaves_nothing_switched_on() -> anyhow::Result<()> {
    if !require(Capability::Kvm) {
        return Ok(());
    }
    let mut trackings = vec![("bitmap", "bitmap"), ("bitmap", "pagemap")];
    if require(Capability::DirtyRing) {
        trackings.push(("ring", "ring"));
    }
    if require(Capability::Ebpf) {
        trackings.push(("bitmap", "ebpf:faults"));
    }
    for (tracking, source) in trackings {
        let scene = Scene::new()?;
        let mut host = guest(&scene, Kind::Kvm, 1, tracking)?;
        let extra = ["--duration", "1h", "--window", "10ms", "--source", source];
        let (mut recorder, path) = start(&scene, &host, "killed.dtrace", &extra)?;
        let status = wait_until_recording(&scene, &mut host)?;
        let pid = status["pid"].as_u64().context("a process")?;
        ensure!(status["recording"]["client_pid"] == recorder.id(), "{status}");
        // What is looked for afterwards is there now.
        let protects = matches!(source, "pagemap" | "ebpf:faults");
        ensure!(is_write_protected(pid)? == protects, "{source}");
        ensure!((status["tracking"]["on"] == true) != protects, "{status}");
        let harvests = threads(pid)?.iter().any(|name| name.starts_with("harvest"));
        ensure!(harvests == (source == "ring"), "{:?}", threads(pid)?);
        // Frames are written at least every second.
        std::thread::sleep(Duration::from_millis(2500));
        recorder.kill()?;
        expect_off(&scene, &host)?;
        let mut reader = TraceReader::open(&path)?;
        let items = reader.by_ref().collect::<Result<Vec<_>, _>>()?;
        ensure!(items.len() > 10, "what was written before can be read");
        ensure!(
            matches!(reader.ending(), Some(Ending::CutOff { .. })),
            "{:?}",
            reader.ending()
        );
        // And the next one is served.
        record(&scene, &host, "next.dtrace", &["--duration", "100ms"])?;
    }
    Ok(())
}

#[test]
fn an_interrupt_ends_a_recording_with_a_whole_file() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let mut host = guest(&scene, Kind::best(), 1, "bitmap")?;
    let (mut recorder, path) = start(&scene, &host, "interrupted.dtrace", &["--duration", "1h"])?;
    wait_until_recording(&scene, &mut host)?;
    recorder.signal(Signal::INT)?;
    let finished = recorder.wait(PATIENCE)?;
    ensure!(finished.code == Some(0), "{finished}");
    let report = finished.json()?;
    ensure!(
        report["schema"] == "dunlin.record.v1" && report["windows"].as_u64() > Some(3),
        "{report}"
    );
    let (_, items) = read(&path)?;
    ensure!(matches!(items.last(), Some(Item::End { .. })));
    expect_off(&scene, &host)
}

/// Two want the tracker: the migration gets it.
#[test]
fn a_migration_ends_a_recording() -> anyhow::Result<()> {
    if !require(Capability::Kvm) || !require(Capability::Uffd) {
        return Ok(());
    }
    let mut cases = vec![("bitmap", "auto"), ("bitmap", "pagemap")];
    if require(Capability::DirtyRing) {
        cases.push(("ring", "auto"));
    }
    for (tracking, source) in cases {
        let scene = Scene::new()?;
        let mut host = guest(&scene, Kind::Kvm, 1, tracking)?;
        let target = scene.receiver("target", &[])?;
        let extra = ["--duration", "1h", "--source", source];
        let (mut recorder, path) = start(&scene, &host, "ended.dtrace", &extra)?;
        wait_until_recording(&scene, &mut host)?;
        let (mut second, _) = start(&scene, &host, "second.dtrace", &[])?;
        let refused = second.wait(PATIENCE)?;
        ensure!(
            refused.code == Some(2) && refused.stderr.contains("is being recorded already by process"),
            "{refused}"
        );
        let report = scene.migrate(&host, &target, "hybrid:1", &["--verify", "--downtime", "1s"])?;
        dunlin_tests::oracle::expect_verified(&report)?;
        let finished = recorder.wait(PATIENCE)?;
        ensure!(finished.code == Some(1), "{finished}");
        let why = finished.json()?["ended_early"].as_str().unwrap_or_default().to_owned();
        ensure!(why.contains("a migration of the VM began"), "{why}");
        read(&path)?;
        // The VM is recorded where it runs now.
        record(
            &scene,
            &target,
            "there.dtrace",
            &["--duration", "100ms", "--source", source],
        )?;
        expect_off(&scene, &target)?;
    }
    Ok(())
}

/// A guest that ends takes its recording along in order.
#[test]
fn the_end_of_the_guest_ends_a_recording() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let options = GuestOptions::new(Kind::best(), WORKLOAD).steps(8000);
    let mut host = scene.guest("short", &options)?;
    let (mut recorder, path) = start(&scene, &host, "short.dtrace", &["--duration", "1h"])?;
    let finished = recorder.wait(2 * PATIENCE)?;
    host.final_report()?;
    ensure!(finished.code == Some(1), "{finished}");
    let report = finished.json()?;
    ensure!(report["ended_early"] == "the guest has ended", "{report}");
    let (_, items) = read(&path)?;
    let last = items.iter().rev().find_map(|item| match item {
        Item::Steps { steps, .. } => Some(*steps),
        _ => None,
    });
    ensure!(last == Some(8000), "the last window has all of it: {last:?}");
    Ok(())
}

/// Rings that are too small are said to be, everywhere alike. Whether they are depends on how KVM runs guests, and on how busy the host is.
#[test]
fn overruns_are_said() -> anyhow::Result<()> {
    if !require(Capability::Kvm) || !require(Capability::DirtyRing) {
        return Ok(());
    }
    let scene = Scene::new()?;
    let options =
        GuestOptions::new(Kind::Kvm, "uniform,rate=1000000").with(["--tracking", "ring", "--ring-size", "2048"]);
    let host = scene.guest("hasty", &options)?;
    let extra = ["--duration", "500ms", "--source", "ring"];
    let (report, _, items) = record(&scene, &host, "hasty.dtrace", &extra)?;
    let overran = report["overruns"].as_u64() > Some(0);
    ensure!(report["lost_events"].is_null() == overran, "{report}");
    ensure!(items.iter().any(|item| matches!(item, Item::Lost { .. })) == overran);
    ensure!(scene.status(&host)?["tracking"]["overruns"].as_u64() >= report["overruns"].as_u64());
    Ok(())
}

/// What the process harvested, beside what programs in the kernel saw.
struct Both {
    traced: Traced,
    open: BTreeSet<u64>,
    harvested: Vec<BTreeSet<u64>>,
}

impl RecordingSource for Both {
    fn source(&self) -> Source {
        self.traced.source()
    }

    fn period(&self) -> Option<Duration> {
        self.traced.period()
    }

    fn poll(&mut self, items: &mut Items<'_>) -> Result<(), RecordingError> {
        self.traced.poll(items)
    }

    fn on(&mut self, message: &Message, items: &mut Items<'_>) -> Result<(), RecordingError> {
        match message {
            Message::Dirty { service: 0, pages } => {
                let runs = pages.runs().map(|run| run.expect("pages of the guest"));
                self.open.extend(runs.flat_map(|run| run.first.0..run.end().0));
            }
            Message::Writes { service: 0, pages, .. } => self.open.extend(pages.pages().map(|gfn| gfn.0)),
            Message::Window { .. } => self.harvested.push(std::mem::take(&mut self.open)),
            _ => {}
        }
        self.traced.on(message, items)
    }
}

#[derive(Default)]
struct Kept(Vec<Item>);

impl Sink for Kept {
    fn begin(&mut self, _: &Head) -> Result<(), TraceError> {
        Ok(())
    }

    fn push(&mut self, item: &Item) -> Result<(), TraceError> {
        self.0.push(*item);
        Ok(())
    }
}

/// Two that look at the same guest see the same, window by window.
#[test]
fn programs_in_the_kernel_see_what_kvm_logs() -> anyhow::Result<()> {
    if !require(Capability::Kvm) || !require(Capability::Ebpf) {
        return Ok(());
    }
    let mut cases = vec![match Backend::find() {
        Some(backend) if backend.runs_on_the_processor() => ("bitmap", Source::SptePermission, Source::Bitmap),
        _ => ("bitmap", Source::WriteProtectFault, Source::Bitmap),
    }];
    if require(Capability::DirtyRing) {
        cases.push(("ring", Source::RingPush, Source::Ring));
    }
    for (tracking, source, own) in cases {
        let scene = Scene::new()?;
        let host = guest(&scene, Kind::Kvm, 2, tracking)?;
        let cancel = Cancel::new();
        let wait = Wait::within(PATIENCE, &cancel);
        let programs = Programs::of(source, own).context("a source with programs")?;
        let mut serve = vec![Service::with_pages(own)];
        if programs.armed != own {
            serve.push(programs.service());
        }
        let request = RecordRequest {
            serve,
            window_us: 20_000,
            exact: true,
        };
        let mut session = Client::connect(&host.control, wait)?.start_recording(&request, wait)?;
        let mut both = Both {
            traced: Traced::attach(programs, session.answer(), Traced::BUFFER)?,
            open: BTreeSet::new(),
            harvested: vec![],
        };
        let mut kept = Kept::default();
        let limits = Limits {
            duration: Some(Duration::from_secs(2)),
            interrupt: &cancel,
        };
        let recorded = record_session(&mut session, &mut both, &mut kept, limits, &mut |_| {})?;
        ensure!(recorded.tally.lost == 0, "{recorded:?}");
        let seen = windows(&kept.0, 2);
        ensure!(
            seen.len() == both.harvested.len() && seen.len() > 10,
            "{} windows",
            seen.len()
        );
        let pages: usize = both.harvested.iter().map(BTreeSet::len).sum();
        ensure!(pages > 1000, "the guest wrote: {pages}");
        for (index, (seen, harvested)) in seen.iter().zip(&both.harvested).enumerate() {
            ensure!(
                seen.pages == *harvested,
                "{tracking}, window {index}: only seen {:?}, only harvested {:?}",
                seen.pages.difference(harvested),
                harvested.difference(&seen.pages)
            );
        }
    }
    Ok(())
}
