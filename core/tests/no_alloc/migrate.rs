use crate::{Numbers, format};
use dunlin_core::choose::{Goal, Limits, Link};
use dunlin_core::message::{Message, Mode, Region, Regions, SessionId, TargetReport, VmId};
use dunlin_core::migrate::{
    Advisor, AdvisorSetting, FaultAnswer, FaultDecision, ForesightNeed, ForesightStorage, Source, SourceAction,
    SourceConfig, SourceEvent, SourceMessage, SourceOutcome, Target, TargetAction, TargetConfig, TargetEvent,
    TargetMessage, TargetOutcome,
};
use dunlin_core::order::filter::scratch_needed;
use dunlin_core::order::push::Scored;
use dunlin_core::pageset::{PageSet, Run, words_needed};
use dunlin_core::strategy::First;
use dunlin_core::units::{BytesPerSec, Gfn, Nanos, Pages};

const PAGES: Pages = Pages(4096);
const BITMAP_WORDS: usize = 64;
const SET_WORDS: usize = words_needed(PAGES);
/// Many times what a migration of this size takes.
const STEPS_MAX: u32 = 100_000;

/// What is done to a migration on its way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// A person cancels in round 1.
    Cancel,
    /// Both sides lose the link once the guest runs on the target.
    Cut,
}

/// Stands for whatever is chosen.
const ADVISED: &str = "switch=optimal";

fn advisor_setting() -> AdvisorSetting {
    AdvisorSetting {
        goal: Goal::BALANCED,
        link: Link::new(BytesPerSec(32_000_000)),
        limits: Limits::DEFAULT,
        used: PAGES,
        vcpus: 1,
    }
}

pub(crate) fn drive(scratch: &mut [u64]) {
    for strategy in [
        "precopy",
        "postcopy",
        "postcopy,push=bubble:3",
        "hybrid:1",
        "as-hybrid",
        "par-migrate",
        "hybrid:3,first=parallel,hold=hot,split=speed",
        "markov-sdf:0.5",
        "hybrid:2,filter=hazard,push=forecast",
        "filter=ppm",
        "postcopy,push=forecast",
        ADVISED,
    ] {
        for trouble in [Trouble::None, Trouble::Cancel, Trouble::Cut] {
            let (mut filter, mut ranking) = ([0; scratch_needed(PAGES)], [Scored::default(); PAGES.0 as usize]);
            let mut table = [0; Advisor::words_needed(PAGES)];
            let mut advisor = Advisor::new(&mut table, PAGES, advisor_setting()).expect("storage fits");
            let mut pair = Pair::new(strategy, trouble, scratch, (&mut filter, &mut ranking));
            if strategy == ADVISED {
                pair.source = pair.source.advised(&mut advisor);
            }
            let looks_ahead = pair.source_looks_ahead || strategy == ADVISED;
            let (source, target, samples) = pair.run();
            assert_eq!(samples > 0, looks_ahead);
            if trouble == Trouble::Cancel && !strategy.starts_with("postcopy") {
                assert!(matches!(source, SourceOutcome::Aborted { .. }));
            } else {
                assert_eq!(source, SourceOutcome::Completed);
                assert!(matches!(target, Some(TargetOutcome::Completed { .. })));
            }
        }
    }
}

/// A source and a target whose link delivers at once.
struct Pair<'w> {
    now: Nanos,
    numbers: Numbers,
    trouble: Trouble,
    source: Source<'w>,
    source_looks_ahead: bool,
    samples: u64,
    target: Option<Target<'w>>,
    /// For the target, once it is made.
    sets: Option<(&'w mut [u64], &'w mut [u64])>,
    target_config: TargetConfig,
    target_outcome: Option<TargetOutcome>,
}

