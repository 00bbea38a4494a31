//! The order in which one migration saw pages asked for, and another that pushes by it.

use std::fs;

use anyhow::ensure;
use dunlin_tests::oracle::{Verdict, expect_same_memory, expect_verified, with_enough_steps};
use dunlin_tests::scene::{GuestOptions, Kind, PATIENCE, Scene};
use dunlin_tests::{Capability, require};

const STEPS: u64 = 20_000;

#[test]
fn the_order_of_one_migration_is_that_of_the_next() -> anyhow::Result<()> {
    if !require(Capability::Uffd) {
        return Ok(());
    }
    let options = GuestOptions::new(Kind::best(), "seq,rate=6000").with(["--fill", "random"]);
    with_enough_steps(&options, STEPS, |options| {
        let scene = Scene::new()?;
        let order = scene.folder().join("order");
        let path = order.to_string_lossy();
        let run = |name: &str, strategy: &str, extra: &[&str]| -> anyhow::Result<serde_json::Value> {
            let mut source = scene.guest(&format!("{name}-source"), options)?;
            let mut target = scene.receiver(&format!("{name}-target"), &[])?;
            let arguments = [&["--bandwidth", "16MB/s", "--verify"], extra].concat();
            let report = scene.migrate(&source, &target, strategy, &arguments)?;
            expect_verified(&report)?;
            source.moved_away()?;
            expect_same_memory(options, &target.final_report()?)?;
            Ok(report)
        };
        let first = run("first", "postcopy", &["--record-order", &path])?;
        let faults = first["postcopy"]["faults"].as_u64().unwrap_or(0);
        if faults == 0 {
            return Ok(Verdict::HaltedBefore);
        }
        let text = fs::read_to_string(&order)?;
        let pages = text.lines().filter(|line| !line.starts_with('#')).count() as u64;
        ensure!(pages >= faults, "{pages} pages are recorded of {faults} faults");
        let second = run("second", &format!("postcopy,push=recorded:{path}"), &[])?;
        ensure!(
            second["strategy"]
                .as_str()
                .is_some_and(|text| text.contains("push=recorded")),
            "{second}"
        );
        Ok(Verdict::InTime)
    })
}

#[test]
fn an_order_that_cannot_be_read_is_refused() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let source = scene.guest("source", &GuestOptions::new(Kind::Thread, "idle"))?;
    let order = scene.folder().join("order");
    fs::write(&order, "1\n2\nthree\n")?;
    let nowhere = scene.folder().join("nowhere");
    for (strategy, words) in [
        (
            format!("postcopy,push=recorded:{}", order.display()),
            ["line 3", "three"],
        ),
        (
            format!("postcopy,push=recorded:{}", nowhere.display()),
            ["nowhere", "cannot read"],
        ),
        (
            "postcopy,push=recorded".to_owned(),
            ["push=recorded:FILE", "--record-order"],
        ),
    ] {
        let refused = scene
            .start_migration(&source, "127.0.0.1:1", &strategy, &[])?
            .wait(PATIENCE)?;
        ensure!(refused.code == Some(2), "{refused}");
        ensure!(words.iter().all(|word| refused.stderr.contains(word)), "{refused}");
    }
    Ok(())
}
