//! Pushes into dirty rings.

use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use dunlin::trace::ebpf::{Config, Hooks, Mode};
use dunlin_core::record::Kind;
use dunlin_core::tracefile::Item;
use dunlin_core::units::Bytes;
use dunlin_tests::{Capability, require};

use crate::vm::RingVm;
use crate::{attach, items, stream, thread};

#[test]
fn the_stream_is_what_the_ring_has_in_its_order() {
    if !require(Capability::Kvm) || !require(Capability::Ebpf) {
        return;
    }
    let mut vm = RingVm::new(std::slice::from_ref(&(256..1256)));
    let config = stream(Hooks::DirtyRing, vec![vm.region()], vec![(thread(), 0)]);
    let mut tracer = attach(config).unwrap();
    for _ in 0..20 {
        let vcpu = &mut vm.vcpus[0];
        vcpu.pass();
        let harvested = vcpu.harvest();
        tracer.protect();
        vcpu.reset();
        assert_eq!(harvested, (256..1256).collect::<Vec<_>>());
        let items = items(&mut tracer);
        let writes: Vec<u64> = items
            .iter()
            .filter_map(|item| match item {
                Item::Write { vcpu: 0, gfn, .. } => Some(gfn.0),
                _ => None,
            })
            .collect();
        assert_eq!(writes, harvested);
        assert_eq!(items.len(), writes.len() + 1);
        assert!(
            matches!(items.last(), Some(Item::WindowEnd { vcpu: 0, .. })),
            "{:?}",
            items.last()
        );
        assert!(items.is_sorted_by_key(Item::at));
    }
    let counters = tracer.counters().unwrap();
    assert_eq!(counters.events(Kind::RingPush), 20_000);
    assert_eq!(counters.events(Kind::RingReset), 20);
    assert_eq!((counters.lost(), counters.outside()), (0, 0));
    println!("{}", tracer.overhead().unwrap());
    assert_eq!(tracer.diagnostics(), [""; 0]);
}

/// Two vCPUs write as fast as they can, with the tracer reading beside them: each vCPU's part of the stream is what it wrote.
#[test]
fn nothing_is_lost_at_full_speed() {
    const PASSES: usize = 40;
    if !require(Capability::Kvm) || !require(Capability::Ebpf) {
        return;
    }
    let ranges = [256..4352, 8192..12288];
    let mut vm = RingVm::new(&ranges);
    let region = vm.region();
    let (said, threads) = channel();
    let go = Arc::new(Barrier::new(3));
    let (mut tracer, items, elapsed) = scope(|scope| {
        let mut running = vec![];
        for (index, vcpu) in (0..).zip(&mut vm.vcpus) {
            let (said, go) = (said.clone(), Arc::clone(&go));
            running.push(scope.spawn(move || {
                said.send((thread(), index)).unwrap();
                go.wait();
                for _ in 0..PASSES {
                    vcpu.pass();
                    assert_eq!(vcpu.harvest().len(), 4096);
                    vcpu.reset();
                }
            }));
        }
        let vcpus = vec![threads.recv().unwrap(), threads.recv().unwrap()];
        let config = Config {
            mode: Mode::Stream {
                buffer: Bytes(16 << 20),
            },
            ..stream(Hooks::DirtyRing, vec![region], vcpus)
        };
        let mut tracer = attach(config).unwrap();
        let (mut items, began) = (vec![], Instant::now());
        go.wait();
        while !running.iter().all(|thread| thread.is_finished()) {
            tracer.drain(|item| items.push(item)).unwrap();
            sleep(Duration::from_millis(5));
        }
        let elapsed = began.elapsed();
        items.extend(crate::items(&mut tracer));
        (tracer, items, elapsed)
    });
    let counters = tracer.counters().unwrap();
    let expected = (2 * PASSES * 4096) as u64;
    assert_eq!(counters.events(Kind::RingPush), expected);
    println!(
        "{:.0} events/s, {} lost, {}",
        expected as f64 / elapsed.as_secs_f64(),
        counters.lost(),
        tracer.overhead().unwrap()
    );
    assert_eq!(counters.lost(), 0);
    for (index, range) in (0..).zip(ranges) {
        let writes = items.iter().filter_map(|item| match item {
            Item::Write { vcpu, gfn, .. } if *vcpu == index => Some(gfn.0),
            _ => None,
        });
        assert!(writes.eq(std::iter::repeat_n(range, PASSES).flatten()), "vCPU {index}");
    }
    assert!(items.is_sorted_by_key(Item::at));
}

/// With repeats dropped, the stream has each change from one page to another, and each first write after a reset.
#[test]
fn repeats_are_left_out_and_counted() {
    if !require(Capability::Kvm) || !require(Capability::Ebpf) {
        return;
    }
    // One page: every write but the first of each window is a repeat.
    let mut vm = RingVm::new(std::slice::from_ref(&(300..301)));
    let config = Config {
        repeats: false,
        ..stream(Hooks::DirtyRing, vec![vm.region()], vec![(thread(), 0)])
    };
    let mut tracer = attach(config).unwrap();
    for _ in 0..3 {
        let vcpu = &mut vm.vcpus[0];
        for _ in 0..50 {
            vcpu.pass();
        }
        vcpu.harvest();
        tracer.protect();
        vcpu.reset();
        let items = items(&mut tracer);
        let writes = items.iter().filter(|item| matches!(item, Item::Write { .. }));
        assert_eq!(writes.count(), 1, "{items:?}");
    }
    let counters = tracer.counters().unwrap();
    // A processor that runs the guest by itself reports first writes only.
    assert_eq!(counters.events(Kind::RingPush), 3 + counters.repeats());
    assert!(matches!(counters.repeats(), 0 | 147), "{counters:?}");
}
