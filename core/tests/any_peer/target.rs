//! The target against any source.

use std::collections::BTreeSet;

use dunlin_core::message::{Message, Mode, SessionId, TargetStanding, Violation, VmId};
use dunlin_core::migrate::{
    Phase, Resolution, Target, TargetAction, TargetConfig, TargetEvent, TargetMessage, TargetOutcome, TargetRecord,
};
use dunlin_core::pageset::{Run, words_needed};
use dunlin_core::units::{Gfn, Nanos, Pages};
use proptest::prelude::*;

use crate::said::{Said, anything_said};
use crate::{END, SHAPE, is_in_one_region, pauses, regions, runs};

/// What happens next.
#[derive(Clone, Debug)]
enum Happens {
    /// The host asks for an action, if it has none, or carries out the one it has.
    HostGoesOn(Luck),
    /// The source does what an honest one would.
    SourceGoesOn,
    Said(Said),
    Pages(Run),
    StaticPages(Run),
    StaticEnd(bool),
    LinkLost,
    Heard,
    HostFailed,
    Violation,
    Reconnected(bool),
    /// What the source's file in the storage directory says.
    SourceState(bool),
    /// The directory that both had is gone.
    SourceEnded,
    Stored(Run),
    Resolve(bool),
}

/// How an action ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Luck {
    Good,
    Failed,
    LinkLost,
    /// An event that is no answer to the action.
    WrongAnswer,
}

fn events() -> impl Strategy<Value = Vec<(u64, Happens)>> {
    let bad_luck = prop::sample::select(vec![Luck::Failed, Luck::LinkLost, Luck::WrongAnswer]);
    let trouble = prop_oneof![
        4 => bad_luck.prop_map(Happens::HostGoesOn),
        8 => anything_said().prop_map(Happens::Said),
        4 => runs().prop_map(Happens::Pages),
        8 => runs().prop_map(Happens::StaticPages),
        2 => any::<bool>().prop_map(Happens::StaticEnd),
        4 => Just(Happens::LinkLost),
        1 => Just(Happens::Violation),
        1 => Just(Happens::HostFailed),
        4 => prop_oneof![8 => Just(true), 1 => Just(false)].prop_map(Happens::Reconnected),
        3 => prop_oneof![4 => Just(true), 1 => Just(false)].prop_map(Happens::SourceState),
        1 => Just(Happens::SourceEnded),
        3 => runs().prop_map(Happens::Stored),
    ];
    let happens = prop_oneof![
        300 => Just(Happens::HostGoesOn(Luck::Good)),
        200 => Just(Happens::SourceGoesOn),
        20 => Just(Happens::Heard),
        3 => any::<bool>().prop_map(Happens::Resolve),
        8 => trouble,
    ];
    prop::collection::vec((pauses(), happens), 0..250)
}

struct Host {
    target: Target<'static>,
    now: Nanos,
    post_copy: bool,
    doing: Option<TargetAction>,
    /// Pages that were put into memory, as the host knows, and the final dirty set as it came.
    received: BTreeSet<u64>,
    final_set: BTreeSet<u64>,
    state: u32,
    restored: bool,
    prepared: bool,
    told_to_run: bool,
    last_record: Option<(TargetRecord, bool)>,
    ready_said: bool,
    hashed: bool,
    complete_said: bool,
    ran: bool,
    discarded: bool,
    promised: bool,
    told_missing: bool,
    outcome: Option<TargetOutcome>,
}

pub(crate) fn target(verify: bool) -> Target<'static> {
    let config = TargetConfig {
        session: SessionId(1),
        vm: VmId(1),
        regions: regions(),
        protocol: 1,
        verify,
        static_copy: true,
        pb_data: true,
        split: true,
        network_timeout: Nanos::from_secs(3),
    };
    let storage = || -> &'static mut [u64] { vec![0; words_needed(Pages(END))].leak() };
    Target::new(config, storage(), storage(), Nanos(1)).expect("storage fits")
}

fn ram() -> BTreeSet<u64> {
    SHAPE.iter().flat_map(|&(first, pages)| first..first + pages).collect()
}

