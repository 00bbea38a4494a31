//! KVM's dirty rings: mapped, harvested by a thread of their own while writes are tracked, and by vCPUs whose ring fills up.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use dunlin_core::units::{Nanos, PAGE_SIZE};
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn, kvm_enable_cap,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::super::{GuestError, prepare};
use super::vm::{Vm, kvm_error};
use crate::track::ring::{ENTRIES_MAX, ENTRIES_MIN, Entry};
use crate::track::rings::{RingGauges, RingKernel, RingWindow, Rings};
use crate::track::thread_cpu;

// _IO(KVMIO, 0xc7), include/uapi/linux/kvm.h
const KVM_RESET_DIRTY_RINGS: libc::c_ulong = 0xaec7;

/// How often rings are harvested whether or not anybody asks. A KVM that emulates pushes every store, and does not stop a vCPU whose
/// ring is full before it has emulated whole batches: waiting for that would lose entries.
const HARVEST_EVERY: Duration = Duration::from_millis(20);

const _: () = assert!(size_of::<Entry>() == size_of::<kvm_dirty_gfn>());
const _: () = assert!(align_of::<Entry>() == align_of::<kvm_dirty_gfn>());

/// Checks that this KVM makes rings of so many entries; by which capability.
pub(super) fn check(kvm: &Kvm, entries: u32) -> Result<u32, GuestError> {
    // Both are the same on x86, where all accesses are ordered as needed; only the newer one promises it everywhere.
    let known = [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING].into_iter();
    let most_bytes = |capability: &u32| u32::try_from(kvm.check_extension_raw((*capability).into())).unwrap_or(0);
    let Some(capability) = known.into_iter().find(|capability| most_bytes(capability) > 0) else {
        return Err(GuestError::KvmLacks("dirty rings (KVM_CAP_DIRTY_LOG_RING)"));
    };
    let most = (most_bytes(&capability) / size_of::<Entry>() as u32).min(ENTRIES_MAX);
    if !entries.is_power_of_two() || !(ENTRIES_MIN..=most).contains(&entries) {
        return Err(GuestError::RingSize { entries, most });
    }
    Ok(capability)
}

/// Gives a VM that has no vCPUs yet rings of this size instead of dirty bitmaps.
pub(super) fn enable(kvm: &Kvm, vm: &VmFd, entries: u32) -> Result<(), GuestError> {
    let mut enable = kvm_enable_cap {
        cap: check(kvm, entries)?,
        ..Default::default()
    };
    enable.args[0] = u64::from(entries) * size_of::<Entry>() as u64;
    vm.enable_cap(&enable)
        .map_err(kvm_error("KVM_ENABLE_CAP(KVM_CAP_DIRTY_LOG_RING)"))
}

/// The ring of one vCPU, mapped.
struct Mapping {
    base: NonNull<Entry>,
    entries: usize,
}

// SAFETY: the mapping belongs to this value alone; all access is through shared references to atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(vcpu: &VcpuFd, entries: u32) -> Result<Self, GuestError> {
        let entries = entries as usize;
        let offset = libc::off_t::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_SIZE as libc::off_t;
        // SAFETY: a new mapping at an address the kernel chooses touches nothing that exists.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                entries * size_of::<Entry>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                offset,
            )
        };
        let failed = || GuestError::Kvm {
            call: "mmap of a dirty ring",
            source: io::Error::last_os_error(),
        };
        if address == libc::MAP_FAILED {
            return Err(failed());
        }
        let base = NonNull::new(address.cast()).ok_or_else(failed)?;
        Ok(Self { base, entries })
    }

    fn get(&self) -> &[Entry] {
        // SAFETY: the mapping holds so many entries, page-aligned and zeroed at first, and lives as long as `self`. KVM writes them
        // while we look, and only by aligned stores of whole fields; every field is an atomic of that size.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.entries) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every reference to it has borrowed `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.entries * size_of::<Entry>()) };
    }
}

/// What the rings are read through.
struct Access {
    vm: Arc<Vm>,
    mappings: Vec<Mapping>,
}

impl RingKernel for Access {
    fn ring(&self, vcpu: usize) -> &[Entry] {
        self.mappings[vcpu].get()
    }

    fn reset(&self) -> Result<u32, GuestError> {
        // SAFETY: takes no argument; it protects pages of the VM again and changes flags in the rings.
        let reset = unsafe { libc::ioctl(self.vm.fd().as_raw_fd(), KVM_RESET_DIRTY_RINGS) };
        u32::try_from(reset).map_err(|_| GuestError::Tracking {
            call: "KVM_RESET_DIRTY_RINGS",
            source: io::Error::last_os_error(),
        })
    }

    fn set_logging(&self, on: bool) -> Result<(), GuestError> {
        self.vm.set_logging(on)
    }
}

