//! `--strategy auto`: what the choice goes by, and what became of it.

use dunlin_core::choose::{Forecast, Goal, Limits, Link};
use dunlin_core::migrate::{Advisor, AdvisorSetting, SourceConfig};
use dunlin_core::pageset::Run;
use dunlin_core::units::{BytesPerSec, Pages};

use crate::guest::Guest;
use crate::memory::{GuestMemory, RunClass};

/// A choice, as it was made and as it went on.
#[derive(Clone, Debug)]
pub struct AutoResult {
    /// What was chosen, by how much, and why.
    pub why: String,
    /// What it was expected to cost.
    pub forecast: Forecast,
    /// The round after which it was changed last, and to what and why.
    pub revised: Option<(u32, String)>,
}

impl AutoResult {
    /// `None` if nothing was chosen.
    pub(super) fn of(advisor: &Advisor<'_>) -> Option<Self> {
        let choice = advisor.choice()?;
        Some(Self {
            why: choice.to_string(),
            forecast: choice.best.forecast,
            revised: advisor
                .revised()
                .map(|(round, revision)| (*round, revision.to_string())),
        })
    }
}

/// What a strategy is chosen by. Reads all memory once.
pub(super) fn setting(
    guest: &dyn Guest,
    memory: &GuestMemory,
    config: &SourceConfig,
    goal: &Goal,
    bandwidth: BytesPerSec,
) -> AdvisorSetting {
    AdvisorSetting {
        goal: goal.clone(),
        link: Link::new(bandwidth),
        limits: Limits {
            downtime: config.downtime,
            max_rounds: config.max_rounds,
            min_round: config.min_round,
            handover: config.handover_cost,
        },
        used: used(memory),
        vcpus: guest.config().vcpus,
    }
}

/// Pages that are not all zero; those that cannot be read count.
fn used(memory: &GuestMemory) -> Pages {
    let mut used = 0;
    for region in memory.layout().regions() {
        let run = Run::new(region.first, region.count);
        let read = memory.classify_runs(run, |piece, class| {
            used += if class == RunClass::Data { piece.count.0 } else { 0 };
        });
        if read.is_err() {
            used += region.count.0;
        }
    }
    Pages(used)
}