impl Host {
    fn new(verify: bool, post_copy: bool) -> Self {
        Self {
            target: target(verify),
            now: Nanos(1),
            post_copy,
            doing: None,
            received: BTreeSet::new(),
            final_set: BTreeSet::new(),
            state: 0,
            restored: false,
            prepared: false,
            told_to_run: false,
            last_record: None,
            ready_said: false,
            hashed: false,
            complete_said: false,
            ran: false,
            discarded: false,
            promised: false,
            told_missing: false,
            outcome: None,
        }
    }

    fn happens(&mut self, pause: u64, what: &Happens) {
        self.now = self.now.saturating_add(Nanos(pause));
        match what {
            Happens::HostGoesOn(luck) => self.go_on(*luck),
            Happens::SourceGoesOn => self.honest_source(),
            Happens::Said(said) => self.hear(said),
            Happens::Pages(run) => self.pages(*run),
            Happens::StaticPages(run) => self.static_pages(*run),
            Happens::StaticEnd(true) => self.target.on(self.now, TargetEvent::StaticEnded),
            Happens::StaticEnd(false) => self.target.on(self.now, TargetEvent::StaticFailed),
            Happens::LinkLost => self.target.on(self.now, TargetEvent::LinkLost),
            Happens::Heard => self.target.on(self.now, TargetEvent::Heard),
            Happens::HostFailed => self.target.on(self.now, TargetEvent::HostFailed),
            Happens::Violation => self.target.on(self.now, TargetEvent::Violation(Violation::Frame)),
            Happens::Reconnected(given_up) => self
                .target
                .on(self.now, TargetEvent::Reconnected { given_up: *given_up }),
            Happens::SourceState(given_up) => self.source_state(*given_up),
            Happens::SourceEnded => self.target.on(self.now, TargetEvent::SourceEnded),
            Happens::Stored(run) => self.stored(*run),
            Happens::Resolve(run_here) => self.resolve(*run_here),
        }
    }

    /// Counts as what the source says, and only where it cannot say anything.
    fn source_state(&mut self, given_up: bool) {
        self.told_to_run |= given_up && !self.target.linked() && self.target.phase() == Phase::HandOverUnknown;
        self.target.on(self.now, TargetEvent::SourceState { given_up });
    }

    /// Pages from the directory, which the host reads when it was asked to, and only such as are RAM.
    fn stored(&mut self, run: Run) {
        if self.target.running() && !self.target.linked() && is_in_one_region(run) {
            self.target.on(self.now, TargetEvent::InstalledFromStorage(run));
        }
    }

    fn resolve(&mut self, run_here: bool) {
        let resolution = if run_here {
            Resolution::RunHere
        } else {
            Resolution::GiveUp
        };
        let unknown = self.target.phase() == Phase::HandOverUnknown;
        let lacks = !self.target.missing().is_empty();
        let resolved = self.target.resolve(resolution);
        assert_eq!(resolved.is_ok(), unknown && !(run_here && lacks), "{resolution:?}");
        self.told_to_run |= run_here && resolved.is_ok();
    }

    /// What an honest source does next.
    fn honest_source(&mut self) {
        let untouched = ram().difference(&self.received).next().copied();
        match self.target.phase() {
            Phase::PreCopy if self.target.accepts_pages() => match untouched {
                Some(page) if !self.post_copy || page < 40 => {
                    let count = SHAPE
                        .iter()
                        .map(|&(first, pages)| first + pages)
                        .find(|end| page < *end);
                    self.pages(Run::new(Gfn(page), Pages(count.expect("it is RAM") - page)));
                }
                _ if self.state == 0 => self.hear(&Said::State(0, 5)),
                _ => self.hear(&Said::HandOver(self.post_copy, self.state, self.final_set.len() as u64)),
            },
            Phase::HandOver if core::mem::take(&mut self.ready_said) => self.hear(&Said::Commit),
            Phase::PostCopy => {
                if let Some(run) = self.target.missing().next_run(Gfn(0), Pages(9)) {
                    let end = SHAPE
                        .iter()
                        .map(|&(first, pages)| first + pages)
                        .find(|end| run.first.0 < *end);
                    let room = end.expect("it is RAM") - run.first.0;
                    self.pages(Run::new(run.first, run.count.min(Pages(room))));
                }
            }
            Phase::Complete if core::mem::take(&mut self.complete_said) => self.hear(&Said::Bye),
            Phase::Complete if !core::mem::replace(&mut self.hashed, true) => {
                for (first, pages) in SHAPE {
                    self.hear(&Said::Hashes(first, pages as usize * 8));
                }
                self.hear(&Said::HashesEnd);
            }
            _ => {}
        }
    }

