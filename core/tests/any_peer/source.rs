//! The source against any target.

use dunlin_core::choose::{Goal, Limits, Link};
use dunlin_core::message::{Message, Mode, SessionId, TargetReport, TargetStanding, Violation, VmId};
use dunlin_core::migrate::{
    Advisor, AdvisorSetting, ForesightNeed, ForesightStorage, Phase, Resolution, Source, SourceAction, SourceConfig,
    SourceEvent, SourceMessage, SourceOutcome, SourceRecord,
};
use dunlin_core::order::push::Scored;
use dunlin_core::pageset::Run;
use dunlin_core::strategy::SwitchRule;
use dunlin_core::units::{BytesPerSec, Gfn, Nanos, Pages};
use proptest::prelude::*;

use crate::said::{Said, anything_said, whole_bitmap};
use crate::{END, SHAPE, is_in_one_region, pauses, regions};

const PUSH_PAGES: Pages = Pages(3);

/// What happens next.
#[derive(Clone, Debug)]
enum Happens {
    /// The host asks for an action, if it has none, or carries out the one it has.
    HostGoesOn(Luck),
    /// The target says what an honest one would.
    TargetAnswers,
    Said(Said),
    LinkLost,
    Heard,
    RoomIn(u64),
    Cancel,
    Violation,
    StaticFailed,
    Hinted(u64, u64),
    HintsEnded,
    PageRequest(u64),
    /// What the target's file in the storage directory says.
    TargetState(TargetStanding),
    PbDataFailed,
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
    let standings = prop::sample::select(vec![
        TargetStanding::Ready,
        TargetStanding::Complete,
        TargetStanding::PostCopy,
        TargetStanding::NeverTaken,
        TargetStanding::Unknown,
    ]);
    let trouble = prop_oneof![
        4 => bad_luck.prop_map(Happens::HostGoesOn),
        8 => anything_said().prop_map(Happens::Said),
        4 => Just(Happens::LinkLost),
        1 => Just(Happens::Violation),
        1 => Just(Happens::StaticFailed),
        1 => Just(Happens::Cancel),
        2 => standings.prop_map(Happens::TargetState),
        1 => Just(Happens::PbDataFailed),
    ];
    let happens = prop_oneof![
        400 => Just(Happens::HostGoesOn(Luck::Good)),
        200 => Just(Happens::TargetAnswers),
        20 => Just(Happens::Heard),
        10 => (0..100_000_000_u64).prop_map(Happens::RoomIn),
        20 => prop_oneof![0..160u64, any::<u64>()].prop_map(Happens::PageRequest),
        20 => (prop_oneof![0..160u64, any::<u64>()], prop_oneof![0..40u64, any::<u64>()])
            .prop_map(|(first, count)| Happens::Hinted(first, count)),
        10 => Just(Happens::HintsEnded),
        3 => any::<bool>().prop_map(Happens::Resolve),
        6 => trouble,
    ];
    prop::collection::vec((pauses(), happens), 0..500)
}

/// The guest and the record as the host knows them, and what the target was heard to say.
struct Host {
    source: Source<'static>,
    now: Nanos,
    doing: Option<SourceAction>,
    /// What waits for the target's answer.
    unanswered: Option<SourceAction>,
    /// Whether the guest runs here; `None` if an action that would have changed it failed.
    runs: Option<bool>,
    tracks: bool,
    /// A static copy is written, or was.
    writes: bool,
    /// It is merged.
    merged: bool,
    record: SourceRecord,
    /// The last record is certain to say that.
    recorded: bool,
    asked_to_give_up: bool,
    recorded_running_since: bool,
    committed: bool,
    /// The target has promised never to run the VM, or a person says that it is dead.
    free: bool,
    running_heard: bool,
    complete_heard: bool,
    outcome: Option<SourceOutcome>,
}

