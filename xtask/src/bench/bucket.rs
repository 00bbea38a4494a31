//! How exact the rate limit is.

use std::time::{Duration, Instant};

use dunlin::channel::{Cancel, TokenBucket, Wait};
use dunlin_core::units::BytesPerSec;
use dunlin_tests::scene::GuestOptions;

use super::Setting;
use super::dunlin::number;
use super::figure::{Figure, Target};
use super::sampling::{Samples, rate};

/// Slow and fast migration channels.
const RATES: [u64; 3] = [8_000_000, 64_000_000, 1_000_000_000];
const REPETITIONS: usize = 3;
const TIME: Duration = Duration::from_secs(1);

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for asked in RATES {
        let deviations: Result<Vec<f64>, _> = (0..REPETITIONS).map(|_| deviation(asked)).collect();
        let worst = Samples::new(deviations?).range().1;
        figures.push(
            Figure::plain(
                format!("rate limit of {} MB/s, deviation", asked / 1_000_000),
                worst * 100.0,
                "%",
            )
            .target(Target::AtMost(2.0))
            .beside(format!("worst of {REPETITIONS} seconds in pieces of 64 KiB")),
        );
    }
    figures.push(live(setting)?);
    Ok(figures)
}

/// A whole migration under the limit: what crossed the network in its first round, against what might have.
fn live(setting: &Setting) -> anyhow::Result<Figure> {
    const ASKED: f64 = 64e6;
    let guest = GuestOptions::new(setting.dunlin.kind, "idle")
        .memory("128MiB")
        .with(["--fill", "random"]);
    let report = setting
        .dunlin
        .migrate(&guest, &[], "precopy", &["--bandwidth", "64MB/s"])?;
    let seconds = number(&report, "/rounds/0/duration_us")? / 1e6;
    let rate = number(&report, "/rounds/0/bytes")? / seconds;
    Ok(Figure::plain(
        "first copy of 128 MiB at 64 MB/s, deviation",
        (rate / ASKED - 1.0).abs() * 100.0,
        "%",
    )
    .target(Target::AtMost(2.0))
    .beside(format!("bytes of the first round over its {seconds:.2} s")))
}

/// Relative difference between the limit and what it let pass.
fn deviation(asked: u64) -> anyhow::Result<f64> {
    const PIECE_BYTES: u64 = 64 << 10;
    let cancel = Cancel::new();
    let bucket = TokenBucket::new(Some(BytesPerSec(asked)));
    let started = Instant::now();
    let mut passed = 0;
    while started.elapsed() < TIME {
        bucket.wait_for(PIECE_BYTES, Wait::forever(&cancel))?;
        passed += PIECE_BYTES;
    }
    Ok((rate(passed, started.elapsed()) / asked as f64 - 1.0).abs())
}
