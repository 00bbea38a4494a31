//! A host that asks the agent in a Linux guest, for tests and benchmarks.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dunlin_agent::frame::{Decoder, ENCODED_MAX, LineStatistics, encode};
use dunlin_agent::host::{Conversation, EpochEnd, Heard, Ignored, Patience};
use dunlin_agent::message::{AgentHello, Facts, Notice, SoftKind, ToGuest, ToHost, Work};
use dunlin_core::message::Region;
use dunlin_core::pageset::Run;
use dunlin_core::units::{Bytes, Gfn, Nanos, PAGE_SIZE, Pages};

use super::PATIENCE;

/// After which it is asked again who is there: the guest may not have opened its end before.
const AGAIN: Duration = Duration::from_secs(5);
/// How long a look takes whether something was said.
const LOOK: Duration = Duration::from_millis(100);

/// A conversation with the agent in a guest.
#[derive(Debug)]
pub struct AgentLine {
    stream: BufReader<UnixStream>,
    conversation: Conversation,
    decoder: Decoder,
    began: Instant,
    hello: Option<AgentHello>,
}

/// What an agent said of which pages are soft.
#[derive(Clone, PartialEq, Debug)]
pub struct Epoch {
    /// In the order in which they came.
    pub runs: Vec<(Run, SoftKind)>,
    /// How it ended.
    pub end: EpochEnd,
    /// From the question to the last answer.
    pub took: Duration,
}

impl Epoch {
    /// How many pages are free.
    pub fn free(&self) -> Pages {
        let free = self.runs.iter().filter(|(_, kind)| *kind == SoftKind::Free);
        Pages(free.map(|(run, _)| run.count.0).sum())
    }
}

