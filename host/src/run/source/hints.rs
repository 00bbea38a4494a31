//! Asking the agent in the guest which pages need not move.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use dunlin_agent::frame::{Decoder, ENCODED_MAX, encode};
use dunlin_agent::host::{Conversation, EpochEnd, Heard, Ignored, Patience};
use dunlin_agent::message::{Abilities, SoftKind, ToGuest, ToHost};
use dunlin_core::message::Regions;
use dunlin_core::migrate::SourceEvent;
use dunlin_core::units::{Nanos, Pages};

use super::link::SharedSource;
use crate::guest::AgentLine;

/// For the agent to say who it is, of the time that there is.
const FOR_ITS_NAME: Nanos = Nanos::from_millis(250);
/// How often it is looked whether anybody listens any more.
const LOOK: Duration = Duration::from_millis(20);

/// What came of asking.
#[derive(Clone, Debug, Default)]
pub struct HintResult {
    /// Pages that were not sent because of hints.
    pub pages: Pages,
    /// Pages that the agent named, by why they are soft.
    pub named: BTreeMap<SoftKind, u64>,
    /// How often the target asked for one of those that were not sent, though it had been told that they are zero.
    pub requests: u64,
    /// What it said to no purpose.
    pub ignored: Ignored,
    /// Frames that could not be understood.
    pub damaged: u64,
    /// From the question to the end.
    pub took: Duration,
    /// How it ended; `None` if nobody was asked.
    pub end: Option<EpochEnd>,
}

/// Carries on the conversation on a thread of its own.
#[derive(Debug, Default)]
pub(super) struct Asking {
    result: Arc<Mutex<HintResult>>,
}

impl Asking {
    pub(super) fn result(&self) -> HintResult {
        self.result.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks; the answers are events of the source, the last of which is the end.
    pub(super) fn start<'s, 'e: 's>(
        &self,
        scope: &'s Scope<'s, 'e>,
        line: Arc<AgentLine>,
        patience: Nanos,
        shared: &'e SharedSource<'_>,
    ) {
        let result = Arc::clone(&self.result);
        scope.spawn(move || {
            let regions = shared.lock().config().regions.clone();
            let mut talk = Talk::new(regions, patience, &line, shared);
            talk.go_on();
            shared.feed(SourceEvent::HintsEnded);
            *result.lock().unwrap_or_else(PoisonError::into_inner) = talk.result;
        });
    }
}

struct Talk<'a, 'w> {
    conversation: Conversation,
    decoder: Decoder,
    line: &'a AgentLine,
    shared: &'a SharedSource<'w>,
    /// That which was opened.
    epoch: Option<u32>,
    result: HintResult,
}

impl<'a, 'w> Talk<'a, 'w> {
    fn new(regions: Regions, patience: Nanos, line: &'a AgentLine, shared: &'a SharedSource<'w>) -> Self {
        let patience = Patience {
            hello: FOR_ITS_NAME.min(patience),
            epoch: patience,
        };
        // Two attempts one after the other have different sessions.
        let seed = shared.lock().config().session.0 as u32;
        Self {
            conversation: Conversation::new(regions, patience, seed),
            decoder: Decoder::new(),
            line,
            shared,
            epoch: None,
            result: HintResult::default(),
        }
    }

    fn go_on(&mut self) {
        let began = Instant::now();
        self.line.begin();
        // Whatever half of a word the other side has heard ends here.
        self.line.say(&[0]);
        let name = self.conversation.ask_name(self.now());
        self.say(&name);
        let end = self.until_the_end();
        if let Some(epoch) = self.epoch {
            self.say(&ToGuest::CloseEpoch { epoch });
        }
        self.result.end = Some(end);
        self.result.ignored = self.conversation.ignored();
        let line = self.decoder.statistics();
        self.result.damaged = line.damaged + line.unknown;
        self.result.took = began.elapsed();
    }

    fn until_the_end(&mut self) -> EpochEnd {
        loop {
            let bytes = self.line.hear(LOOK);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (message, taken) = self.decoder.take::<ToHost>(rest);
                rest = &rest[taken..];
                if let Some(end) = message.and_then(|message| self.heard(&message)) {
                    return end;
                }
            }
            if let Some(end) = self.conversation.on_time(self.now()) {
                return end;
            }
            if self.shared.lock().listens_until().is_none() {
                return EpochEnd::TimedOut;
            }
        }
    }

    fn heard(&mut self, message: &ToHost) -> Option<EpochEnd> {
        match self.conversation.on_message(message) {
            Heard::Agent(abilities) if abilities.contains(Abilities::SOFT_PAGES) => {
                let question = self.conversation.open_epoch(self.now());
                if let ToGuest::OpenEpoch { epoch } = question {
                    self.epoch = Some(epoch);
                }
                self.say(&question);
                None
            }
            Heard::Agent(_) => Some(EpochEnd::Unable),
            Heard::Soft(runs) => {
                let mut source = self.shared.lock();
                for (run, kind) in runs {
                    *self.result.named.entry(kind).or_default() += run.count.0;
                    source.on(self.shared.clock.now(), SourceEvent::Hinted(run));
                }
                None
            }
            Heard::End(end) => Some(end),
            Heard::Nothing | Heard::Acknowledged { .. } | Heard::Facts(_) => None,
        }
    }

    fn say(&mut self, message: &ToGuest) {
        let mut buffer = [0; ENCODED_MAX];
        if let Ok(bytes) = encode(message, &mut buffer) {
            // An agent that takes nothing is not heard of, either.
            self.line.say(bytes);
        }
    }

    fn now(&self) -> Nanos {
        self.shared.clock.now()
    }
}
