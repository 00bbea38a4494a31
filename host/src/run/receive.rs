//! What `dunlin receive` does with connections: it answers them until one brings a VM, and holds that VM from then on.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use dunlin_core::message::{
    AbortReason, Capabilities, Hello, Message, Refusal, SessionId, TargetReport, TargetStanding, VmId,
};
use dunlin_core::migrate::{Offer, Phase, TargetOutcome, agree_on_version, check};
use dunlin_core::units::Bytes;
use dunlin_core::workload::layout::MAX_VCPUS;

use super::guard::{Allowed, Denied, Guard, peer_of};
use super::node::{Holding, Node, lock};
use super::options::ReceiveOptions;
use super::recorder::{Attempt, Recorder};
use super::serve::{NodeError, Stop, end_if_over};
use super::target::link::{Incoming, Link, OwnedHello, Rejected, WISHES_MAX, accept};
use super::target::{TargetError, TargetHandle, TargetRun};
use crate::channel::{Cancel, Listener, Stream};
use crate::control::Server;
use crate::guest::kvm::KvmGuest;
use crate::guest::{AnyGuest, GuestConfig, GuestError, GuestKind, Tracking};
use crate::journal::{self, Role};
use crate::memory::{FaultOrigin, GuestMemory, MemoryLayout, Userfaultfd};
use crate::report::ReceiveReport;
use crate::trust::audit::{Entry, Event, Outcome, Place};
use crate::trust::policy::Direction;
use crate::trust::{Admission, Peer, Security, Session, Trusted};

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
    let security = Security::choose(&options.listen, options.tls_dir.as_deref(), options.insecure)?;
    let admission = match security {
        Security::Tls(files) => {
            let credentials = files.load()?;
            eprintln!("dunlin: this host is {} to others", credentials.holder());
            Some(Admission::new(files))
        }
        Security::Insecure | Security::Local => None,
    };
    let guard = Guard::open(&options.trust)?;
    let recorder = Recorder::without_journal(guard.audit(), VmId::default());
    let node = Arc::new(Node::new(
        String::new(),
        VmId::default(),
        Holding::Nothing,
        recorder,
        guard,
    ));
    let listener = Listener::bind(&options.listen)?;
    if let Some(directory) = &options.state {
        // A directory that cannot be used must not show only when a VM arrives.
        journal::list(directory)?;
    }
    super::confine::confine_receiver(options)?;
    let server = Server::start(&options.control, Arc::clone(&node) as Arc<dyn crate::control::Handler>)?;
    announce(options, &listener)?;
    let cancel = Cancel::new();
    let (to, incoming) = mpsc::sync_channel(WISHES_MAX);
    let code = std::thread::scope(|scope| {
        scope.spawn(|| {
            accept(&listener, admission.as_ref(), &cancel, &to, &|rejected| {
                reject(&node, rejected)
            });
        });
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

/// Says that a connection was not taken; if that is for who came, it is put on record.
fn reject(node: &Node, rejected: Rejected) {
    eprintln!("dunlin: {}", rejected.line);
    let Some(address) = rejected.distrusted else { return };
    let recorder = Recorder::without_journal(node.guard.audit(), VmId::default()).for_attempt(Attempt {
        address: Some(address),
        ..Attempt::default()
    });
    let why = Denied {
        rule: None,
        reason: rejected.line,
    };
    node.guard.refuse(&recorder, Role::Target, SessionId::default(), &why);
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

/// A VM that may come.
struct Accepted {
    protocol: u16,
    recorder: Recorder,
    peer: Peer,
    allowed: Allowed,
}

/// One that may not: what its source is told, and what this host knows.
struct Refused {
    refusal: Refusal,
    why: Denied,
}

impl Refused {
    fn because(refusal: Refusal, error: &dyn std::error::Error) -> Self {
        Self {
            refusal,
            why: Denied {
                rule: None,
                reason: format!("{refusal}: {}", super::chain(error)),
            },
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            why: Denied {
                rule: None,
                reason: refusal.to_string(),
            },
        }
    }
}

struct Receiving<'a> {
    options: &'a ReceiveOptions,
    node: &'a Arc<Node>,
    incoming: &'a Receiver<Incoming>,
    stop: &'a Stop,
    /// The session that brought the VM, for a source that missed the end of it.
    finished: Option<Finished>,
}

struct Finished {
    session: SessionId,
    report: TargetReport,
    /// Without it that source could not prove who it is.
    _source: Option<Arc<Session>>,
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
            match self.accept(&hello, link.receiver.stream()) {
                Ok(accepted) => {
                    if let Some(Incoming::Hello(link, hello)) = self.session(link, hello, accepted) {
                        next = Some((link, hello));
                    }
                }
                Err(Refused { refusal, why }) => {
                    let name = GuestConfig::decode(hello.get().config).map(|config| config.name);
                    let stream = link.receiver.stream();
                    eprintln!(
                        "dunlin: refused VM {:?} of {} at {}: {}",
                        name.unwrap_or_default(),
                        peer_of(stream),
                        stream.peer(),
                        why.reason
                    );
                    // Whoever asked may be gone.
                    let _ = link.say(&Message::Refused(refusal));
                }
            }
        }
    }

    /// Everything that can be said against a VM before something is allocated for it; what was said is on record.
    fn accept(&self, hello: &OwnedHello, stream: &Stream) -> Result<Accepted, Refused> {
        let wanted = hello.get();
        let config = GuestConfig::decode(wanted.config);
        let memory = config.as_ref().map_or(Bytes(0), |config| config.memory);
        let attempt = Attempt::offered(stream, Some(memory.max(wanted.total_pages().bytes())));
        let name = config.as_ref().map(|config| config.name.clone()).unwrap_or_default();
        let accepted = self.judge(&wanted, config, &name, &attempt);
        if let Err(refused) = &accepted {
            let recorder = Recorder::without_journal(self.node.guard.audit(), wanted.vm);
            let recorder = recorder.named(&name).for_attempt(attempt);
            self.node
                .guard
                .refuse(&recorder, Role::Target, wanted.session, &refused.why);
        }
        accepted
    }

    fn judge(
        &self,
        wanted: &Hello<'_>,
        config: Result<GuestConfig, GuestError>,
        name: &str,
        attempt: &Attempt,
    ) -> Result<Accepted, Refused> {
        agree_on_version(wanted)?;
        let nobody = Peer::new(false, None);
        let (peer, memory) = (attempt.peer.as_ref().unwrap_or(&nobody), attempt.memory);
        let allowed = self
            .node
            .guard
            .ask(Direction::In, peer, name, Bytes(memory.unwrap_or(u64::MAX)))
            .map_err(|why| Refused {
                refusal: Refusal::NotAllowed,
                why,
            })?;
        let cannot_build = |error: &dyn std::error::Error| Refused::because(Refusal::CannotBuild, error);
        let config = config.map_err(|error| cannot_build(&error))?;
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
        let protocol = check(wanted, &offer)?;
        // Tracking state is sized by the regions, memory by the configuration: only what agrees is within the limits.
        let layout = MemoryLayout::new(config.memory).map_err(|error| cannot_build(&error))?;
        if super::vm::regions(&layout) != wanted.regions || config.vcpus != u32::from(wanted.vcpus) {
            return Err(cannot_build(&TargetError::Description));
        }
        let control = Some(self.options.control.display().to_string());
        let (state, audit) = (self.options.state.as_deref(), self.node.guard.audit());
        let not_recorded = |error: &dyn std::error::Error| Refused::because(Refusal::Record, error);
        let recorder = Recorder::open(state, audit, name, wanted.vm, control)
            .map_err(|error| not_recorded(&error))?
            .for_attempt(attempt.clone());
        recorder
            .accept(Role::Target, wanted.session, Some(allowed.rule.clone()))
            .map_err(|error| not_recorded(&error))?;
        Ok(Accepted {
            protocol,
            recorder,
            peer: peer.clone(),
            allowed,
        })
    }

    fn session(&mut self, link: Link, hello: Box<OwnedHello>, accepted: Accepted) -> Option<Incoming> {
        let Accepted {
            protocol,
            mut recorder,
            peer,
            allowed,
        } = accepted;
        let handle = Arc::new(TargetHandle::default());
        let source = link.trusted().and_then(Trusted::session).cloned();
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
            peer,
            bandwidth: allowed.bandwidth,
            seal: source.as_deref().map(super::seal_key),
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
        // From here on it counts no more.
        drop(allowed.turn);
        match (result.outcome, result.guest) {
            (TargetOutcome::Completed { .. }, Some(guest)) => {
                recorder.end(Role::Target, session, Outcome::Completed, Place::Here, None);
                self.finished = Some(Finished {
                    session,
                    report: result.report,
                    _source: source,
                });
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
                let reason = Some(format!("{reason}{trouble}"));
                recorder.end(Role::Target, session, Outcome::Aborted, Place::Elsewhere, reason);
                lock(&self.node.name).clear();
                self.node.hold(Holding::Nothing);
            }
        }
        result.leftover
    }

    /// A source that lost its target: what became of its session is in memory, or in the record of a process that died.
    fn resume(&self, mut link: Link, session: SessionId, vm: VmId, given_up: bool) {
        let standing = match &self.finished {
            Some(finished) if finished.session == session && link.joined(session) => TargetStanding::Complete,
            _ => self.recorded(session, vm),
        };
        eprintln!("dunlin: the source of session {session} came back (given up: {given_up}); answering {standing:?}");
        let recorder = Recorder::without_journal(self.node.guard.audit(), vm);
        let recorder = recorder.for_attempt(Attempt::offered(link.receiver.stream(), None));
        recorder.tell(Entry {
            reason: Some(format!("{standing:?} (given up there: {given_up})")),
            ..recorder.entry(Event::Answer, Role::Target, session)
        });
        let mut said = link.say(&Message::Resumed(standing));
        if let (TargetStanding::Complete, Some(finished)) = (standing, &self.finished) {
            said = said.and_then(|()| link.say(&Message::Complete(finished.report)));
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
