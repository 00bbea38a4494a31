//! Migrations in virtual time: the real state machines, a guest of pages without content, and channels that are arithmetic.
//!
//! Everything that decides is [`dunlin_core::migrate`], unchanged; what a host does is replaced by how long it takes. So a
//! simulated migration and a live one differ in the link and in the guest's speed only, which are given. The guest touches
//! the same pages in the same order as a live one of the same workload and seed ([`dunlin_core::workload::Generator`]); all of its
//! memory is its working set unless the workload says otherwise. Times are whole nanoseconds and nothing depends on the
//! machine: one setup and one seed have one answer.
//!
//! | | how it is modelled |
//! |---|---|
//! | recorded guest ([`Recording`]) | writes what was recorded, by the same vCPU at the same time, and starts over behind the last; one that was held up catches up at most 50 ms. Reads were not recorded, so only writes fault |
//! | vCPU | a step takes [`SimSetup::step_cost`], and starts at the workload's rate; one that was held up catches up at most 50 ms, as live ([`dunlin_core::workload::Pacer`]) |
//! | page fault in post-copy | stops its vCPU from the access until the page is there: request, [`SimSetup::fault_service`], reply; the others go on |
//! | network | a rate shared by both channels towards the target, which may vary, a latency each way, jitter, losses as stalls, one cut; faults never wait for the rate, but are charged |
//! | storage | a rate to write at, segments that can be read when they are whole, a rate to read at |
//! | hand-over | [`SimSetup::handover`] between the last page and the first step at the target, beside the round trips; into post-copy also [`SimSetup::discard`] for every stale page |
//! | the guest's program | what it writes beside the workload's pages is dirty, too: [`SimSetup::bookkeeping`] |
//! | `slow=auto-converge` | a step takes longer, so that the vCPU gets as much less done; decided as QEMU does after each round that took a second. No live migration slows its guest down: this is for comparison |
//! | `auto` | [`SimSetup::goal`]: observed, chosen and revised by the same [`Advisor`](dunlin_core::migrate::Advisor) as live |
//!
//! Memory: a dozen bits a page, 8 bytes more with [`SimSetup::check`], and what the strategy remembers of a page, which is most with a filter;
//! `cargo xtask bench sim` measures it, and how many writes of pages there are in a second.

mod advice;
mod bookkeeping;
mod guest;
mod pace;
pub mod plan;
mod pull;
mod recording;
mod report;
mod sides;
mod slow;
mod storage;
mod table;
mod wire;
mod world;

#[cfg(test)]
mod tests;

use dunlin_core::choose::Goal;
use dunlin_core::strategy::Strategy;
use dunlin_core::units::{Bytes, BytesPerSec, Nanos, PAGE_SIZE, Pages};
use dunlin_core::workload::{Fill, PlanError, Spec};
use serde::{Deserialize, Serialize};

use crate::report::MigrationReport;

pub use bookkeeping::Bookkeeping;
pub use recording::{RECORDED_WRITES_MAX, Recording, RecordingError, Work, WorkError};
pub use table::{Medians, plan_table};
pub use wire::RETRANSMISSION;

/// The largest guest: 4 TiB.
pub const PAGES_MAX: Pages = Pages(1 << 30);

/// The most vCPUs.
pub const VCPUS_MAX: u32 = 64;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct SimSetup {
    /// What the guest does.
    pub workload: Work,
    /// All of its memory, whole pages.
    pub memory: Bytes,
    /// 1 to [`VCPUS_MAX`], of which a live guest has 4 at most.
    pub vcpus: u32,
    /// Of the workload, and of what happens on the network.
    pub seed: u64,
    /// What the pages hold that the guest has not written: zero pages travel as a few bytes.
    pub fill: Fill,
    /// With zero pages: so many are not zero from the start, those that a recorded guest writes and then those with the lowest
    /// numbers. Without it none is.
    pub used: Option<Pages>,
    /// What its program writes beside the workload's pages.
    pub bookkeeping: Bookkeeping,
    /// How it is moved.
    pub strategy: Strategy,
    /// What the strategy is chosen for: `strategy` is then only what is said until it is chosen.
    pub goal: Option<Goal>,
    /// Rate of the network towards the target.
    pub bandwidth: BytesPerSec,
    /// If that is only the most it gives.
    pub varies: Option<Varies>,
    /// Post-copy without a push: the target asks for one page after the other, and for the next when one has come, as Cloud Hypervisor
    /// does (pull request 8264). For comparison.
    pub pull: bool,
    /// Whether these rates are limits that `dunlin migrate` sets, not what the link is: such a limit makes up for pauses of some
    /// milliseconds.
    pub limiter: bool,
    /// Rate at which the storage channel is written.
    pub storage_bandwidth: BytesPerSec,
    /// Rate at which the target reads and merges what is there.
    pub merge_bandwidth: BytesPerSec,
    /// One way.
    pub latency: Nanos,
    /// A chunk arrives by up to that much later.
    pub jitter: Nanos,
    /// Chunks of a million that are lost, each of which holds up all that follow for [`RETRANSMISSION`].
    pub loss_ppm: u32,
    /// If the network is cut in post-copy, and when.
    pub cut: Option<CutAt>,
    /// What a step takes of a vCPU that is behind its rate or has none.
    pub step_cost: Nanos,
    /// From an access to a missing page until it is there, beside the latencies.
    pub fault_service: Nanos,
    /// Pausing, saving, restoring and starting, beside the round trips.
    pub handover: Nanos,
    /// What the target takes to throw a page away that it has and that is missing all the same when post-copy begins.
    pub discard: Nanos,
    /// How long the guest runs before it is moved.
    pub warm_up: Nanos,
    /// The longest pause that is aimed at.
    pub downtime: Nanos,
    /// Most rounds.
    pub max_rounds: u32,
    /// Shortest round.
    pub min_round: Nanos,
    /// How long a strategy that looks ahead observes the guest.
    pub learning: Nanos,
    /// Silence after which the network counts as cut.
    pub network_timeout: Nanos,
    /// Virtual time after which a migration counts as endless.
    pub patience: Nanos,
    /// Follow every page's content, as a number of the writes to it, and compare in the end.
    pub check: bool,
}

