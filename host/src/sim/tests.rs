//! Cases with a closed form, conservation, and that a seed has one answer.

use std::sync::Arc;

use dunlin_core::strategy::Strategy;
use dunlin_core::tracefile::{Head, Item, Source};
use dunlin_core::units::{Gfn, PAGE_SIZE};
use proptest::prelude::*;

use super::*;
use crate::report::Outcome;

const MIB: u64 = 1 << 20;
const RATE: BytesPerSec = BytesPerSec(40_000_000);

fn setup(workload: &str, mib: u64, strategy: &str) -> SimSetup {
    let strategy = Strategy::parse(strategy).expect("a strategy");
    let mut setup = SimSetup::new(workload.parse().expect("a workload"), Bytes(mib * MIB), strategy, RATE);
    setup.check = true;
    setup
}

fn result(setup: &SimSetup) -> MigrationReport {
    let result = simulate(setup).expect("it can be simulated");
    let report = result.report;
    assert_eq!(report.outcome, Outcome::Completed, "{setup:?}: {report:?}");
    let differences = report.verified.map(|verified| verified.mismatches);
    assert_eq!(differences, Some(0), "{setup:?}");
    report
}

/// Within a thousandth.
#[track_caller]
fn about(value: u64, expected: f64) {
    let value = value as f64;
    assert!(
        (value - expected).abs() <= expected / 1000.0,
        "{value}, expected {expected}"
    );
}

/// Seconds that `pages` with their headers take.
fn seconds(pages: f64) -> f64 {
    let frame = crate::channel::piece_pages(Some(RATE)).0 as f64;
    pages * (PAGE_SIZE as f64 + 40.0 / frame) / RATE.0 as f64
}

#[test]
fn an_idle_guest_is_copied_once() {
    let report = result(&setup("idle", 256, "precopy"));
    assert_eq!(report.rounds.len(), 1);
    about(report.rounds[0].duration_us, seconds(65_536.0) * 1e6);
    assert_eq!((report.rounds[0].dirty_pages, report.postcopy), (0, None));
    // Both ways of four round trips, and the hand-over.
    assert!(report.downtime_us < 4_000, "{}", report.downtime_us);
}

#[test]
fn a_constant_writer_dirties_its_rate_times_the_round() {
    let report = result(&setup("seq,rate=4000", 256, "precopy"));
    let first = seconds(65_536.0);
    about(report.rounds[0].dirty_pages, 4000.0 * first);
    about(report.rounds[1].duration_us, seconds(4000.0 * first) * 1e6);
    about(report.rounds[1].dirty_pages, 4000.0 * seconds(4000.0 * first));
}

#[test]
fn a_uniform_writer_dirties_what_chance_leaves() {
    // So many pages that chance itself stays within a thousandth.
    let mut setup = setup("uniform,rate=8000", 16 << 10, "hybrid:1");
    setup.check = false;
    let report = simulate(&setup).expect("it can be simulated").report;
    let (pages, first) = (4_194_304.0, seconds(4_194_304.0));
    let expected = pages * (1.0 - (-8000.0 * first / pages).exp());
    about(report.rounds[0].dirty_pages, expected);
}

#[test]
fn post_copy_of_an_idle_guest_is_one_copy_without_faults() {
    let report = result(&setup("idle", 512, "postcopy"));
    let postcopy = report.postcopy.expect("post-copy");
    assert_eq!((postcopy.faults, postcopy.pushed), (0, 131_072));
    about(postcopy.duration_us, seconds(131_072.0) * 1e6);
}

#[test]
fn a_page_that_is_missing_stops_its_vcpu_alone() {
    let mut setup = setup("uniform,rate=4000", 64, "postcopy");
    setup.vcpus = 2;
    setup.fault_service = Nanos::from_millis(5);
    let report = result(&setup);
    let postcopy = report.postcopy.expect("post-copy");
    assert!(postcopy.faults > 100, "{postcopy:?}");
    // Request, service, reply; some pages come by the push before.
    let p50 = postcopy.p50_ns.expect("there were faults");
    assert!((5_000_000..5_200_000).contains(&p50), "{p50}");
    assert!(report.guest.slowdown_milli.is_some_and(|milli| milli > 0));
}

