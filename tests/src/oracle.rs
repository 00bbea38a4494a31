//! The oracle: a guest's memory after N steps does not depend on where it took them.

use std::sync::OnceLock;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::baseline::Baselines;
use crate::process;
use crate::scene::{GuestOptions, Scene};

/// How often a run is repeated with more steps because the guest halted before it had arrived.
const ATTEMPTS: u32 = 4;

/// The report of the same guest without any migration; computed once and kept.
pub fn undisturbed(options: &GuestOptions) -> anyhow::Result<Value> {
    static BASELINES: OnceLock<Result<Baselines, String>> = OnceLock::new();
    let open = || -> anyhow::Result<Baselines> { Baselines::open(&process::target_folder()?, process::binary()?) };
    let baselines = BASELINES.get_or_init(|| open().map_err(|error| format!("{error:#}")));
    let baselines = baselines.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    baselines.get(&options.args(), || Scene::new()?.run_undisturbed(options))
}

/// Whether the guest was still at work when `journey` had done what it is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It was: the result means something.
    InTime,
    /// It had halted: its memory no longer changed, so the result means nothing.
    HaltedBefore,
}

/// Repeats `journey` with ever more steps until the guest does not halt before it is over. So a slow machine costs time,
/// never a failure.
pub fn with_enough_steps(
    options: &GuestOptions,
    first_steps: u64,
    mut journey: impl FnMut(&GuestOptions) -> anyhow::Result<Verdict>,
) -> anyhow::Result<()> {
    for attempt in 0..ATTEMPTS {
        let options = options.clone().steps(first_steps << attempt);
        if journey(&options)? == Verdict::InTime {
            return Ok(());
        }
    }
    anyhow::bail!(
        "the guest always halted before it had arrived, last after {} steps",
        first_steps << (ATTEMPTS - 1)
    )
}

/// Compares a final report with that of the same guest without a migration.
pub fn expect_same_memory(options: &GuestOptions, moved: &Value) -> anyhow::Result<()> {
    let still = undisturbed(options).context("the run without a migration")?;
    for field in ["steps", "ram_blake3"] {
        ensure!(
            moved[field] == still[field],
            "{field} differs: {} after the migration, {} without one; guest: {:?}",
            moved[field],
            still[field],
            options
        );
    }
    Ok(())
}

/// Checks that a report of a completed migration with `--verify` compared every page and found no difference.
pub fn expect_verified(report: &Value) -> anyhow::Result<()> {
    let verified = &report["verified"];
    ensure!(
        verified["pages"].as_u64().is_some_and(|pages| pages > 0),
        "nothing was verified: {report}"
    );
    ensure!(verified["mismatches"] == 0, "pages differ: {report}");
    Ok(())
}
