//! Zipf's sampler beside an exact computation in floating point.
#![expect(
    clippy::float_arithmetic,
    reason = "the exact distribution that the integer sampler is measured with"
)]

use std::vec;
use std::vec::Vec;

use crate::workload::zipf::Zipf;
use crate::workload::{Milli, Random};

/// k^-S over its sum, for every rank.
fn exact(exponent: Milli, ranks: u64) -> Vec<f64> {
    let s = f64::from(exponent.0) / 1000.0;
    let weights: Vec<f64> = (1..=ranks).map(|k| (k as f64).powf(-s)).collect();
    let sum: f64 = weights.iter().rev().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// The largest relative error of any rank that is ever drawn.
fn worst_error(milli: u16, ranks: u64) -> f64 {
    let implied = Zipf::new(Milli(milli), ranks).probabilities();
    assert_eq!(implied.len() as u64, ranks);
    let drawn = implied
        .iter()
        .zip(exact(Milli(milli), ranks))
        .filter(|(_, exact)| *exact > 2f64.powi(-50));
    drawn
        .map(|(implied, exact)| (implied / exact - 1.0).abs())
        .fold(0.0, f64::max)
}

#[test]
fn every_rank_is_within_two_percent_of_exact() {
    for milli in [0, 1, 500, 800, 990, 999, 1000, 1001, 1200, 1500, 2000, 2500, 3000] {
        for ranks in [1, 2, 3, 30, 31, 32, 33, 62, 63, 64, 100, 125, 126, 127, 1000, 16_384] {
            let error = worst_error(milli, ranks);
            assert!(error < 0.02, "S {milli}/1000 of {ranks}: {error} off");
        }
    }
}

#[test]
fn large_guests_are_within_two_percent_of_exact() {
    // The pages of 4 GiB, and the items of a slab over 2 GiB.
    for (milli, ranks) in [(500, 1 << 20), (990, 2 << 20), (3000, 1 << 20)] {
        let error = worst_error(milli, ranks);
        assert!(error < 0.02, "S {milli}/1000 of {ranks}: {error} off");
    }
}

#[test]
fn draws_follow_the_tables() {
    const DRAWS: usize = 1_000_000;
    for (milli, ranks) in [(990, 16_384), (0, 50), (1500, 1000), (3000, 40), (700, 3)] {
        let sampler = Zipf::new(Milli(milli), ranks);
        let mut random = Random::new(milli.into(), ranks);
        let mut counts = vec![0u64; ranks as usize];
        for _ in 0..DRAWS {
            counts[sampler.draw(&mut random) as usize] += 1;
        }
        // Pearson's statistic over cells of at least 20 expected draws; its mean is the number of cells less one, its
        // standard deviation the root of twice that.
        let (mut statistic, mut cells) = (0.0, 0.0f64);
        let (mut expected, mut seen) = (0.0, 0.0);
        for (probability, count) in sampler.probabilities().into_iter().zip(counts) {
            expected += probability * DRAWS as f64;
            seen += count as f64;
            if expected >= 20.0 {
                statistic += (seen - expected) * (seen - expected) / expected;
                cells += 1.0;
                (expected, seen) = (0.0, 0.0);
            }
        }
        let bound = cells + 5.0 * (2.0 * cells).sqrt();
        assert!(
            cells >= 3.0 && statistic < bound,
            "S {milli}/1000 of {ranks}: {statistic} over {cells} cells"
        );
    }
}

#[test]
fn arguments_out_of_range_are_brought_inside() {
    let mut random = Random::new(1, 1);
    for (milli, ranks) in [(u16::MAX, 0), (u16::MAX, u64::MAX), (0, u64::MAX)] {
        let sampler = Zipf::new(Milli(milli), ranks);
        for _ in 0..1000 {
            assert!(sampler.draw(&mut random) < ranks.clamp(1, 1 << 31));
        }
    }
    assert_eq!(Zipf::EMPTY.draw(&mut random), 0);
}
