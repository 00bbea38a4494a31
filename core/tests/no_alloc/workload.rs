use crate::{Numbers, format};
use dunlin_core::units::{Bytes, Nanos};
use dunlin_core::workload::{BootBlock, Fill, Pacer, Ram, Runner, Spec};
use std::hint::black_box;

const SPECS: &[&str] = &[
    "idle",
    "seq,rate=12000",
    "uniform,ws=256KiB",
    "zipf:0.99",
    "hotset:0.1",
    "lmbench",
    "memcached",
    "kernel",
    "shared:0.5",
    "phases:(seq,rate=1000)*500+(uniform)*500",
];
const MEMORY: Bytes = Bytes(4 << 20);

struct Memory<'m>(&'m mut [u64]);

impl Ram for Memory<'_> {
    fn read_u64(&self, address: u64) -> u64 {
        self.0[address as usize / 8]
    }

    fn write_u64(&mut self, address: u64, value: u64) {
        self.0[address as usize / 8] = value;
    }
}

pub(crate) fn drive(scratch: &mut [u64]) {
    for text in SPECS {
        let spec: Spec = text.parse().expect("a workload");
        format(&spec);
        let boot = BootBlock {
            spec,
            seed: 1,
            steps: 1000,
            vcpus: 2,
            memory: MEMORY,
            fill: Fill::Zero,
        };
        let boot = BootBlock::decode(&boot.encode()).expect("what was encoded");
        let memory = &mut scratch[..(MEMORY.0 / 8) as usize];
        memory.fill(0);
        for vcpu in 0..boot.vcpus {
            run(&boot, vcpu, memory);
        }
    }
    for text in ["", "seq,rate=", "zipf:9", "phases:(seq)", "walk", "seq,ws=1KiB,ws=2KiB"] {
        format(text.parse::<Spec>().expect_err("no workload"));
    }
    damaged_memory_is_named(scratch);
}

fn run(boot: &BootBlock, vcpu: u32, memory: &mut [u64]) {
    let mut pacer = Pacer::new(&boot.spec, boot.vcpus, 0, Nanos::ZERO);
    let mut runner = Runner::new(boot, vcpu).expect("the workload fits");
    while !runner.finished() {
        let steps = runner.run_batch(&mut Memory(memory)).expect("memory as it was left");
        black_box(pacer.on_batch(steps, Nanos::ZERO));
        runner = Runner::resume(boot, vcpu, runner.state()).expect("its own state");
    }
}

fn damaged_memory_is_named(scratch: &mut [u64]) {
    let spec = "seq".parse().expect("a workload");
    let boot = BootBlock {
        spec,
        seed: 1,
        steps: 0,
        vcpus: 1,
        memory: MEMORY,
        fill: Fill::Random,
    };
    let mut numbers = Numbers(1);
    scratch.fill_with(|| numbers.next());
    let mut runner = Runner::new(&boot, 0).expect("the workload fits");
    format(
        runner
            .run_batch(&mut Memory(scratch))
            .expect_err("random pages are no workload's"),
    );
    format(BootBlock::decode(&[0; 8]).expect_err("no boot block"));
}
