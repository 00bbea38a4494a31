//! What sealing costs: segments written and read, encrypted and authenticated, beside plain ones.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use dunlin::memory::{GuestMemory, MemoryLayout};
use dunlin::storage::{Content, Kind, SealKey, SegmentReader, SegmentWriter, SessionDirectory, StorageError, Vm};
use dunlin_core::message::{Region, SessionId, VmId};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Bytes, Gfn};

use super::Setting;
use super::figure::{Figure, Target};
use super::sampling::{Arm, Results, interleave};

/// One segment, nearly full.
const BYTES: Bytes = Bytes(60 << 20);
const REPETITIONS: usize = 15;
/// Where nothing but memory is written to: no disk hides what the sealing costs.
const IN_MEMORY: &str = "/dev/shm";

pub(super) fn run(_: &Setting) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (place, name, target) in [
        (Path::new(IN_MEMORY).to_owned(), "in memory", true),
        (std::env::temp_dir(), "on disk", false),
    ] {
        let results = measure(&place)?;
        figures.extend(ratios(&results, name, target));
    }
    Ok(figures)
}

fn measure(place: &Path) -> anyhow::Result<Results> {
    let [plain, sealed] = [None, Some(SealKey::new([7; 32]))].map(|seal| Store::new(place, seal));
    let (plain, sealed) = (plain?, sealed?);
    interleave(
        REPETITIONS,
        vec![
            Arm::new("plain write", || plain.write()),
            Arm::new("sealed write", || sealed.write()),
            Arm::new("plain read", || plain.read()),
            Arm::new("sealed read", || sealed.read()),
        ],
    )
}

fn ratios(results: &Results, place: &str, target: bool) -> Vec<Figure> {
    let both = ["write", "read"].map(|what| {
        let [plain, sealed] = ["plain", "sealed"].map(|arm| results.of(&format!("{arm} {what}")));
        let doing = if what == "write" { "writing" } else { "reading" };
        let speed = Figure::plain(format!("plain segments {place}, {doing}"), plain.median() / 1e6, "MB/s")
            .beside(format!("median of {}", plain.len()));
        let ratio = Figure::plain(
            format!("sealed segments {place}, {doing}, share of plain"),
            sealed.median() / plain.median(),
            "ratio",
        )
        .beside(format!(
            "{:.0} MB/s by {:.0}",
            sealed.median() / 1e6,
            plain.median() / 1e6
        ));
        let ratio = if target {
            ratio.target(Target::AtLeast(0.6))
        } else {
            ratio
        };
        [speed, ratio]
    });
    both.into_iter().flatten().collect()
}

/// A folder with one segment, and the guest whose pages it has.
struct Store {
    _folder: tempfile::TempDir,
    directory: SessionDirectory,
    source: GuestMemory,
    into: GuestMemory,
    all: Run,
}

impl Store {
    fn new(place: &Path, seal: Option<SealKey>) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("dunlin-")
            .tempdir_in(place)
            .with_context(|| format!("cannot make a folder in {}", place.display()))?;
        let [source, into] = [(); 2].map(|()| MemoryLayout::new(BYTES).and_then(GuestMemory::new));
        let (source, into) = (source?, into?);
        let all = *source.layout().regions().first().context("memory has a region")?;
        for memory in [&source, &into] {
            memory.fill(all, |address| address.wrapping_mul(0x9e37_79b9_7f4a_7c15))?;
        }
        let region = Region {
            first: all.first,
            pages: all.count,
        };
        let vm = Vm {
            session: SessionId(1),
            id: VmId(1),
            regions: [region].into_iter().collect(),
        };
        let directory = SessionDirectory::create(folder.path(), vm, seal)?;
        Ok(Self {
            _folder: folder,
            directory,
            source,
            into,
            all,
        })
    }

    /// Bytes per second into a segment that is synced and has its name.
    fn write(&self) -> anyhow::Result<f64> {
        let began = Instant::now();
        let mut writer = SegmentWriter::create(&self.directory, Kind::Static, 0)?;
        let mut rest = self.all;
        while rest.count.0 > 0 {
            let taken = writer.add(&self.source, rest)?;
            rest = Run::new(Gfn(rest.first.0 + taken.0), rest.count.saturating_sub(taken));
        }
        let written = writer.finish(true)?;
        ensure!(written.data == self.all.count, "no page is zero");
        Ok(BYTES.0 as f64 / began.elapsed().as_secs_f64())
    }

    /// Bytes per second from there into memory.
    fn read(&self) -> anyhow::Result<f64> {
        let began = Instant::now();
        let segment = SegmentReader::open(&self.directory, Kind::Static, 0)?;
        let mut segment = segment.context("the segment is there")?;
        segment.each_run(|run, content| match content {
            Content::Data(bytes) => Ok(self.into.write_run(run, bytes)?),
            Content::Zero => Ok::<(), StorageError>(()),
        })?;
        Ok(BYTES.0 as f64 / began.elapsed().as_secs_f64())
    }
}
