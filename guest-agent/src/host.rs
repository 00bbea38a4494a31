//! The host's side: what it asks, and what it takes for an answer.
//!
//! An agent is part of the guest, and so is everything that it says. It may be absent, old, slow, broken or hostile; whatever it does, the
//! worst that follows is that its own guest loses the pages that it calls soft. So: nobody waits for it longer than agreed, no message makes
//! the host keep more than this struct, numbers are checked before anybody uses them, and answers to other questions than the last are
//! not listened to.

use dunlin_core::message::{Region, Regions};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Nanos, PAGE_SIZE, Pages};

use crate::message::{
    Abilities, AgentHello, Facts, PROTOCOL, RUNS_MAX, Refusal, SoftKind, SoftRun, ToGuest, ToHost, Work,
};

/// How long an agent may take to say who it is, and for each further message of an epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// For its name.
    pub hello: Nanos,
    /// For all of an epoch.
    pub epoch: Nanos,
}

impl Default for Patience {
    /// A quarter of a second, and two seconds.
    fn default() -> Self {
        Self {
            hello: Nanos::from_millis(250),
            epoch: Nanos::from_secs(2),
        }
    }
}

/// What became of an agent's hints, for the report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EpochEnd {
    /// It said that it was done.
    Complete {
        /// Processor time of the guest, by its own word.
        cpu_us: u32,
    },
    /// It said that it will say nothing.
    Refused(Refusal),
    /// Nobody answered in time; what was said until then counts.
    TimedOut,
    /// It does not speak this protocol, or cannot tell soft pages.
    Unable,
}

/// What something that an agent said means.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is no heap to put the largest on, and never more than one or two of them"
)]
pub enum Heard {
    /// Nothing: not asked for, too late, or not to be believed.
    Nothing,
    /// Who it is; what can be asked of it is known from now on.
    Agent(Abilities),
    /// Pages that were soft at some instant since the epoch was opened, all of them pages of the guest.
    Soft(heapless::Vec<(Run, SoftKind), RUNS_MAX>),
    /// The epoch is over.
    End(EpochEnd),
    /// What was done of a notice.
    Acknowledged {
        /// That was done.
        done: Work,
        /// That was tried and failed.
        failed: Work,
    },
    /// How the guest says it is doing.
    Facts(Facts),
}

/// What was heard and not used, for the report.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ignored {
    /// Pages that the guest does not have, or runs that are none.
    pub outside: u64,
    /// Messages that nobody had asked for.
    pub unasked: u64,
}

/// A conversation with an agent, or with nobody.
#[derive(Clone, Debug)]
pub struct Conversation {
    regions: Regions,
    patience: Patience,
    abilities: Option<Abilities>,
    last_id: u32,
    asked: Asked,
    ignored: Ignored,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    Nothing,
    Name { nonce: u32, until: Nanos },
    Soft { epoch: u32, until: Nanos },
    Work { id: u32, until: Nanos },
    Facts { id: u32, until: Nanos },
}

impl Conversation {
    /// With the agent of a guest with this RAM. `seed` is any number; those who come to the same line after each other should have different
    /// ones.
    pub const fn new(regions: Regions, patience: Patience, seed: u32) -> Self {
        Self {
            regions,
            patience,
            abilities: None,
            last_id: seed,
            asked: Asked::Nothing,
            ignored: Ignored { outside: 0, unasked: 0 },
        }
    }

    /// What the agent can do; `None` until it has said so.
    pub const fn abilities(&self) -> Option<Abilities> {
        self.abilities
    }

    /// What was heard and not used.
    pub const fn ignored(&self) -> Ignored {
        self.ignored
    }

    /// Until when an answer is waited for; `None` if nothing was asked.
    pub const fn deadline(&self) -> Option<Nanos> {
        match self.asked {
            Asked::Nothing => None,
            Asked::Name { until, .. }
            | Asked::Soft { until, .. }
            | Asked::Work { until, .. }
            | Asked::Facts { until, .. } => Some(until),
        }
    }

    /// Asks who is there.
    pub fn ask_name(&mut self, now: Nanos) -> ToGuest {
        let nonce = self.next_id();
        self.abilities = None;
        self.asked = Asked::Name {
            nonce,
            until: now.saturating_add(self.patience.hello),
        };
        ToGuest::Hello {
            min: PROTOCOL,
            max: PROTOCOL,
            nonce,
        }
    }

