//! `auto`: what a strategy is chosen by.

use dunlin_core::choose::{Goal, Limits, Link};
use dunlin_core::migrate::{AdvisorSetting, SourceConfig};
use dunlin_core::units::{Nanos, Pages};

use super::SimSetup;

/// What the advisor is told: what a person would say who knows the network, and what is seen of the guest before it is observed.
pub(super) fn setting(setup: &SimSetup, goal: &Goal, config: &SourceConfig, used: Pages) -> AdvisorSetting {
    let link = Link {
        round_trip: Nanos(setup.latency.0.saturating_mul(2)),
        fault_overhead: setup.fault_service,
        ..Link::new(setup.bandwidth)
    };
    AdvisorSetting {
        goal: goal.clone(),
        link,
        limits: Limits {
            downtime: config.downtime,
            max_rounds: config.max_rounds,
            min_round: config.min_round,
            handover: config.handover_cost,
        },
        used,
        vcpus: setup.vcpus,
    }
}
