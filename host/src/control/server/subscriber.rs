//! A client that is told of a recording while it goes on.

use crate::{
    channel::{Cancel, ChannelError, Stream, Wait},
    control::{
        ControlError,
        line::{LineReader, encode},
        protocol::{Request, Response},
        recording::RecordingAnswer,
    },
};
use std::time::{Duration, Instant};

/// How often flags are looked at while nothing else happens.
const LOOK: Duration = Duration::from_millis(20);
/// How long a client may not take anything before it counts as gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client that is in the middle of a message may take to get it when the recording must end.
const GRACE: Duration = Duration::from_millis(200);

/// A client that records.
#[derive(Debug)]
pub struct Subscriber<'a> {
    stream: &'a Stream,
    lines: &'a mut LineReader,
    closing: &'a Cancel,
    broken: bool,
}

/// The client is not there any more, or takes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// What came before the time was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing: the time is up.
    Nothing,
    /// The client wants tracking to begin.
    Go,
    /// The client wants no more.
    Stop,
    /// The flag was raised.
    Interrupt,
    /// The process ends.
    Closing,
}

impl<'a> Subscriber<'a> {
    pub(in crate::control) const fn new(stream: &'a Stream, lines: &'a mut LineReader, closing: &'a Cancel) -> Self {
        Self {
            stream,
            lines,
            closing,
            broken: false,
        }
    }

    /// Whether a message was begun and not finished, so that the connection is of no more use.
    pub(in crate::control) const fn is_broken(&self) -> bool {
        self.broken
    }

    /// The client's process, if the system tells.
    pub fn pid(&self) -> Option<u32> {
        let peer = rustix::net::sockopt::socket_peercred(self.stream).ok()?;
        u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
    }

    /// Answers the request.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn answer(&mut self, answer: &RecordingAnswer, interrupt: &Cancel) -> Result<(), Gone> {
        let document = serde_json::to_value(answer).expect("reports always have a JSON form");
        self.say(&encode(&Response::Result(document)), interrupt)
    }

    /// Sends bytes. A client that is slow is waited for; the guest is not.
    ///
    /// # Errors
    /// [`Gone`]; also when the flag is raised while the client takes nothing.
    pub fn say(&mut self, mut bytes: &[u8], interrupt: &Cancel) -> Result<(), Gone> {
        let never = Cancel::new();
        let (mut heard_of, mut interrupted) = (Instant::now(), None);
        while !bytes.is_empty() {
            match self.stream.write_some(bytes, Wait::within(LOOK, &never)) {
                Ok(written) => {
                    bytes = &bytes[written..];
                    heard_of = Instant::now();
                }
                Err(ChannelError::TimedOut { .. }) => {}
                Err(_) => return self.gone(),
            }
            if interrupt.is_raised() || self.closing.is_raised() {
                let since = *interrupted.get_or_insert_with(Instant::now);
                if !bytes.is_empty() && since.elapsed() > GRACE {
                    return self.gone();
                }
            }
            if heard_of.elapsed() > PATIENCE {
                return self.gone();
            }
        }
        Ok(())
    }

    fn gone(&mut self) -> Result<(), Gone> {
        self.broken = true;
        Err(Gone)
    }

    /// Waits until something is to be done, at most until then.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn listen(&mut self, until: Instant, interrupt: &Cancel) -> Result<Heard, Gone> {
        loop {
            if interrupt.is_raised() {
                return Ok(Heard::Interrupt);
            }
            if self.closing.is_raised() {
                return Ok(Heard::Closing);
            }
            let now = Instant::now();
            match self
                .lines
                .next(self.stream, Wait::until(until.min(now + LOOK), interrupt))
            {
                Ok(Some(line)) => {
                    let go = matches!(serde_json::from_slice(&line), Ok(Request::Go));
                    return Ok(if go { Heard::Go } else { Heard::Stop });
                }
                Ok(None) => return Err(Gone),
                Err(ControlError::Channel(ChannelError::TimedOut { .. })) if until <= Instant::now() => {
                    return Ok(Heard::Nothing);
                }
                Err(ControlError::Channel(ChannelError::TimedOut { .. } | ChannelError::Cancelled)) => {}
                Err(_) => return self.gone().map(|()| Heard::Stop),
            }
        }
    }
}
