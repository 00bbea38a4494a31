//! How far a guest is, seen from outside: from the vCPUs' own reports, never from guest memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a guest as a whole is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunState {
    /// Stopped, or never started.
    Paused,
    /// At least one vCPU runs or is about to.
    Running,
    /// All vCPUs have halted by themselves.
    Halted,
    /// A vCPU has failed; the guest is lost on this host.
    Failed,
}

/// One vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuProgress {
    /// Steps done, as of its last report.
    pub steps: u64,
    /// It has halted by itself, with this code.
    pub halted: Option<u32>,
    /// Its last report on this host.
    pub last: Option<Instant>,
    /// When it was last resumed on this host.
    pub resumed: Option<Instant>,
    /// Its first report since it was last resumed.
    pub first_since_resume: Option<Instant>,
}

/// How far a guest is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// What it is doing.
    pub state: RunState,
    /// Its vCPUs.
    pub vcpus: Vec<VcpuProgress>,
    /// The longest time any vCPU went without a report, of the gaps that ended after the last mark; pauses count. On a host
    /// that took the guest over, the first gap starts with its resumption: what came before, the other side knows.
    pub longest_gap: Duration,
    /// Why it failed.
    pub failure: Option<String>,
}

impl Progress {
    /// Steps of all vCPUs together.
    pub fn steps(&self) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.steps).sum()
    }

    /// Whether every vCPU has halted by itself.
    pub fn all_halted(&self) -> bool {
        self.state == RunState::Halted
    }
}

/// The reports of one vCPU, written by its thread and read by others.
///
/// Times are nanoseconds since `origin`, plus one so that 0 means "never".
#[derive(Debug)]
pub(super) struct Reports {
    origin: Instant,
    steps: AtomicU64,
    last: AtomicU64,
    resumed: AtomicU64,
    first_since_resume: AtomicU64,
    longest_gap: AtomicU64,
}

impl Reports {
    pub(super) fn new() -> Self {
        Self {
            origin: Instant::now(),
            steps: AtomicU64::new(0),
            last: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            first_since_resume: AtomicU64::new(0),
            longest_gap: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX - 1) + 1
    }

    fn instant(&self, stamp: u64) -> Option<Instant> {
        (stamp != 0).then(|| self.origin + Duration::from_nanos(stamp - 1))
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// The vCPU has done `steps` in all.
    pub(super) fn report(&self, steps: u64) {
        let now = self.now();
        self.steps.store(steps, Ordering::Relaxed);
        let start = match self.last.swap(now, Ordering::AcqRel) {
            0 => self.resumed.load(Ordering::Acquire),
            last => last,
        };
        self.longest_gap.fetch_max(now.saturating_sub(start), Ordering::AcqRel);
        let _ = self
            .first_since_resume
            .compare_exchange(0, now, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// The vCPU is about to run.
    pub(super) fn resumed(&self) {
        self.first_since_resume.store(0, Ordering::Release);
        self.resumed.store(self.now(), Ordering::Release);
    }

    /// The vCPU takes over from one that had done `steps` elsewhere.
    pub(super) fn take_over(&self, steps: u64) {
        self.steps.store(steps, Ordering::Relaxed);
        self.last.store(0, Ordering::Release);
    }

    pub(super) fn mark(&self) {
        self.longest_gap.store(0, Ordering::Release);
    }

    pub(super) fn longest_gap(&self) -> Duration {
        Duration::from_nanos(self.longest_gap.load(Ordering::Acquire))
    }

    pub(super) fn snapshot(&self, halted: Option<u32>) -> VcpuProgress {
        VcpuProgress {
            steps: self.steps(),
            halted,
            last: self.instant(self.last.load(Ordering::Acquire)),
            resumed: self.instant(self.resumed.load(Ordering::Acquire)),
            first_since_resume: self.instant(self.first_since_resume.load(Ordering::Acquire)),
        }
    }
}
