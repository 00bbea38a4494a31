//! `dunlin report` and `dunlin predict` as a person or a script meets them.

use std::fs;
use std::path::Path;

use dunlin::report::{MigrationReport, Outcome};
use dunlin::trace::TraceWriter;
use dunlin_core::message::{Region, Regions};
use dunlin_core::tracefile::{Head, Item, Source};
use dunlin_core::units::{Gfn, Nanos, Pages};
use dunlin_core::workload::{Generator, Spec};
use serde_json::Value;

use super::play::{dunlin, json, on_terminal, run};

const PAGES: u64 = 4096;

/// What a guest of two vCPUs writes in two seconds at 10 000 pages a second.
fn items(spec: &str) -> Vec<Item> {
    let spec: Spec = spec.parse().unwrap();
    let mut vcpus: Vec<_> = (0..2)
        .map(|vcpu| Generator::new(&spec, Pages(PAGES), 2, vcpu, 1).unwrap())
        .collect();
    let writes = (0..20_000u64).map(|step| Item::Write {
        at: Nanos::from_micros(100 * step),
        vcpu: (step % 2) as u32,
        gfn: Gfn(vcpus[(step % 2) as usize].next().unwrap().page),
    });
    let mut items: Vec<Item> = writes.collect();
    items.push(Item::End {
        at: Nanos::from_secs(2),
        overhead: Nanos::from_millis(2),
    });
    items
}

fn write(path: &Path, items: &[Item]) {
    let mut regions = Regions::new();
    let region = Region {
        first: Gfn(0),
        pages: Pages(PAGES),
    };
    regions.push(region).unwrap();
    let head = Head {
        source: Source::Generator,
        regions,
        used: Pages(PAGES),
        vcpus: 2,
        window: Nanos::ZERO,
        started_unix_ns: 0,
        guest: "web-1".try_into().unwrap(),
    };
    let mut writer = TraceWriter::create(path, &head).unwrap();
    items.iter().for_each(|item| writer.push(item).unwrap());
    writer.finish().unwrap();
}

/// A folder with traces of these workloads.
fn folder(specs: &[(&str, &str)]) -> (tempfile::TempDir, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let paths = specs.iter().map(|(name, spec)| {
        let path = folder.path().join(name);
        write(&path, &items(spec));
        path.to_str().unwrap().to_owned()
    });
    let paths = paths.collect();
    (folder, paths)
}

#[test]
fn a_trace_is_reported_as_table_json_and_page() {
    let (folder, paths) = folder(&[("a.dtrace", "hotset:0.1")]);
    let trace = paths[0].as_str();
    let ran = run(["report", trace]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    for part in [
        "web-1: 16.0 MiB, 2 vCPUs",
        "0 lost",
        "hot-cold",
        "tracing took 2.00 ms",
        "Working set by window",
        "50.0 %",
    ] {
        assert!(ran.stdout.contains(part), "{part}: {ran:?}");
    }
    assert!(!ran.stdout.contains(['\x1b', '█']), "no pictures into a pipe: {ran:?}");
    let page = folder.path().join("report.html");
    let page_path = page.to_str().unwrap();
    let ran = run(["report", trace, "--json", "-o", page_path]);
    let report = json(&ran);
    assert_eq!(
        (report["schema"].as_str(), report["source"].as_str()),
        (Some("dunlin.report.v1"), Some("generator"))
    );
    assert_eq!((&report["events"], &report["lost_events"]), (&20_000.into(), &0.into()));
    assert_eq!(report["overhead"]["per_event_ns"], 100);
    assert!(fs::read_to_string(&page).unwrap().contains("Where and when it writes"));
    let ran = run(["report", trace, "-o", page_path]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), ""),
        "the page is the result: {ran:?}"
    );
    let seen = on_terminal(dunlin(["report", trace]).env("TERM", "xterm"));
    assert!(
        seen.contains('█') && seen.contains("events per second and page"),
        "{seen:?}"
    );
}

