//! The guest's own count of its steps.

use std::collections::BTreeMap;

use dunlin_core::tracefile::VCPUS_MAX;
use dunlin_core::units::Nanos;

use crate::report::StepsReport;

/// The first and the last reading of each vCPU.
#[derive(Clone, Debug, Default)]
pub(super) struct Steps {
    of: BTreeMap<u32, [(Nanos, u64); 2]>,
}

impl Steps {
    /// A reading. O(log vCPUs).
    pub(super) fn on_reading(&mut self, at: Nanos, vcpu: u32, steps: u64) {
        if self.of.len() >= VCPUS_MAX as usize && !self.of.contains_key(&vcpu) {
            return;
        }
        let readings = self.of.entry(vcpu).or_insert([(at, steps); 2]);
        readings[1] = (at, steps);
    }

    /// `None` without two readings of one vCPU.
    pub(super) fn report(&self) -> Option<StepsReport> {
        let first = self.of.values().map(|readings| readings[0].0).min()?;
        let last = self.of.values().map(|readings| readings[1].0).max()?;
        let over = last.saturating_sub(first);
        let steps = self.of.values().map(|[first, last]| last.1.saturating_sub(first.1));
        (over > Nanos::ZERO).then(|| StepsReport {
            steps: steps.fold(0, u64::saturating_add),
            over_us: over.as_micros(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_those_between_readings() {
        let mut steps = Steps::default();
        assert_eq!(steps.report(), None);
        steps.on_reading(Nanos(1_000), 0, 100);
        assert_eq!(steps.report(), None);
        steps.on_reading(Nanos(2_000), 1, 7);
        steps.on_reading(Nanos(5_000), 0, 150);
        steps.on_reading(Nanos(6_000), 1, 8);
        assert_eq!(steps.report(), Some(StepsReport { steps: 51, over_us: 5 }));
    }
}