#[test]
fn as_many_vcpus_as_a_large_guest_has_arrive_whole() {
    for strategy in ["postcopy", "hybrid:1", "pa-hybrid"] {
        let mut setup = setup("uniform,rate=64k", 64, strategy);
        setup.vcpus = VCPUS_MAX;
        let report = result(&setup);
        assert_eq!(report.guest.steps_before, 64_000, "{strategy}");
        if strategy == "postcopy" {
            let faults = report.postcopy.expect("post-copy").faults;
            assert!(faults > 5_000, "the others go on while one waits: {faults}");
        }
    }
}

#[test]
fn zero_pages_go_as_a_few_bytes() {
    let mut setup = setup("uniform,rate=100,ws=8MiB", 256, "precopy");
    setup.fill = Fill::Zero;
    let report = result(&setup);
    assert!(report.rounds[0].zero_pages > 60_000, "{:?}", report.rounds[0]);
    assert!(report.bytes.migration < 9 * MIB, "{:?}", report.bytes);
}

/// Four pages of its own and one of its ledger, in every round, however short.
#[test]
fn a_guest_that_writes_little_keeps_its_books_all_the_same() {
    let mut setup = setup("seq,rate=1000,ws=8MiB", 16, "precopy");
    setup.bookkeeping = Bookkeeping::new(Pages(4), Pages(2048), 2048);
    (setup.min_round, setup.downtime, setup.max_rounds) = (Nanos::from_millis(2), Nanos::from_millis(2), 20);
    let report = result(&setup);
    assert_eq!(report.rounds.len(), 20);
    for round in &report.rounds[5..] {
        assert!((6..=8).contains(&round.dirty_pages), "{round:?}");
    }
}

#[test]
fn what_is_stale_at_the_target_is_thrown_away_while_the_guest_stands_still() {
    let mut setup = setup("seq,rate=4000", 64, "hybrid:1");
    let before = result(&setup);
    setup.discard = Nanos::from_micros(2);
    let after = result(&setup);
    let stale = before.postcopy.map_or(0, |postcopy| postcopy.faults + postcopy.pushed);
    assert!(stale >= before.rounds[0].dirty_pages, "{stale}");
    assert_eq!(after.downtime_us, before.downtime_us + 2 * stale);
    setup.strategy = "postcopy".parse().expect("a strategy");
    assert!(
        result(&setup).downtime_us < before.downtime_us + 100,
        "nothing was there yet"
    );
}

#[test]
fn both_channels_halve_a_copy() {
    let plain = result(&setup("idle", 256, "precopy"));
    let split = result(&setup("idle", 256, "par-migrate,split=speed"));
    let ratio = split.total_time_us as f64 / plain.total_time_us as f64;
    assert!((0.5..0.56).contains(&ratio), "{ratio}");
    assert!(
        split.bytes.storage > 100 * MIB && split.bytes.migration > 100 * MIB,
        "{:?}",
        split.bytes
    );
}

#[test]
fn a_network_that_is_cut_for_good_is_survived_by_the_directory() {
    for (strategy, survives) in [
        ("hybrid:1,cut=both", true),
        ("hybrid:1,cut=pbdata", true),
        ("hybrid:1,cut=fail", false),
    ] {
        let mut setup = setup("uniform,rate=6000", 64, strategy);
        setup.cut = Some(CutAt {
            after: Nanos::from_millis(50),
            lasts: None,
        });
        let report = simulate(&setup).expect("it can be simulated").report;
        assert_eq!(report.outcome == Outcome::Completed, survives, "{strategy}: {report:?}");
        let stored = report.postcopy.map_or(0, |postcopy| postcopy.stored);
        assert_eq!(stored > 0, survives, "{strategy}");
    }
}