/// The dirty rings of a guest, shared by its vCPUs, its harvester and its owner.
pub(super) struct DirtyRings {
    access: Access,
    gauges: Arc<RingGauges>,
    inner: Mutex<Inner>,
    /// Wakes the harvester before its time: it is to end.
    ending: Condvar,
    /// Copy of `inner.on`, to be looked at without the lock.
    on: AtomicBool,
    /// CPU time that harvesting has taken outside of the owner's own calls, in ns.
    cpu_ns: AtomicU64,
    entries: u32,
}

struct Inner {
    rings: Rings,
    on: bool,
    /// A harvest failed when nobody was there to be told.
    failure: Option<GuestError>,
}

impl DirtyRings {
    /// Of the vCPUs of a VM that [`enable`] was called for with so many entries.
    pub(super) fn new(vm: Arc<Vm>, vcpus: &[VcpuFd], entries: u32) -> Result<Self, GuestError> {
        let mappings = vcpus
            .iter()
            .map(|vcpu| Mapping::new(vcpu, entries))
            .collect::<Result<Vec<_>, _>>()?;
        let rings = Rings::new(mappings.len(), entries, vm.memory().layout().regions().to_vec());
        Ok(Self {
            gauges: rings.gauges(),
            access: Access { vm, mappings },
            inner: Mutex::new(Inner {
                rings,
                on: false,
                failure: None,
            }),
            ending: Condvar::new(),
            on: AtomicBool::new(false),
            cpu_ns: AtomicU64::new(0),
            entries,
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries of each ring.
    pub(super) const fn entries(&self) -> u32 {
        self.entries
    }

    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    pub(super) fn overruns(&self) -> u64 {
        self.inner().rings.overruns()
    }

    pub(super) fn cpu(&self) -> Nanos {
        Nanos(self.cpu_ns.load(Ordering::Relaxed))
    }

    pub(super) fn keep_order(&self, on: bool) {
        self.inner().rings.keep_order(on);
    }

    /// Starts logging, and a thread that harvests.
    pub(super) fn start(self: &Arc<Self>, guest: &str) -> Result<JoinHandle<()>, GuestError> {
        {
            let mut inner = self.inner();
            self.access.set_logging(true)?;
            (inner.on, inner.failure) = (true, None);
            self.on.store(true, Ordering::Release);
        }
        let rings = Arc::clone(self);
        prepare::spawn(&format!("harvest {guest}"), move || rings.harvest_for_ever()).inspect_err(|_| {
            // If it cannot be switched off either, there is nobody to be told who does not know already.
            let _ = self.end();
        })
    }

    /// Ends logging, and lets the thread end; what was not harvested is forgotten.
    pub(super) fn end(&self) -> Result<(), GuestError> {
        let mut inner = self.inner();
        inner.on = false;
        self.on.store(false, Ordering::Release);
        self.ending.notify_all();
        self.access.set_logging(false)?;
        inner.rings.discard(&self.access)
    }

    fn harvest_for_ever(&self) {
        let mut inner = self.inner();
        while inner.on {
            let harvested = inner.rings.harvest(&self.access);
            inner.keep(harvested);
            self.cpu_ns.store(thread_cpu().0, Ordering::Relaxed);
            inner = self
                .ending
                .wait_timeout(inner, HARVEST_EVERY)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Harvests, and ORs all that was written since the last call into `dirty`.
    pub(super) fn harvest(&self, dirty: &mut [u64], window: Option<&mut RingWindow>) -> Result<(), GuestError> {
        let mut inner = self.inner();
        if !inner.on {
            return Err(GuestError::NotTracking);
        }
        if let Some(failure) = inner.failure.take() {
            return Err(failure);
        }
        inner.rings.harvest(&self.access)?;
        inner.rings.take(dirty, window);
        Ok(())
    }

    // The vCPUs' threads.

    /// Entries of this vCPU's ring that were reset so far; to be asked before it enters the guest.
    pub(super) fn resets(&self, vcpu: u32) -> u64 {
        self.gauges.resets(vcpu as usize)
    }

    /// The vCPU was not let into the guest because its ring is full.
    pub(super) fn on_full(&self, vcpu: u32, resets: u64) {
        let mut inner = self.inner();
        let harvested = inner.rings.on_full(&self.access, vcpu as usize, resets);
        inner.keep(harvested);
    }

    /// The vCPU has left the guest: harvests if its ring is half full, so that the other half does for what it does next.
    pub(super) fn on_exit(&self, vcpu: u32) {
        let vcpu = vcpu as usize;
        if self.is_on() && self.gauges.is_half_full(vcpu, self.access.ring(vcpu)) {
            let mut inner = self.inner();
            if inner.on {
                let harvested = inner.rings.harvest(&self.access);
                inner.keep(harvested);
            }
        }
    }
}

impl Inner {
    /// Keeps an error for whoever harvests next.
    fn keep(&mut self, harvested: Result<(), GuestError>) {
        if let Err(failure) = harvested {
            self.failure.get_or_insert(failure);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use dunlin_core::pageset::Run;
    use dunlin_core::record::Kind;
    use dunlin_core::units::{Bytes, Gfn, Pages};
    use dunlin_core::workload::Fill;
    use dunlin_tests::{Capability, require};

    use super::super::super::{Guest, GuestConfig, GuestKind, Tracking};
    use super::super::KvmGuest;
    use super::*;
    use crate::memory::{GuestMemory, MemoryLayout};
    use crate::trace::ebpf::{Config, Hooks, Mode, Tracer};
    use crate::track::ring::is_pushed;
    use crate::track::runs::runs;

    /// Batches of a thousand steps, each of which writes several times: more than the smallest ring holds. Where only the first write of a
    /// page counts, the second batch is more than it takes.
    const HASTY: &str = "seq,rate=1000000,ws=12MiB";

    fn guest() -> KvmGuest {
        let config = GuestConfig {
            name: "test".into(),
            kind: GuestKind::Kvm,
            memory: Bytes(16 << 20),
            vcpus: 1,
            workload: HASTY.into(),
            seed: 1,
            steps: None,
            fill: Fill::Zero,
            irqchip: false,
        };
        KvmGuest::create(config, Tracking::Ring { entries: ENTRIES_MIN }).unwrap()
    }

    /// So many looks in a row find a vCPU asleep only if it waits for somebody.
    const LONG_ASLEEP: u32 = 500;

    /// Nobody can harvest while the guest runs: KVM stops it, as on hardware, or it overruns its ring. Some rounds of it, so that the way
    /// back from an overrun is gone as well.
    #[test]
    fn a_ring_that_nobody_harvests_overruns_or_stops_its_vcpu() {
        if !require(Capability::Kvm) || !require(Capability::DirtyRing) {
            return;
        }
        let guest = guest();
        let rings = guest.rings.clone().unwrap();
        let replica = GuestMemory::new(MemoryLayout::new(guest.config.memory).unwrap()).unwrap();
        let mut words = vec![0; guest.memory.layout().words()];
        let mut buffer = vec![0; PAGE_SIZE as usize];
        let mut copy = |words: &[u64]| {
            for gfn in runs(words).flat_map(|run| run.first.0..run.end().0) {
                let page = Run::new(Gfn(gfn), Pages(1));
                guest.memory.copy_run(page, &mut buffer).unwrap();
                replica.write_run(page, &buffer).unwrap();
            }
        };
        guest.start_tracking().unwrap();
        copy(&vec![u64::MAX; words.len()]);
        let hardware = Capability::Hardware.probe().is_ok();
        let tracer = (hardware && require(Capability::Ebpf)).then(|| traced(&guest));
        let mut overran = 0;
        for round in 0..4 {
            let full = {
                let _nobody_else = rings.inner();
                guest.resume().unwrap();
                let ring = rings.access.ring(0);
                let deadline = Instant::now() + Duration::from_secs(60);
                // It leaves after a batch, or because KVM does not let it go on, and then wants to harvest: at the latest when its ring is half
                // full, and before that if an overrun is still to be told.
                let mut asleep = 0;
                while !(rings.gauges.is_half_full(0, ring) || asleep > LONG_ASLEEP) || asleep == 0 {
                    assert!(Instant::now() < deadline, "the vCPU does not want to harvest");
                    std::thread::sleep(Duration::from_millis(1));
                    asleep = if sleeps(&guest) { asleep + 1 } else { 0 };
                }
                (0..ENTRIES_MIN).all(|index| is_pushed(ring, index))
            };
            overran += u64::from(full);
            guest.pause().unwrap();
            words.fill(0);
            guest.harvest(&mut words).unwrap();
            copy(&words);
            println!("round {round}: full {full}, overruns {}", rings.overruns());
            assert!(rings.overruns() >= overran, "a ring without a free entry counts");
            for gfn in 0..guest.memory.end_gfn().0 {
                let same = guest.memory.hash_page(Gfn(gfn)).unwrap() == replica.hash_page(Gfn(gfn)).unwrap();
                assert!(same, "round {round}: page {gfn} was written and nobody was told");
            }
        }
        if hardware {
            assert_eq!(rings.overruns(), 0, "KVM stops the vCPU in time");
        }
        if let Some(tracer) = tracer {
            let counters = tracer.counters().unwrap();
            assert!(counters.events(Kind::RingExit) > 0, "a full ring says so: {counters:?}");
        }
    }

    /// What the kernel says of the guest's rings, counted.
    fn traced(guest: &KvmGuest) -> Tracer {
        let config = Config {
            process: std::process::id(),
            hooks: vec![Hooks::DirtyRing],
            regions: Config::regions_of(guest.memory()),
            vcpus: guest.vcpu_threads().into_iter().zip(0..).collect(),
            mode: Mode::Windows { counts: false },
            repeats: true,
            measure: false,
        };
        Tracer::attach(config).unwrap()
    }

    /// Whether the vCPU's thread sleeps, as it does when it wants a lock that is held.
    fn sleeps(guest: &KvmGuest) -> bool {
        let tid = guest.vcpu_threads()[0];
        let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap();
        // Behind the name, which is in brackets: the state. proc_pid_stat(5).
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
    }
}
