//! Workloads of a wanted offered load: how many distinct pages a guest writes in the time one copy of its memory takes,
//! as a share of the pages that go over the link in that time.
//!
//! By that definition no guest offers more than 1, since it has no more pages than its memory. A load above 1 means the
//! rate at which pages are written for the first time, which `seq` keeps up until it has been through all of them.

use std::time::Duration;

use dunlin_core::units::{Bytes, BytesPerSec, PAGE_SIZE};

use crate::experiment::load::Link;

/// Loads of [`growing_seq`] in thousandths, one phase each.
const GROWING_MILLI: [u64; 4] = [400, 800, 1200, 2000];
/// How long each phase but the first and the last takes: about a round of pre-copy.
const PHASE: Duration = Duration::from_millis(450);

/// A `uniform` workload of `load_milli` thousandths, below 1000.
pub(super) fn steady_uniform(memory: Bytes, bandwidth: BytesPerSec, load_milli: u64) -> anyhow::Result<String> {
    let link = Link { memory, bandwidth };
    let rate = link.rate_for_share("uniform", load_milli as f64 / 1000.0)?;
    Ok(format!("uniform,rate={rate}"))
}

/// A `seq` workload that writes at 0.4 of the bandwidth until one copy has been made after `warm_up`, and then ever
/// faster, in the end at twice the bandwidth.
pub(super) fn growing_seq(memory: Bytes, bandwidth: BytesPerSec, warm_up: Duration, vcpus: u32) -> String {
    let copy = Duration::from_secs_f64(memory.0 as f64 / bandwidth.0 as f64);
    let last = GROWING_MILLI.len() - 1;
    let phases = GROWING_MILLI.iter().enumerate().map(|(index, load_milli)| {
        let rate = bandwidth.0 / PAGE_SIZE * load_milli / 1000;
        let time = match index {
            0 => warm_up + copy,
            _ if index == last => Duration::from_secs(3600),
            _ => PHASE,
        };
        // Rates are those of the whole guest, lengths those of each vCPU.
        format!(
            "(seq,rate={rate})*{}",
            time.as_millis() as u64 * rate / 1000 / u64::from(vcpus)
        )
    });
    format!("phases:{}", phases.collect::<Vec<_>>().join("+"))
}

#[cfg(test)]
mod tests {
    use dunlin_core::workload::{Pattern, Plan, Spec};

    use super::*;

    const MEMORY: Bytes = Bytes(64 << 20);
    const BANDWIDTH: BytesPerSec = BytesPerSec(64_000_000);

    #[test]
    fn uniform_needs_as_many_steps_as_chance_says() {
        let workload = steady_uniform(MEMORY, BANDWIDTH, 500).expect("a load below 1");
        let rate: f64 = workload.trim_start_matches("uniform,rate=").parse().expect("a number");
        // n steps leave a page of W unwritten with probability (1 - 1/W)^n.
        let pages = Plan::new(&Spec::new(Pattern::Uniform), MEMORY, 1).expect("fits").ws().0 as f64;
        let wanted = (MEMORY.0 / PAGE_SIZE / 2) as f64;
        let steps = (1.0 - wanted / pages).ln() / (1.0 - 1.0 / pages).ln();
        let expected = steps * BANDWIDTH.0 as f64 / MEMORY.0 as f64;
        assert!((rate / expected - 1.0).abs() < 0.03, "{rate} instead of {expected}");
    }

    #[test]
    fn more_than_everything_is_refused() {
        assert!(steady_uniform(MEMORY, BANDWIDTH, 1000).is_err());
    }

    #[test]
    fn the_growing_load_is_a_workload_that_begins_slowly_and_ends_at_twice_the_bandwidth() {
        let text = growing_seq(MEMORY, BANDWIDTH, Duration::from_secs(1), 2);
        let spec: Spec = text.parse().expect("a workload");
        let rates: Vec<u32> = spec.phases().iter().map(|phase| phase.rate).collect();
        assert_eq!(rates, [6250, 12_500, 18_750, 31_250]);
        assert_eq!(spec.rate_at(0), 6250);
        assert_eq!(
            spec.phases()[0].steps,
            6250 * 2048 / 1000 / 2,
            "a second, then one copy"
        );
    }
}
