//! The source runner: carries out what [`Source`] decides.

mod auto;
mod exchange;
mod folder;
mod hashes;
mod hints;
mod link;
mod pb_writer;
mod sampling;
mod segments;
mod signing;
mod static_writer;
mod worker;

use worker::{RateMeter, Worker};

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use dunlin_core::choose::Goal;
use dunlin_core::message::{
    CHUNK_BYTES_MAX, Capabilities, Hello, Message, Mode, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, SessionId,
    TargetReport, VmId,
};
use dunlin_core::migrate::{
    Advisor, Phase, Resolution, RoundReport, Source, SourceAction, SourceConfig, SourceEvent, SourceMessage,
    SourceOutcome, SourceRecord, SourceStorageError,
};
use dunlin_core::pageset::Run;
use dunlin_core::strategy::{Cut, Strategy};
use dunlin_core::units::{BytesPerSec, Gfn, Nanos, PAGE_SIZE, Pages};
use dunlin_core::wire::FrameKind;

use crate::channel::{
    Address, ByteCounts, Cancel, Checksum, FrameError, FrameSender, Stream, TokenBucket, Wait, piece_pages,
};
use crate::guest::{Guest, GuestError};
use crate::memory::GuestMemory;
use crate::push_order;
use crate::run::Clock;
use crate::run::clock::nanos;
use crate::run::notary::Notary;
use crate::storage::Vm;
use crate::trust::commit::Signing;
use crate::trust::{Files, Name, Visit};
use exchange::{exchange, leave};
use folder::Folder;
use hints::Asking;
pub use hints::HintResult;
use link::{LinkConfig, SharedSource, event_of, listen, open_fault, open_migration, serve_faults, tell_it_is_over};
use pb_writer::PbWriter;
use sampling::SamplingMeter;
use static_writer::StaticWriter;

pub use auto::AutoResult;
pub(crate) use sampling::ForesightMemory;
pub use sampling::SamplingCost;

/// A heartbeat is due when nothing was sent for this long (DESIGN: every second).
const HEARTBEAT: Duration = Duration::from_millis(500);
/// The runner looks at commands at least this often.
const LOOK: Duration = Duration::from_millis(20);
/// Unsent bytes allowed in the socket while the other channel carries urgent pages.
const SMALL_BACKLOG: usize = 128 * 1024;
/// Runs shorter than this come into being fast enough when their data arrives.
const ANNOUNCED_PAGES: Pages = Pages(16);
/// Shortest time between two looks at the progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// How long a guest is observed for a forecast where nobody says otherwise: as long as the 2017 paper does.
const LEARNING: Nanos = Nanos::from_secs(8);
/// Longest wait for the storage directory to take a word back.
const TAKE_BACK: Duration = Duration::from_secs(2);
/// Longest wait for the target to close its side in the end.
const CLOSING: Duration = Duration::from_millis(150);
/// First guess of what the hand-over costs besides the pages.
const HANDOVER_COST: Nanos = Nanos::from_millis(2);
/// Time that the target has for the rest of a static copy: network file systems may show new files half a minute late.
const MERGE_PATIENCE: Nanos = Nanos::from_secs(45);
/// Longest wait for the target's answer in the hand-over; after that the guest goes on here.
const HANDOVER_TIMEOUT: Nanos = Nanos::from_secs(10);

/// What a person may set.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// Where the target listens.
    pub to: Address,
    /// The credentials of this host and who must be at the target, for TLS; `None` in plain.
    pub tls: Option<(Files, Name)>,
    /// How to move the VM; with a goal, until one is chosen.
    pub strategy: Strategy,
    /// What to choose a strategy by, over the bandwidth that is given then; `None` for the one above.
    pub goal: Option<Goal>,
    /// Limit for everything that goes over the network; none if absent.
    pub bandwidth: Option<BytesPerSec>,
    /// A directory that both hosts mount, for strategies with a parallel first copy.
    pub storage: Option<PathBuf>,
    /// Limit for what is written there; none if absent.
    pub storage_bandwidth: Option<BytesPerSec>,
    /// The order of `push=recorded`.
    pub push_order: Vec<Gfn>,
    /// Where to write the order in which pages are asked for.
    pub record_order: Option<PathBuf>,
    /// Longest downtime wanted.
    pub downtime: Duration,
    /// Most pre-copy rounds.
    pub max_rounds: u32,
    /// Shortest round.
    pub min_round: Duration,
    /// How long the guest is observed before anything is copied, by a strategy that looks ahead; if absent, 8 s, and for a goal as
    /// long as [`Advisor::observation`] says.
    pub learning: Option<Duration>,
    /// Silence after which the link counts as lost.
    pub network_timeout: Duration,
    /// How long the agent in the guest may take to say which pages need not move; nobody is asked if that is nothing.
    pub hint_timeout: Duration,
    /// Compare hashes of all pages in the end.
    pub verify: bool,
    /// Protect page runs with XXH3-64.
    pub checksum: bool,
}