#[test]
fn a_network_that_comes_back_is_used_again() {
    let mut setup = setup("uniform,rate=6000", 64, "hybrid:1");
    setup.cut = Some(CutAt {
        after: Nanos::from_millis(50),
        lasts: Some(Nanos::from_secs(10)),
    });
    let report = result(&setup);
    let took = report.postcopy.expect("post-copy").duration_us;
    assert!((10_000_000..14_000_000).contains(&took), "{took}");
}

/// Unpaced, 16 667 steps a second, more than the link carries.
#[test]
fn a_guest_that_is_slowed_down_converges() {
    let run = |strategy: &str| {
        let mut setup = setup("uniform", 64, strategy);
        setup.step_cost = Nanos::from_micros(60);
        (setup.downtime, setup.max_rounds) = (Nanos::from_millis(100), 60);
        result(&setup)
    };
    let (plain, slowed) = (run("precopy"), run("precopy,slow=auto-converge"));
    assert_eq!(plain.rounds.len(), 60);
    assert!(slowed.rounds.len() < 60 && slowed.downtime_us <= 102_000, "{slowed:?}");
    assert!(slowed.strategy.contains("slow=auto-converge"), "{}", slowed.strategy);
    let slowdown = |report: &MigrationReport| report.guest.slowdown_milli.expect("it ran");
    assert!(slowdown(&slowed) > slowdown(&plain) + 200, "{slowed:?}");
}

/// One page on the way at a time: request, service, page and its time on the link.
#[test]
fn a_target_that_pulls_asks_for_one_page_after_the_other() {
    let mut setup = setup("idle", 16, "postcopy");
    setup.pull = true;
    let report = result(&setup);
    let postcopy = report.postcopy.expect("post-copy");
    let page = (4096.0 + 40.0) / RATE.0 as f64 + 100e-6 + 2.0 * 50e-6;
    about(postcopy.duration_us, 4096.0 * page * 1e6);
    assert_eq!((postcopy.faults, postcopy.pushed), (0, 4096), "nobody waited");
    setup.workload = Work::parse("uniform,rate=2000").expect("a workload");
    let postcopy = result(&setup).postcopy.expect("post-copy");
    assert!(postcopy.faults > 100, "{postcopy:?}");
    // One that is on its way, and then its own.
    let p99 = postcopy.p99_ns.expect("there were faults") as f64;
    assert!(p99 <= 2.0 * page * 1e9 + 1e3, "{p99}");
}

#[test]
fn a_time_line_has_the_steps_of_each_second() {
    let mut setup = setup("seq,rate=4000", 256, "hybrid:1");
    setup.check = false;
    let result = simulate(&setup).expect("it can be simulated");
    let seconds = result.report.total_time_us / 1_000_000;
    assert_eq!(result.timeline.len() as u64, seconds);
    for (second, steps) in (2..).zip(&result.timeline[..4]) {
        assert!(steps.abs_diff(second * 4000) < 10, "{:?}", result.timeline);
    }
    let moved = result.moved_at_us.expect("it moved");
    assert!(moved > 6_000_000 && moved < result.report.total_time_us, "{moved}");
}

/// All rates between a half and the whole are equally likely: three quarters on average.
#[test]
fn a_rate_that_varies_takes_longer() {
    let mut setup = setup("idle", 256, "precopy");
    let plain = result(&setup).total_time_us as f64;
    setup.varies = Some(Varies {
        least_milli: 500,
        every: Nanos::from_millis(50),
    });
    let ratio = result(&setup).total_time_us as f64 / plain;
    assert!((ratio - 1.0 / 0.75).abs() < 0.05, "{ratio}");
    setup.varies = Some(Varies {
        least_milli: 0,
        every: Nanos::from_millis(50),
    });
    assert!(matches!(simulate(&setup), Err(SimError::Setup(_))));
}

