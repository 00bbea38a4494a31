//! The source's connections: who listens on them, and what is fed to the state machine from there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dunlin_core::message::{Message, SIGNATURE_BYTES_MAX, SessionId, TargetStanding, Violation, VmId};
use dunlin_core::migrate::{FaultAnswer, Source, SourceEvent};
use dunlin_core::units::Gfn;
use dunlin_core::wire::FrameKind;

use crate::channel::{
    Address, ByteCounts, Cancel, ChannelError, Checksum, FrameError, FrameReceiver, FrameSender, Stream, TokenBucket,
    Wait, connect, first_message,
};
use crate::memory::GuestMemory;
use crate::push_order::PAGES_MAX;
use crate::run::Clock;
use crate::trust::Visit;
use crate::trust::commit::Signing;

/// How often a listening thread looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// How long, and how often, a target that could not be told of an abort is looked for.
const TELL_FOR: Duration = Duration::from_secs(60);
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The state machine, shared by the runner, the listeners and whoever cancels.
pub(super) struct SharedSource<'w> {
    source: Mutex<Source<'w>>,
    changed: Condvar,
    /// Number of the present pair of connections; what older listeners find out no longer matters.
    generation: AtomicU64,
    pub(super) clock: Clock,
    /// Why the link was lost, for people.
    trouble: Mutex<Option<String>>,
    /// What went otherwise than it should, and did no harm.
    warnings: Mutex<Vec<String>>,
    /// The target's signature of what is handed over, and what it can be checked by.
    signed: Mutex<Option<(Vec<u8>, Signing)>>,
}

