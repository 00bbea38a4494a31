//! The target runner: carries out what [`Target`] decides.

mod exchange;
pub mod link;
mod merge;
mod pb_reader;
mod populator;
mod postcopy;
mod signing;
mod static_reader;
mod worker;

use merge::Merge;
use pb_reader::{Asked, PbReader};
use populator::Populator;
use static_reader::StaticReader;
use worker::Worker;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use dunlin_core::message::{
    CHUNK_BYTES_MAX, Capabilities, Message, Mode, SIGNATURE_BYTES_MAX, STATE_BYTES_MAX, SessionId, TargetReport,
    Violation, VmId, end_gfn,
};
use dunlin_core::migrate::{
    Phase, Resolution, Target, TargetAction, TargetConfig, TargetEvent, TargetMessage, TargetOutcome, TargetRecord,
};
use dunlin_core::pageset::{Run, words_needed};
use dunlin_core::units::{BytesPerSec, Gfn, Nanos, PAGE_SIZE, Pages};
use dunlin_core::wire::{FrameHeader, FrameKind};
use twox_hash::XxHash3_64;

use crate::channel::{ChannelError, FrameError, FrameReceiver, Stream, TokenBucket};
use crate::guest::{AnyGuest, Guest, GuestConfig, GuestError, GuestKind, Tracking};
use crate::memory::{FaultOrigin, GuestMemory, MemoryError, Userfaultfd, UserfaultfdError};
use crate::run::Clock;
use crate::run::clock::nanos;
use crate::run::notary::Notary;
use crate::storage::{SealKey, SessionDirectory, Vm};
use crate::trust::commit::Signing;
use crate::trust::{Peer, Session, Trusted};
use link::{Incoming, Link, Mouth, OwnedHello};
use postcopy::{FaultServer, Latencies};

/// The runner looks at new connections, decisions and completion at least this often.
const LOOK: Duration = Duration::from_millis(20);
/// The same while the last missing page may come over the other channel.
const LOOK_POST_COPY: Duration = Duration::from_millis(2);
/// A source that hears nothing for longer gets a heartbeat.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Heartbeats come every half second: a shorter timeout would take a healthy link for lost.
const SHORTEST_SILENCE: Nanos = Nanos::from_secs(1);
/// A source that asks for more patience than this would keep the target busy with a dead link.
const LONGEST_SILENCE: Nanos = Nanos::from_secs(300);
/// Fault channels that may wait for the fault server.
const FAULT_CHANNELS: usize = 4;
/// Longest wait for the guest's first progress before the report is sent without it.
const FIRST_PROGRESS: Duration = Duration::from_millis(50);

/// Why something could not be done on the target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Post-copy.
    #[error(transparent)]
    Userfaultfd(#[from] UserfaultfdError),
    /// Pages that must be missing are there.
    #[error("page {0} must be missing but is present after it was discarded; post-copy is not safe on this host")]
    StillPresent(Gfn),
    /// The VM is not described as this version does it.
    #[error(
        "The VM's memory regions or vCPUs differ from those of its configuration; use the same release on both hosts"
    )]
    Description,
    /// A hand-over that was not announced.
    #[error("The source hands over by post-copy but did not announce it; use the same release on both hosts")]
    NoPostCopy,
}

/// The way others reach a receiving attempt.
#[derive(Debug, Default)]
pub struct TargetHandle {
    resolution: Mutex<Option<Resolution>>,
    refused: AtomicBool,
    stop: AtomicBool,
    snapshot: Mutex<Option<TargetSnapshot>>,
}

/// What a receiving attempt looks like at the moment.
#[derive(Clone, Copy, Debug)]
pub struct TargetSnapshot {
    /// The attempt.
    pub session: SessionId,
    /// Where it stands.
    pub phase: Phase,
    /// The round being received.
    pub round: u32,
    /// Pages that are missing while the guest runs, or could run.
    pub missing: Pages,
    /// Whether they come by the storage channel, too.
    pub pb_data: bool,
}

impl TargetHandle {
    /// Hands a person's decision to the attempt.
    pub fn resolve(&self, resolution: Resolution) {
        *self.resolution.lock().unwrap_or_else(PoisonError::into_inner) = Some(resolution);
    }