pub(crate) fn source(strategy: &str, verify: bool) -> Source<'static> {
    let config = SourceConfig {
        session: SessionId(1),
        vm: VmId(1),
        regions: regions(),
        strategy: strategy.parse().expect("a strategy"),
        downtime: Nanos::from_millis(3),
        handover_cost: Nanos::from_millis(2),
        max_rounds: 3,
        min_round: Nanos::from_millis(1),
        learning: Nanos::from_millis(60),
        push_pages: PUSH_PAGES,
        network_timeout: Nanos::from_secs(3),
        handover_timeout: Nanos::from_secs(10),
        merge_patience: Nanos::from_secs(30),
        verify,
        hint_patience: Some(Nanos::from_millis(30)),
        host_pages: [
            Run::new(Gfn(3), Pages(1)),
            Run::new(Gfn(60), Pages(20)),
            Run::new(Gfn(100), Pages(40)),
        ]
        .into_iter()
        .collect(),
    };
    let need = ForesightNeed::of(&config.strategy, Pages(END));
    let foresight = ForesightStorage {
        words: vec![u64::MAX; need.words].leak(),
        scratch: vec![u32::MAX; need.scratch].leak(),
        ranking: vec![Scored::default(); need.ranking].leak(),
    };
    let storage = vec![0; Source::words_needed(&config)].leak();
    let advised = config.strategy.switch == SwitchRule::OPTIMAL;
    let source = Source::looking_ahead(config, storage, foresight, Nanos(1)).expect("storage fits");
    if !advised {
        return source;
    }
    let setting = AdvisorSetting {
        goal: Goal::BALANCED,
        link: Link::new(BytesPerSec(32_000_000)),
        limits: Limits::DEFAULT,
        used: Pages(END),
        vcpus: 1,
    };
    let table = vec![u64::MAX; Advisor::words_needed(Pages(END))].leak();
    let advisor = Advisor::new(table, Pages(END), setting).expect("storage fits");
    source.advised(Box::leak(Box::new(advisor)))
}

impl Host {
    fn new(strategy: &str, verify: bool) -> Self {
        Self {
            source: source(strategy, verify),
            now: Nanos(1),
            doing: None,
            unanswered: None,
            runs: Some(true),
            tracks: false,
            writes: false,
            merged: false,
            record: SourceRecord::Running,
            recorded: true,
            asked_to_give_up: false,
            recorded_running_since: true,
            committed: false,
            free: false,
            running_heard: false,
            complete_heard: false,
            outcome: None,
        }
    }

    fn happens(&mut self, pause: u64, what: &Happens) {
        self.now = self.now.saturating_add(Nanos(pause));
        match what {
            Happens::HostGoesOn(luck) => self.go_on(*luck),
            Happens::TargetAnswers => self.answer_honestly(),
            Happens::Said(said) => self.hear(said),
            Happens::LinkLost => self.source.on(self.now, SourceEvent::LinkLost),
            Happens::Heard => self.source.on(self.now, SourceEvent::Heard),
            Happens::RoomIn(time) => {
                let room_at = self.now.saturating_add(Nanos(*time));
                self.source.on(self.now, SourceEvent::RoomAt(room_at));
            }
            Happens::Cancel => self.source.on(self.now, SourceEvent::Cancel),
            Happens::Violation => self.source.on(self.now, SourceEvent::Violation(Violation::Frame)),
            Happens::StaticFailed => self.source.on(self.now, SourceEvent::StaticFailed),
            Happens::Hinted(first, count) => {
                let run = Run::new(Gfn(*first), Pages(*count));
                self.source.on(self.now, SourceEvent::Hinted(run));
            }
            Happens::HintsEnded => self.source.on(self.now, SourceEvent::HintsEnded),
            Happens::PageRequest(gfn) => {
                self.source.on_fault_request(Gfn(*gfn));
            }
            Happens::TargetState(standing) => self.target_state(*standing),
            Happens::PbDataFailed => self.source.on(self.now, SourceEvent::PbDataFailed),
            Happens::Resolve(run_here) => self.resolve(*run_here),
        }
    }

    /// Counts as what the target says, and only where it cannot say anything.
    fn target_state(&mut self, standing: TargetStanding) {
        if !self.source.linked() && self.outcome.is_none() {
            self.free |= standing == TargetStanding::NeverTaken;
            self.running_heard |= matches!(standing, TargetStanding::PostCopy | TargetStanding::Complete);
            self.complete_heard |= standing == TargetStanding::Complete;
        }
        let report = TargetReport::default();
        self.source.on(self.now, SourceEvent::TargetState { standing, report });
    }

    fn resolve(&mut self, run_here: bool) {
        let (resolution, phase) = match run_here {
            true => (Resolution::RunHere, self.source.phase()),
            false => (Resolution::GiveUp, self.source.phase()),
        };
        let unknown = phase == Phase::HandOverUnknown || (phase == Phase::PostCopyPaused && !run_here);
        let over = self.outcome.is_some() || matches!(phase, Phase::Aborted | Phase::Complete);
        let resolved = self.source.resolve(resolution);
        if over || !unknown {
            assert!(resolved.is_err(), "{resolution:?} in {phase:?}");
        }
        self.free |= run_here && resolved.is_ok();
    }

