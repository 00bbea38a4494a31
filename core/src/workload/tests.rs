//! Tests that look at the workload from outside, one file per concept.

mod boot;
mod generator;
mod pace;
mod plan;
mod runner;
mod spec;
mod stamp;
mod zipf;

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::units::{Bytes, Pages};
use crate::workload::{BootBlock, Fill, Milli, Pattern, Ram, Spec};

/// Sparse memory: what was never written reads as `BootBlock` filled it.
#[derive(Clone)]
struct Memory {
    boot: BootBlock,
    words: BTreeMap<u64, u64>,
}

impl Memory {
    fn new(boot: &BootBlock) -> Self {
        Self {
            boot: boot.clone(),
            words: BTreeMap::new(),
        }
    }
}

impl Ram for Memory {
    fn read_u64(&self, address: u64) -> u64 {
        assert_eq!(address % 8, 0, "unaligned {address:#x}");
        let filled = || {
            let gfn = crate::units::Gfn(address / 4096);
            let plan = self.boot.plan().expect("the memory was made for it");
            let filled = plan.fill_frames().into_iter().any(|frames| frames.contains(&gfn));
            if filled {
                self.boot.fill.word(self.boot.seed, address)
            } else {
                0
            }
        };
        self.words.get(&address).copied().unwrap_or_else(filled)
    }

    fn write_u64(&mut self, address: u64, value: u64) {
        assert_eq!(address % 8, 0, "unaligned {address:#x}");
        self.words.insert(address, value);
    }
}

/// A boot block for a small guest.
fn boot(spec: &str, vcpus: u32) -> BootBlock {
    let spec = spec.parse().expect("a workload");
    BootBlock {
        spec,
        seed: 1,
        steps: 0,
        vcpus,
        memory: Bytes(4 << 20),
        fill: Fill::Zero,
    }
}

fn patterns() -> impl Strategy<Value = Pattern> {
    prop_oneof![
        Just(Pattern::Idle),
        Just(Pattern::Seq),
        Just(Pattern::Uniform),
        (0u16..=3000).prop_map(|s| Pattern::Zipf(Milli(s))),
        (1u16..=999).prop_map(|fraction| Pattern::Hotset(Milli(fraction))),
        Just(Pattern::Lmbench),
        Just(Pattern::Memcached),
        Just(Pattern::Kernel),
        (1u16..=1000).prop_map(|fraction| Pattern::Shared(Milli(fraction))),
    ]
}

/// Workloads of all shapes, with working sets from `least_ws` to 400 pages.
fn specs(least_ws: u64) -> impl Strategy<Value = Spec> {
    let ws = move || proptest::option::of((least_ws..400).prop_map(Pages));
    let rate = || prop_oneof![Just(None), Just(Some(0)), any::<u32>().prop_map(Some)];
    let single = (patterns(), rate(), ws()).prop_map(|(pattern, rate, ws)| {
        let spec = Spec::new(pattern).with_ws(ws);
        rate.map_or(spec.clone(), |rate| spec.with_rate(rate))
    });
    let phase = (patterns(), rate(), proptest::option::of(least_ws..8), 1u64..500);
    let phases = (proptest::collection::vec(phase, 1..=16), (8u64..400).prop_map(Pages)).prop_map(|(phases, ws)| {
        use std::fmt::Write as _;
        let mut text = std::string::String::from("phases:");
        for (index, (pattern, rate, ws, steps)) in phases.into_iter().enumerate() {
            let plus = if index > 0 { "+" } else { "" };
            write!(text, "{plus}({pattern}").expect("a string takes everything");
            if let Some(rate) = rate {
                write!(text, ",rate={rate}").expect("a string takes everything");
            }
            if let Some(ws) = ws {
                write!(text, ",ws={}KiB", ws * 4).expect("a string takes everything");
            }
            write!(text, ")*{steps}").expect("a string takes everything");
        }
        text.parse::<Spec>().expect("made by the grammar").with_ws(Some(ws))
    });
    prop_oneof![single, phases]
}
