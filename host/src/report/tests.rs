//! The documents of traces and predictions are contracts; their page needs nothing beside itself.

use serde_json::{Value, json};

use super::html::{PageParts, trace_page};
use super::*;

/// A small trace of two vCPUs with all there can be.
pub(super) fn trace() -> TraceReport {
    TraceReport {
        schema: ReportSchema,
        source: "ebpf:kvm_dirty_ring_push".into(),
        lost_events: Some(0),
        overhead: Some(TraceOverhead {
            cpu_us: 120,
            of_one_cpu_milli: 1,
            per_event_ns: Some(60),
        }),
        rate: Some(RateReport {
            windows: RateWindows {
                window_us: 100_000.0,
                windows: 2,
                mean_pages_per_s: 10_000.5,
                mean_bytes_per_s: 40_962_048.0,
                variance: 2.25,
                stddev_pages_per_s: 1.5,
                min_pages_per_s: 9_999.0,
                max_pages_per_s: 10_002.0,
            },
            series: vec![RatePoint {
                at_us: 0,
                duration_us: 200_000,
                pages_per_s: 10_000.5,
                peak_pages_per_s: 10_002.0,
            }],
            other_windows: vec![],
            events_per_s: 12_000.0,
        }),
        wws: vec![
            WwsPoint {
                window_us: 1_000,
                pages: 10,
                pages_high: 12,
            },
            WwsPoint {
                window_us: 200_000,
                pages: 1_000,
                pages_high: 1_000,
            },
        ],
        intervals: Some(IntervalReport {
            count: 1_400,
            median_ns: 63,
            p90_ns: 95,
            p99_ns: 111,
            resolved_from_ns: 50_000_000,
            buckets: vec![IntervalBucket {
                from_ns: 56,
                to_ns: 63,
                count: 1_400,
            }],
        }),
        heat: Some(HeatReport {
            column_us: 100_000,
            row_pages: 16,
            row_addresses: vec![0x1000, 0x11000],
            end_address: 0x21000,
            columns: vec![vec![3, 0], vec![0, 900]],
        }),
        order: OrderReport {
            class: "loop".into(),
            in_order_milli: Some(998),
            by: OrderBasis::FirstWrites,
        },
        vcpus: vec![
            VcpuShare {
                vcpu: 1,
                events: 1_800,
                share_milli: 750,
            },
            VcpuShare {
                vcpu: 0,
                events: 600,
                share_milli: 250,
            },
        ],
        events_of_unknown_vcpu: 0,
        sharing: Some(SharingReport {
            pages_by_writers: vec![900, 100],
            shared_pages_milli: 100,
            crossing_events_milli: 55,
        }),
        hot: HotReport {
            pages: vec![HotPage {
                gfn: 17,
                address: 0x11000,
                events: 40,
            }],
            hottest_hundredth_milli: Some(20),
            hottest_tenth_milli: Some(130),
            pages_with_half: Some(450),
        },
        workload: WorkloadReport {
            working_set_milli: 61,
            memory_intensive: false,
            write_intensive_up_to_bytes_per_s: Some(80_000_000),
            cpu_intensive: None,
            network_intensive: None,
        },
        first_touch: FirstTouchReport {
            pages: 1_000,
            half_us: Some(50_000),
            nine_tenths_us: Some(90_000),
            course: vec![
                TouchPoint { at_us: 0, pages: 1 },
                TouchPoint {
                    at_us: 200_000,
                    pages: 1_000,
                },
            ],
        },
        steps: Some(StepsReport {
            steps: 2_500,
            over_us: 190_000,
        }),
        trace: "web & db.dtrace".into(),
        guest: TracedGuest {
            name: "web-1".into(),
            memory_bytes: 67_108_864,
            used_bytes: 33_554_432,
            vcpus: 2,
            written_pages: 1_000,
        },
        resolution: ResolutionName::FirstWrites,
        cannot_see: "writes between harvests".into(),
        harvest: Some(HarvestReport {
            windows: 4,
            mean_us: 50_000,
            longest_us: 51_000,
        }),
        started_unix_ns: Some(1_700_000_000_000_000_000),
        duration_us: 200_000,
        complete: true,
        events: 2_400,
        losses: vec![],
        notes: vec!["the order is that of first writes".into()],
    }
}