    /// What an honest target says to the last thing that was sent, once.
    fn answer_honestly(&mut self) {
        let post_copy = self.source.mode() == Some(Mode::PostCopy);
        let answer = match self.unanswered.take() {
            Some(SourceAction::Send(SourceMessage::Hello)) => Said::Welcome(1),
            Some(SourceAction::Send(SourceMessage::RoundEnd { round })) => Said::RoundReached(round),
            Some(SourceAction::SendHandOver(_)) => Said::Ready,
            Some(SourceAction::Send(SourceMessage::Commit)) => Said::Running,
            Some(SourceAction::Send(SourceMessage::Resume { .. })) if !self.running_heard => {
                Said::Resumed(TargetStanding::Ready)
            }
            Some(SourceAction::Send(SourceMessage::Resume { .. })) if post_copy => {
                self.hear(&Said::Resumed(TargetStanding::PostCopy));
                self.hear(&Said::Missing(0, whole_bitmap()));
                let pages = SHAPE.iter().map(|(_, pages)| pages).sum();
                Said::MissingEnd(pages)
            }
            Some(SourceAction::Send(SourceMessage::Resume { .. })) => Said::Resumed(TargetStanding::Complete),
            _ if self.source.phase() == Phase::PostCopy && self.source.pending().is_empty() => Said::Complete,
            _ if self.source.phase() == Phase::Complete => Said::Complete,
            _ if self.writes && !self.merged && self.source.round() > 1 => Said::Static(true),
            _ => return self.source.on(self.now, SourceEvent::Heard),
        };
        self.hear(&answer);
    }

    fn hear(&mut self, said: &Said) {
        let message = said.message();
        // Whatever is said after the end is said to nobody.
        if self.outcome.is_none() {
            match message {
                Message::Abort(_) | Message::Resumed(TargetStanding::NeverTaken) => self.free = true,
                Message::Running | Message::Resumed(_) => self.running_heard = true,
                Message::Complete(_) => self.complete_heard = true,
                Message::StaticMerged => self.merged = true,
                _ => {}
            }
        }
        self.source.on(self.now, SourceEvent::Message(&message));
    }

    fn go_on(&mut self, luck: Luck) {
        let Some(action) = self.doing.take() else {
            return self.ask();
        };
        if let SourceAction::Record(record) = action {
            self.recorded = luck == Luck::Good;
            self.record = record;
            self.recorded_running_since |= record == SourceRecord::Running;
        }
        let good = luck == Luck::Good;
        match action {
            SourceAction::Pause => self.runs = good.then_some(false),
            SourceAction::ResumeGuest => self.runs = good.then_some(true),
            SourceAction::StopTracking => self.tracks = false,
            SourceAction::StopStatic => self.writes = false,
            _ => {}
        }
        let pages = match action {
            SourceAction::SendPages { run, .. } | SourceAction::PushPages(run) => Some(run.count),
            _ => None,
        };
        let needs_link = !matches!(
            action,
            SourceAction::Record(_)
                | SourceAction::Pause
                | SourceAction::ResumeGuest
                | SourceAction::StartTracking
                | SourceAction::StopTracking
                | SourceAction::StartStatic
                | SourceAction::StopStatic
                | SourceAction::Harvest
                | SourceAction::Sample
                | SourceAction::OpenEpoch
        );
        let bits = [0x8000_0000_0000_0001, 1 << 40, 3];
        self.source.on(
            self.now,
            match (luck, pages) {
                (Luck::LinkLost, _) if needs_link => SourceEvent::LinkLost,
                (Luck::Failed | Luck::LinkLost, _) => SourceEvent::Failed,
                (Luck::Good, Some(pages)) => SourceEvent::PagesSent {
                    data: pages,
                    zero: Pages::ZERO,
                },
                (Luck::Good, None) if action == SourceAction::Harvest => SourceEvent::Harvested(&bits),
                (Luck::Good, None) if action == SourceAction::Sample => SourceEvent::Sampled(&bits),
                (Luck::Good, None) => SourceEvent::Done,
                (Luck::WrongAnswer, None) if action == SourceAction::Harvest => SourceEvent::Sampled(&bits),
                (Luck::WrongAnswer, None) if action == SourceAction::StopTracking => SourceEvent::Sampled(&bits),
                (Luck::WrongAnswer, None) => SourceEvent::Harvested(&bits),
                (Luck::WrongAnswer, Some(_)) => SourceEvent::PagesSent {
                    data: Pages(u64::MAX),
                    zero: Pages(1),
                },
            },
        );
    }