/// The way others reach a running attempt.
#[derive(Debug)]
pub struct SourceHandle {
    /// Ends blocked sends; raised only while the attempt can still be cancelled.
    cancel: Cancel,
    cancel_wanted: AtomicBool,
    cancellable: AtomicBool,
    resolution: Mutex<Option<Resolution>>,
    snapshot: Mutex<Option<Snapshot>>,
}

/// What an attempt looks like at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    /// This attempt.
    pub session: SessionId,
    /// Where it stands.
    pub phase: Phase,
    /// Round, from 1.
    pub round: u32,
    /// Pages still to be sent in this round, or pushed, and those left of a static copy beside it.
    pub remaining: Pages,
    /// Bytes sent so far.
    pub bytes: u64,
    /// Smoothed rate, over all channels.
    pub rate: BytesPerSec,
    /// What can bring the rest if the network is cut in post-copy.
    pub cut: Cut,
    /// Until the remaining pages have been sent at that rate.
    pub eta: Option<Duration>,
    /// For how long the guest will still be observed before anything is sent.
    pub observing: Option<Duration>,
}

impl Default for SourceHandle {
    /// Of an attempt that has not begun, and can be cancelled.
    fn default() -> Self {
        Self {
            cancel: Cancel::default(),
            cancel_wanted: AtomicBool::new(false),
            cancellable: AtomicBool::new(true),
            resolution: Mutex::default(),
            snapshot: Mutex::default(),
        }
    }
}

impl SourceHandle {
    /// Ends the attempt if the guest still belongs to the source; says whether it could.
    pub fn cancel(&self) -> bool {
        let can = self.cancellable.load(Ordering::Acquire);
        if can {
            self.cancel_wanted.store(true, Ordering::Release);
            self.cancel.raise();
        }
        can
    }

    /// Hands a person's decision to the attempt; it counts if the hand-over is unknown then.
    pub fn resolve(&self, resolution: Resolution) {
        *self.resolution.lock().unwrap_or_else(PoisonError::into_inner) = Some(resolution);
    }

