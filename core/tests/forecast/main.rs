//! Forecasts and choices against migrations played page by page, over a grid of loads. `cargo xtask bench choose` measures
//! the same with larger guests and more runs.

#![expect(clippy::disallowed_types, reason = "what was played is measured, not decided")]

mod grid;
mod what_if;

use dunlin_core::choose::Goal;
use dunlin_core::strategy::SwitchRule;
use dunlin_core::units::Nanos;

use grid::{Pair, Played, alpha_regret, cells, deviation, play};

/// How many of these hold it, in percent.
fn percent<T>(all: &[T], holds: impl Fn(&T) -> bool) -> usize {
    all.iter().filter(|item| holds(item)).count() * 100 / all.len()
}

#[test]
fn forecasts_come_true_and_choices_pay() {
    let played: Vec<Played> = cells(4096).iter().map(|cell| play(cell, &Goal::BALANCED, 3)).collect();
    let pairs: Vec<&Pair> = played.iter().flat_map(|played| &played.pairs).collect();
    assert!(pairs.len() > 1500);
    let (time, bytes) = (
        deviation(pairs.iter().map(|pair| pair.time_ratio()).collect()),
        deviation(pairs.iter().map(|pair| pair.bytes_ratio()).collect()),
    );
    assert!(time.0 < 0.01 && bytes.0 < 0.01, "medians of {time:?} and {bytes:?}");
    let covered = percent(&pairs, |pair| pair.is_covered());
    let alike = percent(&pairs, |pair| pair.ended_alike());
    assert!(
        covered >= 95 && alike >= 95,
        "covered {covered} %, ended as foretold {alike} %"
    );
    // Where nothing is decided by how rounds compare, little is left to chance.
    let fixed = pairs
        .iter()
        .filter(|pair| matches!(pair.strategy.switch, SwitchRule::Rounds(_)));
    let fixed = deviation(fixed.map(|pair| pair.time_ratio()).collect());
    assert!(fixed.1 < 0.1, "rounds:N is off by {fixed:?}");

    let good = |played: &Played| played.regret(&played.chosen) <= 1.05;
    let by_choice = percent(&played, good);
    let by_shah = percent(&played, |played| played.regret(&played.by_shah) <= 1.05);
    assert!(
        by_choice >= 90 && by_choice > by_shah,
        "chosen well on {by_choice} %, by Shah's rule on {by_shah} %"
    );
}

#[test]
fn the_automatic_alpha_is_near_the_best_in_hindsight() {
    for fault_overhead in [100, 2000].map(Nanos::from_micros) {
        for cell in cells(4096).iter().filter(|cell| cell.link.storage_bandwidth.is_none()) {
            let regret = alpha_regret(cell, fault_overhead, 3);
            assert!(regret <= 1.05, "{regret} for faults of {fault_overhead} ns on {cell:?}");
        }
    }
}
