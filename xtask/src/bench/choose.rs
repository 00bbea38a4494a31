//! Forecasts and choices against migrations played page by page over a grid of loads.

// Shared with core's tests, which check less of it.
#[path = "../../../core/tests/forecast/grid.rs"]
mod grid;
#[path = "../../../core/tests/forecast/what_if.rs"]
mod what_if;

use dunlin_core::choose::Goal;
use dunlin_core::strategy::Strategy;
use dunlin_core::units::Nanos;

use super::Setting;
use super::figure::{Figure, Target};
use grid::{Pair, Played, alpha_regret, cells, deviation, play};

/// 64 MiB guests.
const PAGES: u64 = 16_384;
/// Of each migration, with other random numbers.
const RUNS: u64 = 5;
/// What a choice may cost more than the best.
const NEAR: f64 = 1.05;

pub(super) fn run(_: &Setting) -> anyhow::Result<Vec<Figure>> {
    let goal = Goal::BALANCED;
    let played: Vec<Played> = cells(PAGES).iter().map(|cell| play(cell, &goal, RUNS)).collect();
    let pairs: Vec<&Pair> = played.iter().flat_map(|played| &played.pairs).collect();
    let beside = format!(
        "{} migrations played page by page: {} loads, every candidate",
        pairs.len(),
        played.len()
    );
    let time = deviation(pairs.iter().map(|pair| pair.time_ratio()).collect());
    let bytes = deviation(pairs.iter().map(|pair| pair.bytes_ratio()).collect());
    let share = |holds: fn(&Pair) -> bool| pairs.iter().filter(|pair| holds(pair)).count() as f64 / pairs.len() as f64;
    let near = |of: &dyn Fn(&Played) -> Strategy| {
        let near = played.iter().filter(|played| played.regret(&of(played)) <= NEAR);
        near.count() as f64 / played.len() as f64
    };
    let worst = played
        .iter()
        .map(|played| played.regret(&played.chosen))
        .fold(1.0, f64::max);
    let mut figures = vec![
        Figure::plain("forecast: error of the time, median", time.0, "x")
            .target(Target::AtMost(0.05))
            .beside(&beside),
        Figure::plain("forecast: error of the time, worst", time.1, "x").beside(&beside),
        Figure::plain("forecast: error of the bytes, median", bytes.0, "x")
            .target(Target::AtMost(0.05))
            .beside(&beside),
        Figure::plain("forecast: error of the bytes, worst", bytes.1, "x").beside(&beside),
        Figure::plain(
            "forecast: time and bytes within the interval",
            share(Pair::is_covered),
            "share",
        )
        .beside(&beside),
        Figure::plain("forecast: end foretold", share(Pair::ended_alike), "share").beside(&beside),
        Figure::plain("choice: within 5 % of the best", near(&|played| played.chosen), "share")
            .target(Target::AtLeast(0.95))
            .beside("the cheapest of all candidates as played, mean of 5 runs"),
        Figure::plain("choice: cost by that of the best, worst", worst, "x").beside("the same"),
        Figure::plain(
            "Shah's rule: within 5 % of the best",
            near(&|played| played.by_shah),
            "share",
        )
        .beside("the same"),
    ];
    for (words, fault_overhead) in [("0.1 ms", Nanos::from_micros(100)), ("2 ms", Nanos::from_millis(2))] {
        let serial = cells(PAGES)
            .into_iter()
            .filter(|cell| cell.link.storage_bandwidth.is_none());
        let worst = serial
            .map(|cell| alpha_regret(&cell, fault_overhead, RUNS))
            .fold(0.0, f64::max);
        let name = format!("sdf:auto: cost by that of the best α, faults of {words}, worst");
        let figure = Figure::plain(name, worst, "x").target(Target::AtMost(NEAR));
        figures.push(figure.beside("the best of 11 fixed α in hindsight, 90 loads, mean of 5 runs"));
    }
    for name in ["precopy", "postcopy", "hybrid:1", "hybrid:2"] {
        let strategy: Strategy = name.parse()?;
        let figure = Figure::plain(
            format!("always {name}: within 5 % of the best"),
            near(&|_| strategy),
            "share",
        );
        figures.push(figure.beside("the same"));
    }
    Ok(figures)
}
