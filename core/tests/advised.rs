//! A source whose strategy is chosen from what the guest is seen to write, and chosen again where the rounds show otherwise.

use dunlin_core::choose::{Goal, Limits, Link};
use dunlin_core::message::{Message, PROTOCOL_VERSION, Region, SessionId, VmId};
use dunlin_core::migrate::{
    Advisor, AdvisorSetting, RoundReport, Source, SourceAction, SourceConfig, SourceEvent, SourceMessage,
};
use dunlin_core::pageset::PageSetError;
use dunlin_core::strategy::{StallWeight, SwitchRule};
use dunlin_core::switch::Decision;
use dunlin_core::units::{BytesPerSec, Gfn, Nanos, Pages};

const PAGES: u64 = 64 * 64;
const WORDS: usize = 64;
const SAMPLE: Nanos = Nanos::from_millis(50);
/// A round of all pages takes a second.
const BANDWIDTH: BytesPerSec = BytesPerSec(PAGES * 4096);

fn setting(goal: &str, bandwidth: BytesPerSec) -> AdvisorSetting {
    AdvisorSetting {
        goal: goal.parse::<Goal>().expect("a goal"),
        link: Link::new(bandwidth),
        limits: Limits::DEFAULT,
        used: Pages(PAGES),
        vcpus: 1,
    }
}

struct Host {
    source: Source<'static>,
    now: Nanos,
}

impl Host {
    /// Through an observation of two seconds, in each window of which the guest writes the first pages of these words.
    fn observed(goal: &str, bandwidth: BytesPerSec, words: usize) -> Self {
        Self::using(Pages(PAGES), goal, bandwidth, words)
    }

    fn using(used: Pages, goal: &str, bandwidth: BytesPerSec, words: usize) -> Self {
        let region = Region {
            first: Gfn(0),
            pages: Pages(PAGES),
        };
        let config = SourceConfig {
            learning: Nanos::from_secs(2),
            network_timeout: Nanos::from_secs(1000),
            ..SourceConfig::new(
                SessionId(1),
                VmId(1),
                [region].into_iter().collect(),
                "switch=optimal".parse().expect("a strategy"),
            )
        };
        let table = vec![u64::MAX; Advisor::words_needed(Pages(PAGES))].leak();
        let setting = AdvisorSetting {
            used,
            ..setting(goal, bandwidth)
        };
        let advisor = Advisor::new(table, Pages(PAGES), setting).expect("storage fits");
        let storage = vec![0; Source::words_needed(&config)].leak();
        let now = Nanos::from_secs(1);
        let source = Source::new(config, storage, now).expect("storage fits");
        let mut host = Self {
            source: source.advised(Box::leak(Box::new(advisor))),
            now,
        };
        host.does(SourceAction::Send(SourceMessage::Hello));
        host.hears(&Message::Welcome {
            protocol: PROTOCOL_VERSION,
        });
        host.does(SourceAction::OpenFaultChannel);
        host.does(SourceAction::StartTracking);
        for _ in 0..40 {
            assert!(matches!(host.source.poll(host.now), SourceAction::Wait { .. }));
            host.now = host.now.saturating_add(SAMPLE);
            assert_eq!(host.source.poll(host.now), SourceAction::Sample);
            host.source.on(host.now, SourceEvent::Sampled(&written(words)));
        }
        host
    }

    fn does(&mut self, action: SourceAction) {
        assert_eq!(self.source.poll(self.now), action);
        self.source.on(self.now, SourceEvent::Done);
    }

    fn hears(&mut self, message: &Message<'_>) {
        self.source.on(self.now, SourceEvent::Message(message));
    }

    /// A round over this link, at whose end the first pages of these words are dirty.
    fn round(&mut self, round: u32, bandwidth: BytesPerSec, words: usize) -> RoundReport {
        let pages = self.source.pending().len();
        self.does(SourceAction::Send(SourceMessage::RoundStart { round, pages }));
        while let SourceAction::SendPages { run, .. } = self.source.poll(self.now) {
            let (data, zero) = (run.count, Pages::ZERO);
            self.source.on(self.now, SourceEvent::PagesSent { data, zero });
        }
        self.source.on(self.now, SourceEvent::Done);
        self.now = self.now.saturating_add(bandwidth.time_to_send(pages.bytes()));
        self.hears(&Message::RoundReached { round });
        self.now = self.now.saturating_add(Nanos::from_millis(100));
        assert_eq!(self.source.poll(self.now), SourceAction::Harvest);
        self.source.on(self.now, SourceEvent::Harvested(&written(words)));
        self.source.take_round().expect("a round is over")
    }

