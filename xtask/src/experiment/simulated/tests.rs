//! What is simulated comes out as published, and the same in parts.

use std::{fs, thread};

use super::*;

/// Two places, two arms, two seeds.
const TINY: &str = r#"
title = "A tiny guest"
repetitions = 2
calibration = "Fitted to nothing."
[guest]
workload = "uniform,rate=2000"
memory = "4MiB"
[link]
bandwidth = "40MB/s"
[limits]
downtime = "5ms"
[sweep]
memory = ["4MiB", "8MiB"]
[[arm]]
name = "1-hybrid"
strategy = "hybrid:1"
[[arm]]
name = "pre"
strategy = "precopy"
[[check]]
name = "pre takes longer"
value = "time"
arm = "pre"
by = "1-hybrid"
at_least = 1.0
paper = 1.1
why = "It need not."
[[figure]]
title = "Total time"
x = "memory"
y = "time"
paper = { "pre @ 8MiB" = 0.3 }
[[figure]]
title = "Rounds"
x = "round"
y = "sent_pages"
at = { memory = "8MiB" }
"#;

fn idle() -> Mutex<Progress> {
    Mutex::new(Progress::of_work(1.0))
}

fn simulated(folder: &Path, id: &str, seeds: Option<u32>) -> Simulated {
    let task = Task::read(folder, id, seeds).expect("a plan");
    let results = task.simulate(Shard::WHOLE, &idle()).expect("it can be simulated");
    task.with(results.into_iter().map(|(_, result)| result).collect())
}

/// A folder with a plan in it, called tiny.
fn tiny() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("tiny.toml"), TINY).expect("written");
    folder
}

/// A document of the tiny plan.
pub(in super::super) fn document() -> Document {
    let folder = tiny();
    simulated(folder.path(), "tiny", None).document().expect("a document")
}

