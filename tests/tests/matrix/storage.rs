//! Faults of the storage channel and deaths while the static copy is under way, at places told by the files themselves.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dunlin_tests::folder::find;
use dunlin_tests::mount::SmallFolder;
use dunlin_tests::pairs::cover_or_product;
use dunlin_tests::relay::{Frozen, Random, Side, process_id};
use dunlin_tests::scene::{PATIENCE, Scene};
use dunlin_tests::{Capability, require};

use crate::case::{WORKLOADS, guest};
use crate::pool::{self, Ending};
use crate::verdict::{Stage, without_source, without_target};

const STRATEGIES: [&str; 3] = ["par-migrate", "pa-hybrid", "hybrid:1,first=parallel,cut=reconnect"];
const POLL: Duration = Duration::from_millis(1);
/// The copy takes up to a second, so that something can happen meanwhile.
const LIMITS: [&str; 7] = [
    "--verify",
    "--bandwidth",
    "6MB/s",
    "--storage-bandwidth",
    "4MB/s",
    "--network-timeout",
    "30s",
];

/// What is wrong with the directory, or happens while it is written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Deed {
    /// Less room than the guest has memory.
    Full,
    /// Others fill it meanwhile.
    FillsUp,
    /// Nobody may write there.
    ReadOnly,
    /// Far slower than the network.
    Slow,
    /// A migration that crashed left its files.
    Leftovers,
    /// The copy goes while it is written.
    VanishesEarly,
    /// It goes when it is complete.
    VanishesLate,
    /// The end of it is missing.
    Torn,
    /// A bit of it is turned.
    Corrupt,
    /// A process is killed while the copy is written.
    Kill(Side),
    /// A process is killed when it is complete.
    KillLate(Side),
}

impl Deed {
    const ALL: [Self; 13] = [
        Self::Full,
        Self::FillsUp,
        Self::ReadOnly,
        Self::Slow,
        Self::Leftovers,
        Self::VanishesEarly,
        Self::VanishesLate,
        Self::Torn,
        Self::Corrupt,
        Self::Kill(Side::Source),
        Self::Kill(Side::Target),
        Self::KillLate(Side::Source),
        Self::KillLate(Side::Target),
    ];

    /// It needs a file system of its own.
    const fn mounts(self) -> bool {
        matches!(self, Self::Full | Self::FillsUp | Self::ReadOnly)
    }
}

const SIZES: [usize; 3] = [Deed::ALL.len(), STRATEGIES.len(), WORKLOADS.len()];

#[test]
fn faults_of_the_storage() {
    if !crate::can() {
        return;
    }
    let mounts = require(Capability::Root);
    let rows = cover_or_product(&SIZES);
    let rows = rows.iter().filter(|row| mounts || !Deed::ALL[row[0]].mounts());
    let number = |row: &Vec<usize>| {
        row.iter()
            .zip(SIZES)
            .fold(0, |number, (value, size)| number * size + value)
    };
    let seeds: Vec<u64> = rows.map(|row| number(row) as u64).collect();
    pool::run_all("faults_of_the_storage", &seeds, run);
}

fn run(seed: u64) -> anyhow::Result<Ending> {
    let row = seed as usize % SIZES.iter().product::<usize>();
    let workload = WORKLOADS[row % SIZES[2]];
    let strategy = STRATEGIES[row / SIZES[2] % SIZES[1]];
    let deed = Deed::ALL[row / SIZES[2] / SIZES[1]];
    attempt(deed, strategy, workload, seed).with_context(|| format!("{deed:?}, {strategy}, {workload}"))
}

