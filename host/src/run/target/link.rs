//! The target's connections: what a new connection wants, and who sends on the present ones.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dunlin_core::message::{Hello, Message, Refusal, Regions, SessionId, VmId};

use crate::channel::{
    ByteCounts, Cancel, ChannelError, FrameError, FrameReceiver, FrameSender, Listener, Stream, TokenBucket, Wait,
    first_message,
};
use crate::trust::commit::Signing;
use crate::trust::{Admission, TrustError, Trusted};

/// How long a new connection may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(10);
/// How long a new connection may take to say what it wants.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How long a message of this side may take to leave.
const SEND: Duration = Duration::from_secs(3);
/// Longest wait for the source to close its side in the end.
const CLOSING: Duration = Duration::from_millis(150);
/// Most connections that have not yet said what they want: each costs a thread and its buffers. With one more a silent
/// one is closed, or else one that does not come to an end: who has something to say says it at once.
const UNDECIDED_MAX: usize = 32;
/// Whoever has begun to speak is not closed for others so soon after it came.
const BEGINNING: Duration = Duration::from_secs(1);
/// Most threads for new connections, those included that are closed and have yet to notice, or wait to be answered.
const THREADS_MAX: usize = UNDECIDED_MAX + 8;
/// Most connections that have said what they want and wait to be answered.
pub(in crate::run) const WISHES_MAX: usize = 8;
/// How often one that waits for that looks whether there is room.
const ROOM: Duration = Duration::from_millis(5);
/// Most closed connections whose last answer is still waited for to arrive.
const LINGERING_MAX: usize = 8;
/// For how long.
const LINGER: Duration = Duration::from_secs(1);

/// What a new connection wants.
#[derive(Debug)]
pub enum Incoming {
    /// To migrate a VM here.
    Hello(Link, Box<OwnedHello>),
    /// To be the fault channel of a session.
    Attach(Link, SessionId),
    /// To take up a session again.
    Resume {
        /// The new migration channel.
        link: Link,
        /// The session.
        session: SessionId,
        /// The VM.
        vm: VmId,
        /// The source's record says given-up.
        given_up: bool,
    },
}

/// A connection, ready for frames.
#[derive(Debug)]
pub struct Link {
    /// Its receiving half.
    pub receiver: FrameReceiver,
    /// Its sending half.
    pub sender: FrameSender,
}

/// A [`Hello`] that owns its bytes.
#[derive(Clone, Debug)]
pub struct OwnedHello {
    cpuid: Vec<u8>,
    config: Vec<u8>,
    fixed: Hello<'static>,
}

impl OwnedHello {
    fn new(hello: &Hello<'_>) -> Self {
        Self {
            cpuid: hello.cpuid.to_vec(),
            config: hello.config.to_vec(),
            fixed: Hello {
                cpuid: &[],
                config: &[],
                regions: hello.regions.clone(),
                ..*hello
            },
        }
    }

    /// As it came.
    pub fn get(&self) -> Hello<'_> {
        Hello {
            cpuid: &self.cpuid,
            config: &self.config,
            ..self.fixed.clone()
        }
    }

    /// The session it begins.
    pub fn session(&self) -> SessionId {
        self.fixed.session
    }

    /// The VM it wants to move.
    pub fn vm(&self) -> VmId {
        self.fixed.vm
    }

    /// The VM's RAM.
    pub fn regions(&self) -> &Regions {
        &self.fixed.regions
    }
}

impl Link {
    fn new(stream: Arc<Stream>) -> Self {
        let sender = FrameSender::new(
            Arc::clone(&stream),
            TokenBucket::new(None),
            Arc::new(ByteCounts::default()),
        );
        Self {
            receiver: FrameReceiver::new(stream, SEND, Cancel::new()),
            sender,
        }
    }

    /// Who is at the other end, and to which session the connection belongs; `None` in plain.
    pub fn trusted(&self) -> Option<&Trusted> {
        self.receiver.stream().trusted()
    }

