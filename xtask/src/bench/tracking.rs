//! What Dunlin keeps per byte of guest memory while it migrates: measured from outside, as the growth of both processes
//! with the size of a guest that uses none of its memory.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use dunlin_tests::scene::GuestOptions;

use super::Setting;
use super::figure::{Figure, Target};

const SMALL_GIB: u64 = 1;
const LARGE_GIB: u64 = 8;

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let small = peaks(setting, SMALL_GIB)?;
    let large = peaks(setting, LARGE_GIB)?;
    let more_memory = ((LARGE_GIB - SMALL_GIB) << 30) as f64;
    let figure = |side: &str, small: u64, large: u64| {
        Figure::plain(
            format!("tracking state of the {side}, share of guest memory"),
            growth(small, large) / more_memory,
            "ratio",
        )
        .target(Target::AtMost(0.001))
        .beside(format!(
            "growth of the process from {SMALL_GIB} to {LARGE_GIB} GiB of untouched guest memory"
        ))
    };
    Ok(vec![
        figure("source", small.0, large.0),
        figure("target", small.1, large.1),
    ])
}

fn growth(small: u64, large: u64) -> f64 {
    large.saturating_sub(small) as f64
}

/// The most memory that source and target held during a migration of an idle guest, in bytes.
fn peaks(setting: &Setting, gib: u64) -> anyhow::Result<(u64, u64)> {
    let guest = GuestOptions::new(setting.dunlin.kind, "idle").memory(&format!("{gib}GiB"));
    let scene = setting.dunlin.scene()?;
    let target = scene.receiver("target", &[])?;
    let source = scene.guest("source", &guest)?;
    let source_id = source.process.id();
    let over = AtomicBool::new(false);
    let source_peak = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            // The source ends with the migration, so it is watched while it lasts.
            while !over.load(Ordering::Relaxed) {
                if let Ok(peak) = peak_bytes(source_id) {
                    source_peak.store(peak, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        let report = scene.migrate(&source, &target, "precopy", &[]);
        over.store(true, Ordering::Relaxed);
        report
    })?;
    Ok((source_peak.into_inner(), peak_bytes(target.process.id())?))
}

/// The most memory that a process has held.
pub(super) fn peak_bytes(process: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no VmHWM for the process")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib << 10)
}
