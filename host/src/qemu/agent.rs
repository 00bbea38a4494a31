//! A conversation with the agent in a guest, over the socket of a virtio-serial port.

use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use dunlin_agent::frame::{Decoder, ENCODED_MAX, encode};
use dunlin_agent::host::{Conversation, EpochEnd, Heard, Patience};
use dunlin_agent::message::{Abilities, Facts, Notice, ToGuest, ToHost, Work};
use dunlin_core::message::Regions;
use dunlin_core::units::Nanos;

use super::Address;
use super::address::Stream;
use super::plan::nanos;

/// How long the agent may take to say who it is, and how the guest is doing: emulated guests are slow.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a look takes whether something was said.
const LOOK: Duration = Duration::from_millis(1);
/// How long a line may take that is to be heard at the other end.
const CONNECT: Duration = Duration::from_secs(2);

/// Why there is no conversation.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody serves the port.
    #[error(
        "cannot reach the port of the guest's agent at {address}: {source}; give QEMU -device virtio-serial, -chardev socket,… and -device virtserialport,name=org.dunlin.agent.0"
    )]
    Connect {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },

    /// Nobody answers.
    #[error(
        "nobody answers at {0}: run dunlin-agent in the guest, and nothing else at this socket, of which QEMU serves one at a time"
    )]
    Silent(Address),

    /// Something else answers.
    #[error("what answers at {0} speaks another protocol: run the dunlin-agent of this version in the guest")]
    Strange(Address),

    /// It has gone.
    #[error("the port of the guest's agent at {address}: {source}")]
    Broken {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
}

/// An agent that has said who it is.
#[derive(Debug)]
pub(super) struct AgentClient {
    address: Address,
    stream: Stream,
    conversation: Conversation,
    decoder: Decoder,
    began: Instant,
    kernel: String,
}

impl AgentClient {
    /// Asks who is there.
    pub(super) fn connect(address: &Address) -> Result<Self, AgentError> {
        let at = |source| AgentError::Connect {
            address: address.clone(),
            source,
        };
        let stream = Stream::connect(address, CONNECT).map_err(at)?;
        stream.set_timeouts(Some(LOOK), Some(CONNECT)).map_err(at)?;
        let patience = Patience {
            hello: nanos(ANSWER),
            ..Patience::default()
        };
        // Hints of pages are of no use to QEMU, so there are no regions; any number is a good seed that another driver does not have.
        let conversation = Conversation::new(Regions::new(), patience, std::process::id());
        let mut client = Self {
            address: address.clone(),
            stream,
            conversation,
            decoder: Decoder::new(),
            began: Instant::now(),
            kernel: String::new(),
        };
        client.write(&[0])?;
        let question = client.conversation.ask_name(client.now());
        client.say(&question)?;
        match client.wait()? {
            Some(Heard::Agent(_)) => Ok(client),
            Some(Heard::End(EpochEnd::Unable)) => Err(AgentError::Strange(address.clone())),
            _ => Err(AgentError::Silent(address.clone())),
        }
    }

    /// The guest's kernel, in its own words.
    pub(super) fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Whether it can do this.
    pub(super) fn can(&self, abilities: Abilities) -> bool {
        self.conversation.abilities().is_some_and(|all| all.contains(abilities))
    }

    /// How the guest is doing; `None` if it does not say so in time.
    pub(super) fn facts(&mut self) -> Result<Option<Facts>, AgentError> {
        self.ask_facts()?;
        Ok(match self.wait()? {
            Some(Heard::Facts(facts)) => Some(facts),
            _ => None,
        })
    }

    /// Asks how the guest is doing, for [`hear_facts`](Self::hear_facts).
    pub(super) fn ask_facts(&mut self) -> Result<(), AgentError> {
        let question = self.conversation.ask_facts(self.now());
        self.say(&question)
    }

    /// The answer, if it is there; waits for nothing.
    pub(super) fn hear_facts(&mut self) -> Result<Option<Facts>, AgentError> {
        self.conversation.on_time(self.now());
        Ok(match self.hear()? {
            Some(Heard::Facts(facts)) => Some(facts),
            _ => None,
        })
    }

    /// Tells what happens, and waits until what is asked for is done: what was, and what failed. `None` if the guest does not say so in
    /// time.
    pub(super) fn notify(
        &mut self,
        notice: Notice,
        work: Work,
        timeout: Duration,
    ) -> Result<Option<(Work, Work)>, AgentError> {
        let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let message = self.conversation.notify(notice, work, ms, self.now());
        self.say(&message)?;
        Ok(match self.wait()? {
            Some(Heard::Acknowledged { done, failed }) => Some((done, failed)),
            _ => None,
        })
    }

    fn now(&self) -> Nanos {
        nanos(self.began.elapsed())
    }

    /// Until the question is answered, or not waited for any more.
    fn wait(&mut self) -> Result<Option<Heard>, AgentError> {
        loop {
            if let Some(heard) = self.hear()? {
                return Ok(Some(heard));
            }
            if self.conversation.on_time(self.now()).is_some() {
                return Ok(None);
            }
        }
    }

    fn hear(&mut self) -> Result<Option<Heard>, AgentError> {
        let mut buffer = [0; 1024];
        let heard = match self.stream.read(&mut buffer) {
            Ok(0) => return Err(self.broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => count,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(self.broken(error)),
        };
        let mut bytes = &buffer[..heard];
        let mut last = None;
        while !bytes.is_empty() {
            let (message, taken) = self.decoder.take::<ToHost>(bytes);
            bytes = &bytes[taken..];
            let Some(message) = message else { continue };
            match self.conversation.on_message(&message) {
                Heard::Nothing => {}
                heard => last = Some(heard),
            }
            if let (ToHost::Hello(hello), Some(Heard::Agent(_))) = (&message, &last) {
                // It is shown to people; it is no place for terminal commands.
                self.kernel = hello.kernel.chars().filter(|letter| !letter.is_control()).collect();
            }
        }
        Ok(last)
    }

    fn say(&mut self, message: &ToGuest) -> Result<(), AgentError> {
        let mut buffer = [0; ENCODED_MAX];
        let bytes = encode(message, &mut buffer).expect("what a host says is short");
        self.write(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        self.stream.write_all(bytes).map_err(|error| self.broken(error))
    }

    fn broken(&self, source: io::Error) -> AgentError {
        AgentError::Broken {
            address: self.address.clone(),
            source,
        }
    }
}