    /// Ends the attempt, if the source cannot have given the VM up.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// The present state, once there is one.
    pub fn snapshot(&self) -> Option<TargetSnapshot> {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes hand-over records; does nothing without a state directory.
pub trait TargetRecorder: Notary {
    /// Makes the record durable.
    ///
    /// # Errors
    /// Whatever kept it from being written; already in words that say what to do.
    fn record(&mut self, record: TargetRecord, session: SessionId, vm: VmId) -> Result<(), Box<dyn std::error::Error>>;

    /// Says that the VM is about to be handed over, before this side is ready to take it, and keeps what is handed over for the
    /// record of it: how, and the state of vCPUs and devices; in plain nobody signs it.
    ///
    /// # Errors
    /// As for [`record`](Self::record); this side does not become ready then.
    fn begin_hand_over(
        &mut self,
        session: SessionId,
        mode: Mode,
        state: &[u8],
        signing: Option<&Signing>,
    ) -> Result<(), Box<dyn std::error::Error>>;
}

/// One attempt to receive a VM that has been accepted.
pub struct TargetRun<'a> {
    /// What the source wants to move.
    pub hello: Box<OwnedHello>,
    /// The protocol version agreed on.
    pub protocol: u16,
    /// The migration channel.
    pub link: Link,
    /// Further connections.
    pub incoming: &'a Receiver<Incoming>,
    /// Populate all memory before the copy.
    pub populate: bool,
    /// How written pages of a KVM guest are tracked here.
    pub tracking: Tracking,
    /// A directory that both hosts mount.
    pub storage: Option<PathBuf>,
    /// Who sends the VM.
    pub peer: Peer,
    /// Pages are taken no faster until the VM runs here.
    pub bandwidth: Option<BytesPerSec>,
    /// What both ends of the session seal with what is written there; in plain nothing is, and only what is plain is read.
    pub seal: Option<SealKey>,
    /// Where records go.
    pub recorder: &'a mut dyn TargetRecorder,
    /// How others reach it.
    pub handle: &'a TargetHandle,
    /// Told once the guest runs here.
    pub running: &'a dyn Fn(&Arc<AnyGuest>),
}

/// How an attempt ended.
pub struct TargetResult {
    /// What the machine says.
    pub outcome: TargetOutcome,
    /// The guest, if it runs here.
    pub guest: Option<Arc<AnyGuest>>,
    /// What was measured.
    pub report: TargetReport,
    /// What went wrong, in words, if something did.
    pub trouble: Option<String>,
    /// A connection that begins the next attempt.
    pub leftover: Option<Incoming>,
}

/// The state machine, shared by the runner and the fault server.
pub(super) struct SharedTarget<'w> {
    target: Mutex<Target<'w>>,
    clock: Clock,
    /// Hash of every page as installed, if the source will ask.
    hashes: Vec<AtomicU64>,
    /// Of a page of zeros.
    zero_hash: u64,
    trouble: Mutex<Option<String>>,
    /// What was measured, once the VM is complete here.
    report: Mutex<Option<TargetReport>>,
    /// The fault channel after the last fault.
    fault_link: Mutex<Option<Link>>,
    /// Something in the storage directory is not what it should be, so that what it was to bring must come otherwise.
    unreadable: AtomicBool,
}

impl<'w> SharedTarget<'w> {
    pub(super) fn lock(&self) -> MutexGuard<'_, Target<'w>> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Nanos {
        self.clock.now()
    }

    pub(super) fn note(&self, error: &dyn std::error::Error) {
        let text = crate::run::chain(error);
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(text);
    }

    /// What was altered on the way is said, also where a new connection mends it.
    pub(super) fn say_if_distrusted(&self, error: &FrameError) {
        if let FrameError::Channel(ChannelError::Trust { .. }) = error {
            eprintln!(
                "dunlin: a connection of the migration was given up: {}",
                crate::run::chain(error)
            );
        }
    }

    pub(super) fn keep_hash(&self, gfn: Gfn, page: &[u8]) {
        if let Some(hash) = self.hashes.get(gfn.0 as usize) {
            hash.store(XxHash3_64::oneshot(page), Ordering::Relaxed);
        }
    }

    /// The same for pages of zeros, without looking at them: a run of these costs its sender nothing, however long.
    pub(super) fn keep_zero_hashes(&self, run: Run) {
        let (first, end) = (run.first.0 as usize, run.end().0 as usize);
        for hash in self.hashes.get(first..end.min(self.hashes.len())).into_iter().flatten() {
            hash.store(self.zero_hash, Ordering::Relaxed);
        }
    }

    fn feed(&self, event: TargetEvent<'_>) {
        self.lock().on(self.now(), event);
    }
}