#[test]
fn charts_and_the_order_of_first_writes_are_files() {
    let (folder, paths) = folder(&[("a.dtrace", "seq"), ("b.dtrace", "seq")]);
    let place = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (svg, order) = (place("svg"), place("order"));
    let ran = run(["report", &paths[0], "--svg", &svg, "--first-touch", &order]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for chart in [
        "rate",
        "working-set",
        "heat",
        "intervals",
        "first-writes",
        "vcpus",
        "sharing",
    ] {
        let text = fs::read_to_string(Path::new(&svg).join(chart).with_extension("svg")).unwrap();
        assert!(text.starts_with("<svg") && text.contains("xmlns="), "{chart}");
    }
    let pages: Vec<u64> = fs::read_to_string(&order)
        .unwrap()
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(pages.len() as u64, PAGES);
    assert_eq!(pages[..4], [0, PAGES / 2, 1, PAGES / 2 + 1], "vCPUs in turn");
    let both = run(["report", &paths[0], &paths[1], "--first-touch", &order]);
    assert!(
        both.code == Some(2) && both.stderr.contains("for one trace"),
        "{both:?}"
    );
}

#[test]
fn several_files_are_compared_and_migrations_shown() {
    let (folder, paths) = folder(&[("a.dtrace", "seq"), ("b.dtrace", "seq"), ("c.dtrace", "uniform")]);
    let migration = folder.path().join("m.json");
    let report = MigrationReport::new("hybrid:1", Outcome::Completed);
    fs::write(&migration, serde_json::to_string(&report).unwrap()).unwrap();
    let migration = migration.to_str().unwrap();
    let all = [
        &["report"][..],
        &paths.iter().map(String::as_str).collect::<Vec<_>>()[..],
        &[migration],
    ]
    .concat();
    let ran = run([&all[..], &["--json"]].concat());
    let lines: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let schemas: Vec<_> = lines.iter().map(|line| line["schema"].as_str().unwrap()).collect();
    let traces = ["dunlin.report.v1"; 3];
    assert_eq!(
        schemas,
        [&traces[..], &["dunlin.migration.v1", "dunlin.similarity.v1"]].concat()
    );
    let pairs = lines[4]["pairs"].as_array().unwrap();
    assert_eq!(
        (&pairs[0]["jaccard_milli"], &pairs[0]["order_milli"]),
        (&1000.into(), &1000.into())
    );
    let chance = pairs[1]["order_milli"].as_u64().unwrap();
    assert!((450..550).contains(&chance), "{pairs:?}");
    let ran = run(all);
    assert!(
        ran.stdout.contains("Between runs") && ran.stdout.contains("Migration by hybrid:1 completed"),
        "{ran:?}"
    );
}

#[test]
fn traces_that_were_cut_off_damaged_or_written_by_others_are_reported() {
    let (folder, paths) = folder(&[("a.dtrace", "seq")]);
    let bytes = fs::read(&paths[0]).unwrap();
    let place = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let cut = json(&run(["report", "--json", &place("cut", &bytes[..bytes.len() / 2])]));
    assert_eq!((&cut["complete"], &cut["overhead"]), (&false.into(), &Value::Null));
    assert!(cut["notes"][0].as_str().unwrap().starts_with("cut off after"), "{cut}");
    let mut wrong = bytes.clone();
    wrong[bytes.len() / 2] ^= 1;
    let ran = run(["report", "--json", &place("damaged", &wrong)]);
    let damaged = json(&ran);
    assert!(ran.stderr.contains("warning: ") && ran.code == Some(0), "{ran:?}");
    assert_eq!(damaged["lost_events"], Value::Null);
    let csv = place("a.csv", b"at_ms,gfn\n0,5\n1,6\n2,5\n");
    let imported = json(&run(["report", "--json", &csv]));
    assert_eq!(
        (&imported["source"], &imported["guest"]["written_pages"]),
        (&"imported".into(), &2.into())
    );
    for (name, bytes, words) in [
        ("none", &b""[..], "none"),
        (
            "newer.json",
            b"{\"schema\":\"dunlin.migration.v1\",\"rounds\":7}",
            "no report of a migration",
        ),
    ] {
        let ran = run(["report", &place(name, bytes)]);
        assert!(ran.code == Some(2) && ran.stderr.contains(words), "{ran:?}");
    }
    let ran = run(["report", "/nowhere/a.dtrace"]);
    assert!(
        ran.code == Some(2) && ran.stderr.contains("cannot read /nowhere/a.dtrace"),
        "{ran:?}"
    );
}

#[test]
fn every_strategy_is_predicted_over_every_link() {
    let (folder, paths) = folder(&[("a.dtrace", "uniform")]);
    let page = folder.path().join("prediction.html");
    let ask = [
        "predict",
        "--trace",
        &paths[0],
        "--bandwidth",
        "20MB/s,500MB/s",
        "--starts",
        "2",
    ];
    let ran = run([
        &ask[..],
        &["--goal", "downtime<50ms", "--json", "-o", page.to_str().unwrap()],
    ]
    .concat());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report = json(&ran);
    assert_eq!(
        (report["schema"].as_str(), report["goal"].as_str()),
        (Some("dunlin.prediction.v1"), Some("downtime<50ms"))
    );
    let links = report["links"].as_array().unwrap();
    assert_eq!(links[0]["bandwidth_bytes_per_s"], 20_000_000);
    let strategies: Vec<_> = links[1]["strategies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["strategy"])
        .collect();
    assert!(
        strategies.contains(&&"precopy".into()) && strategies.contains(&&"postcopy".into()),
        "{strategies:?}"
    );
    assert!(!ran.stdout.contains("parallel"), "there is no storage: {ran:?}");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("What a migration would cost") && page.contains("Dirty rate over time"));
    // 10 000 pages a second over a link of less than 5 000.
    let one = &ask[..5];
    let ran = run([
        &["predict", "--trace", &paths[0], "--bandwidth", "20MB/s"][..],
        &["--strategy", "precopy"][..],
    ]
    .concat());
    assert!(ran.code == Some(1) && ran.stdout.contains("forced stop"), "{ran:?}");
    let with_storage = run([one, &["--storage-bandwidth", "100MB/s", "--starts", "1"]].concat());
    assert!(with_storage.stdout.contains("first=parallel"), "{with_storage:?}");
    let nothing = folder.path().join("nothing.dtrace");
    write(&nothing, &[]);
    let ran = run(["predict", "--trace", nothing.to_str().unwrap()]);
    assert!(
        ran.code == Some(2) && ran.stderr.contains("nothing was recorded"),
        "{ran:?}"
    );
}