#[test]
fn every_plan_can_be_read() {
    for id in ids().expect("there are plans") {
        Plan::read(&folder().join(format!("{id}.toml"))).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn the_comprehensive_comparison_comes_out_as_published() {
    let simulated = simulated(&folder(), "T5", Some(1));
    let checks = simulated.checks();
    let times: Vec<_> = checks
        .iter()
        .filter(|(_, check)| check.name.starts_with("R9"))
        .collect();
    assert_eq!(times.len(), 3);
    for (asked, check) in times {
        assert_eq!(check.met(), Some(true), "{}", asked.name);
    }
    let text = simulated.text();
    assert!(
        text.contains("R9 time, PA by 1-hybrid") && text.contains("0.768"),
        "{text}"
    );
    let document = simulated.document().expect("a document");
    assert_eq!(document.checks[0].met, Some(true));
    assert_eq!(to_csv(&simulated.results).lines().count(), 9);
    assert!(document.figures.len() >= 2 && document.figures[0].series[0].points.len() == 4);
}

/// All files of a folder with what is in them.
fn files(folder: &Path) -> Vec<(String, String)> {
    let names = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("a file").path());
    let mut files: Vec<_> = names
        .map(|path| (path.display().to_string(), fs::read_to_string(&path).expect("text")))
        .map(|(name, text)| (name.replace(&folder.display().to_string(), ""), text))
        .collect();
    files.sort();
    files
}

#[test]
fn parts_are_joined_to_the_same_bytes() {
    let plans = tiny();
    for seeds in [None, Some(3)] {
        let (whole, parts) = (
            tempfile::tempdir().expect("a folder"),
            tempfile::tempdir().expect("a folder"),
        );
        simulated(plans.path(), "tiny", seeds)
            .keep(whole.path(), true)
            .expect("kept");
        let known = vec!["tiny".to_owned()];
        report::write(whole.path(), &known).expect("written");

        for index in [2, 3, 1] {
            let task = Task::read(plans.path(), "tiny", seeds).expect("a plan");
            let shard = Shard { index, of: 3 };
            let results = task.simulate(shard, &idle()).expect("it can be simulated");
            shards::save(parts.path(), &task, shard, results).expect("kept");
        }
        let found = shards::find(parts.path()).expect("a folder");
        assert_eq!((found.len(), found["tiny"].len()), (1, 3));
        let joined = join(plans.path(), "tiny", &found["tiny"]).expect("all are there");
        joined.keep(parts.path(), true).expect("kept");
        report::write(parts.path(), &known).expect("written");

        let mut of_parts = files(parts.path());
        of_parts.retain(|(name, _)| !name.contains("shard"));
        let of_whole = files(whole.path());
        let names: Vec<&str> = of_whole.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["/report.html", "/tiny.csv", "/tiny.json", "/tiny.svg"]);
        for (one, other) in of_whole.iter().zip(&of_parts) {
            assert_eq!(one, other);
        }
        assert_eq!(of_whole.len(), of_parts.len());
    }
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let plans = tiny();
    let out = tempfile::tempdir().expect("a folder");
    let save = |seeds: Option<u32>, index: u32, of: u32| {
        let task = Task::read(plans.path(), "tiny", seeds).expect("a plan");
        let shard = Shard { index, of };
        let results = task.simulate(shard, &idle()).expect("it can be simulated");
        shards::save(out.path(), &task, shard, results).expect("kept");
    };
    let join_all = || {
        let found = shards::find(out.path()).expect("a folder");
        join(plans.path(), "tiny", &found["tiny"])
            .map(|_| ())
            .map_err(|error| format!("{error:#}"))
    };
    save(None, 1, 3);
    save(None, 3, 3);
    let error = join_all().expect_err("one is missing");
    assert!(
        error.contains("tiny.shard-2-of-3.json") && error.contains("missing"),
        "{error}"
    );
    save(None, 2, 2);
    let error = join_all().expect_err("another whole");
    assert!(error.contains("2-of-2") && error.contains("of 3"), "{error}");
    fs::remove_file(out.path().join("tiny.shard-2-of-2.json")).expect("removed");
    save(Some(3), 2, 3);
    let error = join_all().expect_err("other repetitions");
    assert!(error.contains("repetitions"), "{error}");

    save(None, 2, 3);
    assert_eq!(join_all(), Ok(()));
    let second = out.path().join("tiny.shard-2-of-3.json");
    fs::copy(&second, out.path().join("tiny.shard-02-of-3.json")).expect("copied");
    let error = join_all().expect_err("twice");
    assert!(error.contains("twice") && error.contains("shard-02-of-3"), "{error}");
    fs::remove_file(out.path().join("tiny.shard-02-of-3.json")).expect("removed");

    let text = fs::read_to_string(&second).expect("text");
    fs::write(&second, text.replacen("\"number\":1", "\"number\":4", 1)).expect("written");
    let error = join_all().expect_err("not what it should have");
    assert!(error.contains("migrations"), "{error}");
    fs::write(&second, "{}").expect("written");
    assert!(join_all().expect_err("no part").contains("shard-2-of-3"));

    fs::write(&second, &text).expect("written");
    fs::write(plans.path().join("tiny.toml"), TINY.replace("rate=2000", "rate=2001")).expect("written");
    let error = join_all().expect_err("another plan");
    assert!(error.contains("another plan"), "{error}");
}

/// The short form of all experiments, at full scale: every question gets an answer, every figure its marks.
#[test]
fn every_experiment_answers_all_its_questions() {
    let left = Mutex::new(ids().expect("there are plans"));
    let claims = Mutex::new(Vec::new());
    let next = || left.lock().expect("no panic").pop();
    let answer_all = || {
        while let Some(id) = next() {
            let answered = answers_all_its_questions(&id);
            claims.lock().expect("no panic").extend(answered);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(answer_all);
        }
    });
    // R12 is asked of real processes as well, see `experiment live`.
    let claims = claims.into_inner().expect("no panic");
    for claim in 1..=18 {
        assert!(claims.contains(&format!("R{claim}")), "nothing is asked about R{claim}");
    }
}

/// The claims that this experiment asks about.
fn answers_all_its_questions(id: &str) -> Vec<String> {
    let simulated = simulated(&folder(), id, Some(1));
    let mut claims = Vec::new();
    for (asked, check) in simulated.checks() {
        assert!(check.estimate.is_some(), "{id}: {}", asked.name);
        claims.extend(asked.name.split(' ').next().map(str::to_owned));
    }
    let document = simulated.document().expect("a document");
    assert!(!document.figures.is_empty(), "{id} draws nothing");
    for figure in &document.figures {
        assert!(
            figure.series.iter().any(|series| !series.points.is_empty()),
            "{id}: {}",
            figure.title
        );
    }
    claims
}
