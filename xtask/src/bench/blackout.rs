//! How long an idle guest stands still when it changes processes.

use dunlin_tests::scene::GuestOptions;

use super::Setting;
use super::dunlin::number;
use super::figure::{Figure, Target};
use super::sampling::Samples;

/// Enough for a 99th percentile that is not simply the worst.
const MIGRATIONS: usize = 120;

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let guest = GuestOptions::new(setting.dunlin.kind, "idle").memory("1GiB");
    let (mut downtimes, mut gaps) = (vec![], vec![]);
    setting
        .dunlin
        .migrate_on(&guest, "precopy", MIGRATIONS, |_, _, report| {
            downtimes.push(number(&report, "/downtime_us")? / 1e3);
            gaps.push(number(&report, "/guest_gap_us")? / 1e3);
            Ok(())
        })?;
    let (downtimes, gaps) = (Samples::new(downtimes), Samples::new(gaps));
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
