//! What `dunlin receive` does with connections: it answers them until one brings a VM, and holds that VM from then on.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use dunlin_core::message::{
    AbortReason, Capabilities, Message, Refusal, SessionId, TargetReport, TargetStanding, VmId,
};
use dunlin_core::migrate::{Offer, Phase, TargetOutcome, agree_on_version, check};
use dunlin_core::units::Bytes;
use dunlin_core::workload::layout::MAX_VCPUS;

use super::node::{Holding, Node, lock};
use super::options::ReceiveOptions;
use super::recorder::Recorder;
use super::serve::{NodeError, Stop, end_if_over};
use super::target::link::{Incoming, Link, OwnedHello, WISHES_MAX, accept};
use super::target::{TargetError, TargetHandle, TargetRun};
use crate::channel::{Cancel, Listener};
use crate::control::Server;
use crate::guest::kvm::KvmGuest;
use crate::guest::{AnyGuest, GuestConfig, GuestKind, Tracking};
use crate::journal;
use crate::memory::{FaultOrigin, GuestMemory, MemoryLayout, Userfaultfd};
use crate::report::ReceiveReport;

/// How often the process looks at its guest while it waits for connections.
const LOOK: Duration = Duration::from_millis(20);

/// Runs until the VM that came has ended here or moved on; returns the exit code.
///
/// # Errors
/// [`NodeError`]: what keeps the process from serving at all.
pub fn run_receive(options: ReceiveOptions) -> Result<ExitCode, NodeError> {
    let options = &options;
    let stop = Stop::install()?;
    super::serve::check_dump(options.dump_ram.as_deref())?;
    if let Tracking::Ring { entries } = options.tracking {
        // What KVM lacks must not show only when a VM arrives.
        KvmGuest::check_ring(entries)?;
    }
    let recorder = Recorder::without_journal(VmId::default());
    let node = Arc::new(Node::new(String::new(), VmId::default(), Holding::Nothing, recorder));
    let listener = Listener::bind(&options.listen)?;
    if let Some(directory) = &options.state {
        // A directory that cannot be used must not show only when a VM arrives.
        journal::list(directory)?;
    }
    let server = Server::start(&options.control, Arc::clone(&node) as Arc<dyn crate::control::Handler>)?;
    announce(options, &listener)?;
    let cancel = Cancel::new();
    let (to, incoming) = mpsc::sync_channel(WISHES_MAX);
    let code = std::thread::scope(|scope| {
        scope.spawn(|| accept(&listener, &cancel, &to, &|line| eprintln!("dunlin: {line}")));
        let mut receiving = Receiving {
            options,
            node: &node,
            incoming: &incoming,
            stop: &stop,
            finished: None,
        };
        let code = receiving.serve();
        cancel.raise();
        code
    });
    server.close(Duration::from_secs(5));
    code.map(ExitCode::from)
}

fn announce(options: &ReceiveOptions, listener: &Listener) -> Result<(), NodeError> {
    let report = ReceiveReport::new(listener.address().clone());
    if options.json {
        super::serve::print_json(&report)
    } else {
        eprintln!("dunlin: waiting for a VM at {}", report.listening);
        Ok(())
    }
}

struct Receiving<'a> {
    options: &'a ReceiveOptions,
    node: &'a Arc<Node>,
    incoming: &'a Receiver<Incoming>,
    stop: &'a Stop,
    /// The session that brought the VM, for a source that missed the end of it.
    finished: Option<(SessionId, TargetReport)>,
}

