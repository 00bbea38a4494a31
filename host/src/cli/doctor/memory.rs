//! userfaultfd and PAGEMAP_SCAN, tried on a page of memory.

use super::Probe;
use crate::{
    memory::{FaultOrigin, GuestMemory, MemoryLayout, Userfaultfd},
    report::chain,
    track::pagemap::PagemapTracker,
};
use dunlin_core::units::{Bytes, PAGE_SIZE};
use std::{error::Error, sync::Arc};

const DENIED: &str = "run as root or with CAP_SYS_PTRACE, or set sysctl vm.unprivileged_userfaultfd=1";

pub(super) fn probes() -> [Probe; 3] {
    [
        faults("userfaultfd", "post-copy of guests of --kind kvm", FaultOrigin::All),
        faults(
            "user-mode faults",
            "post-copy of guests of --kind thread",
            FaultOrigin::UserMode,
        ),
        pagemap(),
    ]
}

fn faults(name: &'static str, needed_for: &'static str, origin: FaultOrigin) -> Probe {
    let tried = page().and_then(|memory| Ok(Userfaultfd::open(memory, origin)?.register_missing()?));
    let sysctl = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    let sysctl = sysctl.map_or("absent".into(), |value| value.trim().to_owned());
    match tried {
        Ok(()) => Probe::ok(
            name,
            needed_for,
            format!("missing pages are reported (vm.unprivileged_userfaultfd {sysctl})"),
        ),
        Err(error) => Probe::missing(name, needed_for, chain(&*error), DENIED),
    }
}

fn pagemap() -> Probe {
    const USE: &str = "guests of --kind thread, and record --source pagemap";
    let tried = page().and_then(|memory| {
        let mut dirty = vec![0; memory.layout().words()];
        let tracker = PagemapTracker::start(Arc::clone(&memory))?;
        tracker.harvest(&mut dirty)?;
        memory.write_u64(0, 1);
        dirty.fill(0);
        tracker.harvest(&mut dirty)?;
        if dirty[0] == 1 {
            Ok(())
        } else {
            Err("a write was not noticed".into())
        }
    });
    match tried {
        Ok(()) => Probe::ok(
            "PAGEMAP_SCAN",
            USE,
            "written pages are found by asynchronous write protection".into(),
        ),
        Err(error) => Probe::missing("PAGEMAP_SCAN", USE, chain(&*error), "use Linux 6.7 or newer"),
    }
}

fn page() -> Result<Arc<GuestMemory>, Box<dyn Error>> {
    Ok(Arc::new(GuestMemory::new(MemoryLayout::new(Bytes(PAGE_SIZE))?)?))
}
