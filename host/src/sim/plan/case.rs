//! Several keys that change together.

use serde::Deserialize;

use super::parts::{Rate, Size, Time, Workload};
use crate::sim::SimSetup;

/// A place in the sweep with a name of its own.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    name: String,
    workload: Option<Workload>,
    memory: Option<Size>,
    vcpus: Option<u32>,
    bandwidth: Option<Rate>,
    storage_bandwidth: Option<Rate>,
    downtime: Option<Time>,
    latency: Option<Time>,
    warm_up: Option<Time>,
    step: Option<Time>,
    fault_service: Option<Time>,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Case {
    /// Its name, and what it takes the place of.
    pub(super) fn words(&self) -> String {
        let text = |key: &str, value: Option<String>| value.map(|value| format!("{key} {value}"));
        let parts = [
            text("workload", self.workload.as_ref().map(ToString::to_string)),
            text("memory", self.memory.as_ref().map(ToString::to_string)),
            text("vCPUs", self.vcpus.map(|vcpus| vcpus.to_string())),
            text("network", self.bandwidth.as_ref().map(ToString::to_string)),
            text("storage", self.storage_bandwidth.as_ref().map(ToString::to_string)),
            text("downtime", self.downtime.as_ref().map(ToString::to_string)),
            text("latency", self.latency.as_ref().map(ToString::to_string)),
            text("warm-up", self.warm_up.as_ref().map(ToString::to_string)),
            text("step", self.step.as_ref().map(ToString::to_string)),
            text("page fault", self.fault_service.as_ref().map(ToString::to_string)),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        format!("{} ({})", self.name, parts.join(", "))
    }

    /// Takes the place of what it names; storage is as fast as the network if that is so elsewhere.
    pub(super) fn apply(&self, setup: &mut SimSetup, storage_follows: bool) {
        if let Some(workload) = &self.workload {
            setup.workload = workload.value.clone();
        }
        if let Some(memory) = &self.memory {
            setup.memory = memory.value;
        }
        if let Some(vcpus) = self.vcpus {
            setup.vcpus = vcpus;
        }
        if let Some(rate) = &self.bandwidth {
            setup.bandwidth = rate.value;
            if storage_follows {
                setup.storage_bandwidth = rate.value;
            }
        }
        if let Some(rate) = &self.storage_bandwidth {
            setup.storage_bandwidth = rate.value;
        }
        let times = [
            (&mut setup.downtime, &self.downtime),
            (&mut setup.latency, &self.latency),
            (&mut setup.warm_up, &self.warm_up),
            (&mut setup.step_cost, &self.step),
            (&mut setup.fault_service, &self.fault_service),
        ];
        for (to, time) in times {
            if let Some(time) = time {
                *to = time.value;
            }
        }
    }
}
