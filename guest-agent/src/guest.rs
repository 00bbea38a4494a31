//! The agent's side: questions in, answers out.
//!
//! What it knows of the guest it is told by a [`Guest`], so that the same code runs in Linux and on bare metal.

use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, Pages};
use heapless::{String, Vec};

use crate::message::{
    Abilities, AgentHello, Facts, KERNEL_MAX, Notice, PROTOCOL, RUNS_MAX, Refusal, SoftKind, SoftRun, ToGuest, ToHost,
    Work,
};

/// What an agent needs of the guest that it lives in.
pub trait Guest {
    /// What can be asked of it.
    fn abilities(&self) -> Abilities;

    /// Its kernel, for people.
    fn kernel(&self) -> String<KERNEL_MAX>;

    /// Bytes per page.
    fn page_size(&self) -> u32;

    /// A new epoch begins: what was read of the kernel's tables before is too old.
    ///
    /// # Errors
    /// Why there will be no hints.
    fn begin_epoch(&mut self) -> Result<(), Refusal>;

    /// The first run of soft pages at or after `from`, as things are now, and where to go on looking, which is beyond `from`. No run, with a
    /// place to go on: none was found before that place, and the caller may do something else before it asks again. Nothing: there are no
    /// more.
    ///
    /// A page may only be named if its contents will not be read before they are written.
    fn next_soft(&mut self, from: Gfn) -> Option<(Option<(Run, SoftKind)>, Gfn)>;

    /// Processor time in microseconds that the agent has used, since any instant.
    fn cpu_us(&self) -> u64;

    /// Does what a notice asks for, within `timeout_ms`: what was done, and what was tried and failed.
    fn work(&mut self, notice: Notice, work: Work, timeout_ms: u32) -> (Work, Work);

    /// How it is doing.
    fn facts(&mut self) -> Facts;
}

/// The conversation, as the agent leads it: one epoch at a time, and each message that it sends is asked for by [`next`](Self::next), so that
/// a host that does not read holds it up, and nothing piles up. 300 bytes.
#[derive(Debug, Default)]
pub struct Agent {
    answer: Option<ToHost>,
    epoch: Option<Epoch>,
}

#[derive(Debug)]
struct Epoch {
    number: u32,
    next: Gfn,
    pages: Pages,
    cpu_at_start: u64,
}

impl Agent {
    /// One that has been asked nothing.
    pub const fn new() -> Self {
        Self {
            answer: None,
            epoch: None,
        }
    }

    /// Whether [`next`](Self::next) has something to do.
    pub const fn is_busy(&self) -> bool {
        self.answer.is_some() || self.epoch.is_some()
    }

    /// Takes what the host says. An answer that was not fetched yet is replaced by that to the newer question.
    pub fn on_message(&mut self, message: &ToGuest, guest: &mut impl Guest) {
        match *message {
            ToGuest::Hello { min, max, nonce } => {
                self.epoch = None;
                // A host that speaks only newer versions is told the newest one known here, and decides.
                let protocol = PROTOCOL.min(max).max(min.min(PROTOCOL));
                self.answer = Some(ToHost::Hello(AgentHello {
                    nonce,
                    protocol,
                    page_size: guest.page_size(),
                    abilities: guest.abilities(),
                    kernel: guest.kernel(),
                }));
            }
            ToGuest::OpenEpoch { epoch } => match guest.begin_epoch() {
                Ok(()) => {
                    self.epoch = Some(Epoch {
                        number: epoch,
                        next: Gfn::ZERO,
                        pages: Pages::ZERO,
                        cpu_at_start: guest.cpu_us(),
                    });
                }
                Err(why) => {
                    self.epoch = None;
                    self.answer = Some(ToHost::Refused { epoch, why });
                }
            },
            ToGuest::CloseEpoch { epoch } => {
                if self.epoch.as_ref().is_some_and(|open| open.number == epoch) {
                    self.epoch = None;
                }
            }
            ToGuest::Notice {
                id,
                notice,
                work,
                timeout_ms,
            } => {
                let (done, failed) = guest.work(notice, work, timeout_ms);
                self.answer = Some(ToHost::Acknowledged { id, done, failed });
            }
            ToGuest::AskFacts { id } => {
                let facts = guest.facts();
                self.answer = Some(ToHost::Facts { id, facts });
            }
        }
    }

    /// The next message for the host, if there is one now. It may look at a part of memory and find nothing: then there is none, and
    /// [`is_busy`](Self::is_busy) says that there may be later.
    pub fn next(&mut self, guest: &mut impl Guest) -> Option<ToHost> {
        if let Some(answer) = self.answer.take() {
            return Some(answer);
        }
        let epoch = self.epoch.as_mut()?;
        let mut runs = Vec::new();
        while !runs.is_full() {
            match guest.next_soft(epoch.next) {
                Some((found, next)) => {
                    // A guest that does not get on would be asked for ever.
                    epoch.next = next.max(Gfn(epoch.next.0.saturating_add(1)));
                    let Some((run, kind)) = found else {
                        break;
                    };
                    epoch.pages = epoch.pages.saturating_add(run.count);
                    let soft = SoftRun {
                        first: run.first,
                        pages: run.count,
                        kind,
                    };
                    push(&mut runs, soft);
                }
                None if runs.is_empty() => {
                    let spent = guest.cpu_us().saturating_sub(epoch.cpu_at_start);
                    let end = ToHost::SoftEnd {
                        epoch: epoch.number,
                        pages: epoch.pages,
                        cpu_us: u32::try_from(spent).unwrap_or(u32::MAX),
                    };
                    self.epoch = None;
                    return Some(end);
                }
                None => break,
            }
        }
        (!runs.is_empty()).then_some(ToHost::Soft {
            epoch: epoch.number,
            runs,
        })
    }
}

