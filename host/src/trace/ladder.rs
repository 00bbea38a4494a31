//! Which sources of page writes this host offers, each tried on a small guest, and how to get what is better.
//!
//! A source that can be attached is not yet one that says anything: where KVM emulates every instruction, the processor never
//! walks a guest's page tables, and the tracepoints of such walks stay silent. So every source is tried on a guest that writes
//! some pages.

use std::sync::Arc;
use std::time::Duration;

use dunlin_core::record::Kind;
use dunlin_core::tracefile::Source;
use dunlin_core::units::Bytes;
use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL};
use kvm_ioctls::Kvm;

use super::ebpf::{Config, Counters, Hooks, Mode, Tracer, TracerError};
use crate::guest::{AnyGuest, Fill, Guest, GuestConfig, GuestError, GuestKind};
use crate::report::chain;
use crate::track::pagemap::PagemapTracker;

/// A source, and how it fared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rung {
    /// The source.
    pub source: Source,
    /// Whose writes it can see.
    pub serves: Serves,
    /// What was found: `Ok` if it works.
    pub found: Result<String, Obstacle>,
}

/// Why a source does not work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Obstacle {
    /// What was found.
    pub finding: String,
    /// What to change.
    pub fix: String,
}

/// Whose writes a source can see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Serves {
    /// Guests of this program that were started with `--tracking ring`.
    RingGuests,
    /// Guests of this program.
    OwnGuests,
    /// Guests of this program and of others, while somebody keeps KVM's dirty log on.
    AllGuests,
    /// Guests of a QEMU that has a QMP socket.
    Qemu,
}

impl Serves {
    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::RingGuests => "guests with --tracking ring",
            Self::OwnGuests => "guests of dunlin",
            Self::AllGuests => "guests of dunlin, and of other hypervisors while their dirty log is on",
            Self::Qemu => "guests of QEMU with a QMP socket",
        }
    }
}

impl Rung {
    /// Whether it works.
    pub const fn works(&self) -> bool {
        self.found.is_ok()
    }
}

const EMULATED: &str = "use a host whose processor runs guests itself (VMX or SVM); here KVM emulates them";
const NO_EXCEPTION: &str =
    "use ebpf:kvm_mmu; where the processor runs guests itself, KVM handles their faults without an exception";
const KVM: &str = "see /dev/kvm above";

/// Tries every live source, best first. Takes about a second.
pub fn probe() -> Vec<Rung> {
    let mut rungs = vec![
        rung(Source::RingPush, Serves::RingGuests, ring_push()),
        rung(Source::SptePermission, Serves::AllGuests, seen_by(Hooks::Mmu)),
        rung(Source::MarkDirty, Serves::AllGuests, seen_by(Hooks::MarkDirty)),
        rung(Source::WriteProtectFault, Serves::OwnGuests, faults()),
        rung(Source::Ring, Serves::RingGuests, ring()),
        rung(Source::Bitmap, Serves::OwnGuests, bitmap()),
        rung(Source::PagemapScan, Serves::OwnGuests, pagemap()),
        rung(Source::Hypervisor, Serves::Qemu, qemu()),
    ];
    rungs.sort_by_key(|rung| rung.source);
    rungs
}

fn rung(source: Source, serves: Serves, found: Result<String, Obstacle>) -> Rung {
    Rung { source, serves, found }
}

fn obstacle(finding: impl Into<String>, fix: impl Into<String>) -> Obstacle {
    Obstacle {
        finding: finding.into(),
        fix: fix.into(),
    }
}

/// The words of an error after its first semicolon say what to do.
fn from_tracer(error: &TracerError) -> Obstacle {
    let words = error.to_string();
    match words.split_once("; ") {
        Some((finding, fix)) => obstacle(finding, fix),
        None => obstacle(words, "use another source"),
    }
}

fn from_error(error: &dyn std::error::Error, fix: &str) -> Obstacle {
    obstacle(chain(error), fix)
}