fn attempt(deed: Deed, strategy: &str, workload: &str, seed: u64) -> anyhow::Result<Ending> {
    let mut random = Random::new(seed);
    let small = match deed {
        Deed::Full => Some(SmallFolder::new(1 << 20)?),
        Deed::FillsUp | Deed::ReadOnly => Some(SmallFolder::new(16 << 20)?),
        _ => None,
    };
    let scene = Scene::new()?;
    let folder = small
        .as_ref()
        .map_or_else(|| scene.folder().to_owned(), |small| small.path().to_owned());
    let folder = folder.join("storage");
    fs::create_dir(&folder)?;
    match deed {
        Deed::ReadOnly => small.as_ref().context("mounted above")?.make_read_only()?,
        Deed::Leftovers => leave_files(&folder)?,
        _ => {}
    }
    let mut stage = Stage::in_scene(scene, guest(workload, seed), folder.display().to_string())?;
    let to = stage.target.listening()?.to_owned();
    let mut arguments = [&LIMITS[..], &["--storage", &stage.storage]].concat();
    if deed == Deed::Slow {
        arguments.extend(["--storage-bandwidth", "1MB/s"].iter());
        arguments.drain(3..5);
    }
    let mut migration = stage.scene.start_migration(&stage.source, &to, strategy, &arguments)?;
    let killed = meddle(deed, &mut stage, &folder, &mut random)?;
    match killed {
        Some(Side::Source) => return without_source(&mut stage, None),
        Some(Side::Target) => return without_target(&mut stage, &mut migration),
        None => {}
    }
    let finished = migration.wait(2 * PATIENCE)?;
    ensure!(
        finished.json()?["outcome"] == "completed",
        "it should go on without: {finished}"
    );
    stage.arrived(&finished)?;
    // What others left belongs to nobody here.
    let own = |name: &str| name != LEFT && name != FILLER;
    let names = fs::read_dir(&folder).into_iter().flatten().flatten();
    let left: Vec<_> = names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    ensure!(!left.iter().any(|name| own(name)), "left in the directory: {left:?}");
    Ok("arrived")
}

/// Does what is to be done while the copy is under way; the side that was killed.
fn meddle(deed: Deed, stage: &mut Stage, folder: &Path, random: &mut Random) -> anyhow::Result<Option<Side>> {
    let early = |stage: &mut Stage| wait_for_copy(folder, ".unfinished", stage);
    match deed {
        Deed::Full | Deed::ReadOnly | Deed::Slow | Deed::Leftovers => {}
        Deed::FillsUp => {
            early(stage)?;
            // Until nothing fits: the last write fails, as it should.
            let _ = fs::write(folder.join(FILLER), vec![1; 32 << 20]);
        }
        Deed::VanishesEarly => {
            let file = early(stage)?;
            fs::remove_dir_all(file.parent().context("a session's folder")?)?;
        }
        Deed::VanishesLate | Deed::Torn | Deed::Corrupt => {
            // The target must not read it before.
            early(stage)?;
            let frozen = Frozen::new(process_id(stage.target.process.id()))?;
            let segment = wait_for_copy(folder, ".segment", stage)?;
            damage(deed, &segment, random.next())?;
            drop(frozen);
        }
        Deed::Kill(side) => {
            early(stage)?;
            return kill(stage, side).map(Some);
        }
        Deed::KillLate(side) => {
            // Complete, and not merged yet.
            early(stage)?;
            let frozen = Frozen::new(process_id(stage.target.process.id()))?;
            wait_for_copy(folder, ".segment", stage)?;
            kill(stage, side)?;
            drop(frozen);
            return Ok(Some(side));
        }
    }
    Ok(None)
}

fn kill(stage: &mut Stage, side: Side) -> anyhow::Result<Side> {
    match side {
        Side::Source => stage.source.process.kill()?,
        Side::Target => stage.target.process.kill()?,
    }
    Ok(side)
}

fn damage(deed: Deed, segment: &Path, random: u64) -> anyhow::Result<()> {
    match deed {
        Deed::VanishesLate => fs::remove_file(segment)?,
        Deed::Torn => {
            let file = OpenOptions::new().write(true).open(segment)?;
            file.set_len(random % file.metadata()?.len())?;
        }
        _ => {
            let file = File::options().read(true).write(true).open(segment)?;
            let (mut byte, at) = ([0], random / 8 % file.metadata()?.len());
            file.read_exact_at(&mut byte, at)?;
            file.write_all_at(&[byte[0] ^ 1 << (random % 8)], at)?;
        }
    }
    Ok(())
}

/// The folder that another migration left, and the file of somebody else.
const LEFT: &str = "dunlin-0123456789abcdef0123456789abcdef";
const FILLER: &str = "filler";

fn leave_files(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir(folder.join(LEFT))?;
    fs::write(folder.join(LEFT).join("static-000000.segment"), [7; 8192])?;
    Ok(())
}

/// Waits for a file whose name ends so, or for the complete one that it becomes.
fn wait_for_copy(folder: &Path, end: &str, stage: &mut Stage) -> anyhow::Result<PathBuf> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for complete in [false, true] {
            if let Some(file) = find(folder, if complete { ".segment" } else { end }) {
                return Ok(file);
            }
        }
        ensure!(Instant::now() < deadline, "no *{end} in {}", folder.display());
        ensure!(stage.source.process.is_running(), "the source has ended");
        thread::sleep(POLL);
    }
}