    /// The present state, once there is one.
    pub fn snapshot(&self) -> Option<Snapshot> {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything an attempt cost and brought.
#[derive(Clone, Debug)]
pub struct SourceResult {
    /// This attempt.
    pub session: SessionId,
    /// How it ended.
    pub outcome: SourceOutcome,
    /// Every finished round, with bytes.
    pub rounds: Vec<(RoundReport, u64)>,
    /// How the hand-over went.
    pub mode: Option<Mode>,
    /// From start to the end of the attempt, without `verify_time`.
    pub total_time: Duration,
    /// From the first hash sent until the target had compared all of them.
    pub verify_time: Duration,
    /// The guest halted by itself before it was paused.
    pub halted: bool,
    /// From the pause request to *running* received.
    pub downtime: Option<Duration>,
    /// From the guest's last progress to the pause request.
    pub gap_before_pause: Duration,
    /// Longest gap in the guest's progress on the source.
    pub source_gap: Duration,
    /// The strategy it went by in the end: the one asked for, or chosen.
    pub strategy: Strategy,
    /// How it was chosen, if it was.
    pub auto: Option<AutoResult>,
    /// What observing the guest took; `None` if it was not observed.
    pub sampling: Option<SamplingCost>,
    /// What the agent in the guest said; `None` if it has none, or was not asked.
    pub hints: Option<HintResult>,
    /// What the target measured.
    pub target: Option<TargetReport>,
    /// Bytes of page data on the migration channel.
    pub migration_bytes: u64,
    /// All pages of the VM.
    pub total: Pages,
    /// The round at whose end something was decided for the first time, because of a static copy; 0 without one.
    pub static_done_after: u32,
    /// Bytes of segments in the storage directory.
    pub storage_bytes: u64,
    /// Bytes on the fault channel.
    pub fault_bytes: u64,
    /// Bytes of messages.
    pub control_bytes: u64,
    /// Bytes on the migration channel after the guest ran on the target.
    pub postcopy_bytes: u64,
    /// Steps of the guest when the attempt began.
    pub steps_before: u64,
    /// What went wrong, in words, if something did.
    pub trouble: Option<String>,
    /// What went otherwise than it should, and did no harm.
    pub warnings: Vec<String>,
}

/// Writes hand-over records; does nothing without a state directory.
pub trait SourceRecorder: Notary {
    /// Makes the record durable.
    ///
    /// # Errors
    /// Whatever kept it from being written; already in words that say what to do.
    fn record(&mut self, record: SourceRecord, session: SessionId) -> Result<(), Box<dyn std::error::Error>>;

    /// Says that the VM is about to be handed over, before the guest is paused for it.
    ///
    /// # Errors
    /// As for [`record`](Self::record); the guest is not paused then.
    fn begin_hand_over(&mut self, session: SessionId) -> Result<(), Box<dyn std::error::Error>>;

    /// Keeps what is handed over, for the record of it: how, and the state of vCPUs and devices; in plain nobody signs it.
    fn keep(&mut self, session: SessionId, mode: Mode, state: &[u8], signing: Option<&Signing>);
}

/// One attempt.
pub struct SourceRun<'a> {
    /// The guest to move.
    pub guest: &'a dyn Guest,
    /// The VM's name for life.
    pub vm: VmId,
    /// This attempt.
    pub session: SessionId,
    /// How.
    pub options: &'a SourceOptions,
    /// Where records go.
    pub recorder: &'a mut dyn SourceRecorder,
    /// How others reach it.
    pub handle: &'a SourceHandle,
    /// Who watches.
    pub progress: &'a mut dyn FnMut(&Snapshot),
}

/// Why an attempt could not even begin.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The guest cannot be described.
    #[error("The guest cannot be migrated")]
    Guest(#[from] GuestError),
    /// Tracking state does not fit the VM: a defect.
    #[error("The tracking state does not fit the VM; please report this as a defect")]
    Tracking(#[from] SourceStorageError),
}

impl SourceRun<'_> {
    /// Runs the attempt to its end. The guest must run (or have halted) and belong to this side.
    ///
    /// # Errors
    /// [`SourceError`] if it cannot begin; everything later is in the result.
    pub fn run(self) -> Result<SourceResult, SourceError> {
        let clock = Clock::start();
        let (started, vm) = (Instant::now(), self.vm);
        let (memory, config, steps_before) = self.describe()?;
        let session = config.session;
        let needs_storage = config.strategy.needs_storage();
        let folder = self.options.storage.clone().filter(|_| needs_storage).map(|storage| {
            let regions = config.regions.clone();
            Folder::new(
                storage,
                Vm {
                    session,
                    id: vm,
                    regions,
                },
            )
        });
        let end = Pages(dunlin_core::message::end_gfn(&config.regions).0);
        let mut storage = vec![0; Source::words_needed(&config)];
        let mut foresight = ForesightMemory::new(&config.strategy, end);
        let source = Source::looking_ahead(config, &mut storage, foresight.lend(), clock.now())?;
        let mut table = Vec::new();
        let mut advisor = match (&self.options.goal, self.options.bandwidth) {
            (Some(goal), Some(bandwidth)) => {
                table.resize(Advisor::words_needed(end), 0);
                let setting = auto::setting(self.guest, &memory, source.config(), goal, bandwidth);
                Some(Advisor::new(&mut table, end, setting).map_err(SourceStorageError::from)?)
            }
            _ => None,
        };
        let source = match &mut advisor {
            Some(advisor) => source.advised(advisor),
            None => source,
        };
        let source = source.recorded(&self.options.push_order);
        let (recorded, regions) = (&self.options.push_order, &source.config().regions);
        let strange = recorded
            .iter()
            .filter(|page| !dunlin_core::message::run_in_regions(regions, **page, 1))
            .count();
        let shared = SharedSource::new(source, clock);
        if strange > 0 {
            shared.warn(format!(
                "{strange} of the {} pages in the recorded order are none of this VM's, which has less memory than the one it was recorded of",
                recorded.len()
            ));
        }
        let link = LinkConfig {
            to: self.options.to.clone(),
            session,
            visit: self
                .options
                .tls
                .clone()
                .map(|(files, name)| Arc::new(Visit::new(files, name, session))),
            patience: self.options.network_timeout,
            // TLS notices damage itself.
            checksum: self.options.checksum && self.options.tls.is_none(),
            bucket: TokenBucket::new(self.options.bandwidth),
            migration: Arc::new(ByteCounts::default()),
            fault: Arc::new(ByteCounts::default()),
            demanded: self.options.record_order.is_some().then(Arc::default),
        };
        let recording = self.options.record_order.as_deref().zip(link.demanded.clone());
        self.guest.mark();
        let over = AtomicBool::new(false);
        let mut result = std::thread::scope(|scope| {
            let exchange = folder
                .as_ref()
                .map(|folder| scope.spawn(|| exchange(&shared, folder, &over)));
            let mut worker = Worker {
                harvest: vec![0; memory.layout().words()],
                sampling: SamplingMeter::default(),
                run: self,
                shared: &shared,
                memory: &memory,
                link: &link,
                scope,
                migration: None,
                listener: None,
                folder: folder.as_ref(),
                static_writer: StaticWriter::none(),
                pb_writer: PbWriter::none(),
                final_set: Vec::new(),
                fault_stream: None,
                last_sent: Instant::now(),
                verifying: None,
                verify_time: Duration::ZERO,
                rounds: Vec::new(),
                bytes_at_round: 0,
                bytes_at_running: None,
                state: Vec::new(),
                asking: Asking::default(),
                ahead: (None, Vec::new()),
                gap_before_pause: Duration::ZERO,
                last_progress: Instant::now(),
                rate: RateMeter::new(),
            };
            let outcome = worker.work();
            worker.close();
            worker.static_writer.stop();
            worker.pb_writer.stop();
            over.store(true, Ordering::Release);
            if let Some(exchange) = exchange {
                exchange.thread().unpark();
                // A panic in there has been printed, and nobody is spoken to any more.
                let _ = exchange.join();
            }
            if let Some(folder) = &folder {
                leave(folder, outcome);
            }
            worker.result(outcome, started, steps_before, session)
        });
        if let Some((path, demanded)) = recording
            && result.mode == Some(Mode::PostCopy)
        {
            let demanded = demanded.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = push_order::write(
                path,
                "in which the guest had to wait for them",
                demanded.iter().copied(),
            ) {
                let warning = crate::run::chain(&error);
                eprintln!("dunlin: {warning}");
                result.warnings.push(warning);
            }
        }
        if matches!(
            result.outcome,
            SourceOutcome::Aborted {
                target_may_hold: true,
                ..
            }
        ) {
            tell_it_is_over(link, vm);
        }
        Ok(result)
    }

    fn learning(&self, memory: &GuestMemory) -> Nanos {
        let options = self.options;
        match (options.learning, &options.goal, options.bandwidth) {
            (Some(given), ..) => nanos(given),
            (None, Some(_), Some(bandwidth)) => Advisor::observation(memory.layout().bytes(), bandwidth),
            _ => LEARNING,
        }
    }

    fn describe(&self) -> Result<(Arc<GuestMemory>, SourceConfig, u64), SourceError> {
        let memory = Arc::clone(self.guest.memory());
        let regions = crate::run::vm::regions(memory.layout());
        let config = SourceConfig {
            session: self.session,
            vm: self.vm,
            regions,
            strategy: self.options.strategy,
            downtime: nanos(self.options.downtime),
            handover_cost: HANDOVER_COST,
            max_rounds: self.options.max_rounds,
            min_round: nanos(self.options.min_round),
            learning: self.learning(&memory),
            push_pages: piece_pages(self.options.bandwidth),
            network_timeout: nanos(self.options.network_timeout),
            handover_timeout: HANDOVER_TIMEOUT,
            merge_patience: MERGE_PATIENCE,
            verify: self.options.verify,
            hint_patience: self
                .guest
                .agent()
                .filter(|_| !self.options.hint_timeout.is_zero() && !self.guest.progress().all_halted())
                .map(|_| nanos(self.options.hint_timeout)),
            host_pages: crate::run::vm::host_pages(),
        };
        Ok((memory, config, self.guest.progress().steps()))
    }
}