    /// Opens an epoch. Only after dirty tracking was switched on: a page that is written from now on is in the dirty log, whether the agent
    /// calls it soft or not.
    pub fn open_epoch(&mut self, now: Nanos) -> ToGuest {
        let epoch = self.next_id();
        self.asked = Asked::Soft {
            epoch,
            until: now.saturating_add(self.patience.epoch),
        };
        ToGuest::OpenEpoch { epoch }
    }

    /// Gives a notice, whose answer is waited for as long as the guest has for what is asked.
    pub fn notify(&mut self, notice: crate::message::Notice, work: Work, timeout_ms: u32, now: Nanos) -> ToGuest {
        let id = self.next_id();
        self.asked = Asked::Work {
            id,
            until: now.saturating_add(Nanos::from_millis(u64::from(timeout_ms))),
        };
        ToGuest::Notice {
            id,
            notice,
            work,
            timeout_ms,
        }
    }

    /// Asks how the guest is doing.
    pub fn ask_facts(&mut self, now: Nanos) -> ToGuest {
        let id = self.next_id();
        self.asked = Asked::Facts {
            id,
            until: now.saturating_add(self.patience.hello),
        };
        ToGuest::AskFacts { id }
    }

    /// The time: whether what was asked last is not waited for any more. Says so once.
    pub fn on_time(&mut self, now: Nanos) -> Option<EpochEnd> {
        if self.deadline().is_none_or(|until| now < until) {
            return None;
        }
        self.asked = Asked::Nothing;
        Some(EpochEnd::TimedOut)
    }

    /// What the agent says. O(runs of the message).
    pub fn on_message(&mut self, message: &ToHost) -> Heard {
        let heard = match (self.asked, message) {
            (Asked::Name { nonce, .. }, ToHost::Hello(hello)) if hello.nonce == nonce => self.on_hello(hello),
            (Asked::Soft { epoch: asked, .. }, ToHost::Soft { epoch, runs }) if *epoch == asked => {
                return self.on_soft(runs);
            }
            (Asked::Soft { epoch: asked, .. }, ToHost::SoftEnd { epoch, cpu_us, .. }) if *epoch == asked => {
                Heard::End(EpochEnd::Complete { cpu_us: *cpu_us })
            }
            (Asked::Soft { epoch: asked, .. }, ToHost::Refused { epoch, why }) if *epoch == asked => {
                Heard::End(EpochEnd::Refused(*why))
            }
            (Asked::Work { id: asked, .. }, ToHost::Acknowledged { id, done, failed }) if *id == asked => {
                Heard::Acknowledged {
                    done: *done,
                    failed: *failed,
                }
            }
            (Asked::Facts { id: asked, .. }, ToHost::Facts { id, facts }) if *id == asked => Heard::Facts(*facts),
            _ => {
                self.ignored.unasked = self.ignored.unasked.saturating_add(1);
                return Heard::Nothing;
            }
        };
        self.asked = Asked::Nothing;
        heard
    }

    fn on_hello(&mut self, hello: &AgentHello) -> Heard {
        if hello.protocol != PROTOCOL || u64::from(hello.page_size) != PAGE_SIZE {
            return Heard::End(EpochEnd::Unable);
        }
        self.abilities = Some(hello.abilities);
        Heard::Agent(hello.abilities)
    }

    fn on_soft(&mut self, runs: &[SoftRun]) -> Heard {
        let mut soft = heapless::Vec::new();
        for run in runs {
            let inside = run
                .run()
                .filter(|run| self.regions.iter().any(|region| holds(region, *run)));
            match inside {
                // As many as the message has.
                Some(inside) => drop(soft.push((inside, run.kind))),
                None => self.ignored.outside = self.ignored.outside.saturating_add(run.pages.0.max(1)),
            }
        }
        Heard::Soft(soft)
    }

    fn next_id(&mut self) -> u32 {
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }
}

