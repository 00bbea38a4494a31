//! Switch rules: how often they take noise for divergence, how soon they see divergence, and what a decision costs.

mod logs;

use std::hint::black_box;

use dunlin_core::strategy::SwitchRule;
use dunlin_core::switch::Switcher;

use super::Setting;
use super::figure::{Figure, Target};
use super::sampling::{Samples, seconds};
use logs::{Logs, NOISE, Noise, Switches, decide};

/// Logs of each kind.
const LOGS: u32 = 4000;
/// Rules whose decisions are compared, with `optimal` and the λ rule it must beat first. KubeVirt's window is its own: a copy takes 30 s.
const COMPARED: [&str; 6] = ["optimal", "lambda", "heuristic", "nova10", "kubevirt-stall", "sdf:auto"];
/// Rules whose decisions are timed.
const TIMED: [&str; 14] = [
    "never",
    "qemu",
    "rounds:2",
    "lambda",
    "sdf:0.5",
    "sdf:auto",
    "dyn",
    "heuristic",
    "optimal",
    "xen",
    "kubevirt-stall",
    "kubevirt-stall:10000s",
    "nova10",
    "ovirt",
];
/// A decision takes nanoseconds, so a sample is the mean of many.
const DECISIONS: usize = 500;
const REPETITIONS: usize = 15;

pub(super) fn run(_: &Setting) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (noise, name) in [(Noise::Walk, "walk"), (Noise::Observation, "observation")] {
        figures.extend(false_switches(noise, name)?);
        for factor in [1.2, 1.5, 2.0] {
            figures.extend(detection(factor, noise, name)?);
        }
    }
    figures.extend(plateau()?);
    for history in [30, 10_000] {
        figures.push(decision_time(history)?);
    }
    Ok(figures)
}

fn of_all(logs: Logs, count: u32) -> anyhow::Result<Vec<(&'static str, Switches)>> {
    let decided = COMPARED.map(|name| Ok((name, decide(SwitchRule::parse(name)?, logs, count))));
    decided.into_iter().collect()
}

/// V falls by 10 % per round: every switch to post-copy is a mistake.
fn false_switches(noise: Noise, kind: &str) -> anyhow::Result<Vec<Figure>> {
    let logs = Logs {
        factor: 0.9,
        noise,
        spread: NOISE,
    };
    let decided = of_all(logs, LOGS)?;
    let mut figures: Vec<Figure> = decided
        .iter()
        .map(|(rule, switches)| {
            Figure::plain(
                format!("false switches, -10 % a round, {kind}: {rule}"),
                switches.share(),
                "share",
            )
            .beside(format!("{LOGS} logs with 15 % noise"))
        })
        .collect();
    let ratio = decided[0].1.share() / decided[1].1.share();
    figures.push(
        Figure::plain(format!("false switches, {kind}: optimal by lambda"), ratio, "ratio")
            .target(Target::AtMost(0.1))
            .beside("the same logs"),
    );
    Ok(figures)
}

/// V grows: the sooner the better.
fn detection(factor: f64, noise: Noise, kind: &str) -> anyhow::Result<Vec<Figure>> {
    let logs = Logs {
        factor,
        noise,
        spread: NOISE,
    };
    let decided = of_all(logs, LOGS)?;
    let lambda = decided[1].1.median_round();
    let others: Vec<String> = decided[1..]
        .iter()
        .map(|(rule, switches)| format!("{rule} {}", switches.median_round()))
        .collect();
    let figure = Figure::plain(
        format!("median switch, {factor} times a round, {kind}: optimal"),
        decided[0].1.median_round(),
        "round",
    )
    .target(Target::AtMost(lambda))
    .beside(others.join(", "));
    Ok(vec![figure])
}

/// V stays: nothing is to be gained any more.
fn plateau() -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (spread, target) in [
        (0.0, Some(3.0)),
        (0.002, None),
        (0.01, None),
        (0.05, None),
        (0.15, None),
    ] {
        let logs = Logs {
            factor: 1.0,
            noise: Noise::Observation,
            spread,
        };
        let decided = of_all(logs, if spread == 0.0 { 1 } else { LOGS })?;
        let others: Vec<String> = decided[1..]
            .iter()
            .map(|(rule, switches)| format!("{rule} {}", switches.median_round()))
            .collect();
        let figure = Figure::plain(
            format!("median switch, plateau with {} % noise: optimal", spread * 100.0),
            decided[0].1.median_round(),
            "round",
        )
        .beside(others.join(", "));
        figures.push(match target {
            Some(bound) => figure.target(Target::AtMost(bound)),
            None => figure,
        });
    }
    Ok(figures)
}

/// The slowest rule's time for one decision after so many rounds.
fn decision_time(history: usize) -> anyhow::Result<Figure> {
    let logs = Logs {
        factor: 1.0,
        noise: Noise::Observation,
        spread: NOISE,
    };
    // Each round is a little lower than the one before, at times, so that histories fill.
    let draws: Vec<f64> = (0..history).map(|round| -((round % 997) as f64) / 997.0).collect();
    let rounds = logs::rounds(logs, &draws);
    let Some((last, before)) = rounds.split_last() else {
        anyhow::bail!("no rounds");
    };
    let mut times = Vec::new();
    for name in TIMED {
        let mut switcher = Switcher::new(SwitchRule::parse(name)?, logs::setting());
        for end in before {
            switcher.on_round(end);
        }
        let samples = (0..REPETITIONS).map(|_| {
            let mut switchers = vec![switcher.clone(); DECISIONS];
            let took = seconds(|| {
                for switcher in &mut switchers {
                    black_box(switcher.on_round(black_box(last)));
                }
            });
            took / DECISIONS as f64 * 1e9
        });
        times.push((name, Samples::new(samples.collect()).median()));
    }
    let all: Vec<String> = times.iter().map(|(name, ns)| format!("{name} {ns:.0}")).collect();
    let worst = times.iter().map(|&(_, ns)| ns).fold(0.0, f64::max);
    Ok(
        Figure::plain(format!("decision after {history} rounds, slowest rule"), worst, "ns")
            .target(Target::AtMost(2000.0))
            .beside(all.join(", ")),
    )
}