/// A load that falls by less with every round, until it stays.
#[test]
fn the_less_waiting_counts_the_sooner_the_rounds_end() {
    let rounds = |rule: &str| {
        let mut setup = setup("uniform,rate=14648", 64, rule);
        setup.downtime = Nanos::from_millis(5);
        result(&setup).rounds.len()
    };
    let (patient, balanced) = (rounds("switch=optimal"), rounds("switch=optimal:10"));
    assert_eq!(patient, rounds("switch=optimal:128"), "the default");
    assert!(2 < balanced && balanced < patient, "{balanced} {patient}");
}

#[test]
fn what_cannot_be_simulated_is_named() {
    let mut wrong = setup("seq", 64, "precopy");
    wrong.memory = Bytes(5000);
    assert!(matches!(simulate(&wrong), Err(SimError::Memory(Bytes(5000)))));
    let mut wrong = setup("seq", 64, "precopy");
    wrong.vcpus = 65;
    assert!(matches!(simulate(&wrong), Err(SimError::Vcpus(65))));
    let mut wrong = setup("seq,ws=32KiB", 64, "precopy");
    wrong.vcpus = 9;
    assert!(matches!(simulate(&wrong), Err(SimError::Plan(_))));
    let mut endless = setup("uniform,rate=20000", 64, "switch=qemu");
    endless.patience = Nanos::from_secs(60);
    assert!(matches!(simulate(&endless), Err(SimError::Endless { .. })));
}

fn strategies() -> impl proptest::strategy::Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "precopy",
        "postcopy",
        "hybrid:1",
        "hybrid:3",
        "as-hybrid",
        "pa-hybrid",
        "par-migrate",
        "par-migrate,hold=hot",
        "par-migrate,split=speed",
        "dyn-hybrid",
        "markov-sdf:0.7",
        "hybrid:1,push=forecast",
        "postcopy,push=bubble:3",
        "switch=optimal",
        "switch=optimal:10",
        "switch=kubevirt-stall:5s",
    ])
}

fn workloads() -> impl proptest::strategy::Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "idle",
        "seq,rate=3000",
        "uniform,rate=6000",
        "zipf:0.99,rate=9000",
        "hotset:0.1,rate=12000",
        "memcached,rate=5000",
        "kernel,rate=4000",
        "lmbench,rate=9000",
        "shared:0.3,rate=5000",
        "phases:(seq,rate=9000)*5000+(idle)*500",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_page_arrives_as_it_was_and_a_seed_has_one_answer(
        strategy in strategies(),
        workload in workloads(),
        vcpus in 1..4u32,
        seed: u64,
        latency in prop::sample::select(vec![0, 20_000, 1_000_000, 30_000_000_u64]),
        jitter in prop::sample::select(vec![0, 100_000_u64]),
        loss_ppm in prop::sample::select(vec![0, 2_000_u32]),
        fill in prop::sample::select(vec![Fill::Zero, Fill::Random]),
    ) {
        let mut setup = setup(workload, 16, strategy);
        (setup.vcpus, setup.seed, setup.fill) = (vcpus, seed, fill);
        (setup.latency, setup.jitter, setup.loss_ppm) = (Nanos(latency), Nanos(jitter), loss_ppm);
        setup.learning = Nanos::from_millis(800);
        let first = simulate(&setup).expect("it can be simulated");
        prop_assert_eq!(first.report.outcome, Outcome::Completed);
        prop_assert_eq!(first.report.verified.map(|verified| verified.mismatches), Some(0));
        if let Some(postcopy) = &first.report.postcopy {
            let last = first.report.rounds.last();
            let lacked = last.map_or(4096, |round| round.dirty_pages);
            prop_assert!(postcopy.faults + postcopy.pushed <= lacked.max(4096));
        }
        let again = simulate(&setup).expect("it can be simulated");
        prop_assert_eq!((first.report, first.steps), (again.report, again.steps));
    }
}

