//! The storage channel, live: whatever is wrong with the shared directory, the guest arrives whole over the network.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use dunlin_tests::folder::{is_empty, wait_for_file};
use dunlin_tests::mount::SmallFolder;
use dunlin_tests::oracle::{Verdict, expect_same_memory, expect_verified, with_enough_steps};
use dunlin_tests::process::Finished;
use dunlin_tests::scene::{GuestOptions, Host, Kind, PATIENCE, Scene};
use dunlin_tests::{Capability, require};
use rustix::process::Signal;
use serde_json::Value;

const WORKLOAD: &str = "uniform,rate=6000";
const STEPS: u64 = 20_000;
/// Bytes of the 32 MiB that are not zero are at least so many.
const MOST_OF_MEMORY: u64 = 30 << 20;
/// The static copy of 32 MiB takes a second, all of it over the network not much longer.
const LINKS: [&str; 5] = ["--verify", "--bandwidth", "32MB/s", "--storage-bandwidth", "32MB/s"];

/// A guest at its source, and a receiver that knows a storage directory.
struct Story {
    source: Host,
    target: Host,
    scene: Scene,
}

/// Moves a guest by `par-migrate` with these directories at the source and at the target, does something on the way, and
/// compares its memory in the end.
fn arrives(
    storage: impl Fn(&Scene) -> anyhow::Result<[PathBuf; 2]>,
    on_the_way: impl Fn(&mut Story, &[PathBuf; 2]) -> anyhow::Result<()>,
    expect: impl Fn(&Story, &Finished, &Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let options = GuestOptions::new(Kind::best(), WORKLOAD).with(["--fill", "random"]);
    with_enough_steps(&options, STEPS, |options| {
        let scene = Scene::new()?;
        let folders = storage(&scene)?;
        let [of_source, of_target] = folders.each_ref().map(|path| path.to_string_lossy().into_owned());
        let source = scene.guest("source", options)?;
        let target = scene.receiver("target", &["--storage", &of_target])?;
        let to = target.listening()?.to_owned();
        let mut story = Story { source, target, scene };
        let arguments = [&LINKS[..], &["--storage", &of_source]].concat();
        let mut migration = story
            .scene
            .start_migration(&story.source, &to, "par-migrate", &arguments)?;
        on_the_way(&mut story, &folders)?;
        let finished = migration.wait(PATIENCE)?;
        if story.scene.status(&story.target).is_err() {
            return Ok(Verdict::HaltedBefore);
        }
        let report = finished.json()?;
        ensure!(report["outcome"] == "completed", "it should go on without: {finished}");
        expect_verified(&report)?;
        story.source.moved_away()?;
        expect(&story, &finished, &report)?;
        expect_same_memory(options, &story.target.final_report()?)?;
        Ok(Verdict::InTime)
    })
}

fn one(scene: &Scene) -> anyhow::Result<[PathBuf; 2]> {
    let folder = PathBuf::from(scene.subfolder("storage")?);
    Ok([folder.clone(), folder])
}

fn nothing(_: &mut Story, _: &[PathBuf; 2]) -> anyhow::Result<()> {
    Ok(())
}

/// Everything went over the network, and whoever noticed said why.
fn expect_fallback(report: &Value, host: &Host, why: &str) -> anyhow::Result<()> {
    let network = report["bytes"]["migration"].as_u64().unwrap_or(0);
    ensure!(
        network >= MOST_OF_MEMORY,
        "not all pages went over the network: {report}"
    );
    host.process.wait_for_words(why, PATIENCE)
}

#[test]
fn nothing_is_left_in_the_directory() -> anyhow::Result<()> {
    arrives(one, nothing, |story, _, report| {
        let storage = report["bytes"]["storage"].as_u64().unwrap_or(0);
        ensure!(
            storage >= MOST_OF_MEMORY,
            "the memory did not go through the directory: {report}"
        );
        let folder = PathBuf::from(story.scene.subfolder("storage")?);
        ensure!(is_empty(&folder)?, "segments are left in {}", folder.display());
        Ok(())
    })
}

#[test]
fn a_full_directory_is_given_up() -> anyhow::Result<()> {
    if !require(Capability::Root) {
        return Ok(());
    }
    let full = SmallFolder::new(8 << 20)?;
    let place = || [full.path().to_owned(), full.path().to_owned()];
    arrives(
        |_| Ok(place()),
        nothing,
        |story, _, report| expect_fallback(report, &story.source, "is full: make room there"),
    )?;
    ensure!(is_empty(full.path())?, "what fitted is left behind");
    Ok(())
}

#[test]
fn a_read_only_directory_is_given_up() -> anyhow::Result<()> {
    if !require(Capability::Root) {
        return Ok(());
    }
    let folder = SmallFolder::new(64 << 20)?;
    folder.make_read_only()?;
    let place = || [folder.path().to_owned(), folder.path().to_owned()];
    arrives(
        |_| Ok(place()),
        nothing,
        |story, _, report| expect_fallback(report, &story.source, "cannot be written to"),
    )
}

/// Noticed within seconds, and said on both sides and in the report.
#[test]
fn two_directories_are_not_one() -> anyhow::Result<()> {
    arrives(
        |scene| Ok([scene.subfolder("one")?.into(), scene.subfolder("another")?.into()]),
        nothing,
        |story, _, report| {
            expect_fallback(report, &story.target, "was made by the source and does not appear here")?;
            let warning = report["warnings"][0].as_str().unwrap_or_default();
            ensure!(
                warning.contains("whether both hosts mount the same directory"),
                "{report}"
            );
            Ok(())
        },
    )
}

/// Cut short, as by a disk that lost what it had promised to keep.
#[test]
fn a_torn_segment_is_given_up() -> anyhow::Result<()> {
    arrives(
        // The target sees the source's directory only once the segment is torn.
        |scene| {
            Ok([
                scene.subfolder("at-source")?.into(),
                scene.subfolder("at-target")?.into(),
            ])
        },
        |_, [source, target]| {
            let segment = wait_for_file(source, ".segment")?;
            let bytes = fs::read(&segment)?;
            let session = segment.parent().and_then(Path::file_name).expect("a session's folder");
            let copy = target.join(session);
            fs::create_dir(&copy)?;
            let name = segment.file_name().expect("a file");
            let unfinished = copy.join("torn");
            fs::write(&unfinished, &bytes[..bytes.len() / 2])?;
            Ok(fs::rename(unfinished, copy.join(name))?)
        },
        |story, _, report| expect_fallback(report, &story.target, "is damaged"),
    )
}

#[test]
fn a_target_without_the_directory_says_what_it_lacks() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let storage = scene.subfolder("storage")?;
    let source = scene.guest("source", &GuestOptions::new(Kind::best(), "idle"))?;
    let target = scene.receiver("target", &[])?;
    let to = target.listening()?.to_owned();
    let refused = scene
        .start_migration(&source, &to, "par-migrate", &["--storage", &storage])?
        .wait(PATIENCE)?;
    ensure!(refused.code == Some(1), "{refused}");
    ensure!(
        refused.to_string().contains("start `dunlin receive` with --storage"),
        "{refused}"
    );
    let unasked = scene
        .start_migration(&source, &to, "par-migrate", &[])?
        .wait(PATIENCE)?;
    ensure!(unasked.code == Some(2), "{unasked}");
    ensure!(
        unasked.stderr.contains("needs a directory that both hosts mount"),
        "{unasked}"
    );
    Ok(())
}

