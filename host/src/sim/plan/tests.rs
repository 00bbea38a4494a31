//! Plans that can be read, and those that cannot.

use dunlin_core::units::BytesPerSec;

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

/// Its sweep.
const SWEEP: &str = r#"[sweep]
memory = ["8MiB", "16MiB"]
bandwidth = ["20MB/s", "40MB/s"]
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
        Numbers::Ratios(vec![(time(3, 0), time(2, 0)), (time(3, 1), time(2, 1))])
    );
    for (from, to, words) in [
        ("arm = \"PA\"\nby", "arm = \"AP\"\nby", "there are 1-hybrid, PA"),
        ("\"8MiB\", bandwidth", "\"9MiB\", bandwidth", "of memory, bandwidth"),
        ("value = \"time\"", "value = \"tme\"", "unknown variant `tme`"),
        (
            "by = \"1-hybrid\"",
            "by = [\"1-hybrid\", \"2\"]",
            "there is no arm \"2\"",
        ),
        ("by = \"1-hybrid\"", "by = []", "`by` has no arm"),
        (
            "by = \"1-hybrid\"",
            "difference = true",
            "`difference` needs another arm",
        ),
        ("by = \"1-hybrid\"", "best = \"bytes\"", "`best` chooses among the arms"),
        ("at_most = 1.0", "at_most = 1.0\nwithin = 2.0", "`within` belongs to"),
        ("at_most = 1.0", "fold = \"share\"", "write that"),
        ("at_most = 1.0", "fold = \"most\"", "one of `worst`, `mean`"),
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

/// The best of the arms at each place, and one number of all places for each seed.
#[test]
fn places_fold_and_the_best_of_several_is_found() {
    let check = r#"
[[check]]
name = "the worst of both places"
value = "time"
arm = "1-hybrid"
by = ["1-hybrid", "PA"]
at = { bandwidth = "40MB/s" }
fold = "worst"
"#;
    let plan = parse(&format!("{PLAN}{check}")).expect("a plan");
    let results = plan.run(Path::new("x.toml"), &|| ()).expect("all can be simulated");
    let time = |point: usize, seed: usize| results[point].results[seed].report.total_time_us as f64 / 1e6;
    // Places 2 and 3 are of 8 MiB, 6 and 7 of 16 MiB; of each pair the first is 1-hybrid.
    let expected = |seed| {
        let ratio = |one, other| time(one, seed) / time(one, seed).min(time(other, seed));
        f64::max(ratio(2, 3), ratio(6, 7))
    };
    assert_eq!(
        plan.check[0].numbers(&results),
        Numbers::Values(vec![expected(0), expected(1)])
    );
    let difference = PlanCheck {
        by: Some(By::Arm("PA".into())),
        difference: true,
        fold: None,
        ..plan.check[0].clone()
    };
    let expected = [(2, 3), (6, 7)].map(|(one, other)| [0, 1].map(|seed| time(one, seed) - time(other, seed)));
    assert_eq!(difference.numbers(&results), Numbers::Values(expected.concat()));
}

#[test]
fn a_case_changes_several_keys() {
    let cases = r#"
[[case]]
name = "small"
memory = "4MiB"
bandwidth = "10MB/s"

[[case]]
name = "busy"
workload = "seq,rate=9000"
vcpus = 2
"#;
    let plan = parse(&format!("{}{cases}", PLAN.replace(SWEEP, ""))).expect("a plan");
    let points = plan.points();
    let names: Vec<String> = points.iter().map(Point::to_string).collect();
    assert_eq!(
        names,
        [
            "arm \"1-hybrid\", case = \"small\"",
            "arm \"PA\", case = \"small\"",
            "arm \"1-hybrid\", case = \"busy\"",
            "arm \"PA\", case = \"busy\""
        ]
    );
    let [small, busy] = [&points[0].setup, &points[2].setup];
    assert_eq!(
        (small.memory.0, small.storage_bandwidth.0, small.vcpus),
        (4 << 20, 10_000_000, 1)
    );
    assert_eq!(
        (busy.memory.0, busy.storage_bandwidth.0, busy.vcpus),
        (16 << 20, 40_000_000, 2)
    );
    assert_eq!(busy.workload.to_string(), "seq,rate=9000");
}

/// What is observed for no other reason than to choose is chosen by the plan's goal.
#[test]
fn auto_is_an_arm_like_the_others() {
    let plan = PLAN
        .replace("repetitions = 2", "repetitions = 1\ngoal = \"weighted:bytes=1\"")
        .replace("\"pa-hybrid\"", "\"auto\"");
    let plan = parse(&plan).expect("a plan");
    let results = plan.run(Path::new("x.toml"), &|| ()).expect("all can be simulated");
    let choice = results[1].results[0].choice.as_deref().expect("auto chooses");
    assert!(choice.contains("postcopy"), "nothing is sent twice: {choice}");
    assert!(results[0].results[0].choice.is_none());
    let sampling = results[1].results[0].report.sampling.as_ref().expect("it observes");
    assert!((1_900_000..2_200_000).contains(&sampling.learning_us), "{sampling:?}");
    let error = parse(&PLAN.replace("repetitions = 2", "goal = \"quick\"")).expect_err("no goal");
    assert!(error.contains("line 3"), "{error}");
}

/// The time follows from the point, wherever in the plan memory and bandwidth are said.
#[test]
fn auto_observes_as_long_as_a_copy_takes_unless_told() {
    let plan = PLAN
        .replace("\"8MiB\", ", "\"400MB\", ")
        .replace("\"pa-hybrid\"", "\"auto\"");
    let observed = |text: &str| -> Vec<Nanos> {
        let points = parse(text).expect("a plan").points().into_iter();
        points.map(|point| point.setup.learning).collect()
    };
    let secs = Nanos::from_secs;
    assert_eq!(
        observed(&plan),
        [8, 8, 8, 8, 8, 2, 8, 2].map(secs),
        "the other arm has what it had"
    );
    let faster = plan.replace("\"20MB/s\"", "\"80MB/s\"");
    assert_eq!(observed(&faster)[1], secs(5), "400 MB over 80 MB/s");
    let case = "[[case]]\nname = \"a\"\nmemory = \"400MB\"\nbandwidth = \"100MB/s\"\n";
    let case = PLAN.replace(SWEEP, case).replace("\"pa-hybrid\"", "\"auto\"");
    assert_eq!(observed(&case), [8, 4].map(secs));
    let of_all = faster.replace("[limits]", "[limits]\nprofile = \"700ms\"");
    assert_eq!(observed(&of_all), [Nanos::from_millis(700); 8]);
    let of_arm = faster.replace("\"auto\"", "\"auto\"\nprofile = \"1s\"");
    assert_eq!(observed(&of_arm)[1], secs(1));
}

/// A single round has no fifth one.
#[test]
fn a_number_that_is_missing_is_not_left_out() {
    let check = "\n[[check]]\nname = \"fifth\"\nvalue = \"round_5\"\narm = \"1-hybrid\"\n";
    for fold in ["", "fold = \"mean\"\n"] {
        let plan = parse(&format!("{PLAN}{check}{fold}")).expect("a plan");
        let results = plan.run(Path::new("x.toml"), &|| ()).expect("all can be simulated");
        assert_eq!(plan.check[0].numbers(&results), Numbers::Values(vec![]));
    }
}
