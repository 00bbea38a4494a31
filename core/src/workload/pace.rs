//! Holding a vCPU to its rate, from outside the guest.

use super::layout::MAX_VCPUS;
use super::spec::Spec;
use crate::units::Nanos;

/// How far behind its rate a vCPU may be and still catch up: what it lost beyond that stays lost.
const CATCH_UP: Nanos = Nanos::from_millis(50);

/// Tells when a vCPU may start its next batch. The time is the caller's; nothing of it enters the guest.
#[derive(Clone, Debug)]
pub struct Pacer {
    spec: Spec,
    vcpus: u32,
    step: u64,
    due: Nanos,
}

impl Pacer {
    /// For a vCPU that has done `step` steps and starts or goes on at `now`; there are `vcpus` in the guest, at least
    /// one.
    pub fn new(spec: &Spec, vcpus: u32, step: u64, now: Nanos) -> Self {
        Self {
            spec: spec.clone(),
            vcpus: vcpus.clamp(1, MAX_VCPUS),
            step,
            due: now,
        }
    }

    /// The vCPU has finished a batch of `steps` at `now`: returns when the next may start, `now` or before if at once.
    ///
    /// A batch lies within one phase. In unpaced phases the next one may always start at once.
    pub fn on_batch(&mut self, steps: u32, now: Nanos) -> Nanos {
        let rate = self.spec.rate_at(self.step);
        self.step = self.step.wrapping_add(u64::from(steps));
        if rate == 0 {
            self.due = now;
        } else {
            // At most 2^32 steps * 4 vCPUs * 10^9 ns: fits 64 bits.
            let duration = u64::from(steps) * u64::from(self.vcpus) * 1_000_000_000 / u64::from(rate);
            let earliest = now.saturating_sub(CATCH_UP);
            self.due = self.due.saturating_add(Nanos(duration)).max(earliest);
        }
        self.due
    }
}