#[test]
fn a_cancelled_copy_leaves_nothing_and_the_guest_moves_later() -> anyhow::Result<()> {
    let options = GuestOptions::new(Kind::best(), WORKLOAD).with(["--fill", "random"]);
    with_enough_steps(&options, STEPS, |options| {
        let scene = Scene::new()?;
        let storage = scene.subfolder("storage")?;
        let mut source = scene.guest("source", options)?;
        let target = scene.receiver("target", &["--storage", &storage])?;
        let to = target.listening()?.to_owned();
        let slow = [
            "--storage",
            &storage,
            "--storage-bandwidth",
            "4MB/s",
            "--network-timeout",
            "10m",
        ];
        let mut migration = scene.start_migration(&source, &to, "par-migrate", &slow)?;
        wait_for_file(Path::new(&storage), ".unfinished")?;
        migration.signal(Signal::INT)?;
        let finished = migration.wait(PATIENCE)?;
        ensure!(finished.json()?["outcome"] == "cancelled", "{finished}");
        ensure!(
            is_empty(Path::new(&storage))?,
            "the cancelled copy is left in {storage}"
        );
        if scene.status(&source).is_err() {
            return Ok(Verdict::HaltedBefore);
        }
        let mut next = scene.receiver("next", &["--storage", &storage])?;
        let again = ["--verify", "--storage", &storage];
        expect_verified(&scene.migrate(&source, &next, "par-migrate", &again)?)?;
        source.moved_away()?;
        expect_same_memory(options, &next.final_report()?)?;
        Ok(Verdict::InTime)
    })
}
