//! Simulated migrations whose every number is written down: one setup and one seed have one answer, on every machine, in debug and in
//! release. A test compares the table with what a debug build says, `cargo xtask bench sim` with what a release build says.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use dunlin::report::Outcome;
use dunlin::sim::{CutAt, SimResult, SimSetup, simulate};
use dunlin_core::strategy::Strategy;
use dunlin_core::units::{Bytes, BytesPerSec, Nanos};
use dunlin_core::workload::Fill;

use crate::process::workspace_root;

/// One line of the table's setups: what differs from guest to guest, and the rest by name.
struct Case {
    workload: &'static str,
    mib: u64,
    vcpus: u32,
    seed: u64,
    strategy: &'static str,
    more: fn(&mut SimSetup),
}

const fn case(
    workload: &'static str,
    (mib, vcpus, seed): (u64, u32, u64),
    strategy: &'static str,
    more: fn(&mut SimSetup),
) -> Case {
    Case {
        workload,
        mib,
        vcpus,
        seed,
        strategy,
        more,
    }
}

/// Between them every pattern, every way of copying and switching, paced and unpaced, one vCPU and several, and everything that
/// can go wrong on the way.
const CASES: &[Case] = &[
    case("idle", (64, 1, 1), "precopy", |_| {}),
    case("seq,rate=4000", (64, 1, 2), "hybrid:1", |_| {}),
    case("seq,rate=7001", (48, 3, 3), "hybrid:2,push=bubble:3", |_| {}),
    case("seq", (64, 2, 4), "precopy", |setup| setup.max_rounds = 5),
    case("uniform,rate=6000", (64, 4, 5), "postcopy", |_| {}),
    case("uniform", (64, 1, 6), "postcopy,push=bubble:7", |setup| {
        setup.fault_service = Nanos(333_333);
    }),
    case("uniform,rate=3000000", (32, 1, 7), "switch=kubevirt-stall:2s", |_| {}),
    case("zipf:0.99,rate=9000", (64, 2, 8), "dyn-hybrid", |setup| {
        setup.latency = Nanos::from_millis(3);
    }),
    case("zipf:0.99,rate=5910", (64, 1, 9), "markov-sdf:0.7", |setup| {
        setup.learning = Nanos::from_secs(2);
    }),
    case("hotset:0.1,rate=120k", (64, 3, 10), "par-migrate,split=speed", |_| {}),
    case("lmbench,rate=9000", (64, 1, 11), "pa-hybrid", |setup| {
        (setup.jitter, setup.loss_ppm) = (Nanos(100_000), 2_000);
    }),
    case("memcached,rate=5000", (64, 2, 12), "as-hybrid", |setup| {
        setup.fill = Fill::Zero;
    }),
    case("kernel,rate=13700", (64, 4, 13), "hybrid:1,push=forecast", |setup| {
        setup.learning = Nanos::from_secs(1);
    }),
    case("shared:0.3,rate=5000,ws=32MiB", (64, 3, 14), "pa-hybrid", |setup| {
        (setup.fill, setup.storage_bandwidth) = (Fill::Zero, BytesPerSec(500_000_000));
    }),
    case(
        "phases:(seq,rate=9000)*5000+(idle)*500+(uniform,ws=8MiB)*100000+(zipf:0.8,rate=30k)*20000",
        (64, 2, 15),
        "hybrid:3",
        |_| {},
    ),
    case(
        "phases:(uniform)*7+(idle)*1+(seq,rate=1M)*3",
        (16, 1, 16),
        "switch=optimal",
        |setup| {
            setup.step_cost = Nanos(777);
        },
    ),
    case("uniform,rate=6000", (64, 1, 17), "hybrid:1", |setup| {
        (setup.jitter, setup.loss_ppm) = (Nanos(50_000), 500);
        setup.cut = Some(CutAt {
            after: Nanos::from_millis(50),
            lasts: Some(Nanos::from_secs(10)),
        });
    }),
    case("uniform,rate=20k", (64, 4, 18), "pa-hybrid", |setup| {
        setup.cut = Some(CutAt {
            after: Nanos::from_millis(20),
            lasts: None,
        });
    }),
];

