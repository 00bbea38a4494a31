//! Guests that move with everything on: TLS, policies that name the other host, audit logs with signatures, sealed storage, a sandbox.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dunlin_tests::oracle::{Verdict, expect_same_memory, expect_verified, with_enough_steps};
use dunlin_tests::scene::{GuestOptions, Kind, PATIENCE};
use serde_json::Value;

use super::hosts::{Hosts, SOURCE, TARGET, words};

const STEPS: u64 = 10_000;
const PAGE_BYTES: usize = 4096;
/// Bytes of a page that nothing overwrites: as the guest's memory was filled at random.
const FILLED_AT: usize = 1024;
const NEEDLE_BYTES: usize = 16;
/// Of 8192 pages that a static copy has, at least so many are seen in its files.
const MOST_PAGES: usize = 4000;

/// Keeps every file that appears in a directory, also when its owner removes it.
struct Collector<'a> {
    storage: &'a Path,
    into: PathBuf,
}

impl Collector<'_> {
    fn collect(&self, over: &AtomicBool) -> anyhow::Result<()> {
        let mut kept = HashSet::new();
        while !over.load(Ordering::Acquire) {
            for folder in fs::read_dir(self.storage)?.flatten() {
                // It may be removed in between.
                for file in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                    let name = PathBuf::from(file.file_name());
                    if kept.contains(&name) {
                        continue;
                    }
                    if fs::hard_link(file.path(), self.into.join(&name)).is_ok() {
                        kept.insert(name);
                    }
                }
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// How many different pages of the guest show in what was kept.
    fn pages_seen(&self, memory: &Path) -> anyhow::Result<usize> {
        let memory = fs::read(memory)?;
        let filled: HashSet<&[u8]> = memory
            .chunks_exact(PAGE_BYTES)
            .map(|page| &page[FILLED_AT..FILLED_AT + NEEDLE_BYTES])
            .collect();
        let mut seen = HashSet::new();
        for file in fs::read_dir(&self.into)? {
            let bytes = fs::read(file?.path())?;
            seen.extend(
                bytes
                    .windows(NEEDLE_BYTES)
                    .filter_map(|window| filled.get(window).copied()),
            );
        }
        Ok(seen.len())
    }
}

/// Moves a guest with everything on, and says how many of its pages show in the storage directory; in plain if not `secured`.
fn moves(options: &GuestOptions, strategy: &str, secured: bool) -> anyhow::Result<(Verdict, usize)> {
    let hosts = Hosts::new()?;
    let scene = &hosts.scene;
    let states = [scene.subfolder("source-state")?, scene.subfolder("target-state")?];
    let rule =
        |peer: &str| format!("[[rule]]\nverdict = \"allow\"\npeer = {peer:?}\nguest = \"source\"\nmigrations = 2\n");
    let peers = if secured { [TARGET, SOURCE] } else { ["local", "local"] };
    let policies = [
        scene.file("source.toml", &rule(peers[0]))?,
        scene.file("target.toml", &rule(peers[1]))?,
    ];
    let storage = scene.subfolder("storage")?;
    let memory = scene.folder().join("memory");
    let dump = memory.to_str().context("a plain path")?;
    let guest = options
        .clone()
        .with(["--state", &states[0], "--policy", &policies[0], "--allow", &storage]);
    let mut source = hosts.guest(&guest)?;
    let rest = [
        "--state",
        &states[1],
        "--policy",
        &policies[1],
        "--storage",
        &storage,
        "--dump-ram",
        dump,
    ];
    let mut target = if secured {
        hosts.target(&rest)?
    } else {
        scene.receiver("target", &rest)?
    };
    let credentials = if secured { hosts.as_source(TARGET)? } else { vec![] };
    let arguments = words(
        &credentials,
        &["--verify", "--bandwidth", "32MB/s", "--storage", &storage],
    );
    let collector = Collector {
        storage: storage.as_ref(),
        into: scene.subfolder("kept")?.into(),
    };
    let over = AtomicBool::new(false);
    let to = target.listening()?.to_owned();
    let finished = thread::scope(|scope| {
        let collecting = scope.spawn(|| collector.collect(&over));
        let finished = scene
            .start_migration(&source, &to, strategy, &arguments)
            .and_then(|mut migration| migration.wait(2 * PATIENCE));
        over.store(true, Ordering::Release);
        collecting.join().expect("it does not panic")?;
        finished
    })?;
    if finished.code == Some(2) && !source.process.is_running() {
        return Ok((Verdict::HaltedBefore, 0));
    }
    let report = finished.json().with_context(|| format!("{strategy}: {finished}"))?;
    ensure!(report["outcome"] == "completed", "{strategy}: {finished}");
    expect_verified(&report)?;
    source.moved_away()?;
    expect_same_memory(options, &target.final_report()?)?;
    for (state, peer) in states.iter().zip(peers) {
        expect_signed(&scene.audited(state)?, &scene.audit_records(state)?, peer, secured)
            .with_context(|| format!("{strategy}: {state}"))?;
    }
    Ok((Verdict::InTime, collector.pages_seen(&memory)?))
}

/// The log has the hand-over, with both signatures.
fn expect_signed(audited: &Value, records: &[Value], peer: &str, secured: bool) -> anyhow::Result<()> {
    let commit = records
        .iter()
        .find(|record| record["event"] == "commit")
        .context("no commit is on record")?;
    ensure!(commit["peer"] == peer, "{commit}");
    let (parties, good) = if secured {
        ([Value::from(SOURCE), Value::from(TARGET)], 2)
    } else {
        ([Value::Null, Value::Null], 0)
    };
    let about = &commit["commit"];
    ensure!(
        [&about["source"], &about["target"]] == [&parties[0], &parties[1]],
        "{about}"
    );
    let signatures = &audited["signatures"];
    ensure!(
        signatures["good"] == good && signatures["bad"] == 0 && signatures["missing"] == 2 - good,
        "{audited}"
    );
    Ok(())
}

fn busy() -> GuestOptions {
    GuestOptions::new(Kind::best(), "uniform,rate=3000").with(["--fill", "random"])
}

fn by(strategy: &str, secured: bool, is_right: impl Fn(usize) -> bool) -> anyhow::Result<()> {
    with_enough_steps(&busy(), STEPS, |options| {
        let (verdict, seen) = moves(options, strategy, secured)?;
        if let Verdict::InTime = verdict {
            ensure!(is_right(seen), "{strategy}: {seen} pages show in the directory");
        }
        Ok(verdict)
    })
}

#[test]
fn the_oracle_passes_by_strategies_over_the_network() -> anyhow::Result<()> {
    for strategy in ["precopy", "postcopy", "hybrid:1", "as-hybrid", "markov-sdf:0.5"] {
        by(strategy, true, |seen| seen == 0)?;
    }
    Ok(())
}

#[test]
fn the_oracle_passes_by_strategies_over_the_directory_in_which_nothing_of_the_guest_shows() -> anyhow::Result<()> {
    for strategy in ["par-migrate", "pa-hybrid", "par-migrate,hold=hot,split=speed"] {
        by(strategy, true, |seen| seen == 0)?;
    }
    Ok(())
}

/// So that the search is known to find something where there is something.
#[test]
fn in_plain_the_directory_shows_the_guest() -> anyhow::Result<()> {
    by("par-migrate", false, |seen| seen > MOST_PAGES)
}