    fn pages(&mut self, run: Run) {
        let demanded = run.count.0 == 1;
        let event = if self.target.running() || self.prepared {
            TargetEvent::Installed { run, demanded }
        } else if self.target.mode().is_some() {
            // Its host takes no pages now.
            TargetEvent::Violation(Violation::UnexpectedMessage)
        } else {
            if self.target.accepts_pages() && is_in_one_region(run) {
                self.received.extend(run.first.0..run.end().0);
            }
            TargetEvent::Received(run)
        };
        self.target.on(self.now, event);
    }

    /// Pages of the static copy, which the host reads for itself.
    fn static_pages(&mut self, run: Run) {
        if self.target.phase() == Phase::Connecting || !is_in_one_region(run) {
            return;
        }
        if self.target.phase() == Phase::PreCopy {
            self.received.extend(run.first.0..run.end().0);
        }
        self.target.on(self.now, TargetEvent::StaticReceived(run));
    }

    fn hear(&mut self, said: &Said) {
        let message = said.message();
        match &message {
            Message::Commit if self.outcome.is_none() => self.told_to_run = true,
            Message::FinalSet { first_word, words } if self.target.accepts_pages() && *first_word < 3 => {
                let bits = words.iter().enumerate().flat_map(|(index, byte)| {
                    (0..8)
                        .filter(move |bit| byte >> bit & 1 == 1)
                        .map(move |bit| first_word * 64 + index as u64 * 8 + bit)
                });
                self.final_set.extend(bits);
            }
            Message::State { offset, bytes } if self.target.accepts_pages() && *offset == self.state => {
                self.state = self.state.saturating_add(bytes.len() as u32);
            }
            _ => {}
        }
        self.target.on(self.now, TargetEvent::Message(&message));
    }

    fn go_on(&mut self, luck: Luck) {
        let Some(action) = self.doing.take() else {
            return self.ask();
        };
        let good = luck == Luck::Good;
        match action {
            TargetAction::Record(record) => self.last_record = Some((record, good)),
            TargetAction::RestoreState => self.restored = good,
            TargetAction::PrepareMissing => self.prepared = good,
            TargetAction::RunGuest => self.ran = good,
            TargetAction::Discard => self.discarded = true,
            _ => {}
        }
        let compares = action == TargetAction::CompareHashes;
        let needs_link = matches!(action, TargetAction::Send(_) | TargetAction::SendMissing);
        self.target.on(
            self.now,
            match luck {
                Luck::LinkLost if needs_link => TargetEvent::LinkLost,
                Luck::Failed | Luck::LinkLost => TargetEvent::Failed,
                Luck::Good if compares => TargetEvent::Compared {
                    pages: 9,
                    mismatches: 0,
                },
                Luck::Good => TargetEvent::Done,
                Luck::WrongAnswer if compares => TargetEvent::Done,
                Luck::WrongAnswer if action == TargetAction::RunGuest => TargetEvent::Failed,
                Luck::WrongAnswer => TargetEvent::Compared {
                    pages: 1,
                    mismatches: 1,
                },
            },
        );
        // Nothing but an answer ends an action.
        if luck == Luck::WrongAnswer && action != TargetAction::RunGuest {
            self.doing = Some(action);
        }
    }

    fn ask(&mut self) {
        let action = self.target.poll(self.now);
        if let Some(outcome) = self.outcome {
            assert_eq!(action, TargetAction::Finish(outcome), "another end");
        }
        let told_missing = core::mem::take(&mut self.told_missing);
        match action {
            TargetAction::Wait { .. } => return,
            TargetAction::Finish(outcome) => {
                self.end(outcome);
                self.outcome = Some(outcome);
                return;
            }
            TargetAction::PrepareMissing => self.check_missing(),
            TargetAction::Send(message) => self.check_message(message),
            TargetAction::SendMissing => assert!(told_missing, "unasked"),
            TargetAction::Record(TargetRecord::Taken) => assert!(self.told_to_run && self.restored, "taken unasked"),
            TargetAction::Record(TargetRecord::NeverTaken) => assert!(self.discarded && !self.ran, "a lie"),
            TargetAction::RunGuest => self.check_start(),
            TargetAction::Discard => assert!(!self.ran, "a running VM is dropped"),
            TargetAction::FinishPostCopy => assert!(self.ran && self.target.missing().is_empty()),
            TargetAction::CompareHashes => assert!(self.ran && self.target.config().verify),
            TargetAction::RestoreState => {
                let whole = self.post_copy_chosen() || self.received == ram();
                assert!(
                    whole && (self.prepared || !self.post_copy_chosen()),
                    "restored too early"
                );
            }
            _ => {}
        }
        self.doing = Some(action);
    }

