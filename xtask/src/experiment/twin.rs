//! The simulated twin of a live run: the same guest, links, limits and strategy in virtual time.
//!
//! What the simulator cannot know of a machine it takes from a [`Calibration`], which was measured before and with other guests.

use anyhow::Context as _;
use dunlin::sim::{Bookkeeping, SimSetup, simulate};
use dunlin_core::strategy::Strategy;
use dunlin_core::units::{BytesPerSec, Nanos, PAGE_SIZE, Pages};
use dunlin_core::workload::{Plan, Spec};

use super::calibration::{Calibration, pattern};
use super::catalogue::{Arm, MAX_ROUNDS};
use super::measure::seed;
use super::setup::Setup;
use super::values::{self, Values};

/// Why there is no twin of an arm; `None` if there is one.
pub(super) fn missing(arm: &Arm) -> Option<&'static str> {
    let cut = "a proxy cuts its connections at a time of the wall clock, and what counts is who survives";
    arm.cut.map(|_| cut)
}

/// The values of a twin, by the same names as those of a live run.
pub(super) fn run(setup: &Setup, arm: &Arm, repetition: usize, calibration: &Calibration) -> anyhow::Result<Values> {
    let context = || format!("the twin of {} cannot be simulated", arm.name);
    let twin = of(setup, arm, repetition, calibration).with_context(context)?;
    let result = simulate(&twin).with_context(context)?;
    values::of_report(&result.report, setup)
}

/// What is simulated. Memory is what holds data: the workload's pages and those that its program writes. What else lies in front of
/// the workload is zero and travels as next to nothing.
fn of(setup: &Setup, arm: &Arm, repetition: usize, calibration: &Calibration) -> anyhow::Result<SimSetup> {
    let spec: Result<Spec, _> = setup.workload.parse();
    let spec = spec.map_err(|error| anyhow::anyhow!("`{}` is no workload: {error}", setup.workload))?;
    let strategy: Result<Strategy, _> = arm.strategy.parse();
    let strategy = strategy.map_err(|error| anyhow::anyhow!("{error}"))?;
    let plan = Plan::new(&spec, setup.link().memory, VCPUS)?;
    let filled: u64 = plan.fill_frames().map(|range| range.end.0 - range.start.0).iter().sum();
    let own = Pages(calibration.own_pages as u64);
    let bookkeeping = Bookkeeping::new(own, plan.ws(), PAGE_SIZE / LEDGER_ENTRY_BYTES);
    let pages = Pages(filled).saturating_add(bookkeeping.pages());
    let step = calibration.step_ns.get(pattern(&setup.workload));
    let rate = |megabytes: u64| BytesPerSec(megabytes * 1_000_000);
    let micros = |micros: f64| Nanos((micros * 1e3) as u64);
    Ok(SimSetup {
        vcpus: VCPUS,
        limiter: true,
        seed: seed(repetition),
        storage_bandwidth: rate(setup.storage_mb),
        merge_bandwidth: BytesPerSec((calibration.merge_mb_per_second * 1e6) as u64),
        latency: micros(calibration.latency_us),
        step_cost: step.map_or(STEP_UNKNOWN, |nanos| Nanos(*nanos as u64)),
        fault_service: micros(calibration.fault_service_us),
        handover: micros(calibration.handover_us),
        discard: Nanos(calibration.discard_ns as u64),
        bookkeeping,
        warm_up: Nanos((setup.seconds_before(repetition) * 1e9) as u64),
        downtime: Nanos::from_micros(setup.downtime_us),
        max_rounds: MAX_ROUNDS,
        min_round: Nanos::from_micros(setup.min_round_us),
        ..SimSetup::new(
            spec.with_ws(Some(plan.ws())),
            pages.bytes(),
            strategy,
            rate(setup.bandwidth_mb),
        )
    })
}

/// Of the catalogue's guests.
const VCPUS: u32 = 1;
/// What the guest's program keeps of every page of the workload.
const LEDGER_ENTRY_BYTES: u64 = 2;
/// A step of which nothing was measured: none of the catalogue's.
const STEP_UNKNOWN: Nanos = Nanos(500);