impl Receiving<'_> {
    fn serve(&mut self) -> Result<u8, NodeError> {
        loop {
            if let Some(code) = end_if_over(self.node, self.options.dump_ram.as_deref(), self.options.json)? {
                return Ok(code);
            }
            if self.stop.wanted()
                && let Some(code) = super::serve::stopped(self.node)
            {
                return Ok(code);
            }
            match self.incoming.recv_timeout(LOOK) {
                Ok(Incoming::Hello(link, hello)) => self.hello(link, hello),
                Ok(Incoming::Resume {
                    link,
                    session,
                    vm,
                    given_up,
                }) => self.resume(link, session, vm, given_up),
                // A channel of a session that is over: closing it says enough.
                Ok(Incoming::Attach(..)) => {}
                Err(_) => self.node.observe_guest(),
            }
        }
    }

    fn hello(&mut self, link: Link, hello: Box<OwnedHello>) {
        let mut next = Some((link, hello));
        while let Some((mut link, hello)) = next.take() {
            match self.accept(&hello) {
                Ok((protocol, recorder)) => {
                    if let Some(Incoming::Hello(link, hello)) = self.session(link, hello, protocol, recorder) {
                        next = Some((link, hello));
                    }
                }
                Err(refusal) => {
                    eprintln!("dunlin: refused a VM: {refusal}");
                    // Whoever asked may be gone.
                    let _ = link.say(&Message::Refused(refusal));
                }
            }
        }
    }

    /// Everything that can be said against a VM before something is allocated for it.
    fn accept(&self, hello: &OwnedHello) -> Result<(u16, Recorder), Refusal> {
        let wanted = hello.get();
        let cannot_build = |error: &dyn std::error::Error| {
            eprintln!("dunlin: {}", super::chain(error));
            Refusal::CannotBuild
        };
        agree_on_version(&wanted)?;
        let config = GuestConfig::decode(wanted.config).map_err(|error| cannot_build(&error))?;
        let machine = AnyGuest::host_machine(config.kind).map_err(|error| cannot_build(&error))?;
        let scales = config.kind == GuestKind::Kvm && KvmGuest::scales_tsc().unwrap_or(false);
        let mut capabilities =
            Capabilities::CHECKSUM | Capabilities::VERIFY | Capabilities::RECONNECT | Capabilities::SPLIT;
        if wanted.capabilities.contains(Capabilities::POST_COPY) {
            capabilities.set(Capabilities::POST_COPY, can_post_copy(config.kind));
        }
        capabilities.set(Capabilities::IN_STORAGE, self.options.storage.is_some());
        let offer = Offer {
            capabilities,
            max_memory: self.options.max_memory,
            max_vcpus: MAX_VCPUS as u8,
            cpuid: &super::vm::encode_cpuid(&machine.cpuid),
            fixed_tsc_khz: if scales { 0 } else { machine.tsc_khz },
            state_version: machine.state_version,
            busy: !matches!(*self.node.holding(), Holding::Nothing),
        };
        let protocol = check(&wanted, &offer)?;
        // Tracking state is sized by the regions, memory by the configuration: only what agrees is within the limits.
        let layout = MemoryLayout::new(config.memory).map_err(|error| cannot_build(&error))?;
        if super::vm::regions(&layout) != wanted.regions || config.vcpus != u32::from(wanted.vcpus) {
            return Err(cannot_build(&TargetError::Description));
        }
        let control = Some(self.options.control.display().to_string());
        let recorder =
            Recorder::open(self.options.state.as_deref(), &config.name, wanted.vm, control).map_err(|error| {
                eprintln!("dunlin: {}", super::chain(&error));
                Refusal::Record
            })?;
        Ok((protocol, recorder))
    }

    fn session(
        &mut self,
        link: Link,
        hello: Box<OwnedHello>,
        protocol: u16,
        mut recorder: Recorder,
    ) -> Option<Incoming> {
        let handle = Arc::new(TargetHandle::default());
        let (session, vm) = (hello.session(), hello.vm());
        let name = GuestConfig::decode(hello.get().config)
            .map(|config| config.name)
            .unwrap_or_default();
        *lock(&self.node.name) = name.clone();
        *lock(&self.node.vm) = vm;
        self.node.hold(Holding::Incoming(Arc::clone(&handle)));
        let run = TargetRun {
            hello,
            protocol,
            link,
            incoming: self.incoming,
            populate: self.options.populate,
            tracking: self.options.tracking,
            storage: self.options.storage.clone(),
            // A connection in the clear has no secret to seal with.
            seal: None,
            recorder: &mut recorder,
            handle: &handle,
            running: &|_guest: &Arc<AnyGuest>| eprintln!("dunlin: VM {name:?} runs here"),
        };
        let over = AtomicBool::new(false);
        let result = std::thread::scope(|scope| {
            let heeding = scope.spawn(|| heed(self.stop, &handle, &over));
            let result = run.run();
            over.store(true, Ordering::Release);
            heeding.thread().unpark();
            result
        });
        match (result.outcome, result.guest) {
            (TargetOutcome::Completed { .. }, Some(guest)) => {
                self.finished = Some((session, result.report));
                *lock(&self.node.recorder) = recorder.for_vm(vm);
                self.node.hold(Holding::Guest(guest));
            }
            (outcome, _) => {
                let reason = match outcome {
                    TargetOutcome::Aborted(reason) => reason,
                    TargetOutcome::Completed { .. } => AbortReason::Internal,
                };
                let trouble = result
                    .trouble
                    .map(|trouble| format!(" ({trouble})"))
                    .unwrap_or_default();
                // Who cancels while a page is on its way can say so only by hanging up.
                let reason = match reason {
                    AbortReason::LinkLost => {
                        "the connection ended: the source was cancelled, or died, or the network is broken".to_owned()
                    }
                    reason => reason.to_string(),
                };
                eprintln!("dunlin: VM {name:?} did not come: {reason}{trouble}; waiting for the next attempt");
                lock(&self.node.name).clear();
                self.node.hold(Holding::Nothing);
            }
        }
        result.leftover
    }

    /// A source that lost its target: what became of its session is in memory, or in the record of a process that died.
    fn resume(&self, mut link: Link, session: SessionId, vm: VmId, given_up: bool) {
        let standing = match &self.finished {
            Some((finished, _)) if *finished == session => TargetStanding::Complete,
            _ => self.recorded(session, vm),
        };
        eprintln!("dunlin: the source of session {session} came back (given up: {given_up}); answering {standing:?}");
        let mut said = link.say(&Message::Resumed(standing));
        if let (TargetStanding::Complete, Some((_, report))) = (standing, &self.finished) {
            said = said.and_then(|()| link.say(&Message::Complete(*report)));
        }
        if said.is_ok() {
            link.linger();
        }
    }

    fn recorded(&self, session: SessionId, vm: VmId) -> TargetStanding {
        let Some(directory) = &self.options.state else {
            return TargetStanding::Unknown;
        };
        let listed = journal::list(directory).unwrap_or_default();
        let readings = listed.into_iter().filter_map(|listed| listed.reading.ok());
        let of_session = readings
            .filter(|reading| !reading.held || reading.holder == Some(std::process::id()))
            .filter_map(|reading| reading.record)
            .find(|record| record.hand_over.session == session && record.hand_over.vm_id == vm);
        match of_session.map(|record| record.hand_over.phase) {
            Some(journal::Phase::Receiving | journal::Phase::Ready | journal::Phase::Aborted) => {
                TargetStanding::NeverTaken
            }
            _ => TargetStanding::Unknown,
        }
    }
}