/// KVM's own support for dirty rings, and the eBPF programs for them.
fn ring_push() -> Result<String, Obstacle> {
    let entries = ring_capability()?;
    Trial::new()?
        .trace(Hooks::DirtyRing)
        .map_err(|error| from_tracer(&error))?;
    Ok(format!("attaches; rings of up to {entries} entries"))
}

fn ring() -> Result<String, Obstacle> {
    Ok(format!("rings of up to {} entries", ring_capability()?))
}

fn ring_capability() -> Result<usize, Obstacle> {
    /// `struct kvm_dirty_gfn`.
    const ENTRY_BYTES: usize = 16;
    let kvm = Kvm::new().map_err(|error| from_error(&error, KVM))?;
    let bytes = [KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL]
        .iter()
        .map(|capability| kvm.check_extension_raw((*capability).into()))
        .max();
    match bytes.map_or(0, |bytes| usize::try_from(bytes).unwrap_or(0)) {
        0 => Err(obstacle(
            "KVM has no dirty rings",
            "use Linux 5.11 (x86) or 6.2 (arm64) or newer",
        )),
        bytes => Ok(bytes / ENTRY_BYTES),
    }
}

/// Attaches, lets a guest write, and counts.
fn seen_by(hooks: Hooks) -> Result<String, Obstacle> {
    let guest = Trial::new()?;
    let tracer = guest.trace(hooks).map_err(|error| from_tracer(&error))?;
    let pages = guest.run(hooks == Hooks::Faults)?;
    let counters = tracer.counters().map_err(|error| from_tracer(&error))?;
    let writes = |counters: &Counters| {
        let kinds = hooks.kinds().iter().filter(|kind| kind.is_write());
        kinds.map(|kind| counters.events(*kind)).sum::<u64>()
    };
    match writes(&counters) {
        0 => Err(obstacle(
            format!("attaches, but is silent: a guest wrote {pages} pages"),
            if hooks == Hooks::Faults { NO_EXCEPTION } else { EMULATED },
        )),
        events => Ok(format!("attaches, and saw {events} writes of a guest to {pages} pages")),
    }
}

/// Guests under KVM, or else at least those that are threads.
fn faults() -> Result<String, Obstacle> {
    let obstacle = match seen_by(Hooks::Faults) {
        Err(obstacle) if obstacle.fix == NO_EXCEPTION || obstacle.fix == KVM => obstacle,
        found => return found,
    };
    let guest = Trial::of(GuestKind::Thread)?;
    let tracer = guest.trace(Hooks::Faults).map_err(|error| from_tracer(&error))?;
    guest.run(false)?;
    match tracer
        .counters()
        .map_err(|error| from_tracer(&error))?
        .events(Kind::UserFault)
    {
        0 => Err(obstacle),
        events => Ok(format!(
            "saw {events} writes of a guest of --kind thread, none of one under KVM"
        )),
    }
}

fn bitmap() -> Result<String, Obstacle> {
    let pages = Trial::new()?.run(false)?;
    Ok(format!("found {pages} pages that a guest wrote"))
}

fn pagemap() -> Result<String, Obstacle> {
    let guest = Trial::new().or_else(|_| Trial::of(GuestKind::Thread))?;
    let pages = guest.run_scanned()?;
    Ok(format!("found {pages} pages that a guest wrote"))
}

fn qemu() -> Result<String, Obstacle> {
    let version = std::process::Command::new("qemu-system-x86_64")
        .arg("--version")
        .output();
    match version {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Ok(text.lines().next().unwrap_or("version unknown").to_owned())
        }
        _ => Err(obstacle(
            "no qemu-system-x86_64 on the PATH",
            "install QEMU 6.2 or newer, or record one elsewhere that runs with -qmp unix:SOCKET,server,nowait",
        )),
    }
}

/// A guest that writes some pages and halts.
struct Trial(AnyGuest);

