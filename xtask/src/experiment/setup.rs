//! Under which conditions the arms of an experiment run.

use std::time::Duration;

use dunlin_core::units::{Bytes, BytesPerSec};
use serde::Serialize;

use super::load::{Link, preheating_steps};

/// Times that hold for guests of the size the papers moved, and for their links; scaled to ours before they are used.
const DOWNTIME: Duration = Duration::from_millis(300);
/// Dunlin's own default.
const MIN_ROUND: Duration = Duration::from_millis(100);
/// How long a guest runs before it is moved: what it does in the last second is its speed.
const WARM_UP_SECONDS: f64 = 1.2;

/// What the paper moved, and over which link: so many times longer than ours does one copy of it take.
#[derive(Clone, Copy)]
pub(super) struct Original {
    pub(super) megabytes: f64,
    pub(super) megabytes_per_second: f64,
}

/// A guest, its links and its limits.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Setup {
    pub(super) memory_mib: u64,
    pub(super) workload: String,
    /// Steps per second of the guest.
    pub(super) rate: u64,
    pub(super) bandwidth_mb: u64,
    pub(super) storage_mb: u64,
    pub(super) downtime_us: u64,
    pub(super) min_round_us: u64,
    /// Steps after which the first repetition begins.
    pub(super) first_steps: u64,
    /// Steps by which each further repetition begins later.
    pub(super) stride: u64,
    /// The load that the generator writes at this rate.
    pub(super) lambda: f64,
    /// Storage bandwidth over network bandwidth.
    pub(super) rho: f64,
    /// Share of memory that is written to.
    pub(super) h: f64,
    /// Downtime limit over the time of one copy.
    pub(super) delta: f64,
}

impl Setup {
    /// `workload` has no rate yet.
    pub(super) fn new(link: Link, rho: u64, workload: &str, rate: u64, original: Original) -> anyhow::Result<Self> {
        let working_set = link.working_set(workload)?;
        let scale = link.copy_seconds() / (original.megabytes / original.megabytes_per_second);
        let downtime = DOWNTIME.mul_f64(scale);
        let bandwidth_mb = link.bandwidth.0 / 1_000_000;
        Ok(Self {
            memory_mib: link.memory.0 >> 20,
            workload: format!("{workload},rate={rate}"),
            rate,
            bandwidth_mb,
            storage_mb: bandwidth_mb * rho,
            downtime_us: downtime.as_micros() as u64,
            min_round_us: MIN_ROUND.mul_f64(scale).as_micros() as u64,
            first_steps: (WARM_UP_SECONDS * rate as f64) as u64 + preheating_steps(workload, working_set),
            stride: 0,
            lambda: link.offered_load(workload, rate as f64)?,
            rho: rho as f64,
            h: working_set.0 as f64 / link.pages() as f64,
            delta: downtime.as_secs_f64() / link.copy_seconds(),
        })
    }

    /// Sets another limit than the usual one.
    pub(super) fn limit_downtime(&mut self, downtime: Duration) {
        self.downtime_us = downtime.as_micros() as u64;
        self.delta = downtime.as_secs_f64() / self.link().copy_seconds();
    }

    pub(super) fn link(&self) -> Link {
        Link {
            memory: Bytes(self.memory_mib << 20),
            bandwidth: BytesPerSec(self.bandwidth_mb * 1_000_000),
        }
    }

    /// The load of a guest that did so many steps per second.
    pub(super) fn load_at(&self, steps_per_second: f64) -> anyhow::Result<f64> {
        self.link().offered_load(&self.workload, steps_per_second)
    }

    /// How many steps the guest does before a repetition begins: the same for all arms, so that they meet the same guest.
    pub(super) const fn steps_before(&self, repetition: usize) -> u64 {
        self.first_steps + self.stride * repetition as u64
    }

    pub(super) fn seconds_before(&self, repetition: usize) -> f64 {
        self.steps_before(repetition) as f64 / self.rate as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(workload: &str) -> Setup {
        let link = Link {
            memory: Bytes(256 << 20),
            bandwidth: BytesPerSec(40_000_000),
        };
        let original = Original {
            megabytes: 6442.0,
            megabytes_per_second: 32.0,
        };
        Setup::new(link, 2, workload, 3613, original).expect("a setup")
    }

    /// One copy took 201.3 s and takes 6.711 s: 300 ms become 10.0 ms.
    #[test]
    fn limits_shrink_with_the_time_of_a_copy() {
        let setup = setup("seq");
        assert!((9_990..=10_010).contains(&setup.downtime_us), "{setup:?}");
        assert!((3_330..=3_337).contains(&setup.min_round_us), "{setup:?}");
        assert!((setup.delta - 0.300 / 201.3).abs() < 1e-5);
        assert_eq!((setup.storage_mb, setup.rho), (80, 2.0));
        assert!(
            (setup.lambda - 0.37).abs() < 0.001 && setup.h > 0.97 && setup.h < 1.0,
            "{setup:?}"
        );
        let mut other = setup.clone();
        other.limit_downtime(Duration::from_millis(20));
        assert_eq!(other.downtime_us, 20_000);
        assert!((other.delta / setup.delta - 2.0).abs() < 0.01, "{other:?}");
        assert!((setup.load_at(1806.5).expect("a load") - 0.185).abs() < 0.001);
    }

    #[test]
    fn a_slab_is_full_before_anything_begins() {
        let mut setup = setup("memcached,ws=16MiB");
        assert_eq!(setup.steps_before(0), 4096 + 4335);
        setup.stride = 100;
        assert_eq!(setup.steps_before(3), 4096 + 4335 + 300);
        assert!((setup.seconds_before(0) - 2.333).abs() < 0.01);
    }
}
