//! Traces of every workload generator, written down in virtual time.

use anyhow::Context as _;
use dunlin_core::units::{Gfn, Nanos, Pages};
use dunlin_core::workload::{Generator, Kind, Spec};

/// Pages of the guest: 256 MiB.
pub(super) const GUEST: Pages = Pages(1 << 16);
/// The half of it that the workload may write.
const WORKING_SET: Pages = Pages(1 << 15);
const VCPUS: u32 = 2;
/// Steps per second of the whole guest.
const RATE: u32 = 24_000;
const SEED: u64 = 1;

/// Every generator, each as its own documentation describes it. The phases last five seconds each.
pub(super) const LOADS: &[(&str, &str)] = &[
    ("seq", "seq"),
    ("uniform", "uniform"),
    ("zipf", "zipf:0.99"),
    ("hotset", "hotset:0.1"),
    ("lmbench", "lmbench"),
    ("memcached", "memcached"),
    ("kernel", "kernel"),
    ("shared", "shared:0.25"),
    ("phases", "phases:(seq)*60000+(uniform)*60000+(hotset:0.1)*60000"),
];

/// A page written at a time by a vCPU.
#[derive(Clone, Copy)]
pub(super) struct Write {
    pub(super) at: Nanos,
    pub(super) gfn: Gfn,
    pub(super) vcpu: u16,
}

/// All writes from time 0 until `until`, in order: each vCPU takes its share of the rate in equal steps.
pub(super) fn record(spec: &str, until: Nanos) -> anyhow::Result<Vec<Write>> {
    let spec = spec.parse::<Spec>()?.with_rate(RATE);
    let generators = (0..VCPUS).map(|vcpu| Generator::new(&spec, WORKING_SET, VCPUS, vcpu, SEED));
    let mut generators = generators
        .collect::<Result<Vec<_>, _>>()
        .context("a workload of the bench")?;
    let step = 1_000_000_000 / u64::from(RATE);
    let mut writes = Vec::new();
    for number in 1..until.0 / step {
        let vcpu = (number % u64::from(VCPUS)) as usize;
        let Some(done) = generators[vcpu].next() else { break };
        if done.kind == Kind::Write {
            writes.push(Write {
                at: Nanos(number * step),
                gfn: Gfn(done.page),
                vcpu: vcpu as u16,
            });
        }
    }
    Ok(writes)
}
