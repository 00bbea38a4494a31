//! The target's connections: what a new connection wants, and who sends on the present ones.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dunlin_core::message::{Hello, Message, Refusal, Regions, SessionId, VmId};

use crate::channel::{
    ByteCounts, Cancel, ChannelError, FrameError, FrameReceiver, FrameSender, Listener, Stream, TokenBucket, Wait,
    first_message,
};
use crate::trust::{Admission, TrustError, Trusted};

/// How long a new connection may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(10);
/// How long a new connection may take to say what it wants.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How long a message of this side may take to leave.
const SEND: Duration = Duration::from_secs(3);
/// Longest wait for the source to close its side in the end.
const CLOSING: Duration = Duration::from_millis(150);
/// Most connections that have not yet said what they want: each costs a thread and its buffers.
const UNDECIDED_MAX: usize = 32;

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
    fn new(stream: Stream) -> Self {
        let stream = Arc::new(stream);
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
}

/// Accepts connections until `cancel` is raised and hands on what they want. What is no Dunlin, or says nothing, is
/// refused by name and forgotten; at most `UNDECIDED_MAX` may be undecided at a time, further ones are closed.
pub(in crate::run) fn accept(
    listener: &Listener,
    admission: Option<&Admission>,
    cancel: &Cancel,
    to: &Sender<Incoming>,
    log: &(dyn Fn(String) + Sync),
) {
    let undecided = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        loop {
            match listener.accept(Wait::forever(cancel)) {
                Ok(stream) if undecided.load(Ordering::Acquire) >= UNDECIDED_MAX => {
                    let peer = stream.peer();
                    log(format!(
                        "refused a connection: {peer} is one too many while {UNDECIDED_MAX} others have not said what they want"
                    ));
                }
                Ok(stream) => {
                    let (to, undecided) = (to.clone(), &undecided);
                    undecided.fetch_add(1, Ordering::AcqRel);
                    scope.spawn(move || {
                        let introduced = introduce(stream, admission, &to);
                        undecided.fetch_sub(1, Ordering::AcqRel);
                        if let Err(error) = introduced {
                            log(format!("refused a connection: {}", crate::run::chain(&error)));
                        }
                    });
                }
                Err(ChannelError::Cancelled) => return,
                Err(error) => {
                    log(format!("could not accept a connection: {}", crate::run::chain(&error)));
                    if !Wait::forever(cancel).sleep(Duration::from_millis(100)) {
                        return;
                    }
                }
            }
        }
    });
}

fn introduce(stream: Stream, admission: Option<&Admission>, to: &Sender<Incoming>) -> Result<(), FrameError> {
    let never = Cancel::new();
    let stream = match admission {
        Some(admission) => admission.admit(stream, Wait::within(INTRODUCTION, &never))?,
        None => stream,
    };
    let mut link = Link::new(stream);
    enum Wish {
        Hello(Box<OwnedHello>),
        Attach(SessionId),
        Resume(SessionId, VmId, bool),
        Nonsense,
    }
    let wish = match first_message(&mut link.receiver, FIRST_MESSAGE) {
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
    let incoming = match wish {
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
    };
    // Nobody takes connections any more: the process is about to end.
    let _ = to.send(incoming);
    Ok(())
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
