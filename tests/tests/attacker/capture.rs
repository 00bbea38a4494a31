//! Guests arrive whole, and nothing of them shows on the way.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dunlin::channel::{Direction, FaultProxy};
use dunlin_tests::oracle::{Verdict, expect_same_memory, expect_verified, with_enough_steps};
use dunlin_tests::scene::{GuestOptions, PATIENCE};
use dunlin_tests::tap::Tap;

use super::hosts::{Hosts, TARGET, busy_guest, words};

const STEPS: u64 = 20_000;
const PAGE_BYTES: usize = 4096;
/// Bytes of the guest's 32 MiB that are not zero are at least so many, and pages.
const MOST_OF_MEMORY: usize = 28 << 20;
const MOST_PAGES: usize = 7000;
/// Bytes of a page that nothing overwrites: as the guest's memory was filled at random.
const FILLED_AT: usize = 1024;
/// Enough not to be met by chance in all that is sent.
const NEEDLE_BYTES: usize = 16;
/// The first of a page's stamps, of the only vCPU.
const STAMP_AT: usize = 0;
const STAMP_BYTES: usize = 8;

/// How many different pages of the guest show in what was heard, by what they were filled with and by their stamps.
fn pages_heard(memory: &Path, tap: &Tap) -> anyhow::Result<[usize; 2]> {
    let memory = fs::read(memory)?;
    let pages = || memory.chunks_exact(PAGE_BYTES);
    let filled: HashSet<&[u8]> = pages().map(|page| &page[FILLED_AT..FILLED_AT + NEEDLE_BYTES]).collect();
    let stamps: HashSet<&[u8]> = pages().map(|page| &page[STAMP_AT..STAMP_AT + STAMP_BYTES]).collect();
    ensure!(
        filled.len() > MOST_PAGES && stamps.len() > 1024,
        "the guest's memory is no random one"
    );
    let heard = tap.heard();
    let streams = || heard.iter().flatten();
    let found = |needles: &HashSet<&[u8]>, bytes: usize| {
        let found = streams()
            .flat_map(|stream| stream.windows(bytes))
            .filter_map(|window| needles.get(window));
        found.collect::<HashSet<_>>().len()
    };
    Ok([found(&filled, NEEDLE_BYTES), found(&stamps, STAMP_BYTES)])
}

/// Moves a guest past a tap and compares its memory with that of a guest that stayed; what was heard of it.
fn move_past_a_tap(options: &GuestOptions, strategy: &str, secured: bool) -> anyhow::Result<Option<[usize; 2]>> {
    let hosts = Hosts::new()?;
    let memory = hosts.scene.folder().join("memory");
    let dump = ["--dump-ram", memory.to_str().context("a plain path")?];
    let mut source = hosts.guest(options)?;
    let mut target = if secured {
        hosts.target(&dump)?
    } else {
        hosts.scene.receiver("target", &dump)?
    };
    let tap = Tap::start(target.listening()?)?;
    let credentials = if secured { hosts.as_source(TARGET)? } else { vec![] };
    let arguments = words(&credentials, &["--verify", "--bandwidth", "64MB/s"]);
    let to = tap.address().to_string();
    let finished = hosts
        .scene
        .start_migration(&source, &to, strategy, &arguments)?
        .wait(2 * PATIENCE)?;
    if finished.code == Some(2) && !source.process.is_running() {
        // It had halted.
        return Ok(None);
    }
    let report = finished.json().with_context(|| format!("{strategy}: {finished}"))?;
    ensure!(report["outcome"] == "completed", "{strategy}: {finished}");
    expect_verified(&report)?;
    source.moved_away()?;
    let final_report = target.final_report()?;
    expect_same_memory(options, &final_report)?;
    let heard: usize = tap.heard().iter().map(|[there, _]| there.len()).sum();
    ensure!(
        heard > MOST_OF_MEMORY,
        "the guest went another way: {heard} bytes passed"
    );
    pages_heard(&memory, &tap).map(Some)
}

fn heard_of(strategy: &str, secured: bool, is_right: impl Fn([usize; 2]) -> bool) -> anyhow::Result<()> {
    with_enough_steps(&busy_guest(), STEPS, |options| {
        match move_past_a_tap(options, strategy, secured)? {
            None => Ok(Verdict::HaltedBefore),
            Some(heard) => {
                ensure!(is_right(heard), "{strategy}: filled pages and stamps heard: {heard:?}");
                Ok(Verdict::InTime)
            }
        }
    })
}

/// So that the search is known to find something where there is something.
#[test]
fn in_plain_a_tap_hears_the_guest() -> anyhow::Result<()> {
    heard_of("hybrid:1", false, |[filled, stamps]| {
        filled > MOST_PAGES && stamps > 100
    })
}

#[test]
fn by_tls_a_tap_hears_nothing_of_a_guest_in_pre_copy() -> anyhow::Result<()> {
    heard_of("precopy", true, |heard| heard == [0, 0])
}

#[test]
fn by_tls_a_tap_hears_nothing_of_a_guest_in_post_copy() -> anyhow::Result<()> {
    heard_of("hybrid:1", true, |heard| heard == [0, 0])
}

/// Both channels are made again, and both prove to belong to the session.
#[test]
fn a_cut_in_post_copy_is_mended() -> anyhow::Result<()> {
    with_enough_steps(&busy_guest(), STEPS, |options| {
        let hosts = Hosts::new()?;
        let mut source = hosts.guest(options)?;
        let mut target = hosts.target(&[])?;
        let proxy = FaultProxy::start(&"127.0.0.1:0".parse()?, &target.listening()?.parse()?, vec![])?;
        let credentials = hosts.as_source(TARGET)?;
        let arguments = words(&credentials, &["--verify", "--bandwidth", "16MB/s"]);
        let to = proxy.address().to_string();
        let mut migration = hosts.scene.start_migration(&source, &to, "postcopy", &arguments)?;
        for _ in 0..2 {
            hosts
                .scene
                .poll_status(&mut target, |status| status["state"] == "post-copy")?;
            let passed = proxy.passed(Direction::Forward);
            proxy.cut();
            wait_for(|| proxy.passed(Direction::Forward) > passed + (1 << 20))?;
        }
        let finished = migration.wait(2 * PATIENCE)?;
        let report = finished.json()?;
        ensure!(report["outcome"] == "completed", "the cut should be mended: {finished}");
        expect_verified(&report)?;
        source.moved_away()?;
        expect_same_memory(options, &target.final_report()?)?;
        Ok(Verdict::InTime)
    })
}

fn wait_for(is_so: impl Fn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        ensure!(Instant::now() < deadline, "nothing happens");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