/// Whether all of a run is in a region.
const fn holds(region: &Region, run: Run) -> bool {
    let (first, end) = (region.first.0, region.first.0.saturating_add(region.pages.0));
    let Pages(pages) = run.count;
    run.first.0 >= first && run.first.0 < end && pages <= end - run.first.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Agent;
    use crate::tests::Made;
    use dunlin_core::units::Gfn;
    use heapless::String;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn regions(pages: u64) -> Regions {
        Regions::from_slice(&[Region {
            first: Gfn(0),
            pages: Pages(pages),
        }])
        .expect("one fits")
    }

    fn conversation() -> Conversation {
        Conversation::new(regions(100), Patience::default(), 41)
    }

    fn hello(nonce: u32, protocol: u16, page_size: u32) -> ToHost {
        ToHost::Hello(AgentHello {
            nonce,
            protocol,
            page_size,
            abilities: Abilities::SOFT_PAGES,
            kernel: String::new(),
        })
    }

    #[test]
    fn both_sides_understand_each_other() {
        let (mut host, mut agent, mut guest) = (conversation(), Agent::new(), Made::with_every_other_page(100));
        let ask = host.ask_name(Nanos(0));
        agent.on_message(&ask, &mut guest);
        let heard = host.on_message(&agent.next(&mut guest).expect("an answer"));
        assert!(matches!(heard, Heard::Agent(abilities) if abilities.contains(Abilities::SOFT_PAGES)));
        agent.on_message(&host.open_epoch(Nanos(0)), &mut guest);
        let mut pages = 0;
        loop {
            match agent.next(&mut guest).map(|message| host.on_message(&message)) {
                Some(Heard::Soft(runs)) => pages += runs.iter().map(|(run, _)| run.count.0).sum::<u64>(),
                Some(Heard::End(EpochEnd::Complete { .. })) => break,
                None => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((pages, host.ignored()), (50, Ignored::default()));
        assert_eq!(host.deadline(), None);
    }

    #[test]
    fn answers_to_other_questions_are_none() {
        let mut host = conversation();
        host.ask_name(Nanos(0));
        assert_eq!(host.on_message(&hello(999, PROTOCOL, 4096)), Heard::Nothing);
        let soft = |epoch| ToHost::Soft {
            epoch,
            runs: heapless::Vec::new(),
        };
        assert_eq!(host.on_message(&soft(42)), Heard::Nothing, "no epoch is open");
        host.open_epoch(Nanos(0));
        assert_eq!(
            host.on_message(&soft(42)),
            Heard::Nothing,
            "that was the question for its name"
        );
        assert_eq!(host.on_message(&soft(43)), Heard::Soft(heapless::Vec::new()));
        assert_eq!(host.ignored().unasked, 3);
    }

    #[test]
    fn another_protocol_or_page_size_is_of_no_use() {
        for (protocol, page_size) in [(PROTOCOL + 1, 4096), (PROTOCOL, 65_536)] {
            let mut host = conversation();
            host.ask_name(Nanos(0));
            assert_eq!(
                host.on_message(&hello(42, protocol, page_size)),
                Heard::End(EpochEnd::Unable)
            );
            assert_eq!(host.abilities(), None);
        }
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut host = conversation();
        host.ask_name(Nanos::from_secs(1));
        assert_eq!(host.on_time(Nanos::from_millis(1249)), None);
        assert_eq!(host.on_time(Nanos::from_millis(1250)), Some(EpochEnd::TimedOut));
        assert_eq!(host.on_time(Nanos::from_secs(9)), None, "once");
        assert_eq!(host.on_message(&hello(42, PROTOCOL, 4096)), Heard::Nothing, "too late");
        // However much it says, an epoch ends.
        host.open_epoch(Nanos::from_secs(2));
        let soft = ToHost::Soft {
            epoch: 43,
            runs: heapless::Vec::new(),
        };
        for _ in 0..1000 {
            assert!(matches!(host.on_message(&soft), Heard::Soft(_)));
        }
        assert_eq!(host.on_time(Nanos::from_secs(4)), Some(EpochEnd::TimedOut));
    }

    proptest! {
        /// Whatever an agent calls soft, the host is only told of pages that the guest has.
        #[test]
        fn pages_outside_are_not_believed(
            runs in prop::collection::vec((prop_oneof![0..200u64, any::<u64>()], prop_oneof![0..200u64, any::<u64>()]), 0..32),
        ) {
            let mut host = conversation();
            host.open_epoch(Nanos(0));
            let runs: heapless::Vec<SoftRun, RUNS_MAX> = runs
                .iter()
                .map(|&(first, pages)| SoftRun { first: Gfn(first), pages: Pages(pages), kind: SoftKind::Free })
                .collect();
            let expected: Vec<(u64, u64)> = runs
                .iter()
                .map(|run| (run.first.0, run.pages.0))
                .filter(|&(first, pages)| pages > 0 && u128::from(first) + u128::from(pages) <= 100)
                .collect();
            let Heard::Soft(soft) = host.on_message(&ToHost::Soft { epoch: 42, runs }) else {
                panic!("of this epoch");
            };
            let found: Vec<(u64, u64)> = soft.iter().map(|(run, _)| (run.first.0, run.count.0)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