    fn post_copy_chosen(&self) -> bool {
        self.target.mode() == Some(Mode::PostCopy)
    }

    /// Missing is what was never received, and what was dirty in the end.
    fn check_missing(&self) {
        let missing: BTreeSet<u64> = self
            .target
            .missing()
            .runs()
            .flat_map(|run| run.first.0..run.end().0)
            .collect();
        let mut expected: BTreeSet<u64> = ram().difference(&self.received).copied().collect();
        expected.extend(&self.final_set);
        assert_eq!(missing, expected);
    }

    fn check_message(&mut self, message: TargetMessage) {
        match message {
            TargetMessage::Ready => {
                assert!(self.restored && !self.discarded, "not ready");
                self.ready_said = true;
            }
            TargetMessage::Running => assert!(self.ran),
            TargetMessage::Abort(_) => {
                let recorded = matches!(self.last_record, Some((TargetRecord::NeverTaken, _)));
                assert!(
                    self.discarded && recorded && !self.ran,
                    "a promise before it is certain"
                );
                self.promised = true;
            }
            TargetMessage::Resumed(standing) => {
                match standing {
                    TargetStanding::Ready => assert!(self.restored && !self.ran && !self.discarded),
                    TargetStanding::Complete => assert!(self.ran && self.target.missing().is_empty()),
                    TargetStanding::PostCopy => assert!(self.ran && !self.target.missing().is_empty()),
                    TargetStanding::NeverTaken | TargetStanding::Unknown => panic!("said by the abort"),
                }
                (self.ready_said, self.hashed) = (standing == TargetStanding::Ready, false);
                self.told_missing = standing == TargetStanding::PostCopy;
            }
            TargetMessage::Complete { .. } => {
                assert!(self.ran && self.target.missing().is_empty());
                self.complete_said = true;
            }
            TargetMessage::StaticMerged => assert_eq!(self.received, ram(), "merged, but not whole"),
            TargetMessage::StaticFailed => assert!(!self.ran),
            TargetMessage::Welcome { .. } | TargetMessage::RoundReached { .. } => {}
        }
    }

    fn check_start(&self) {
        assert!(self.told_to_run, "nobody said so");
        assert_eq!(self.last_record, Some((TargetRecord::Taken, true)), "before the record");
        assert!(self.restored && !self.ran && !self.discarded && !self.promised);
        let whole = self.target.missing().is_empty() || (self.post_copy_chosen() && self.prepared);
        assert!(whole, "pages are missing");
    }

    fn end(&self, outcome: TargetOutcome) {
        match outcome {
            TargetOutcome::Completed { .. } => assert!(self.ran && self.target.missing().is_empty()),
            TargetOutcome::Aborted(_) => assert!(!self.ran && self.discarded),
        }
    }

    /// From wherever it is, a target whose source is gone comes to an end, unless it lacks pages.
    fn must_end(&mut self) {
        for _ in 0..200 {
            if self.outcome.is_some() || (self.ran && !self.target.missing().is_empty()) {
                return;
            }
            if self.doing.is_none() {
                self.target.on(self.now, TargetEvent::LinkLost);
                let _ = self.target.resolve(Resolution::GiveUp);
            }
            self.now = self.now.saturating_add(Nanos::from_secs(1));
            self.go_on(Luck::Good);
        }
        panic!("no way out of {:?}", self.target.phase());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_target_never_takes_more_than_it_may(verify: bool, post_copy: bool, events in events()) {
        let mut host = Host::new(verify, post_copy);
        for (pause, what) in &events {
            host.happens(*pause, what);
        }
        host.must_end();
    }
}
