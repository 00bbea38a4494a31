//! What the simulator takes from measurement: how long this machine needs for what has no rate.
//!
//! Measured once for a program on a machine, always with other guests than those of the experiments.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dunlin::memory::{GuestMemory, MemoryLayout};
use dunlin::storage::{Content, Kind, SegmentReader, SegmentWriter, SessionDirectory, StorageError, Vm};
use dunlin_core::message::{Region, SessionId, VmId};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Bytes, Gfn};
use dunlin_core::wire::HEADER_BYTES;
use dunlin_tests::scene::GuestOptions;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::catalogue;
use super::measure::Stage;
use super::record::replace;
use super::statistics::median;
use crate::bench::dunlin::{Dunlin, number};
use crate::bench::figure::significant;
use crate::bench::{blackout, fault};

/// The numbers, units last.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Calibration {
    /// Pausing, saving, restoring and starting a guest, beside the round trips.
    pub(super) handover_us: f64,
    /// Throwing a page away at the target that is missing when post-copy begins.
    pub(super) discard_ns: f64,
    /// Pages that a guest writes which has nothing to do.
    pub(super) own_pages: f64,
    /// From an access to a missing page until the vCPU has it, beside the way there and back.
    pub(super) fault_service_us: f64,
    /// A step of a guest that nothing holds up, by what it does.
    pub(super) step_ns: BTreeMap<String, f64>,
    /// Of a small message, one way.
    pub(super) latency_us: f64,
    /// Reading and checking a segment and putting its pages into fresh memory.
    pub(super) merge_mb_per_second: f64,
}

const FILE: &str = "calibration.json";
const SCHEMA: &str = "dunlin.calibration.v1";
/// Size of the guest that stands still, which does not depend on it, and of the memory that a segment is put into.
const MEMORY: &str = "256MiB";
const HANDOVERS: usize = 15;
/// One-way trips that a hand-over waits for: hand-over, ready, commit, running.
const TRIPS_OF_A_HANDOVER: f64 = 4.0;
const REPETITIONS: usize = 5;
const FILLED: [&str; 2] = ["--fill", "random"];
/// Page after page, as fast as it can.
const SEQUENCE: &str = "seq";
const FAULTS: &str = "/postcopy/faults";
/// Pages that were written while memory was copied.
const DIRTY: &str = "/rounds/0/dirty_pages";
const ROUND_TRIPS: usize = 2000;
/// How long steps are counted.
const COUNTED: Duration = Duration::from_millis(500);
/// A whole segment.
const SEGMENT: Bytes = Bytes(64 << 20);

impl Calibration {
    /// What `folder` has of this program and machine, unless `fresh`; otherwise measured now, and kept there.
    pub(super) fn get(stage: &Stage, program: &str, folder: &Path, fresh: bool) -> anyhow::Result<Self> {
        let conditions = conditions(program, stage);
        let path = folder.join(FILE);
        if let Some(known) = load(&path, &conditions).filter(|_| !fresh) {
            return Ok(known);
        }
        eprintln!("calibrating the simulator: what hand-overs, faults and steps take here");
        let measured = Self::measure(stage)?;
        save(&path, &measured, &conditions)?;
        Ok(measured)
    }

    fn measure(stage: &Stage) -> anyhow::Result<Self> {
        let dunlin = Dunlin::new(stage.program.clone(), stage.kind);
        let latency_us = round_trip()? / 2.0 * 1e6;
        let idle = blackout::measure(&dunlin, MEMORY, HANDOVERS)?;
        let of_idle = |value: fn(&blackout::Stop) -> f64| median_of(idle.iter().map(value).collect());
        let switch = (0..REPETITIONS).map(|_| number(&fault::drain(&dunlin, &[], &[])?, "/downtime_us"));
        let switch_us = median_of(switch.collect::<anyhow::Result<_>>()?)?;
        let step_ns = steps(&dunlin)?;
        let rewritten = rewritten(&dunlin)?;
        let beside_us = step_ns.get(SEQUENCE).map_or(0.0, |nanos| nanos / 1e3) + 2.0 * latency_us;
        Ok(Self {
            handover_us: (of_idle(|stop| stop.downtime_ms)? * 1e3 - TRIPS_OF_A_HANDOVER * latency_us).max(0.0),
            discard_ns: rewritten.discard_ns(switch_us)?,
            own_pages: of_idle(|stop| stop.dirty_pages)?,
            fault_service_us: (rewritten.page_us()? - beside_us).max(0.0),
            step_ns,
            latency_us,
            merge_mb_per_second: merge(&stage.storage)? / 1e6,
        })
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let step = |(pattern, nanos): (&String, &f64)| format!("{} us ({pattern})", significant(nanos / 1e3));
        let steps: Vec<String> = self.step_ns.iter().map(step).collect();
        format!(
            "hand-over {} ms, stale page {} ns, fault {} us, step {}, {} pages of the guest's own, one way of the network {} us, \
             merging {} MB/s",
            significant(self.handover_us / 1e3),
            significant(self.discard_ns),
            significant(self.fault_service_us),
            steps.join(", "),
            self.own_pages,
            significant(self.latency_us),
            significant(self.merge_mb_per_second),
        )
    }
}