/// The table as this build computes it. Contents of pages are followed in every second migration, so that both ways are in it.
///
/// # Errors
/// If a migration cannot be simulated, or what is followed does not arrive.
pub fn table() -> anyhow::Result<String> {
    let mut text = String::from(
        "# Simulated migrations, every number of them. `cargo test -p dunlin-tests golden` says how to write this again.\n",
    );
    for (index, case) in CASES.iter().enumerate() {
        let setup = case.setup(index % 2 == 0)?;
        let result = simulate(&setup).with_context(|| format!("{} by {}", case.workload, case.strategy))?;
        let report = &result.report;
        ensure!(
            report.outcome == Outcome::Completed && report.verified.is_none_or(|verified| verified.mismatches == 0),
            "{} by {}: {report:?}",
            case.workload,
            case.strategy
        );
        write!(
            text,
            "\n{} {} MiB vcpus={} seed={} {}\n",
            case.workload, case.mib, case.vcpus, case.seed, case.strategy
        )?;
        describe(&result, &mut text)?;
    }
    Ok(text)
}

/// Where the table is kept.
pub fn path() -> PathBuf {
    workspace_root().join("tests/golden/simulator.txt")
}

/// Whether this build computes what is written down.
///
/// # Errors
/// Names the first line that differs, with what was expected.
pub fn check() -> anyhow::Result<()> {
    let path = path();
    let expected = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let found = table()?;
    let mut migration = "";
    let mut lines = found.lines();
    for (number, expected) in expected.lines().enumerate() {
        let found = lines.next().unwrap_or("nothing");
        ensure!(
            found == expected,
            "{}:{}, of {migration:?}: the simulator says {found:?} instead of {expected:?}. If that is what it should say now, write the table \
             again with DUNLIN_WRITE_GOLDEN=1 and say in the commit why every number is right",
            path.display(),
            number + 1
        );
        if !expected.starts_with(' ') {
            migration = expected;
        }
    }
    ensure!(lines.next().is_none(), "{} lacks migrations", path.display());
    Ok(())
}

impl Case {
    fn setup(&self, check: bool) -> anyhow::Result<SimSetup> {
        let strategy = Strategy::parse(self.strategy)?;
        let mut setup = SimSetup::new(
            self.workload.parse()?,
            Bytes(self.mib << 20),
            strategy,
            BytesPerSec(40_000_000),
        );
        (setup.vcpus, setup.seed, setup.check) = (self.vcpus, self.seed, check);
        (self.more)(&mut setup);
        Ok(setup)
    }
}

fn describe(result: &SimResult, text: &mut String) -> std::fmt::Result {
    let report = &result.report;
    writeln!(
        text,
        "  time {} downtime {} gap {} steps {} stall {} virtual {} before {} slowdown {:?} goal {}",
        report.total_time_us,
        report.downtime_us,
        report.guest_gap_us,
        result.steps,
        result.stall.0,
        result.virtual_time.0,
        report.guest.steps_before,
        report.guest.slowdown_milli,
        report.goal_met
    )?;
    let bytes = &report.bytes;
    writeln!(
        text,
        "  bytes migration {} storage {} fault {} control {}",
        bytes.migration, bytes.storage, bytes.fault, bytes.control
    )?;
    if let Some(sampling) = &report.sampling {
        writeln!(
            text,
            "  sampling {} samples {} merged {:?}",
            sampling.learning_us, sampling.samples, report.static_done_after
        )?;
    }
    for round in &report.rounds {
        writeln!(
            text,
            "  round {} us {} sent {} zero {} dirty {} bytes {}",
            round.round, round.duration_us, round.sent_pages, round.zero_pages, round.dirty_pages, round.bytes
        )?;
    }
    if let Some(postcopy) = &report.postcopy {
        writeln!(
            text,
            "  postcopy us {} faults {} pushed {} stored {} p50 {:?} p99 {:?} bytes {}",
            postcopy.duration_us,
            postcopy.faults,
            postcopy.pushed,
            postcopy.stored,
            postcopy.p50_ns,
            postcopy.p99_ns,
            postcopy.bytes
        )?;
    }
    Ok(())
}