/// A rate that changes: for each span of time another share of the full rate, all between the least and the whole equally likely.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Varies {
    /// The least, in thousandths of the full rate; 1 to 1000.
    pub least_milli: u32,
    /// How long a rate holds.
    pub every: Nanos,
}

/// When the network is cut, after the guest runs at the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CutAt {
    /// How long after.
    pub after: Nanos,
    /// For how long; `None` for good.
    pub lasts: Option<Nanos>,
}

impl SimSetup {
    /// A guest with a link, and for the rest what `dunlin migrate` does unless it is told otherwise. Step and fault take what they take on
    /// a machine of 2026 with KVM: 0.5 µs and 100 µs; the hand-over takes 2 ms, each way of the network 50 µs.
    pub fn new(workload: Spec, memory: Bytes, strategy: Strategy, bandwidth: BytesPerSec) -> Self {
        Self::of(workload.into(), memory, strategy, bandwidth)
    }

    /// The same of a guest that does anything; one that was recorded has its vCPUs.
    pub fn of(workload: Work, memory: Bytes, strategy: Strategy, bandwidth: BytesPerSec) -> Self {
        Self {
            vcpus: workload.recorded_guest().map_or(1, |(vcpus, _)| vcpus),
            workload,
            memory,
            seed: 1,
            fill: Fill::Random,
            used: None,
            bookkeeping: Bookkeeping::default(),
            strategy,
            goal: None,
            bandwidth,
            varies: None,
            pull: false,
            limiter: false,
            storage_bandwidth: bandwidth,
            merge_bandwidth: BytesPerSec(1 << 30),
            latency: Nanos(50_000),
            jitter: Nanos::ZERO,
            loss_ppm: 0,
            cut: None,
            step_cost: Nanos(500),
            fault_service: Nanos(100_000),
            handover: Nanos::from_millis(2),
            discard: Nanos::ZERO,
            warm_up: Nanos::from_secs(1),
            downtime: Nanos::from_millis(300),
            max_rounds: 30,
            min_round: Nanos::from_millis(100),
            learning: Nanos::from_secs(8),
            network_timeout: Nanos::from_secs(3),
            patience: Nanos::from_secs(86_400),
            check: false,
        }
    }

    fn pages(&self) -> Pages {
        Pages(self.memory.0 / PAGE_SIZE)
    }
}

/// Why nothing was simulated.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// Guest and workload do not fit.
    #[error("memory and workload do not fit: {0}")]
    Plan(PlanError),
    /// No guest at all, one that is no whole number of pages, or one that is too large.
    #[error("a guest of {} B cannot be simulated: write whole pages of 4096 B, from 1 to 4 TiB in all, 512MiB for example", .0.0)]
    Memory(Bytes),
    /// No vCPU, or too many.
    #[error("a guest with {0} vCPUs cannot be simulated: write 1 to {VCPUS_MAX}")]
    Vcpus(u32),
    /// The machines do not take the setup.
    #[error("this cannot be simulated: {0}")]
    Setup(String),
    /// Something went on for ever.
    #[error("nothing ends: after {} s of virtual time the migration was in phase {phase:?}; a rule such as lambda or optimal, or --max-rounds, ends pre-copy, and --cut-lasts a cut", .after.0 / 1_000_000_000)]
    Endless {
        /// Virtual time.
        after: Nanos,
        /// Where it was.
        phase: dunlin_core::migrate::Phase,
    },
}

/// What became of a simulated migration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SimResult {
    /// As a live one is reported.
    pub report: MigrationReport,
    /// Steps that all vCPUs did, the last a network round trip after the migration's end.
    pub steps: u64,
    /// How long vCPUs waited for pages, together.
    pub stall: Nanos,
    /// Time that the guest lived.
    pub virtual_time: Nanos,
    /// Steps of all vCPUs at the end of each whole second since the migration began.
    pub timeline: Vec<u64>,
    /// Since the migration began, in microseconds: when the guest ran at the target. `None` if it never did.
    pub moved_at_us: Option<u64>,
    /// What was chosen, and why; of `auto`.
    pub choice: Option<String>,
}

/// Simulates one migration.
///
/// # Errors
/// [`SimError`].
pub fn simulate(setup: &SimSetup) -> Result<SimResult, SimError> {
    let whole = setup.memory.0.is_multiple_of(PAGE_SIZE);
    if !whole || setup.memory.0 == 0 || setup.pages() > PAGES_MAX {
        return Err(SimError::Memory(setup.memory));
    }
    if setup
        .varies
        .is_some_and(|varies| !(1..=1000).contains(&varies.least_milli) || varies.every == Nanos::ZERO)
    {
        let words = "a rate that varies has a least share from 0.001 to 1 of the whole and holds for some time: write least = 0.3, every = \"2s\" for example";
        return Err(SimError::Setup(words.into()));
    }
    if !(1..=VCPUS_MAX).contains(&setup.vcpus) {
        return Err(SimError::Vcpus(setup.vcpus));
    }
    world::run(setup)
}