/// Writes 200 pages of 4096 in turn, one in 50 µs, by two vCPUs; a trace of 2 s.
fn recording() -> Recording {
    let memory = dunlin_core::message::Region {
        first: Gfn(0),
        pages: Pages(4096),
    };
    let head = Head {
        source: Source::Generator,
        regions: [memory].into_iter().collect(),
        used: Pages(4096),
        vcpus: 2,
        window: Nanos::ZERO,
        started_unix_ns: 0,
        guest: heapless::String::new(),
    };
    let writes = (0..40_000).map(|number| Item::Write {
        at: Nanos(number * 50_000),
        vcpu: (number % 2) as u32,
        gfn: Gfn(number % 200),
    });
    let end = Item::End {
        at: Nanos::from_secs(2),
        overhead: Nanos::ZERO,
    };
    Recording::collect(&head, writes.chain([end]).map(Ok)).expect("a good trace")
}

fn recorded_setup(strategy: &str) -> SimSetup {
    let strategy = Strategy::parse(strategy).expect("a strategy");
    let work = Work::Recorded(Arc::new(recording()));
    let mut setup = SimSetup::of(work, Bytes(16 * MIB), strategy, RATE);
    setup.check = true;
    setup
}

#[test]
fn a_recorded_guest_writes_what_it_wrote_and_starts_over() {
    let setup = recorded_setup("precopy");
    assert_eq!(setup.vcpus, 2);
    let whole = simulate(&setup).expect("it can be simulated");
    let report = &whole.report;
    assert_eq!(report.outcome, Outcome::Completed);
    // 20 writes a millisecond, to 200 pages: all of those are written again while memory is copied, and no other.
    assert_eq!(report.rounds[0].dirty_pages, 200);
    assert_eq!(report.verified.map(|verified| verified.mismatches), Some(0));
    let expected = whole.virtual_time.0 / 50_000;
    assert!(
        whole.steps.abs_diff(expected) * 100 < expected,
        "{} {expected}",
        whole.steps
    );
    let mut long = recorded_setup("precopy");
    long.warm_up = Nanos::from_secs(9);
    let report = result(&long);
    assert!(
        report.warnings[0].contains("has only 2.00 s, and started over 4 times"),
        "{:?}",
        report.warnings
    );
    assert_eq!(report.rounds[0].dirty_pages, 200);
    let mut short = recorded_setup("precopy");
    (short.warm_up, short.bandwidth) = (Nanos::ZERO, BytesPerSec(400_000_000));
    assert!(result(&short).warnings.is_empty());
}

#[test]
fn a_recorded_guest_waits_for_its_pages_in_post_copy() {
    let report = result(&recorded_setup("postcopy"));
    let postcopy = report.postcopy.as_ref().expect("it went into post-copy");
    assert!((1..=200).contains(&postcopy.faults), "{postcopy:?}");
    assert!(report.guest_gap_us > 100, "{report:?}");
}

#[test]
fn a_recorded_guest_needs_its_memory_and_vcpus() {
    let mut setup = recorded_setup("precopy");
    setup.memory = Bytes(8 * MIB);
    let error = simulate(&setup).expect_err("half of the memory").to_string();
    assert!(error.contains("16384 KiB"), "{error}");
    let mut setup = recorded_setup("precopy");
    setup.vcpus = 1;
    let error = simulate(&setup).expect_err("half of the vCPUs").to_string();
    assert!(error.contains("2 vCPUs"), "{error}");
    let mut setup = recorded_setup("precopy");
    (setup.vcpus, setup.memory) = (3, Bytes(32 * MIB));
    assert_eq!(result(&setup).total_pages, 8192);
}

#[test]
fn a_trace_that_is_not_there_is_named() {
    let error = Work::parse("trace:/nonexistent/guest.dtrace")
        .expect_err("no file")
        .to_string();
    assert!(error.starts_with("cannot open /nonexistent/guest.dtrace: "), "{error}");
    assert!(Work::parse("trace").is_err());
}
