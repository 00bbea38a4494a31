//! Plans that can be read, and those that cannot.

use super::*;

const PLAN: &str = r#"
title = "One round against two"
repetitions = 2

[guest]
workload = "uniform,rate=2000"
memory = "16MiB"

[link]
bandwidth = "40MB/s"

[limits]
downtime = "5ms"

[sweep]
memory = ["8MiB", "16MiB"]
bandwidth = ["20MB/s", "40MB/s"]

[[arm]]
name = "1-hybrid"
strategy = "hybrid:1"

[[arm]]
name = "PA"
strategy = "pa-hybrid"
"#;

fn parse(text: &str) -> Result<Plan, String> {
    Plan::parse(text, Path::new("x.toml")).map_err(|error| error.to_string())
}

#[test]
fn a_sweep_has_every_combination() {
    let plan = parse(PLAN).expect("a plan");
    let points = plan.points();
    let names: Vec<String> = points.iter().map(Point::to_string).collect();
    assert_eq!(points.len(), 8);
    assert_eq!(names[0], r#"arm "1-hybrid", memory = "8MiB", bandwidth = "20MB/s""#);
    assert_eq!(names[3], r#"arm "PA", memory = "8MiB", bandwidth = "40MB/s""#);
    assert_eq!(points[3].setup.storage_bandwidth, BytesPerSec(40_000_000), "it follows");
    let count = std::sync::atomic::AtomicU32::new(0);
    let done = || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    };
    let results = plan.run(Path::new("x.toml"), &done).expect("all can be simulated");
    assert_eq!(count.into_inner(), 16);
    for (result, name) in results.iter().zip(names) {
        assert_eq!((result.point.to_string(), result.results.len()), (name, 2));
        assert!(result.results.iter().all(|one| one.report.is_success()));
    }
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    for (from, to, line, words) in [
        (
            "downtime = \"5ms\"",
            "downtme = \"5ms\"",
            13,
            "expected one of `downtime`, `max_rounds`",
        ),
        (
            "bandwidth = \"40MB/s\"",
            "bandwidth = \"40\"",
            10,
            "write a size per second",
        ),
        (
            "bandwidth = \"40MB/s\"",
            "bandwidth = \"40Mb/s\"",
            10,
            "write B for bytes",
        ),
        ("memory = \"16MiB\"", "memory = 16", 7, "expected a string"),
        ("workload = \"uniform,rate=2000\"", "workload = \"unifrm\"", 6, "unifrm"),
        (
            "strategy = \"hybrid:1\"",
            "strategy = \"hybrd\"",
            21,
            "precopy, postcopy",
        ),
        ("[limits]", "[limit]", 12, "unknown field `limit`"),
    ] {
        let error = parse(&PLAN.replacen(from, to, 1)).expect_err(to);
        assert!(error.contains("x.toml") && error.contains(words), "{to}: {error}");
        assert!(error.contains(&format!("line {line}")), "{to}: {error}");
    }
    let error = parse(&PLAN.replace("repetitions = 2", "repetitions = 0")).expect_err("nothing");
    assert!(error.contains("repetitions = 0"), "{error}");
}

#[test]
fn a_check_asks_about_one_place() {
    let check = r#"
[[check]]
name = "PA is quicker"
value = "time"
arm = "PA"
by = "1-hybrid"
at = { memory = "8MiB", bandwidth = "40MB/s" }
at_most = 1.0
"#;
    let plan = parse(&format!("{PLAN}{check}")).expect("a plan");
    let results = plan.run(Path::new("x.toml"), &|| ()).expect("all can be simulated");
    let numbers = plan.check[0].numbers(&results);
    let time = |point: usize, seed: usize| results[point].results[seed].report.total_time_us as f64 / 1e6;
    assert_eq!(
        results[3].point.to_string(),
        r#"arm "PA", memory = "8MiB", bandwidth = "40MB/s""#
    );
    assert_eq!(
        numbers,
        [(time(3, 0), Some(time(2, 0))), (time(3, 1), Some(time(2, 1)))]
    );
    for (from, to, words) in [
        ("arm = \"PA\"\nby", "arm = \"AP\"\nby", "there are 1-hybrid, PA"),
        ("\"8MiB\", bandwidth", "\"9MiB\", bandwidth", "of memory, bandwidth"),
        ("value = \"time\"", "value = \"tme\"", "unknown variant `tme`"),
    ] {
        let error = parse(&format!("{PLAN}{}", check.replacen(from, to, 1))).expect_err(to);
        assert!(error.contains(words), "{to}: {error}");
    }
}

#[test]
fn a_point_that_cannot_be_is_named() {
    let plan = parse(&PLAN.replace("\"8MiB\", ", "\"5000B\", ")).expect("a plan");
    let error = plan
        .run(Path::new("x.toml"), &|| ())
        .expect_err("no whole pages")
        .to_string();
    assert!(error.contains("memory = \"5000B\""), "{error}");
}