impl TargetRun<'_> {
    /// Runs the attempt to its end.
    pub fn run(self) -> TargetResult {
        let clock = Clock::start();
        let regions = self.hello.regions().clone();
        let pages = end_gfn(&regions);
        let words = words_needed(Pages(pages.0));
        let (mut received, mut missing) = (vec![0; words], vec![0; words]);
        let hello = self.hello.get();
        let verify = hello.capabilities.contains(Capabilities::VERIFY);
        let config = TargetConfig {
            session: hello.session,
            vm: hello.vm,
            regions,
            protocol: self.protocol,
            verify,
            static_copy: hello.capabilities.contains(Capabilities::STORAGE),
            pb_data: hello.capabilities.contains(Capabilities::PB_DATA),
            split: hello.capabilities.contains(Capabilities::SPLIT),
            network_timeout: hello.network_timeout.clamp(SHORTEST_SILENCE, LONGEST_SILENCE),
        };
        let target = Target::new(config, &mut received, &mut missing, clock.now())
            .expect("storage is sized by words_needed for these regions");
        let zero = XxHash3_64::oneshot(&[0; PAGE_SIZE as usize]);
        let hashed = if verify { pages.0 as usize } else { 0 };
        let shared = SharedTarget {
            target: Mutex::new(target),
            clock,
            hashes: (0..hashed).map(|_| AtomicU64::new(zero)).collect(),
            zero_hash: zero,
            trouble: Mutex::new(None),
            report: Mutex::new(None),
            fault_link: Mutex::new(None),
            unreadable: AtomicBool::new(false),
        };
        let (mouth, over, uffd, latencies) = (
            Mouth::default(),
            AtomicBool::new(false),
            Mutex::new(None),
            Latencies::new(),
        );
        let stop_faults = AtomicBool::new(false);
        let asked = Asked::default();
        let in_storage = hello.capabilities.intersects(Capabilities::IN_STORAGE);
        let directory = self.storage.as_deref().filter(|_| in_storage).map(|storage| {
            let vm = Vm {
                session: hello.session,
                id: hello.vm,
                regions: hello.regions.clone(),
            };
            SessionDirectory::open(storage, vm, self.seal.clone())
        });
        // Held for the whole attempt: connections may all be lost, and others join then.
        let source = self.link.trusted().and_then(Trusted::session).cloned();
        let Link { receiver, sender } = self.link;
        mouth.replace(Some(sender));
        // More than a few untaken channels are no reconnection but a flood.
        let (fault_links, fault_channels) = mpsc::sync_channel(FAULT_CHANNELS);
        std::thread::scope(|scope| {
            let _abort = AbortOnPanic;
            let heart = scope.spawn(|| {
                while !over.load(Ordering::Acquire) {
                    std::thread::park_timeout(HEARTBEAT);
                    mouth.heartbeat();
                }
            });
            let exchange = directory
                .as_ref()
                .map(|directory| scope.spawn(|| exchange::exchange(&shared, directory, &over)));
            let mut worker = Worker {
                hello: &self.hello,
                source,
                incoming: self.incoming,
                populate: self.populate,
                tracking: self.tracking,
                peer: self.peer,
                bucket: TokenBucket::new(self.bandwidth),
                directory: directory.as_ref(),
                merge: None,
                static_reader: StaticReader::none(),
                pb_reader: PbReader::none(),
                asked: &asked,
                populator: Populator::new(),
                recorder: self.recorder,
                handle: self.handle,
                announce_running: self.running,
                shared: &shared,
                mouth: &mouth,
                receiver: Some(receiver),
                guest: None,
                uffd: &uffd,
                state: Vec::new(),
                wanted_hashes: Vec::new(),
                signature: None,
                commit: None,
                fault_links,
                fault_channels: Some(fault_channels),
                latencies: &latencies,
                stop_faults: &stop_faults,
                fault_server: None,
                scope,
                started_running: None,
                post_copy_done: None,
                leftover: None,
            };
            let outcome = worker.work();
            worker.static_reader.finish();
            worker.pb_reader.finish();
            let result = worker.result(outcome);
            over.store(true, Ordering::Release);
            if let Some(exchange) = exchange {
                exchange.thread().unpark();
            }
            stop_faults.store(true, Ordering::Release);
            heart.thread().unpark();
            mouth.close();
            result
        })
    }
}

/// Ends the process: the guest must never see memory that is not its own, and nobody can give it the right one any more.
fn fatal(error: &dyn std::error::Error) -> ! {
    eprintln!("dunlin: {}; the guest cannot go on", crate::run::chain(error));
    std::process::abort();
}

/// Ends the process if the thread that holds this panics: a guest whose faults nobody answers would hang for ever, and a
/// runner that is gone leaves everybody waiting.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("dunlin: a thread that the guest depends on has panicked; the guest cannot go on");
            std::process::abort();
        }
    }
}