#[cfg(test)]
impl Default for Calibration {
    /// Of a machine of 2026 with KVM.
    fn default() -> Self {
        Self {
            handover_us: 500.0,
            discard_ns: 200.0,
            own_pages: 4.0,
            fault_service_us: 12.0,
            step_ns: [("seq".to_owned(), 500.0)].into(),
            latency_us: 10.0,
            merge_mb_per_second: 1000.0,
        }
    }
}

/// What the numbers hold for.
fn conditions(program: &str, stage: &Stage) -> Value {
    let line = |path: &str, key: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let found = text.lines().find(|line| line.starts_with(key));
        found.unwrap_or_default().to_owned()
    };
    json!({
        "program": program,
        "guests": stage.kind.name(),
        "storage": stage.storage,
        "processor": line("/proc/cpuinfo", "model name"),
        "processors": thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "memory": line("/proc/meminfo", "MemTotal"),
        "kernel": line("/proc/sys/kernel/osrelease", ""),
    })
}

fn load(path: &Path, conditions: &Value) -> Option<Calibration> {
    // No file, one cut short, or one of something else: all the same, it must be measured.
    let mut document: Value = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
    let same = document["schema"] == SCHEMA && document["conditions"] == *conditions;
    same.then(|| serde_json::from_value(document["values"].take()).ok())?
}

fn save(path: &Path, calibration: &Calibration, conditions: &Value) -> anyhow::Result<()> {
    let document = json!({ "schema": SCHEMA, "conditions": conditions, "values": calibration });
    replace(path, &format!("{document:#}\n"))
}

fn median_of(results: Vec<f64>) -> anyhow::Result<f64> {
    median(results).context("nothing was measured")
}

/// Reports of a guest that has written all of its pages when post-copy begins, and then asks for each: link and push are
/// too slow for it.
struct Rewritten(Vec<Value>);

fn rewritten(dunlin: &Dunlin) -> anyhow::Result<Rewritten> {
    let guest = GuestOptions::new(dunlin.kind, SEQUENCE).with(FILLED);
    let each = (0..REPETITIONS).map(|_| {
        let report = dunlin.migrate(&guest, &[], "hybrid:1", &["--bandwidth", "8MB/s"])?;
        let (faults, pages) = (number(&report, FAULTS)?, number(&report, DIRTY)?);
        ensure!(
            faults > 0.0 && faults >= pages / 2.0,
            "of {pages} pages the guest asked for {faults} only: {report}"
        );
        Ok(report)
    });
    Ok(Rewritten(each.collect::<anyhow::Result<_>>()?))
}

impl Rewritten {
    fn median(&self, value: impl Fn(&Value) -> anyhow::Result<f64>) -> anyhow::Result<f64> {
        median_of(self.0.iter().map(value).collect::<anyhow::Result<_>>()?)
    }

    /// By which the switch takes longer than one without a stale page, which takes so many microseconds, for each of them.
    fn discard_ns(&self, without_us: f64) -> anyhow::Result<f64> {
        self.median(|report| {
            let more_us = number(report, "/downtime_us")? - without_us;
            Ok(more_us.max(0.0) * 1e3 / number(report, DIRTY)?)
        })
    }

    /// From one page that was asked for to the next.
    fn page_us(&self) -> anyhow::Result<f64> {
        self.median(|report| Ok(number(report, "/postcopy/duration_us")? / number(report, FAULTS)?))
    }
}

/// Nanoseconds of a step, for all that the catalogue's guests do.
fn steps(dunlin: &Dunlin) -> anyhow::Result<BTreeMap<String, f64>> {
    let mut patterns: Vec<String> = catalogue::all()?
        .iter()
        .map(|experiment| pattern(&experiment.setup.workload).to_owned())
        .collect();
    patterns.sort_unstable();
    patterns.dedup();
    let each = patterns.into_iter().map(|pattern| {
        let nanos = step(dunlin, &pattern)? * 1e9;
        Ok((pattern, nanos))
    });
    each.collect()
}

/// What a workload does, without rate and size.
pub(super) fn pattern(workload: &str) -> &str {
    workload.split_once(',').map_or(workload, |(pattern, _)| pattern)
}