impl<'w> Pair<'w> {
    fn new(
        strategy: &str,
        trouble: Trouble,
        scratch: &'w mut [u64],
        (filter, ranking): (&'w mut [u32], &'w mut [Scored]),
    ) -> Self {
        let mut regions = Regions::new();
        regions
            .push(Region {
                first: Gfn(0),
                pages: PAGES,
            })
            .expect("room for a region");
        let config = SourceConfig {
            session: SessionId(1),
            vm: VmId(1),
            regions: regions.clone(),
            strategy: strategy.parse().expect("a strategy"),
            downtime: Nanos::from_millis(3),
            handover_cost: Nanos::from_millis(2),
            max_rounds: 5,
            min_round: Nanos::from_millis(20),
            learning: Nanos::from_millis(300),
            push_pages: Pages(64),
            network_timeout: Nanos::from_secs(3),
            handover_timeout: Nanos::from_secs(10),
            merge_patience: Nanos::from_secs(30),
            verify: true,
            hint_patience: None,
            host_pages: [Run::new(Gfn(3), Pages(1))].into_iter().collect(),
        };
        let target_config = TargetConfig {
            session: config.session,
            vm: config.vm,
            regions,
            protocol: 1,
            verify: true,
            pb_data: false,
            static_copy: config.strategy.first == First::Parallel,
            split: config.strategy.splits(),
            network_timeout: config.network_timeout,
        };
        let (pending, rest) = scratch.split_at_mut(Source::words_needed(&config));
        let need = ForesightNeed::of(&config.strategy, PAGES);
        let (words, rest) = rest.split_at_mut(need.words);
        let foresight = ForesightStorage {
            words,
            scratch: filter,
            ranking,
        };
        let now = Nanos::from_secs(1);
        Self {
            now,
            numbers: Numbers(1),
            trouble,
            source: Source::looking_ahead(config, pending, foresight, now).expect("storage fits"),
            source_looks_ahead: need != ForesightNeed::default(),
            samples: 0,
            target: None,
            sets: Some(rest.split_at_mut(SET_WORDS)),
            target_config,
            target_outcome: None,
        }
    }

    fn run(mut self) -> (SourceOutcome, Option<TargetOutcome>, u64) {
        for _ in 0..STEPS_MAX {
            self.now = self.now.saturating_add(Nanos(100_000));
            self.make_trouble();
            if let SourceAction::Finish(outcome) = self.step_source() {
                // The target hears of the end when its peer closes the connection.
                self.tell_target(TargetEvent::LinkLost);
                while self.target.is_some() && self.target_outcome.is_none() {
                    self.step_target();
                }
                return (outcome, self.target_outcome, self.samples);
            }
            self.step_target();
            self.fault();
        }
        panic!("the migration does not end: {:?}", self.source.phase());
    }

    fn make_trouble(&mut self) {
        let running = self.target.as_ref().is_some_and(Target::running);
        match self.trouble {
            Trouble::Cancel if self.source.round() == 1 => self.source.on(self.now, SourceEvent::Cancel),
            Trouble::Cut if running => {
                self.source.on(self.now, SourceEvent::LinkLost);
                self.tell_target(TargetEvent::LinkLost);
            }
            _ => return,
        }
        self.trouble = Trouble::None;
    }

    fn tell_target(&mut self, event: TargetEvent<'_>) {
        if let Some(target) = &mut self.target {
            target.on(self.now, event);
        }
    }

    fn say_to_target(&mut self, message: Message<'_>) {
        self.tell_target(TargetEvent::Message(&message));
    }

    fn say_to_source(&mut self, message: Message<'_>) {
        self.source.on(self.now, SourceEvent::Message(&message));
    }

    fn step_source(&mut self) -> SourceAction {
        let action = self.source.poll(self.now);
        match action {
            SourceAction::Wait { .. } | SourceAction::Finish(_) => return action,
            SourceAction::Harvest | SourceAction::Sample => {
                let mut words = [0; BITMAP_WORDS];
                for word in &mut words {
                    *word = self.numbers.next() & self.numbers.next() & self.numbers.next();
                }
                self.samples += u64::from(action == SourceAction::Sample);
                self.source.on(
                    self.now,
                    match action {
                        SourceAction::Sample => SourceEvent::Sampled(&words),
                        _ => SourceEvent::Harvested(&words),
                    },
                );
                return action;
            }
            SourceAction::SendPages { run, .. } | SourceAction::PushPages(run) => {
                self.deliver(run, false);
                let sent = SourceEvent::PagesSent {
                    data: run.count,
                    zero: Pages::ZERO,
                };
                self.source.on(self.now, sent);
                return action;
            }
            SourceAction::StartStatic => {
                self.tell_target(TargetEvent::StaticReceived(Run::new(Gfn(0), PAGES)));
                self.tell_target(TargetEvent::StaticEnded);
            }
            SourceAction::Send(message) => self.send_from_source(message),
            SourceAction::SendHandOver(mode) => self.send_hand_over(mode),
            SourceAction::SendHashes => {
                self.say_to_target(Message::Hashes {
                    first: Gfn(0),
                    bytes: &[0; PAGES.0 as usize * 8],
                });
                self.say_to_target(Message::HashesEnd);
            }
            _ => {}
        }
        self.source.on(self.now, SourceEvent::Done);
        action
    }