    fn ask(&mut self) {
        let action = self.source.poll(self.now);
        if let Some(outcome) = self.outcome {
            assert_eq!(action, SourceAction::Finish(outcome), "another end");
        }
        match action {
            SourceAction::Wait { .. } => return,
            SourceAction::Finish(outcome) => {
                self.end(outcome);
                self.outcome = Some(outcome);
                return;
            }
            SourceAction::SendPages { run, round } => {
                self.check_run(run);
                assert!(round > 0 || self.runs == Some(false), "final pages of a running guest");
            }
            SourceAction::OpenEpoch => assert!(self.tracks, "what is written meanwhile would be missed"),
            SourceAction::SendZeros(run) => {
                self.check_run(run);
                let host_pages = &self.source.config().host_pages;
                let is_read = |page| host_pages.iter().any(|run| (run.first..run.end()).contains(&Gfn(page)));
                assert!(!(run.first.0..run.end().0).any(is_read), "{run} is read by the host");
            }
            SourceAction::PushPages(run) => {
                self.check_run(run);
                assert!(run.count <= PUSH_PAGES, "{run} is a long push");
                assert!(self.running_heard, "push to a target that does not run");
            }
            SourceAction::Pause => {
                assert!(!self.writes || self.merged, "paused before the static copy is there");
                assert_eq!(self.runs, Some(true), "paused twice");
                // Stopped or not, it is on its way there.
                self.runs = None;
            }
            SourceAction::SendHandOver(_) => assert_eq!(self.runs, Some(false), "state of a running guest"),
            SourceAction::StartTracking => self.tracks = true,
            SourceAction::Sample => {
                assert!(self.tracks, "nothing is tracked that could be sampled");
                assert_eq!(self.runs, Some(true), "a guest that does not run writes nothing");
            }
            SourceAction::StartStatic => {
                assert!(self.tracks, "what is written meanwhile would be missed");
                self.writes = true;
            }
            SourceAction::Harvest if self.writes => {
                if let Some(run) = self.source.next_static(self.now, Pages(8)) {
                    self.check_run(run);
                }
            }
            SourceAction::Record(SourceRecord::GivenUp) => {
                assert_eq!(self.runs, Some(false), "given up while it runs");
                (self.asked_to_give_up, self.recorded_running_since) = (true, false);
                (self.record, self.recorded) = (SourceRecord::GivenUp, false);
            }
            SourceAction::Record(SourceRecord::MovedAway) => assert!(self.complete_heard, "moved away, incomplete"),
            SourceAction::Send(SourceMessage::Commit) => {
                assert!(
                    self.recorded && self.record == SourceRecord::GivenUp,
                    "commit before the record"
                );
                assert_ne!(self.runs, Some(true), "commit while it runs");
                self.committed = true;
            }
            SourceAction::ResumeGuest => {
                assert!(!self.committed || self.free, "the target may run the VM");
                assert!(
                    !self.asked_to_give_up || self.recorded_running_since,
                    "runs without a record"
                );
            }
            _ => {}
        }
        self.doing = Some(action);
        if matches!(action, SourceAction::Send(_) | SourceAction::SendHandOver(_)) {
            self.unanswered = Some(action);
        }
    }

    fn check_run(&self, run: Run) {
        assert!(
            is_in_one_region(run) && run.count.0 <= 512,
            "{run} is not in one region"
        );
    }

    fn end(&self, outcome: SourceOutcome) {
        match outcome {
            SourceOutcome::Completed => assert!(self.complete_heard, "completed without the target's word"),
            SourceOutcome::Aborted { .. } => {
                assert_ne!(self.runs, Some(false), "the guest is left stopped");
                assert!(!self.tracks, "tracking goes on");
            }
            SourceOutcome::Refused(_) => assert_eq!(self.runs, Some(true)),
            SourceOutcome::GaveUp | SourceOutcome::Lost => assert!(self.committed || self.asked_to_give_up),
        }
    }

    /// From wherever it is, a host without trouble comes to an end: by a cancel, or where it is too late, by a person's word.
    fn must_end(&mut self) {
        for _ in 0..2000 {
            if self.outcome.is_some() {
                return;
            }
            if self.doing.is_none() && self.source.can_cancel() {
                self.source.on(self.now, SourceEvent::Cancel);
            } else if self.doing.is_none() {
                self.source.on(self.now, SourceEvent::LinkLost);
                let _ = self.source.resolve(Resolution::GiveUp);
            }
            self.now = self.now.saturating_add(Nanos::from_millis(100));
            self.go_on(Luck::Good);
        }
        panic!("no way out of {:?}", self.source.phase());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_source_never_gives_away_more_than_it_may(
        strategy in prop::sample::select(vec![
            "precopy", "hybrid:1", "postcopy", "postcopy,cut=fail", "postcopy,cut=pbdata", "hybrid:1,cut=both", "par-migrate", "hybrid:1,first=parallel",
            "par-migrate,hold=hot", "hybrid:1,first=parallel,hold=hot,split=speed",
            "postcopy,push=bubble", "hybrid:1,push=bubble:3", "switch=optimal", "markov-sdf:0.5", "filter=hazard", "postcopy,push=forecast",
            "hybrid:2,first=parallel,filter=ppm,push=forecast,split=speed",
        ]),
        verify: bool,
        events in events(),
    ) {
        let mut host = Host::new(strategy, verify);
        for (pause, what) in &events {
            host.happens(*pause, what);
        }
        host.must_end();
    }
}
