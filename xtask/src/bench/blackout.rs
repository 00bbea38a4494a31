//! How long an idle guest stands still when it changes processes.

use dunlin_tests::scene::GuestOptions;

use super::Setting;
use super::dunlin::{Dunlin, number};
use super::figure::{Figure, Target};
use super::sampling::Samples;

/// Enough for a 99th percentile that is not simply the worst.
const MIGRATIONS: usize = 120;

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let stops = measure(&setting.dunlin, "1GiB", MIGRATIONS)?;
    let samples = |of: fn(&Stop) -> f64| Samples::new(stops.iter().map(of).collect());
    let (downtimes, gaps) = (samples(|stop| stop.downtime_ms), samples(|stop| stop.gap_ms));
    let beside = format!(
        "{MIGRATIONS} migrations in a row, a {} guest",
        setting.dunlin.kind.name()
    );
    let figure = |what: &str, value| Figure::plain(format!("idle 1 GiB guest, {what}"), value, "ms").beside(&*beside);
    Ok(vec![
        figure("blackout, median", downtimes.median()).target(Target::AtMost(2.0)),
        figure("blackout, p99", downtimes.percentile(99)).target(Target::AtMost(5.0)),
        figure("longest gap in its progress, median", gaps.median()),
    ])
}

/// One migration of a guest that does nothing.
pub(crate) struct Stop {
    /// From the request to pause until the guest ran on the other side.
    pub(crate) downtime_ms: f64,
    /// The longest time without progress.
    gap_ms: f64,
    /// What the guest had written while its memory was copied once.
    pub(crate) dirty_pages: f64,
}

/// Moves an idle guest from process to process.
pub(crate) fn measure(dunlin: &Dunlin, memory: &str, migrations: usize) -> anyhow::Result<Vec<Stop>> {
    let guest = GuestOptions::new(dunlin.kind, "idle").memory(memory);
    let mut stops = Vec::with_capacity(migrations);
    dunlin.migrate_on(&guest, "precopy", migrations, |_, _, report| {
        stops.push(Stop {
            downtime_ms: number(&report, "/downtime_us")? / 1e3,
            gap_ms: number(&report, "/guest_gap_us")? / 1e3,
            dirty_pages: number(&report, "/rounds/0/dirty_pages")?,
        });
        Ok(())
    })?;
    Ok(stops)
}
