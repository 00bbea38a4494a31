use super::*;
use std::os::fd::AsFd;
use std::sync::Arc;

use dunlin::memory::{Fault, FaultOrigin, Userfaultfd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

/// Runs a guest on memory that is missing altogether; every second page is brought only when somebody waits for it, the
/// others, from the front, also ahead of that.
#[test]
fn a_guest_runs_while_its_memory_is_still_missing() {
    for config in shapes("uniform,ws=4MiB,rate=8000", 1500) {
        if config.kind == GuestKind::Kvm && !require(Capability::Uffd) {
            continue;
        }
        let source = half_done(&config);
        let target = AnyGuest::create_incoming(config.clone(), source.machine().clone()).unwrap();
        target.restore_state(&source.save_state().unwrap()).unwrap();

        // Something stale that arrived before is discarded.
        let whole = target.memory().layout().regions()[0];
        target.memory().populate(Run::new(Gfn(256), Pages(512))).unwrap();
        let origin = if config.kind == GuestKind::Kvm {
            FaultOrigin::All
        } else {
            FaultOrigin::UserMode
        };
        let missing = Userfaultfd::open(target.memory().clone(), origin).unwrap();
        missing.register_missing().unwrap();
        target.memory().discard(whole).unwrap();
        assert_eq!(target.memory().present_pages(whole).unwrap(), Pages(0));

        target.resume().unwrap();
        let faults = serve(&missing, source.memory(), &target);
        assert!(faults > 100, "only {faults} faults");
        // What nobody waited for comes now; then nothing is missing.
        let mut buffer = vec![0; 4096];
        for gfn in whole.first.0..whole.end().0 {
            source.memory().copy_run(page(gfn), &mut buffer).unwrap();
            missing.copy(Gfn(gfn), &buffer).unwrap();
        }
        assert_eq!(target.memory().present_pages(whole).unwrap(), whole.count);
        missing.unregister().unwrap();
        assert_eq!(finish(&target), undisturbed(&config), "{}", shape(&config));
    }
}

/// A paused guest with at least a third of its steps before it, however busy the machine is.
fn half_done(config: &GuestConfig) -> AnyGuest {
    let total = config.steps.unwrap() * u64::from(config.vcpus);
    for _ in 0..100 {
        let guest = AnyGuest::create(config.clone()).unwrap();
        guest.resume().unwrap();
        wait_for_steps(&guest, total / 2);
        guest.pause().unwrap();
        if guest.progress().steps() < total * 2 / 3 {
            return guest;
        }
    }
    panic!("this machine is too busy to stop a guest half-way");
}

/// Brings pages until the guest has ended; returns for how many somebody waited.
fn serve(missing: &Userfaultfd, source: &Arc<GuestMemory>, target: &AnyGuest) -> u64 {
    let mut buffer = vec![0; 4096];
    let mut install = |gfn: Gfn| {
        if source.is_zero(gfn).unwrap() {
            return missing.zero(Run::new(gfn, Pages(1))).unwrap().installed.0;
        }
        source.copy_run(Run::new(gfn, Pages(1)), &mut buffer).unwrap();
        missing.copy(gfn, &buffer).unwrap().installed.0
    };
    let deadline = Instant::now() + PATIENCE;
    let (mut waited_for, mut ahead) = (0, 0);
    while !target.progress().all_halted() {
        assert_eq!(target.progress().failure, None);
        assert!(Instant::now() < deadline, "the guest is stuck: {:?}", target.progress());
        let short = Timespec {
            tv_sec: 0,
            tv_nsec: 2_000_000,
        };
        poll(&mut [PollFd::new(&missing.as_fd(), PollFlags::IN)], Some(&short)).unwrap();
        let mut faults = [Fault::default(); 16];
        let count = missing.read_events(&mut faults).unwrap();
        for fault in &faults[..count] {
            waited_for += install(fault.gfn);
            // As many as were waited for, so that there is something left to wait for.
            if ahead < source.layout().end_gfn().0 {
                install(Gfn(ahead));
                ahead += 2;
            }
        }
    }
    waited_for
}