#[cfg(test)]
mod tests {
    use super::super::catalogue;
    use super::*;

    fn experiment(id: &str) -> catalogue::Experiment {
        let all = catalogue::all().expect("every workload can be had");
        all.into_iter()
            .find(|experiment| experiment.id == id)
            .expect("there is one")
    }

    #[test]
    fn a_twin_has_what_the_guest_has() {
        let r10 = experiment("R10");
        let calibration = Calibration {
            handover_us: 1500.0,
            fault_service_us: 80.0,
            step_ns: [("seq".to_owned(), 250.0)].into(),
            latency_us: 12.5,
            own_pages: 4.0,
            discard_ns: 150.0,
            merge_mb_per_second: 900.0,
        };
        let twin = of(&r10.setup, &r10.arms[0], 3, &calibration).expect("possible");
        assert_eq!(
            (twin.bandwidth.0, twin.storage_bandwidth.0, twin.merge_bandwidth.0),
            (8_000_000, 200_000_000, 900_000_000)
        );
        assert_eq!((twin.downtime.0, twin.min_round.0), (11_224_000, 3_741_000));
        assert_eq!((twin.seed, twin.max_rounds, twin.vcpus), (10, 30, 1));
        assert_eq!(
            (twin.handover.0, twin.fault_service.0, twin.step_cost.0, twin.latency.0),
            (1_500_000, 80_000, 250, 12_500)
        );
        let steps = twin.warm_up.0 as f64 / 1e9 * r10.setup.rate as f64;
        assert!((steps - r10.setup.steps_before(3) as f64).abs() < 1.0, "{steps}");
        let ws = twin.workload.spec().and_then(Spec::ws).expect("given");
        let h = ws.0 as f64 / r10.setup.link().pages() as f64;
        assert!((h - r10.setup.h).abs() < 1e-9);
        // The guest's own four pages, and a ledger of 16.
        let (entries, books) = (twin.bookkeeping.entries, twin.bookkeeping.pages());
        assert_eq!((entries, books, twin.discard.0), (2048, Pages(20), 150));
        assert_eq!(twin.memory.0 / PAGE_SIZE, ws.0 + books.0);
        assert!(twin.memory.0 < r10.setup.link().memory.0);
    }

    #[test]
    fn arms_whose_network_is_cut_have_no_twin() {
        for experiment in catalogue::all().expect("every workload can be had") {
            for arm in &experiment.arms {
                assert_eq!(missing(arm).is_some(), experiment.id == "R12", "{}", arm.name);
            }
        }
    }

    /// An eighth of the guest over an eighth of the link: all of them come to an end, in seconds.
    #[test]
    fn every_arm_has_a_twin_that_completes() {
        let calibration = Calibration::default();
        for mut experiment in catalogue::all().expect("every workload can be had") {
            let setup = &mut experiment.setup;
            setup.memory_mib /= 8;
            setup.bandwidth_mb /= 8;
            setup.storage_mb /= 8;
            setup.rate /= 8;
            setup.first_steps /= 8;
            setup.workload = smaller(&setup.workload, setup.rate);
            for arm in experiment.arms.iter().filter(|arm| missing(arm).is_none()) {
                let twin = of(setup, arm, 0, &calibration).expect("possible");
                let result = simulate(&twin).unwrap_or_else(|error| panic!("{}: {error}", arm.name));
                let outcome = result.report.outcome;
                assert_eq!(
                    outcome,
                    dunlin::report::Outcome::Completed,
                    "{} {}",
                    experiment.id,
                    arm.name
                );
            }
        }
    }

    /// The same workload over an eighth of its pages, at this rate.
    fn smaller(workload: &str, rate: u64) -> String {
        let spec: Spec = workload.parse().expect("a workload");
        let ws = spec.ws().map(|ws| Pages(ws.0 / 8));
        let rate = u32::try_from(rate).expect("few steps");
        spec.with_ws(ws).with_rate(rate).to_string()
    }
}
