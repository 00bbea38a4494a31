//! The agent: the library that runs in Linux as well, here over a mailbox and a port, between the batches of vCPU 0.
//!
//! A few words a batch, so that the guest goes on freeing and using pages while its hints are on their way. Of an agent that misbehaves
//! ([`Conduct`]) the library knows nothing: it is made bad here.

use dunlin_agent::frame::{Decoder, ENCODED_MAX, encode};
use dunlin_agent::guest::{Agent, Guest};
use dunlin_agent::message::{Abilities, Facts, KERNEL_MAX, Notice, Refusal, SoftKind, SoftRun, ToGuest, ToHost, Work};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, PAGE_SIZE, Pages};
use dunlin_core::workload::layout::{MAILBOX_ROOM, PORT_AGENT};
use dunlin_core::workload::{BootBlock, Conduct, Plan, next_free};
use heapless::String;

use crate::machine::{Ram, out_string, take_mail};

/// Words between two batches: enough for a guest with thousands of scattered free pages to have named them in a second.
const WORDS: usize = 8;

/// The guest, as the agent sees it.
struct Here {
    plan: Plan,
    vcpus: u32,
    conduct: Conduct,
}

impl Guest for Here {
    fn abilities(&self) -> Abilities {
        Abilities::SOFT_PAGES
    }

    fn kernel(&self) -> String<KERNEL_MAX> {
        String::try_from("microguest").unwrap_or_default()
    }

    fn page_size(&self) -> u32 {
        PAGE_SIZE as u32
    }

    fn begin_epoch(&mut self) -> Result<(), Refusal> {
        Ok(())
    }

    fn next_soft(&mut self, from: Gfn) -> Option<(Option<(Run, SoftKind)>, Gfn)> {
        let (found, next) = next_free(&self.plan, self.vcpus, &Ram, from)?;
        let found = match (self.conduct, found) {
            // All that is not free, up to the next that is.
            (Conduct::Traitor, Some(free)) => between(from, free.first),
            (Conduct::Traitor, None) => between(from, next),
            (_, found) => found,
        };
        Some((found.map(|run| (run, SoftKind::Free)), next))
    }

    fn cpu_us(&self) -> u64 {
        // There is no clock here.
        0
    }

    fn work(&mut self, _: Notice, _: Work, _: u32) -> (Work, Work) {
        (Work::empty(), Work::empty())
    }

    fn facts(&mut self) -> Facts {
        Facts::default()
    }
}

fn between(from: Gfn, to: Gfn) -> Option<Run> {
    (to > from).then(|| Run::new(from, Pages(to.0 - from.0)))
}

/// The agent and its line to the host.
pub(crate) struct Line {
    here: Here,
    agent: Agent,
    decoder: Decoder,
    last: Option<ToHost>,
}

impl Line {
    /// On vCPU 0, if there is to be one.
    pub(crate) fn new(boot: &BootBlock, plan: &Plan, vcpu: u32) -> Option<Self> {
        let conduct = boot.spec.agent();
        (vcpu == 0 && conduct != Conduct::None).then(|| Self {
            here: Here {
                plan: *plan,
                vcpus: boot.vcpus,
                conduct,
            },
            agent: Agent::new(),
            decoder: Decoder::new(),
            last: None,
        })
    }

    /// Hears what the host has said, and says a few words.
    pub(crate) fn attend(&mut self) {
        let mut mail = [0; MAILBOX_ROOM as usize];
        let length = take_mail(&mut mail);
        let mut bytes = &mail[..length];
        while !bytes.is_empty() {
            let (message, taken) = self.decoder.take::<ToGuest>(bytes);
            bytes = &bytes[taken..];
            if let Some(message) = message {
                self.last = None;
                self.agent.on_message(&message, &mut self.here);
            }
        }
        for _ in 0..WORDS {
            let Some(message) = self.next() else { return };
            self.say(message);
        }
    }

    fn say(&mut self, message: ToHost) {
        match self.here.conduct {
            // The last word never ends.
            Conduct::Stall if matches!(message, ToHost::SoftEnd { .. }) => say(&message, true),
            // It never comes to the end, which is said apart.
            Conduct::Restart if matches!(message, ToHost::Soft { .. }) => {
                say(&message, false);
                self.agent = Agent::new();
            }
            Conduct::Wild => {
                say(&wild(&message, self.here.plan.end_gfn()), false);
                say(&message, false);
            }
            _ => say(&message, false),
        }
        self.last = Some(message);
    }

    /// What is to be said; an agent that floods never comes to the end.
    fn next(&mut self) -> Option<ToHost> {
        let message = self.agent.next(&mut self.here);
        match (self.here.conduct, &message, &self.last) {
            (Conduct::Flood, None | Some(ToHost::SoftEnd { .. }), Some(last @ ToHost::Soft { .. })) => {
                Some(last.clone())
            }
            _ => message,
        }
    }
}

/// The same with pages that do not exist: beyond the guest, across its end, and up to the last there could be.
fn wild(message: &ToHost, end: Gfn) -> ToHost {
    let mut message = message.clone();
    if let ToHost::Soft { runs, .. } = &mut message {
        let strange = [
            (end.0, 1),
            (end.0 - 1, 2),
            (u64::MAX, 1),
            (1, u64::MAX),
            (end.0 / 2, u64::MAX / 2),
            (3, 0),
        ];
        for (run, (first, pages)) in runs.iter_mut().zip(strange) {
            *run = SoftRun {
                first: Gfn(first),
                pages: Pages(pages),
                kind: SoftKind::Balloon,
            };
        }
    }
    message
}

fn say(message: &ToHost, cut: bool) {
    let mut buffer = [0; ENCODED_MAX];
    match encode(message, &mut buffer) {
        Ok(bytes) if cut => out_string(PORT_AGENT, &bytes[..bytes.len() / 2]),
        Ok(bytes) => out_string(PORT_AGENT, bytes),
        Err(_) => defmt::error!("agent: a message is too long"),
    }
}