/// Seconds that a step takes of a guest that does as many as it can.
fn step(dunlin: &Dunlin, pattern: &str) -> anyhow::Result<f64> {
    let scene = dunlin.scene()?;
    let mut guest = scene.guest("steps", &GuestOptions::new(dunlin.kind, pattern).with(FILLED))?;
    let mut times = Vec::new();
    for _ in 0..REPETITIONS {
        let mut look = || {
            let status = scene.poll_status(&mut guest, |_| true)?;
            let steps = status["steps"].as_f64().context("a guest counts its steps")?;
            Ok::<_, anyhow::Error>((Instant::now(), steps))
        };
        let (began, before) = look()?;
        thread::sleep(COUNTED);
        let (ended, after) = look()?;
        ensure!(after > before, "a guest without a rate does nothing");
        times.push(ended.duration_since(began).as_secs_f64() / (after - before));
    }
    median_of(times)
}

/// Seconds until a small message on loopback is answered.
fn round_trip() -> anyhow::Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
    let address = listener.local_addr()?;
    let echo = thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut message = [0; HEADER_BYTES];
        while stream.read_exact(&mut message).is_ok() {
            stream.write_all(&message)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut message = [0; HEADER_BYTES];
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let began = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        times.push(began.elapsed().as_secs_f64());
    }
    drop(stream);
    echo.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    median_of(times)
}

/// Bytes per second that come from a segment in `storage` into fresh memory.
fn merge(storage: &Path) -> anyhow::Result<f64> {
    let folder = tempfile::Builder::new().prefix("dunlin-").tempdir_in(storage)?;
    let whole = GuestMemory::new(MemoryLayout::new(SEGMENT)?)?;
    let run = *whole.layout().regions().first().context("memory has a region")?;
    whole.fill(run, |address| address.wrapping_mul(0x9e37_79b9_7f4a_7c15))?;
    let region = Region {
        first: run.first,
        pages: run.count,
    };
    let vm = Vm {
        session: SessionId(1),
        id: VmId(1),
        regions: [region].into_iter().collect(),
    };
    let directory = SessionDirectory::create(folder.path(), vm, None)?;
    let mut writer = SegmentWriter::create(&directory, Kind::Static, 0)?;
    let mut rest = run;
    while rest.count.0 > 0 {
        let taken = writer.add(&whole, rest)?;
        rest = Run::new(Gfn(rest.first.0 + taken.0), rest.count.saturating_sub(taken));
    }
    writer.finish(true)?;
    let each = (0..REPETITIONS).map(|_| {
        let memory = GuestMemory::new(MemoryLayout::new(SEGMENT)?)?;
        let began = Instant::now();
        let segment = SegmentReader::open(&directory, Kind::Static, 0)?;
        let mut segment = segment.context("the segment is there")?;
        segment.each_run(|run, content| match content {
            Content::Data(bytes) => {
                memory.write_run(run, bytes)?;
                // As a target does that will be asked for them.
                for gfn in run.first.0..run.end().0 {
                    std::hint::black_box(memory.hash_page(Gfn(gfn))?);
                }
                Ok(())
            }
            Content::Zero => Ok::<(), StorageError>(()),
        })?;
        Ok(SEGMENT.0 as f64 / began.elapsed().as_secs_f64())
    });
    median_of(each.collect::<anyhow::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_found_again_under_the_same_conditions_only() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join(FILE);
        let (here, elsewhere) = (json!({ "program": "a" }), json!({ "program": "b" }));
        assert_eq!(load(&path, &here), None);
        let calibration = Calibration {
            fault_service_us: 81.25,
            ..Calibration::default()
        };
        save(&path, &calibration, &here)?;
        assert_eq!(load(&path, &here), Some(calibration));
        assert_eq!(load(&path, &elsewhere), None);
        let text = fs::read_to_string(&path)?;
        assert!(text.contains(SCHEMA) && text.contains("81.25"), "{text}");
        fs::write(&path, &text[..text.len() / 2])?;
        assert_eq!(load(&path, &here), None);
        Ok(())
    }

    #[test]
    fn a_segment_and_a_message_come_through() -> anyhow::Result<()> {
        assert!(merge(&std::env::temp_dir())? > 0.0);
        assert!(round_trip()? > 0.0);
        Ok(())
    }

    #[test]
    fn it_is_told_with_units() {
        let text = Calibration::default().text();
        assert_eq!(
            text,
            "hand-over 0.500 ms, stale page 200 ns, fault 12.0 us, step 0.500 us (seq), 4 pages of the guest's own, \
             one way of the network 10.0 us, merging 1000 MB/s"
        );
    }
}
