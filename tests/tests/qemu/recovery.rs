//! Another way is taken in post-copy when the first one is gone for good.

use anyhow::ensure;
use dunlin_tests::wire::Mode;

use super::pair::{PATIENCE, Pair, can_run, config, expected};

#[test]
fn the_next_path_serves_when_the_first_one_is_gone() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    for (mode, before) in [
        (Mode::Cut, ""),
        (Mode::Silent, ""),
        // At this place nobody can listen.
        (Mode::Cut, "unix:/nowhere/at/all,"),
    ] {
        let mut pair = Pair::new(&config())?;
        let second = format!("unix:{}", pair.scene.folder().join("second").display());
        let places = format!("{before}{second}");
        let more = [
            "--postcopy-bandwidth",
            "12MB/s",
            "--network-timeout",
            "2s",
            "--recover",
            &places,
        ];
        let mut migration = pair.start("migrate", "postcopy", &more)?;
        pair.wait_until_it_runs_on_the_target()?;
        pair.wire.set(mode)?;
        let finished = migration.wait(PATIENCE)?;
        ensure!(finished.code == Some(0), "{mode:?} {before}: {finished}");
        let report = finished.json()?;
        ensure!(
            report["outcome"] == "completed"
                && report["guest_is_on"] == "target"
                && report["postcopy"]["recoveries"].as_u64() >= Some(1),
            "{mode:?} {before}: {report}"
        );
        ensure!(finished.stderr.contains(&second), "{mode:?} {before}: {finished}");
        ensure!(
            pair.target.result()? == expected()?,
            "{mode:?} {before}: the memory differs: {report}"
        );
    }
    Ok(())
}