impl<'w> SharedSource<'w> {
    pub(super) fn new(source: Source<'w>, clock: Clock) -> Self {
        Self {
            source: Mutex::new(source),
            changed: Condvar::new(),
            generation: AtomicU64::new(0),
            clock,
            trouble: Mutex::new(None),
            warnings: Mutex::default(),
            signed: Mutex::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Source<'w>> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Feeds an event and wakes the runner.
    pub(super) fn feed(&self, event: SourceEvent<'_>) {
        self.lock().on(self.clock.now(), event);
        self.changed.notify_all();
    }

    pub(super) fn wait<'g>(&self, guard: MutexGuard<'g, Source<'w>>, patience: Duration) {
        drop(self.changed.wait_timeout(guard, patience));
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Makes whatever older listeners still say irrelevant.
    pub(super) fn next_generation(&self) -> u64 {
        let _guard = self.lock();
        self.generation.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(super) fn feed_of(&self, generation: u64, event: SourceEvent<'_>) -> bool {
        let mut source = self.lock();
        let current = self.generation() == generation;
        if current {
            source.on(self.clock.now(), event);
            self.changed.notify_all();
        }
        current
    }

    fn keep_signature(&self, stream: &Stream, message: &Message<'_>) {
        if let (Message::Signed { signature }, Some(trusted)) = (message, stream.trusted())
            && signature.len() <= SIGNATURE_BYTES_MAX
        {
            let signed = Some((signature.to_vec(), trusted.signing.clone()));
            *self.signed.lock().unwrap_or_else(PoisonError::into_inner) = signed;
        }
    }

    /// What the target signed last.
    pub(super) fn take_signature(&self) -> Option<(Vec<u8>, Signing)> {
        self.signed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Says it here, and in the report.
    pub(super) fn warn(&self, warning: String) {
        eprintln!("dunlin: {warning}");
        self.warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(warning);
    }

    /// The same, unless it has been said.
    pub(super) fn warn_once(&self, warning: String) {
        if !self.warnings().contains(&warning) {
            self.warn(warning);
        }
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn note(&self, error: &dyn std::error::Error) {
        let text = crate::run::chain(error);
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(text);
    }

    /// What the failure of a connection means for the state machine.
    pub(super) fn failed(&self, generation: u64, error: &FrameError) {
        if self.generation() == generation && !error.is_cancelled() {
            self.note(error);
            // What ends the attempt is told as its reason; this is mended by a new connection.
            if let FrameError::Channel(ChannelError::Trust { .. }) = error
                && self.lock().given_up()
            {
                self.warn_once(crate::run::chain(error));
            }
        }
        self.feed_of(generation, event_of(error));
    }
}

/// What an error on a connection means for the state machine.
pub(super) fn event_of(error: &FrameError) -> SourceEvent<'static> {
    match error {
        FrameError::Channel(_) => SourceEvent::LinkLost,
        FrameError::Wire { .. } => SourceEvent::Violation(Violation::Frame),
        FrameError::Unexpected { .. } => SourceEvent::Violation(Violation::UnexpectedMessage),
        FrameError::PageChecksum { .. } => SourceEvent::Violation(Violation::PageChecksum),
        FrameError::Memory(_) => SourceEvent::Violation(Violation::PageOutside),
    }
}

/// What all connections of an attempt share.
#[derive(Clone)]
pub(super) struct LinkConfig {
    pub(super) to: Address,
    pub(super) session: SessionId,
    /// How connections are secured and bound to the session; `None` in plain.
    pub(super) visit: Option<Arc<Visit>>,
    pub(super) patience: Duration,
    pub(super) checksum: bool,
    pub(super) bucket: TokenBucket,
    pub(super) migration: Arc<ByteCounts>,
    pub(super) fault: Arc<ByteCounts>,
    /// What was asked for, in order, if that is wanted.
    pub(super) demanded: Option<Arc<Mutex<Vec<Gfn>>>>,
}

impl LinkConfig {
    /// A new connection, secured if it is to be.
    fn open(&self, wait: Wait<'_>) -> Result<Stream, ChannelError> {
        let stream = connect(&self.to, wait)?;
        match &self.visit {
            Some(visit) => visit.enter(stream, wait),
            None => Ok(stream),
        }
    }
}

/// Whether the target has proved to be the one that the session began with; in plain nobody proves anything.
fn is_proved(stream: &Stream) -> bool {
    stream.trusted().is_none_or(|trusted| trusted.session().is_some())
}

/// Connects the migration channel.
pub(super) fn open_migration(link: &LinkConfig, cancel: &Cancel) -> Result<(Arc<Stream>, FrameSender), FrameError> {
    let stream = Arc::new(link.open(Wait::within(link.patience, cancel))?);
    let sender = FrameSender::new(Arc::clone(&stream), link.bucket.clone(), Arc::clone(&link.migration));
    Ok((stream, sender))
}

/// Listens on the migration channel until it fails or is replaced.
pub(super) fn listen(shared: &SharedSource<'_>, stream: Arc<Stream>, patience: Duration, generation: u64) {
    let mut receiver = FrameReceiver::new(stream, patience, Cancel::new());
    while shared.generation() == generation {
        match hear(shared, &mut receiver, generation) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return shared.failed(generation, &error),
        }
    }
}

fn hear(shared: &SharedSource<'_>, receiver: &mut FrameReceiver, generation: u64) -> Result<bool, FrameError> {
    let Some(header) = receiver.header(LOOK)? else {
        return Ok(true);
    };
    let stream = Arc::clone(receiver.stream());
    let is_proved = is_proved(&stream);
    Ok(match header.kind {
        FrameKind::Heartbeat => shared.feed_of(generation, SourceEvent::Heard),
        FrameKind::Control => match receiver.message(&header)? {
            message if is_proved || says_nothing_is_known(&message) => {
                if is_proved && shared.generation() == generation {
                    shared.keep_signature(&stream, &message);
                }
                shared.feed_of(generation, SourceEvent::Message(&message))
            }
            _ => shared.feed_of(generation, SourceEvent::Violation(Violation::UnexpectedMessage)),
        },
        _ => shared.feed_of(generation, SourceEvent::Violation(Violation::UnexpectedMessage)),
    })
}

/// What a target may say that has lost its memory of the session, or has never had any: nothing that would bring it pages.
fn says_nothing_is_known(message: &Message<'_>) -> bool {
    matches!(
        message,
        Message::Resumed(TargetStanding::NeverTaken | TargetStanding::Unknown)
    )
}

/// Connects the fault channel and attaches it to the session.
pub(super) fn open_fault(link: &LinkConfig, cancel: &Cancel) -> Result<(FrameReceiver, FrameSender), FrameError> {
    let wait = Wait::within(link.patience, cancel);
    let stream = Arc::new(link.open(wait)?);
    if !is_proved(&stream) {
        return Err(FrameError::unexpected(&link.to.to_string()));
    }
    // Fault replies are charged by their own counts, and by the bucket they share with everything else.
    let mut sender = FrameSender::new(Arc::clone(&stream), link.bucket.clone(), Arc::clone(&link.fault));
    let mut receiver = FrameReceiver::new(stream, link.patience, Cancel::new());
    sender.message(&Message::Attach { session: link.session }, wait)?;
    match first_message(&mut receiver, link.patience)? {
        Message::Attached => Ok((receiver, sender)),
        _ => Err(FrameError::unexpected(&link.to.to_string())),
    }
}

/// Answers page requests until the channel fails or is replaced.
pub(super) fn serve_faults(
    shared: &SharedSource<'_>,
    memory: &GuestMemory,
    link: &LinkConfig,
    (mut receiver, mut sender): (FrameReceiver, FrameSender),
    generation: u64,
) {
    let checksum = if link.checksum {
        Checksum::InPlace
    } else {
        Checksum::None
    };
    let never = Cancel::new();
    if let Err(error) = receiver.stream().set_read_patience(LOOK) {
        return shared.failed(generation, &error.into());
    }
    while shared.generation() == generation {
        let served = receiver.header_by(Stream::read_patiently).and_then(|header| {
            let Some(header) = header else { return Ok(true) };
            if header.kind == FrameKind::Heartbeat {
                return Ok(shared.feed_of(generation, SourceEvent::Heard));
            }
            let answer = match header.kind {
                FrameKind::PageRequest => shared.lock().on_fault_request(header.first),
                _ => FaultAnswer::Refuse,
            };
            if answer == FaultAnswer::Refuse {
                // Nothing more is heard here: the end of this channel would pass for the end of the other, which says why.
                shared.feed_of(generation, SourceEvent::Violation(Violation::UnexpectedMessage));
                return Ok(false);
            }
            if let Some(demanded) = &link.demanded {
                let mut demanded = demanded.lock().unwrap_or_else(PoisonError::into_inner);
                if demanded.len() < PAGES_MAX {
                    demanded.push(header.first);
                }
            }
            sender.urgent_page(memory, header.first, checksum, Wait::within(link.patience, &never))?;
            Ok(true)
        });
        match served {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return shared.failed(generation, &error),
        }
    }
}

/// Tells a target that could not be told: the VM runs here, what it holds of it can go. Tries for a while in the background;
/// without it the target keeps its copy, which it cannot run, until the next attempt or a person's word.
pub(super) fn tell_it_is_over(link: LinkConfig, vm: VmId) {
    std::thread::spawn(move || {
        let (never, began) = (Cancel::new(), Instant::now());
        while began.elapsed() < TELL_FOR {
            let wait = Wait::within(link.patience, &never);
            let message = Message::Resume {
                session: link.session,
                vm,
                given_up: false,
            };
            let told = open_migration(&link, &never).and_then(|(stream, mut sender)| {
                sender.message(&message, wait)?;
                sender.stream().finish();
                // Once the target has read it, it closes or answers.
                Ok(FrameReceiver::new(stream, link.patience, never.clone())
                    .header(link.patience)
                    .map(drop))
            });
            if told.is_ok() {
                return;
            }
            std::thread::sleep(TELL_EVERY);
        }
    });
}