    fn send_from_source(&mut self, message: SourceMessage) {
        match message {
            SourceMessage::Hello => {
                let (received, missing) = self.sets.take().expect("one hello");
                let target = Target::new(self.target_config.clone(), received, missing, self.now);
                self.target = Some(target.expect("storage fits"));
            }
            SourceMessage::RoundStart { round, pages } => self.say_to_target(Message::RoundStart { round, pages }),
            SourceMessage::RoundEnd { round } => self.say_to_target(Message::RoundEnd { round }),
            SourceMessage::Commit => self.say_to_target(Message::Commit),
            SourceMessage::Abort(reason) => {
                format(reason);
                self.say_to_target(Message::Abort(reason));
            }
            SourceMessage::Resume { given_up } => self.tell_target(TargetEvent::Reconnected { given_up }),
            SourceMessage::Bye => self.say_to_target(Message::Bye),
        }
    }

    fn send_hand_over(&mut self, mode: Mode) {
        let (final_dirty, words) = match mode {
            Mode::PostCopy => (self.source.pending().len(), bytes_of(self.source.pending())),
            Mode::StopCopy => (Pages::ZERO, [0; BITMAP_WORDS * 8]),
        };
        self.say_to_target(Message::FinalSet {
            first_word: 0,
            words: &words,
        });
        self.say_to_target(Message::State {
            offset: 0,
            bytes: b"state",
        });
        self.say_to_target(Message::HandOver {
            mode,
            state_bytes: 5,
            final_dirty,
        });
    }

    fn step_target(&mut self) {
        let Some(target) = &mut self.target else { return };
        match target.poll(self.now) {
            TargetAction::Wait { .. } => return,
            TargetAction::Finish(outcome) => {
                self.target_outcome = Some(outcome);
                return;
            }
            TargetAction::Send(message) => self.send_from_target(message),
            TargetAction::SendMissing => {
                let words = bytes_of(target.missing());
                let pages = target.missing().len();
                self.say_to_source(Message::Missing {
                    first_word: 0,
                    words: &words,
                });
                self.say_to_source(Message::MissingEnd { pages });
            }
            TargetAction::CompareHashes => {
                return self.tell_target(TargetEvent::Compared {
                    pages: PAGES.0,
                    mismatches: 0,
                });
            }
            _ => {}
        }
        self.tell_target(TargetEvent::Done);
    }

    fn send_from_target(&mut self, message: TargetMessage) {
        self.say_to_source(match message {
            TargetMessage::Welcome { protocol } => Message::Welcome { protocol },
            TargetMessage::RoundReached { round } => Message::RoundReached { round },
            TargetMessage::Ready => Message::Ready,
            TargetMessage::Running => Message::Running,
            TargetMessage::StaticMerged => Message::StaticMerged,
            TargetMessage::StaticFailed => Message::StaticFailed,
            TargetMessage::Abort(reason) => Message::Abort(reason),
            TargetMessage::Resumed(standing) => Message::Resumed(standing),
            TargetMessage::Complete { verified } => Message::Complete(TargetReport {
                verified,
                ..TargetReport::default()
            }),
        });
    }

    /// The guest, if it runs on the target, touches a page.
    fn fault(&mut self) {
        let gfn = Gfn(self.numbers.next() % PAGES.0);
        let asks = |target: &Target<'_>| target.running() && target.on_fault(gfn) == FaultDecision::Request;
        if self.target.as_ref().is_some_and(asks) && self.source.on_fault_request(gfn) == FaultAnswer::Send {
            self.deliver(Run::new(gfn, Pages(1)), true);
        }
    }

    fn deliver(&mut self, run: Run, demanded: bool) {
        let running = self.target.as_ref().is_some_and(Target::running);
        self.tell_target(if running {
            TargetEvent::Installed { run, demanded }
        } else {
            TargetEvent::Received(run)
        });
    }
}

/// A set's bitmap as it travels.
fn bytes_of(set: &PageSet<'_>) -> [u8; BITMAP_WORDS * 8] {
    let mut bytes = [0; BITMAP_WORDS * 8];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(set.words()) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}