/// Where there is room.
fn push(runs: &mut Vec<SoftRun, RUNS_MAX>, soft: SoftRun) {
    let pushed = runs.push(soft);
    debug_assert!(pushed.is_ok(), "it was not full");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Made;
    use std::vec::Vec;

    fn drain(agent: &mut Agent, guest: &mut Made) -> Vec<ToHost> {
        let mut said = Vec::new();
        while agent.is_busy() {
            said.extend(agent.next(guest));
        }
        said
    }

    #[test]
    fn an_epoch_has_every_soft_page_once_and_its_sum() {
        let mut guest = Made::with_every_other_page(100);
        let mut agent = Agent::new();
        agent.on_message(&ToGuest::OpenEpoch { epoch: 3 }, &mut guest);
        let said = drain(&mut agent, &mut guest);
        let [soft @ .., ToHost::SoftEnd { epoch: 3, pages, .. }] = said.as_slice() else {
            panic!("{said:?}");
        };
        assert_eq!(*pages, Pages(50));
        assert!(soft.len() >= 2, "32 runs a message at most");
        let firsts: Vec<u64> = soft
            .iter()
            .flat_map(|message| match message {
                ToHost::Soft { epoch: 3, runs } => runs.iter().map(|run| run.first.0).collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(firsts, (0..100).step_by(2).collect::<Vec<u64>>());
    }

    #[test]
    fn a_closed_epoch_says_no_more_and_a_new_one_begins_anew() {
        let mut guest = Made::with_every_other_page(100);
        let mut agent = Agent::new();
        agent.on_message(&ToGuest::OpenEpoch { epoch: 1 }, &mut guest);
        assert!(matches!(agent.next(&mut guest), Some(ToHost::Soft { epoch: 1, .. })));
        agent.on_message(&ToGuest::CloseEpoch { epoch: 7 }, &mut guest);
        assert!(agent.is_busy(), "another one was closed");
        agent.on_message(&ToGuest::CloseEpoch { epoch: 1 }, &mut guest);
        assert!(!agent.is_busy() && agent.next(&mut guest).is_none());
        agent.on_message(&ToGuest::OpenEpoch { epoch: 2 }, &mut guest);
        assert!(matches!(agent.next(&mut guest), Some(ToHost::Soft { epoch: 2, runs }) if runs[0].first == Gfn(0)));
        agent.on_message(
            &ToGuest::Hello {
                min: 1,
                max: 1,
                nonce: 5,
            },
            &mut guest,
        );
        let said = drain(&mut agent, &mut guest);
        assert!(
            matches!(said.as_slice(), [ToHost::Hello(hello)] if hello.nonce == 5),
            "hello ends an epoch: {said:?}"
        );
    }

    #[test]
    fn refusals_and_answers_carry_what_was_asked() {
        let mut guest = Made::with_every_other_page(4);
        guest.refuses = Some(Refusal::Poisoned);
        let mut agent = Agent::new();
        agent.on_message(&ToGuest::OpenEpoch { epoch: 9 }, &mut guest);
        let refused = ToHost::Refused {
            epoch: 9,
            why: Refusal::Poisoned,
        };
        assert_eq!(drain(&mut agent, &mut guest), [refused]);
        agent.on_message(&ToGuest::AskFacts { id: 4 }, &mut guest);
        assert!(matches!(
            drain(&mut agent, &mut guest)[..],
            [ToHost::Facts { id: 4, .. }]
        ));
        let notice = ToGuest::Notice {
            id: 6,
            notice: Notice::BeforeMigration,
            work: Work::FLUSH | Work::HOOKS,
            timeout_ms: 10,
        };
        agent.on_message(&notice, &mut guest);
        let answer = ToHost::Acknowledged {
            id: 6,
            done: Work::FLUSH,
            failed: Work::HOOKS,
        };
        assert_eq!(drain(&mut agent, &mut guest), [answer]);
    }

    #[test]
    fn versions_are_agreed_on_or_shown() {
        let mut guest = Made::with_every_other_page(4);
        for (min, max, expected) in [(1, 1, 1), (1, 9, PROTOCOL), (7, 9, PROTOCOL)] {
            let mut agent = Agent::new();
            agent.on_message(&ToGuest::Hello { min, max, nonce: 0 }, &mut guest);
            let said = drain(&mut agent, &mut guest);
            assert!(
                matches!(&said[..], [ToHost::Hello(hello)] if hello.protocol == expected),
                "{min} {max} {said:?}"
            );
        }
    }
}
