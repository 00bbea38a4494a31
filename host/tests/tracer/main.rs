//! The eBPF tracer on this kernel: what it reports is what happened, in order, or is counted as lost.

mod faults;
mod gone;
mod qemu;
mod ring;
mod vm;

use dunlin::trace::ebpf::{Config, Hooks, Mode, Region, Tracer, TracerError};
use dunlin_core::tracefile::Item;
use dunlin_core::units::Bytes;

/// A recording of this process as a stream.
fn stream(hooks: Hooks, regions: Vec<Region>, vcpus: Vec<(u32, u32)>) -> Config {
    Config {
        process: std::process::id(),
        hooks: vec![hooks],
        regions,
        vcpus,
        mode: Mode::Stream { buffer: Bytes(4 << 20) },
        repeats: true,
        measure: true,
    }
}

/// Names a file with the programs to test; without it, it is those that are part of the library.
const PROGRAMS: &str = "DUNLIN_TEST_PROGRAMS";

fn attach(config: Config) -> Result<Tracer, TracerError> {
    match std::env::var_os(PROGRAMS) {
        Some(file) => Tracer::attach_of(&std::fs::read(file).expect("the programs can be read"), config),
        None => Tracer::attach(config),
    }
}

/// This thread's number.
fn thread() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

/// Everything the tracer has.
fn items(tracer: &mut Tracer) -> Vec<Item> {
    let mut items = vec![];
    while tracer.drain(|item| items.push(item)).unwrap() > 0 {}
    items
}