/// Two strategies over two links.
pub(super) fn prediction() -> PredictionReport {
    let likely = |likely| Likely {
        low: likely / 2,
        likely,
        high: likely * 2,
    };
    let costs = |time: Option<u64>, by| Costs {
        time_us: time.map(likely),
        downtime_us: likely(2_000),
        bytes: time.map(|time| likely(time * 32)),
        rounds: Likely {
            low: 1,
            likely: 2,
            high: 2,
        },
        faults: likely(40),
        stall_us: likely(9_000),
        ends: vec![EndCount { by, times: 8 }],
        keeps: if time.is_some() {
            Keeping::Surely
        } else {
            Keeping::NeverEnds
        },
    };
    let strategy = |name: &str, live, time, by| StrategyPrediction {
        strategy: name.into(),
        composition: format!("first=serial,{name}"),
        live,
        simulated: costs(time, by),
        forecast: costs(time, by),
    };
    let link = |bandwidth, objection: Option<&str>| LinkPrediction {
        bandwidth_bytes_per_s: bandwidth,
        load_milli: 1_280,
        recommendation: Recommendation {
            strategy: "hybrid:2".into(),
            why: "hybrid:2: 38.0 s (33.5 s to 43.7 s); precopy would not converge".into(),
            margin_milli: Some(120),
            keeps: Keeping::Surely,
            simulated_best: "hybrid:2".into(),
            objection: objection.map(Into::into),
        },
        strategies: vec![
            strategy("hybrid:2", true, Some(38_000_000), EndName::PostCopy),
            strategy("precopy,slow=auto-converge", false, None, EndName::Never),
        ],
    };
    PredictionReport {
        schema: PredictionSchema,
        trace: "web & db.dtrace".into(),
        source: "kvm-dirty-bitmap".into(),
        goal: "downtime<300ms".into(),
        recorded_us: 10_000_000,
        starts_us: vec![0, 5_000_000],
        links: vec![
            link(32_000_000, None),
            link(1_000_000_000, Some("postcopy is 9 % better")),
        ],
        notes: vec!["reads are not in a trace".into()],
    }
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn the_document_of_a_trace_is_the_contract() {
    let value = serde_json::to_value(trace()).unwrap();
    assert_eq!(
        json!({
            "schema": value["schema"], "source": value["source"], "lost_events": value["lost_events"], "overhead": value["overhead"],
            "rate": value["rate"], "wws": value["wws"], "intervals": value["intervals"], "heat": value["heat"], "order": value["order"],
            "vcpus": value["vcpus"], "sharing": value["sharing"], "workload": value["workload"], "resolution": value["resolution"],
        }),
        json!({
            "schema": "dunlin.report.v1", "source": "ebpf:kvm_dirty_ring_push", "lost_events": 0,
            "overhead": {"cpu_us": 120, "of_one_cpu_milli": 1, "per_event_ns": 60},
            "rate": {
                "window_us": 100_000.0, "windows": 2, "mean_pages_per_s": 10_000.5, "mean_bytes_per_s": 40_962_048.0, "variance": 2.25,
                "stddev_pages_per_s": 1.5, "min_pages_per_s": 9_999.0, "max_pages_per_s": 10_002.0,
                "series": [{"at_us": 0, "duration_us": 200_000, "pages_per_s": 10_000.5, "peak_pages_per_s": 10_002.0}],
                "other_windows": [], "events_per_s": 12_000.0,
            },
            "wws": [{"window_us": 1_000, "pages": 10, "pages_high": 12}, {"window_us": 200_000, "pages": 1_000, "pages_high": 1_000}],
            "intervals": {"count": 1_400, "median_ns": 63, "p90_ns": 95, "p99_ns": 111, "resolved_from_ns": 50_000_000,
                "buckets": [{"from_ns": 56, "to_ns": 63, "count": 1_400}]},
            "heat": {"column_us": 100_000, "row_pages": 16, "row_addresses": [4096, 69_632], "end_address": 135_168, "columns": [[3, 0], [0, 900]]},
            "order": {"class": "loop", "in_order_milli": 998, "by": "first-writes"},
            "vcpus": [{"vcpu": 1, "events": 1_800, "share_milli": 750}, {"vcpu": 0, "events": 600, "share_milli": 250}],
            "sharing": {"pages_by_writers": [900, 100], "shared_pages_milli": 100, "crossing_events_milli": 55},
            "workload": {"working_set_milli": 61, "memory_intensive": false, "write_intensive_up_to_bytes_per_s": 80_000_000,
                "cpu_intensive": null, "network_intensive": null},
            "resolution": "first-writes",
        })
    );
    let mut all = keys(&value);
    all.sort_unstable();
    assert_eq!(
        all,
        [
            "cannot_see",
            "complete",
            "duration_us",
            "events",
            "events_of_unknown_vcpu",
            "first_touch",
            "guest",
            "harvest",
            "heat",
            "hot",
            "intervals",
            "losses",
            "lost_events",
            "notes",
            "order",
            "overhead",
            "rate",
            "resolution",
            "schema",
            "sharing",
            "source",
            "started_unix_ns",
            "steps",
            "trace",
            "vcpus",
            "workload",
            "wws",
        ]
    );
    assert_eq!(serde_json::from_value::<TraceReport>(value).unwrap(), trace());
}

#[test]
fn the_document_of_a_prediction_is_the_contract() {
    let value = serde_json::to_value(prediction()).unwrap();
    let link = &value["links"][1];
    assert_eq!(
        (&value["schema"], &value["goal"]),
        (&json!("dunlin.prediction.v1"), &json!("downtime<300ms"))
    );
    assert_eq!(
        link["recommendation"],
        json!({
            "strategy": "hybrid:2", "why": "hybrid:2: 38.0 s (33.5 s to 43.7 s); precopy would not converge", "margin_milli": 120, "keeps": "surely",
            "simulated_best": "hybrid:2", "objection": "postcopy is 9 % better",
        })
    );
    assert_eq!(
        link["strategies"][0]["simulated"],
        json!({
            "time_us": {"low": 19_000_000, "likely": 38_000_000, "high": 76_000_000}, "downtime_us": {"low": 1_000, "likely": 2_000, "high": 4_000},
            "bytes": {"low": 608_000_000, "likely": 1_216_000_000, "high": 2_432_000_000u64}, "rounds": {"low": 1, "likely": 2, "high": 2},
            "faults": {"low": 20, "likely": 40, "high": 80}, "stall_us": {"low": 4_500, "likely": 9_000, "high": 18_000},
            "ends": [{"by": "post-copy", "times": 8}], "keeps": "surely",
        })
    );
    assert_eq!(link["strategies"][1]["simulated"]["time_us"], Value::Null);
    assert_eq!(serde_json::from_value::<PredictionReport>(value).unwrap(), prediction());
}

#[test]
fn a_page_has_every_section_and_needs_nothing() {
    let similarity = SimilarityReport {
        schema: SimilaritySchema,
        pairs: vec![SimilarPair {
            one: "a.dtrace".into(),
            other: "b.dtrace".into(),
            common_pages: 950,
            jaccard_milli: Some(927),
            order_milli: None,
        }],
    };
    let traces = [
        trace(),
        TraceReport {
            guest: TracedGuest {
                name: String::new(),
                ..trace().guest
            },
            ..trace()
        },
    ];
    let migrations = [("m.json".to_owned(), super::migration::tests::hybrid())];
    let text = trace_page(PageParts {
        traces: &traces,
        similarity: Some(&similarity),
        predictions: &[prediction()],
        migrations: &migrations,
    });
    for part in [
        "id=\"trace-0\"",
        "id=\"trace-1\"",
        "id=\"similarity\"",
        "id=\"prediction-0\"",
        "id=\"migration-0\"",
        "web-1",
        "web &amp; db.dtrace",
        "ebpf:kvm_dirty_ring_push",
        "writes between harvests",
        "the order is that of first writes",
        "lost: 0",
        "60 ns an event",
        "Dirty rate over time",
        "Writable working set by window",
        "Where and when it writes",
        "How long pages are left alone",
        "Pages written for the first time",
        "Who writes",
        "How many vCPUs write a page",
        "92.7 %",
        "Take hybrid:2",
        "Simulation agrees",
        "postcopy is 9 % better",
        "for ever",
        "least to most",
        "Migration by hybrid:2",
        "Hottest pages",
        "prefers-color-scheme: dark",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Below every chart of a trace stands what its axes and its resolution are.
    assert_eq!(text.matches("<svg").count(), 7 + 7 + 2);
    assert_eq!(text.matches("<figcaption").count(), 7 + 7 + 2);
    assert_eq!(text.matches("<figcaption>Across: ").count(), 7 + 7 + 2);
    for outside in ["http:", "https:", "src=", "url(", "@import", "<script", "<link", "NaN"] {
        assert!(!text.contains(outside), "{outside}: {text}");
    }
    assert_eq!(trace_page(PageParts::default()).matches("<section").count(), 0);
}

#[test]
fn tables_have_units_and_pictures_where_they_are_wanted() {
    let plain = trace_table(&trace(), Paint::Plain, false);
    for part in [
        "10,000 pages/s",
        "41.0 MB/s",
        "0 lost",
        "! the order is",
        "loop",
        "75.0 %",
        "0x11000",
        "64.0 MiB",
        "none below 50.0 ms",
    ] {
        assert!(plain.contains(part), "{part}: {plain}");
    }
    assert!(!plain.contains('█'), "{plain}");
    let drawn = trace_table(&trace(), Paint::Plain, true);
    assert!(
        drawn.contains('█') && drawn.contains("events per second and page"),
        "{drawn}"
    );
    let predicted = prediction_table(&prediction(), Paint::Plain);
    for part in [
        "Over 32.0 MB/s",
        "Over 1.00 GB/s",
        "→",
        "(precopy,slow=auto-converge)",
        "38.0 s (19.0–76.0)",
        "Simulation agrees",
        "But postcopy",
    ] {
        assert!(predicted.contains(part), "{part}: {predicted}");
    }
    let empty = TraceReport {
        events: 0,
        lost_events: None,
        overhead: None,
        ..trace()
    };
    let text = trace_table(&empty, Paint::Plain, true);
    assert!(
        text.contains("some lost") && text.contains("unknown") && !text.contains("Working set"),
        "{text}"
    );
}