    /// Whether this is a further connection of the session; in plain, whoever says so is believed.
    pub(in crate::run) fn joined(&self, session: SessionId) -> bool {
        self.trusted().is_none_or(|trusted| trusted.joined(session))
    }

    /// Says something on a connection that nobody else uses.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn say(&mut self, message: &Message<'_>) -> Result<(), FrameError> {
        self.sender.message(message, Wait::within(SEND, &Cancel::new()))
    }

    /// Lets the other side close when it has read what was said: closing first could take that along. Nobody waits for it meanwhile.
    pub(in crate::run) fn linger(mut self) {
        static LINGERING: AtomicUsize = AtomicUsize::new(0);
        if LINGERING.fetch_add(1, Ordering::AcqRel) < LINGERING_MAX {
            std::thread::spawn(move || {
                // Whatever it says, it has heard.
                let _ = self.receiver.header(LINGER);
                LINGERING.fetch_sub(1, Ordering::AcqRel);
            });
        } else {
            LINGERING.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Connections that have not said yet what they want, the oldest first.
#[derive(Default)]
struct Undecided {
    waiting: Mutex<VecDeque<Arc<Caller>>>,
    threads: AtomicUsize,
}

/// One of them.
struct Caller {
    /// The bare connection, whatever is wrapped around it meanwhile.
    handle: Stream,
    /// It has begun to say something.
    spoke: AtomicBool,
    since: Instant,
}

impl Caller {
    fn peer(&self) -> &str {
        self.handle.peer()
    }

    fn is_silent(&self) -> bool {
        let now = Cancel::new();
        !self.spoke.load(Ordering::Acquire) && self.handle.wait_readable(Wait::within(Duration::ZERO, &now)).is_err()
    }
}

impl Undecided {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Caller>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one more; the one that must go for it, if one must.
    fn add(&self, caller: &Arc<Caller>) -> Option<Arc<Caller>> {
        let gone = self.is_full().then(|| self.make_room()).flatten();
        self.lock().push_back(Arc::clone(caller));
        gone
    }

    fn is_full(&self) -> bool {
        self.lock().len() >= UNDECIDED_MAX
    }

    /// Closes one: who has something to say has said it when it is heard, so that the silent go first, and then who does not come to an
    /// end. Nobody goes who has just begun to speak: it will soon be known what that one wants.
    fn make_room(&self) -> Option<Arc<Caller>> {
        let mut waiting = self.lock();
        let silent = waiting.iter().position(|caller| caller.is_silent());
        let slow = waiting.iter().position(|caller| caller.since.elapsed() >= BEGINNING);
        let gone = waiting.remove(silent.or(slow)?)?;
        gone.handle.shutdown();
        Some(gone)
    }

    /// It is none of them any more; false if it had to go before.
    fn remove(&self, caller: &Arc<Caller>) -> bool {
        let mut waiting = self.lock();
        let at = waiting.iter().position(|other| Arc::ptr_eq(other, caller));
        at.is_some_and(|at| waiting.remove(at).is_some())
    }
}

/// A connection that was not taken.
#[derive(Debug)]
pub(in crate::run) struct Rejected {
    /// Why, for people.
    pub(in crate::run) line: String,
    /// Where it came from, if that is for who is there, or who is not.
    pub(in crate::run) distrusted: Option<String>,
}

impl Rejected {
    fn new(line: String) -> Self {
        Self { line, distrusted: None }
    }

    fn because(error: &FrameError, peer: &str) -> Self {
        let distrusted = matches!(error, FrameError::Channel(ChannelError::Trust { .. }));
        Self {
            line: format!("refused a connection: {}", crate::run::chain(error)),
            distrusted: distrusted.then(|| peer.to_owned()),
        }
    }
}

/// Accepts connections until `cancel` is raised and hands on what they want. What is no Dunlin, or says nothing, is
/// refused by name and forgotten; at most `UNDECIDED_MAX` may be undecided at a time, of more the one that took longest is closed.
/// While all threads are taken nobody is accepted: the system lets a few wait.
pub(in crate::run) fn accept(
    listener: &Listener,
    admission: Option<&Admission>,
    cancel: &Cancel,
    to: &SyncSender<Incoming>,
    log: &(dyn Fn(Rejected) + Sync),
) {
    let undecided = Undecided::default();
    std::thread::scope(|scope| {
        loop {
            match listener.accept(Wait::forever(cancel)) {
                Ok(stream) => {
                    let refuse = |gone: &Caller| {
                        let peer = gone.peer();
                        log(Rejected::new(format!(
                            "refused a connection: {peer} has taken longest of {UNDECIDED_MAX} that have not said what they want"
                        )));
                    };
                    while undecided.threads.load(Ordering::Acquire) >= THREADS_MAX {
                        if undecided.is_full()
                            && let Some(gone) = undecided.make_room()
                        {
                            refuse(&gone);
                        }
                        if !Wait::forever(cancel).sleep(ROOM) {
                            return;
                        }
                    }
                    let handle = match stream.try_clone() {
                        Ok(handle) => handle,
                        Err(error) => {
                            log(Rejected::because(&error.into(), stream.peer()));
                            continue;
                        }
                    };
                    let caller = Arc::new(Caller {
                        handle,
                        spoke: AtomicBool::new(false),
                        since: Instant::now(),
                    });
                    undecided.threads.fetch_add(1, Ordering::AcqRel);
                    if let Some(gone) = undecided.add(&caller) {
                        refuse(&gone);
                    }
                    let (to, undecided) = (to.clone(), &undecided);
                    scope.spawn(move || {
                        let introduced = introduce(stream, admission, &caller);
                        let was_closed = !undecided.remove(&caller) && introduced.is_err();
                        let handed_on = introduced.and_then(|incoming| hand_on(incoming, &to, cancel, caller.peer()));
                        undecided.threads.fetch_sub(1, Ordering::AcqRel);
                        if let Err(error) = handed_on
                            && !was_closed
                        {
                            log(Rejected::because(&error, caller.peer()));
                        }
                    });
                }
                Err(ChannelError::Cancelled) => return,
                Err(error) => {
                    let why = crate::run::chain(&error);
                    log(Rejected::new(format!("could not accept a connection: {why}")));
                    if !Wait::forever(cancel).sleep(Duration::from_millis(100)) {
                        return;
                    }
                }
            }
        }
    });
}

/// Waits until there is room for one that wants something, as long as it may take to say so.
fn hand_on(mut incoming: Incoming, to: &SyncSender<Incoming>, cancel: &Cancel, peer: &str) -> Result<(), FrameError> {
    let began = Instant::now();
    loop {
        incoming = match to.try_send(incoming) {
            Err(TrySendError::Full(incoming)) => incoming,
            // Nobody takes connections any more: the process is about to end.
            Ok(()) | Err(TrySendError::Disconnected(_)) => return Ok(()),
        };
        if began.elapsed() >= FIRST_MESSAGE {
            return Err(ChannelError::TimedOut {
                peer: format!("this side, which has others to answer before {peer}"),
                after: FIRST_MESSAGE,
            }
            .into());
        }
        if !Wait::forever(cancel).sleep(ROOM) {
            return Ok(());
        }
    }
}

fn introduce(stream: Stream, admission: Option<&Admission>, caller: &Caller) -> Result<Incoming, FrameError> {
    let never = Cancel::new();
    // Whoever connects speaks first, by TLS as well.
    let heard = stream.wait_readable(Wait::within(FIRST_MESSAGE, &never));
    caller.spoke.store(heard.is_ok(), Ordering::Release);
    let stream = match (admission, &heard) {
        (Some(admission), Ok(())) => admission.admit(stream, Wait::within(INTRODUCTION, &never))?,
        _ => stream,
    };
    let mut link = Link::new(Arc::new(stream));
    enum Wish {
        Hello(Box<OwnedHello>),
        Attach(SessionId),
        Resume(SessionId, VmId, bool),
        Nonsense,
    }
    let first = heard.map_err(FrameError::from);
    let wish = match first.and_then(|()| first_message(&mut link.receiver, FIRST_MESSAGE)) {
        Ok(Message::Hello(hello)) => Wish::Hello(Box::new(OwnedHello::new(&hello))),
        Ok(Message::Attach { session }) => Wish::Attach(session),
        Ok(Message::Resume { session, vm, given_up }) => Wish::Resume(session, vm, given_up),
        Ok(_) => Wish::Nonsense,
        Err(error) => {
            // The other side may understand why, if it is a Dunlin at all.
            let _ = link.say(&Message::Refused(Refusal::NotHello));
            return Err(error);
        }
    };
    // What was proved before the first message and what that asks for must be the same session.
    let is_his = link.trusted().is_none_or(|trusted| match &wish {
        Wish::Hello(hello) => trusted.begins(hello.session()),
        Wish::Attach(session) => trusted.joined(*session),
        Wish::Resume(session, ..) => trusted.joined(*session) || trusted.misses(*session),
        Wish::Nonsense => true,
    });
    if let (false, Some(trusted)) = (is_his, link.trusted()) {
        return Err(ChannelError::Trust {
            peer: link.receiver.stream().peer().to_owned(),
            source: Box::new(TrustError::Stranger {
                name: trusted.peer.name().clone(),
            }),
        }
        .into());
    }
    Ok(match wish {
        Wish::Hello(hello) => Incoming::Hello(link, hello),
        Wish::Attach(session) => Incoming::Attach(link, session),
        Wish::Resume(session, vm, given_up) => Incoming::Resume {
            link,
            session,
            vm,
            given_up,
        },
        Wish::Nonsense => {
            let error = FrameError::unexpected(link.receiver.stream().peer());
            return link.say(&Message::Refused(Refusal::NotHello)).and(Err(error));
        }
    })
}

/// The sending half of the migration channel, while there is one.
#[derive(Debug, Default)]
pub(super) struct Mouth {
    sender: Mutex<Option<FrameSender>>,
    cancel: Cancel,
}

impl Mouth {
    fn lock(&self) -> MutexGuard<'_, Option<FrameSender>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn replace(&self, sender: Option<FrameSender>) {
        let old = std::mem::replace(&mut *self.lock(), sender);
        if let Some(old) = old {
            old.stream().shutdown();
        }
    }

    /// Ends the connection so that the source still hears the last message: a socket closed with unread pages would reset
    /// the connection and take that message along. So this side ends its direction and lets the source close.
    pub(super) fn close(&self) {
        let Some(sender) = self.lock().take() else { return };
        let stream = sender.stream();
        stream.finish();
        let (wait, began) = (Wait::within(CLOSING, &self.cancel), Instant::now());
        let mut rest = vec![0; 64 * 1024];
        // A source that never stops sending is not waited for either.
        while began.elapsed() < CLOSING && matches!(stream.read_some(&mut rest, wait), Ok(more) if more > 0) {}
        stream.shutdown();
    }

    /// What hand-overs are signed with on the present connection, if on any.
    pub(super) fn signing(&self) -> Option<Signing> {
        let sender = self.lock();
        Some(sender.as_ref()?.stream().trusted()?.signing.clone())
    }

    pub(super) fn say(&self, message: &Message<'_>) -> Result<(), FrameError> {
        match &mut *self.lock() {
            Some(sender) => sender.message(message, Wait::within(SEND, &self.cancel)),
            None => Err(ChannelError::Closed {
                peer: "the source".to_owned(),
            }
            .into()),
        }
    }

    /// Failures show when the channel is read, too.
    pub(super) fn heartbeat(&self) {
        if let Some(sender) = &mut *self.lock() {
            let _ = sender.heartbeat(Wait::within(SEND, &self.cancel));
        }
    }
}