/// Ends an attempt that can still be ended when the process is told to stop; tells what it waits for otherwise.
fn heed(stop: &Stop, handle: &TargetHandle, over: &AtomicBool) {
    let mut said = false;
    while !over.load(Ordering::Acquire) {
        std::thread::park_timeout(LOOK);
        let Some(snapshot) = handle.snapshot().filter(|_| stop.wanted() && !said) else {
            continue;
        };
        match snapshot.phase {
            Phase::Connecting | Phase::PreCopy => handle.stop(),
            Phase::PostCopy | Phase::PostCopyPaused => {
                eprintln!(
                    "dunlin: the VM runs here but lacks {} pages: the process ends when they have come; interrupt again to end it \
                     now, and the VM with it",
                    snapshot.missing.0
                );
                said = true;
            }
            Phase::HandOver | Phase::HandOverUnknown => {
                eprintln!(
                    "dunlin: the source may have given the VM up to this side: the process ends when that is known; interrupt again to \
                     end it now, and perhaps the VM with it"
                );
                said = true;
            }
            Phase::Complete | Phase::Aborted => {}
        }
    }
}

/// Whether this host lets this process handle a guest's missing pages.
fn can_post_copy(kind: GuestKind) -> bool {
    let origin = if kind == GuestKind::Kvm {
        FaultOrigin::All
    } else {
        FaultOrigin::UserMode
    };
    let memory = MemoryLayout::new(Bytes(dunlin_core::units::PAGE_SIZE)).and_then(GuestMemory::new);
    match memory.map(|memory| Userfaultfd::open(Arc::new(memory), origin)) {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            eprintln!("dunlin: no post-copy here: {}", super::chain(&error));
            false
        }
        Err(_) => false,
    }
}