impl Trial {
    fn new() -> Result<Self, Obstacle> {
        Self::of(GuestKind::Kvm)
    }

    fn of(kind: GuestKind) -> Result<Self, Obstacle> {
        let config = GuestConfig {
            name: String::new(),
            kind,
            memory: Bytes(16 << 20),
            vcpus: 1,
            workload: "seq,ws=1MiB".into(),
            seed: 1,
            steps: Some(64),
            fill: Fill::Zero,
            irqchip: false,
        };
        let guest = AnyGuest::create(config);
        guest.map(Self).map_err(|error| from_error(&error, KVM))
    }

    fn trace(&self, hooks: Hooks) -> Result<Tracer, TracerError> {
        Tracer::attach(Config {
            process: std::process::id(),
            hooks: vec![hooks],
            regions: Config::regions_of(self.0.memory()),
            vcpus: vec![],
            mode: Mode::Windows { counts: false },
            repeats: true,
            measure: false,
        })
    }

    /// Lets it run with its dirty log on, and protected as well if that is wanted; returns how many pages it wrote.
    fn run(&self, protected: bool) -> Result<u32, Obstacle> {
        let memory = self.0.memory();
        let failed = |error: GuestError| from_error(&error, KVM);
        let _protection = match protected {
            true => Some(PagemapTracker::start(Arc::clone(memory)).map_err(|error| old_kernel(&error))?),
            false => None,
        };
        self.0.start_tracking().map_err(failed)?;
        self.finish()?;
        let mut written = vec![0_u64; memory.layout().words()];
        self.0.harvest(&mut written).map_err(failed)?;
        counted(&written)
    }

    /// Lets it run with its pages protected only.
    fn run_scanned(&self) -> Result<u32, Obstacle> {
        let memory = self.0.memory();
        let tracker = PagemapTracker::start(Arc::clone(memory)).map_err(|error| old_kernel(&error))?;
        self.finish()?;
        let mut written = vec![0_u64; memory.layout().words()];
        tracker.harvest(&mut written).map_err(|error| old_kernel(&error))?;
        counted(&written)
    }

    fn finish(&self) -> Result<(), Obstacle> {
        let failed = |error: GuestError| from_error(&error, KVM);
        self.0.resume().map_err(failed)?;
        match self.0.wait_halted(Duration::from_secs(10)).map_err(failed)? {
            true => Ok(()),
            false => Err(obstacle(
                "a guest did not halt within 10 s",
                "try again when the host is idle",
            )),
        }
    }
}

fn old_kernel(error: &dyn std::error::Error) -> Obstacle {
    from_error(error, "use Linux 6.7 or newer, with userfaultfd")
}

fn counted(written: &[u64]) -> Result<u32, Obstacle> {
    match written.iter().map(|word| word.count_ones()).sum() {
        0 => Err(obstacle("a guest wrote, and nothing was found", "please report this")),
        pages => Ok(pages),
    }
}

#[cfg(test)]
mod tests {
    use dunlin_tests::{Capability, require};

    use super::*;

    #[test]
    fn every_obstacle_says_what_to_do() {
        let rungs = probe();
        assert!(rungs.is_sorted_by_key(|rung| rung.source));
        for rung in &rungs {
            match &rung.found {
                Ok(finding) => assert!(!finding.is_empty(), "{rung:?}"),
                Err(obstacle) => assert!(!obstacle.finding.is_empty() && !obstacle.fix.is_empty(), "{rung:?}"),
            }
        }
        let works = |source| rungs.iter().any(|rung| rung.source == source && rung.works());
        if require(Capability::Kvm) {
            assert!(works(Source::Bitmap), "{rungs:?}");
        }
        if require(Capability::Kvm) && require(Capability::Ebpf) && require(Capability::Uffd) {
            assert!(works(Source::WriteProtectFault), "{rungs:?}");
        }
    }
}