impl AgentLine {
    /// Asks at the socket of a guest with so much memory who is there, until somebody answers.
    ///
    /// # Errors
    /// If nobody answers within [`PATIENCE`], or something that cannot be understood.
    pub fn connect(socket: &Path, memory: Bytes) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).context("cannot connect to the agent's port")?;
        stream.set_read_timeout(Some(LOOK))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let region = Region {
            first: Gfn::ZERO,
            pages: Pages(memory.0 / PAGE_SIZE),
        };
        let patience = Patience {
            hello: nanos(AGAIN),
            epoch: nanos(PATIENCE),
        };
        let mut line = Self {
            stream: BufReader::new(stream),
            conversation: Conversation::new([region].into_iter().collect(), patience, std::process::id()),
            decoder: Decoder::new(),
            began: Instant::now(),
            hello: None,
        };
        // Ends what somebody before may have begun.
        line.write(&[0])?;
        while line.began.elapsed() < PATIENCE {
            let question = line.conversation.ask_name(line.now());
            match line.ask(&question)? {
                Some(Heard::Agent(_)) => return Ok(line),
                None => {}
                other => bail!("who is there? {other:?}"),
            }
        }
        bail!("no agent answers");
    }

    /// What it said of itself.
    pub const fn hello(&self) -> Option<&AgentHello> {
        self.hello.as_ref()
    }

    /// How the guest is doing.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn facts(&mut self) -> anyhow::Result<Facts> {
        let question = self.conversation.ask_facts(self.now());
        match self.ask(&question)? {
            Some(Heard::Facts(facts)) => Ok(facts),
            other => bail!("how is it going? {other:?}"),
        }
    }

    /// Asks which pages are soft.
    ///
    /// # Errors
    /// If the line breaks; that the agent says nothing, or refuses, is an answer.
    pub fn epoch(&mut self) -> anyhow::Result<Epoch> {
        let began = Instant::now();
        let question = self.conversation.open_epoch(self.now());
        self.say(&question)?;
        let mut runs = vec![];
        let end = loop {
            match self.wait()? {
                Some(Heard::Soft(soft)) => runs.extend(soft),
                Some(Heard::End(end)) => break end,
                None => break EpochEnd::TimedOut,
                other => bail!("which pages are soft? {other:?}"),
            }
        };
        Ok(Epoch {
            runs,
            end,
            took: began.elapsed(),
        })
    }

    /// Tells what happens, and returns what was done of what was asked for, and what failed.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn notify(&mut self, notice: Notice, work: Work) -> anyhow::Result<(Work, Work)> {
        let ms = u32::try_from(PATIENCE.as_millis())?;
        let message = self.conversation.notify(notice, work, ms, self.now());
        match self.ask(&message)? {
            Some(Heard::Acknowledged { done, failed }) => Ok((done, failed)),
            other => bail!("{notice:?}: {other:?}"),
        }
    }

    /// Sends any bytes.
    ///
    /// # Errors
    /// If they cannot be sent.
    pub fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream.get_mut().write_all(bytes).context("the agent's port")
    }

    /// What was heard and not used.
    pub const fn ignored(&self) -> Ignored {
        self.conversation.ignored()
    }

    /// What came over the line.
    pub const fn statistics(&self) -> LineStatistics {
        self.decoder.statistics()
    }

    fn ask(&mut self, question: &ToGuest) -> anyhow::Result<Option<Heard>> {
        self.say(question)?;
        self.wait()
    }

    fn say(&mut self, message: &ToGuest) -> anyhow::Result<()> {
        let mut buffer = [0; ENCODED_MAX];
        self.write(encode(message, &mut buffer)?)
    }

    /// The next thing that means something; nothing if the question is not waited for any more.
    fn wait(&mut self) -> anyhow::Result<Option<Heard>> {
        loop {
            let bytes = match self.stream.fill_buf() {
                Ok(bytes) => bytes,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    match self.conversation.on_time(self.now()) {
                        Some(_) => return Ok(None),
                        None => continue,
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("the agent's port"),
            };
            ensure!(!bytes.is_empty(), "QEMU has closed the agent's port");
            let (message, taken) = self.decoder.take::<ToHost>(bytes);
            self.stream.consume(taken);
            let Some(message) = message else { continue };
            let heard = self.conversation.on_message(&message);
            if let (ToHost::Hello(hello), Heard::Agent(_)) = (&message, &heard) {
                self.hello = Some(hello.clone());
            }
            if heard != Heard::Nothing {
                return Ok(Some(heard));
            }
        }
    }

    fn now(&self) -> Nanos {
        nanos(self.began.elapsed())
    }
}

fn nanos(time: Duration) -> Nanos {
    Nanos(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// What a guest's hook says on its console when the agent is told of something, and of the agent.
#[derive(Clone, PartialEq, Debug)]
pub struct Told {
    /// What happened: `before-migration`, …
    pub what: String,
    /// For how long the guest has been running, in seconds.
    pub uptime_s: f64,
    /// Processor time of the agent so far, in seconds.
    pub cpu_s: f64,
    /// The agent's resident memory.
    pub rss: Bytes,
}

impl Told {
    /// Reads what `hook.sh` says; nothing for any other line.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.trim().strip_prefix("hook ")?.split(' ');
        let what = words.next()?.to_owned();
        let mut number = |name: &str| -> Option<f64> {
            let value = words.next()?.strip_prefix(name)?.strip_prefix('=')?;
            value.parse().ok()
        };
        Some(Self {
            what,
            uptime_s: number("uptime_s")?,
            cpu_s: number("cpu_ns")? / 1e9,
            rss: Bytes(number("rss_kib")? as u64 * 1024),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_understood() {
        let told = Told {
            what: "before-migration".into(),
            uptime_s: 12.5,
            cpu_s: 0.25,
            rss: Bytes(2 << 20),
        };
        let line = "hook before-migration uptime_s=12.50 cpu_ns=250000000 rss_kib=2048\r";
        assert_eq!(Told::parse(line), Some(told));
        for other in [
            "",
            "hook",
            "hook before-migration uptime_s=12.50 cpu_ns=25",
            "dunlin-agent: hook",
        ] {
            assert_eq!(Told::parse(other), None, "{other}");
        }
    }
}