    fn chosen(&self) -> SwitchRule {
        self.source.config().strategy.switch
    }
}

fn written(words: usize) -> [u64; WORDS] {
    std::array::from_fn(|index| if index < words { u64::MAX } else { 0 })
}

#[test]
fn a_guest_that_hardly_writes_is_copied_and_stopped() {
    let mut host = Host::observed("downtime<300ms", BANDWIDTH, 1);
    let report = host.round(1, BANDWIDTH, 1);
    assert_eq!(report.sent, Pages(PAGES), "what was sampled is copied like all else");
    let advisor = host.source.advisor().expect("advised");
    let choice = advisor.choice().expect("chosen");
    assert_eq!(choice.best.strategy, host.source.config().strategy);
    assert!(choice.best.forecast.time.contains(Nanos::from_millis(1100)), "{choice}");
    assert_eq!(report.verdict.decision, Decision::StopCopy, "{:?}", report.verdict);
    assert_eq!(advisor.revised(), None);
    assert_eq!(host.source.samples(), 40, "no samples in the rounds");
}

#[test]
fn a_guest_that_writes_more_than_the_link_carries_is_not_waited_for() {
    // All pages in every window, so that the rest never fits.
    let host = &mut Host::observed("downtime<300ms", BANDWIDTH, WORDS);
    let action = host.source.poll(host.now);
    let choice = host.source.advisor().and_then(Advisor::choice).expect("chosen");
    assert!(host.source.config().strategy.can_post_copy(), "{choice}");
    assert!(choice.to_string().contains("precopy would not converge"), "{choice}");
    let at_once = host.chosen() == SwitchRule::Rounds(0);
    assert_eq!(action == SourceAction::Pause, at_once, "{choice}");
}

#[test]
fn the_goal_decides() {
    // A bound on bytes keeps rounds few; what pauses least is another.
    let mut rules = [
        "bytes<1GiB,weighted:downtime=1",
        "weighted:faults=1",
        "weighted:bytes=1",
    ]
    .map(|goal| {
        let mut host = Host::observed(goal, BANDWIDTH, 24);
        _ = host.source.poll(host.now);
        host.chosen()
    });
    rules.sort_by_key(|rule| rule.to_string());
    assert!(rules[0] != rules[1] || rules[1] != rules[2], "{rules:?}");
}

#[test]
fn what_the_rounds_show_changes_the_strategy() {
    // It hardly wrote when it was observed, and writes everything now.
    let mut host = Host::observed("downtime<300ms", BANDWIDTH, 1);
    let mut decision = Decision::Continue;
    for round in 1..8 {
        decision = host.round(round, BANDWIDTH, WORDS).verdict.decision;
        if decision != Decision::Continue {
            break;
        }
    }
    let advisor = host.source.advisor().expect("advised");
    let chosen = advisor.choice().expect("chosen").best.strategy;
    let (_, revision) = advisor.revised().expect("another strategy");
    assert_eq!(decision, Decision::PostCopy);
    assert_ne!(chosen, revision.strategy);
    assert_eq!(revision.strategy, host.source.config().strategy);
}

#[test]
fn what_a_guest_of_zeros_writes_while_it_is_observed_is_to_be_sent() {
    let mut host = Host::using(Pages(1), "downtime<300ms", BANDWIDTH, WORDS);
    _ = host.source.poll(host.now);
    let choice = host.source.advisor().and_then(Advisor::choice).expect("chosen");
    assert!(choice.best.forecast.bytes.likely >= Pages(PAGES).bytes(), "{choice}");
}

#[test]
fn a_table_that_is_too_small_is_named() {
    let needed = Advisor::words_needed(Pages(100));
    let mut table = vec![0; needed - 1];
    let made = Advisor::new(&mut table, Pages(100), setting("time<1s", BANDWIDTH)).map(drop);
    assert_eq!(
        made,
        Err(PageSetError::StorageTooSmall {
            needed,
            given: needed - 1
        })
    );
    assert_eq!(Advisor::words_needed(Pages(u64::MAX)), usize::MAX);
}

#[test]
fn optimal_is_considered_with_the_weight_of_the_goal() {
    let mut host = Host::observed("weighted:stall=1,downtime=10", BytesPerSec(BANDWIDTH.0 * 11 / 4), 80);
    host.source.poll(host.now);
    let choice = host.source.advisor().and_then(Advisor::choice).expect("chosen");
    let rules = [Some(choice.best), choice.next].map(|candidate| candidate.map(|candidate| candidate.strategy.switch));
    let most = SwitchRule::Optimal(StallWeight::MAX);
    assert!(rules.contains(&Some(most)), "time costs nothing: {rules:?}");
}
