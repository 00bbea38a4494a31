//! A source that looks ahead, step by step: when it samples, what it holds back, and that nothing it sampled is lost.

use dunlin_core::message::{Message, Mode, PROTOCOL_VERSION, Region, SessionId, VmId};
use dunlin_core::migrate::{
    ForesightNeed, ForesightStorage, RoundReport, Source, SourceAction, SourceConfig, SourceEvent, SourceMessage,
    SourceRecord, SourceStorageError,
};
use dunlin_core::order::push::Scored;
use dunlin_core::pageset::{Run, words_needed};
use dunlin_core::switch::{Decision, Reason};
use dunlin_core::units::{Gfn, Nanos, Pages};
use proptest::prelude::*;

const LEARNING: Nanos = Nanos::from_secs(1);
const SAMPLE: Nanos = Nanos::from_millis(50);

fn config(strategy: &str, pages: u64) -> SourceConfig {
    let region = Region {
        first: Gfn(0),
        pages: Pages(pages),
    };
    SourceConfig {
        learning: LEARNING,
        downtime: Nanos::from_millis(3),
        min_round: Nanos::ZERO,
        network_timeout: Nanos::from_secs(1000),
        ..SourceConfig::new(
            SessionId(1),
            VmId(1),
            [region].into_iter().collect(),
            strategy.parse().expect("a strategy"),
        )
    }
}

/// A host that does what it is asked to, and samples what the guest is said to write.
struct Host {
    source: Source<'static>,
    now: Nanos,
    /// Pages dirty since the last look, one bit each.
    dirty: u64,
    samples: u64,
}

impl Host {
    fn new(strategy: &str, pages: u64) -> Self {
        let config = config(strategy, pages);
        let need = ForesightNeed::of(&config.strategy, Pages(pages));
        let foresight = ForesightStorage {
            words: vec![u64::MAX; need.words].leak(),
            scratch: vec![u32::MAX; need.scratch].leak(),
            ranking: vec![Scored::default(); need.ranking].leak(),
        };
        let words = vec![0; words_needed(Pages(pages))].leak();
        let now = Nanos::from_secs(1);
        let mut host = Self {
            source: Source::looking_ahead(config, words, foresight, now).expect("storage fits"),
            now,
            dirty: 0,
            samples: 0,
        };
        host.does(SourceAction::Send(SourceMessage::Hello));
        host.hears(&Message::Welcome {
            protocol: PROTOCOL_VERSION,
        });
        if host.source.config().strategy.can_post_copy() {
            host.does(SourceAction::OpenFaultChannel);
        }
        host.does(SourceAction::StartTracking);
        host
    }

    /// Through the observation, in each window of which the guest writes these pages.
    fn observed(strategy: &str, pages: u64, mut writes: impl FnMut(u64) -> u64) -> Self {
        let mut host = Self::new(strategy, pages);
        for window in 0..LEARNING.0 / SAMPLE.0 {
            host.dirty = writes(window);
            let until = Some(host.now.saturating_add(SAMPLE));
            assert_eq!(host.source.poll(host.now), SourceAction::Wait { until });
            host.now = host.now.saturating_add(SAMPLE);
            host.samples();
        }
        host
    }

    fn tell(&mut self, event: SourceEvent<'_>) {
        self.source.on(self.now, event);
    }

    fn hears(&mut self, message: &Message<'_>) {
        self.tell(SourceEvent::Message(message));
    }

    fn is_asked(&mut self, action: SourceAction) {
        assert_eq!(self.source.poll(self.now), action);
    }

    fn does(&mut self, action: SourceAction) {
        self.is_asked(action);
        self.tell(SourceEvent::Done);
    }

    fn samples(&mut self) {
        self.is_asked(SourceAction::Sample);
        self.take_sample();
    }

    fn take_sample(&mut self) {
        self.samples += 1;
        let dirty = core::mem::take(&mut self.dirty);
        self.tell(SourceEvent::Sampled(&[dirty]));
    }

    fn begins(&mut self, round: u32, pages: u64) {
        let pages = Pages(pages);
        self.does(SourceAction::Send(SourceMessage::RoundStart { round, pages }));
    }

    fn sends(&mut self, round: u32, first: u64, count: u64) {
        let run = Run::new(Gfn(first), Pages(count));
        self.is_asked(SourceAction::SendPages { run, round });
        self.tell(SourceEvent::PagesSent {
            data: run.count,
            zero: Pages::ZERO,
        });
    }

    /// The target has everything 40 ms later; the guest has written these pages since the last look.
    fn ends(&mut self, round: u32, dirty: u64) -> RoundReport {
        self.does(SourceAction::Send(SourceMessage::RoundEnd { round }));
        self.now = self.now.saturating_add(Nanos::from_millis(40));
        self.hears(&Message::RoundReached { round });
        self.is_asked(SourceAction::Harvest);
        self.tell(SourceEvent::Harvested(&[dirty]));
        self.source.take_round().expect("a round is over")
    }

    /// From the pause to the first push.
    fn hands_over(&mut self, dirty: u64) {
        self.does(SourceAction::Pause);
        self.is_asked(SourceAction::Harvest);
        self.tell(SourceEvent::Harvested(&[dirty]));
        self.does(SourceAction::SendHandOver(Mode::PostCopy));
        self.hears(&Message::Ready);
        self.does(SourceAction::Record(SourceRecord::GivenUp));
        self.does(SourceAction::Send(SourceMessage::Commit));
        self.hears(&Message::Running);
    }

    fn pushes(&mut self) -> Run {
        let SourceAction::PushPages(run) = self.source.poll(self.now) else {
            panic!("nothing is pushed");
        };
        self.tell(SourceEvent::PagesSent {
            data: run.count,
            zero: Pages::ZERO,
        });
        run
    }
}

#[test]
fn the_guest_is_observed_before_the_copy_and_sampled_during_it() {
    let mut host = Host::observed("filter=markov:half", 8, |_| 0b1100_0000);
    assert_eq!(host.samples, 20);
    assert_eq!(host.source.round(), 0);
    host.begins(1, 4);
    assert_eq!(
        (host.source.learned_for(), host.source.samples()),
        (LEARNING, host.samples)
    );
    // Pages 6 and 7 are expected to be written; of the others the lowest make up the half that waits.
    host.now = host.now.saturating_add(Nanos::from_millis(49));
    host.sends(1, 2, 4);
    host.does(SourceAction::Send(SourceMessage::RoundEnd { round: 1 }));
    // The sample is due while the target is waited for, and the answer may come while it is taken.
    let until = Some(host.now.saturating_add(Nanos::from_millis(1)));
    host.is_asked(SourceAction::Wait { until });
    host.now = host.now.saturating_add(Nanos::from_millis(1));
    host.is_asked(SourceAction::Sample);
    host.hears(&Message::RoundReached { round: 1 });
    host.dirty = 0b1000_0100;
    host.take_sample();
    host.is_asked(SourceAction::Harvest);
    host.tell(SourceEvent::Harvested(&[0b1_0000]));
    let report = host.source.take_round().expect("a round is over");
    // Held back: 0, 1, 6, 7; sampled: 2, 7; collected: 4.
    assert_eq!((report.sent, report.dirty), (Pages(4), Pages(6)));
    assert_eq!(host.source.pending().len(), Pages(3), "half waits again");
}

#[test]
fn a_sample_is_not_taken_late_twice_nor_all_the_time() {
    let mut host = Host::new("hybrid:1,filter=hazard", 8);
    // Three samples are overdue: one is taken, and then others after half a window at the earliest.
    host.now = host.now.saturating_add(Nanos::from_millis(170));
    host.samples();
    let until = Some(host.now.saturating_add(Nanos::from_millis(25)));
    host.is_asked(SourceAction::Wait { until });
    host.now = host.now.saturating_add(Nanos::from_millis(900));
    host.samples();
    // The time is up.
    host.does(SourceAction::Send(SourceMessage::RoundStart {
        round: 1,
        pages: Pages(8),
    }));
}

#[test]
fn an_answer_that_is_none_ends_the_attempt() {
    for wrong in [SourceEvent::Done, SourceEvent::Harvested(&[0]), SourceEvent::Failed] {
        let mut host = Host::new("hybrid:1,filter=hazard", 8);
        host.now = host.now.saturating_add(SAMPLE);
        host.is_asked(SourceAction::Sample);
        host.tell(wrong);
        host.is_asked(SourceAction::StopTracking);
        // What comes of it later is nobody's.
        host.tell(SourceEvent::Sampled(&[u64::MAX]));
    }
    let mut host = Host::observed("hybrid:1,filter=hazard", 8, |_| 0);
    host.is_asked(SourceAction::Send(SourceMessage::RoundStart {
        round: 1,
        pages: Pages(8),
    }));
    host.tell(SourceEvent::Sampled(&[0]));
    host.is_asked(SourceAction::StopTracking);
}

#[test]
fn silence_while_observing_ends_the_attempt() {
    let mut host = Host::new("hybrid:1,filter=hazard", 8);
    host.now = host.now.saturating_add(Nanos::from_secs(1000));
    host.is_asked(SourceAction::StopTracking);
}

/// Every page is written in every window: a threshold holds all of them.
fn all_hot(strategy: &str) -> Host {
    Host::observed(strategy, 8, |_| 0xff)
}

#[test]
fn where_all_is_held_back_post_copy_follows() {
    // The first round sends nothing either.
    let mut host = all_hot("switch=lambda,filter=hazard");
    host.is_asked(SourceAction::Pause);
    host.tell(SourceEvent::Done);
    host.is_asked(SourceAction::Harvest);
    host.tell(SourceEvent::Harvested(&[1]));
    host.is_asked(SourceAction::SendHandOver(Mode::PostCopy));
    assert_eq!(host.source.pending().len(), Pages(8), "what waited is missing");

    let mut host = Host::observed("switch=lambda,filter=hazard", 8, |_| 0x0f);
    host.begins(1, 4);
    host.sends(1, 4, 4);
    let report = host.ends(1, 0x0f);
    assert_eq!(
        (report.verdict.decision, report.verdict.reason),
        (Decision::PostCopy, Reason::NothingToSend { dirty: Pages(4) })
    );
    host.is_asked(SourceAction::Pause);
}

#[test]
fn where_all_is_held_back_and_post_copy_cannot_follow_it_is_sent() {
    let mut host = all_hot("filter=hazard");
    host.begins(1, 8);
    host.sends(1, 0, 8);
    let report = host.ends(1, 0xff);
    assert_eq!(report.verdict.decision, Decision::Continue);
    host.begins(2, 8);
}

#[test]
fn beside_a_static_copy_all_may_wait() {
    let mut host = Host::observed("hybrid:9,first=parallel,filter=hazard", 8, |_| 0xff);
    host.does(SourceAction::StartStatic);
    host.begins(1, 0);
    let report = host.ends(1, 0xff);
    assert_eq!(report.dirty, Pages(8));
    host.begins(2, 0);
    // It fails: everything is sent after all.
    host.tell(SourceEvent::StaticFailed);
    host.sends(2, 0, 8);
}

#[test]
fn the_likeliest_is_pushed_first_and_again_after_a_cut() {
    // Page 6 is written most often, page 3 now and then, page 1 once.
    let writes = |window| 1 << 6 | u64::from(window % 4 == 0) << 3 | u64::from(window == 2) << 1;
    for strategy in ["postcopy,push=forecast", "postcopy,filter=markov,push=forecast"] {
        let mut host = Host::observed(strategy, 8, writes);
        host.hands_over(0);
        assert_eq!(host.pushes(), Run::new(Gfn(6), Pages(1)), "{strategy}");
        assert_eq!(host.pushes(), Run::new(Gfn(3), Pages(1)), "{strategy}");
        host.tell(SourceEvent::LinkLost);
        host.now = host.now.saturating_add(Nanos::from_millis(50));
        host.does(SourceAction::Reconnect);
        host.does(SourceAction::Send(SourceMessage::Resume { given_up: true }));
        host.hears(&Message::Resumed(dunlin_core::message::TargetStanding::PostCopy));
        host.hears(&Message::Missing {
            first_word: 0,
            words: &0b0100_1001_u64.to_le_bytes(),
        });
        host.hears(&Message::MissingEnd { pages: Pages(3) });
        host.does(SourceAction::OpenFaultChannel);
        assert_eq!(host.pushes(), Run::new(Gfn(6), Pages(1)), "{strategy}");
        assert_eq!(host.pushes(), Run::new(Gfn(3), Pages(1)), "{strategy}");
        assert_eq!(host.pushes(), Run::new(Gfn(0), Pages(1)), "{strategy}");
    }
}

/// Sending a page is worth it if it is written again with less probability than 1 − α: never with α = 1 if it may be
/// written at all, always with α = 0.
#[test]
fn the_alpha_of_the_rule_is_that_of_the_filter() {
    for (alpha, sent) in [("0", 8), ("1", 4)] {
        let strategy = format!("switch=sdf:{alpha},filter=ppm");
        let mut host = Host::observed(&strategy, 8, |window| if window == 3 { 0x0f } else { 0 });
        host.begins(1, sent);
    }
}

#[test]
fn what_was_written_before_the_copy_is_not_sent_twice() {
    let mut host = Host::observed("hybrid:1,push=forecast", 8, |_| 0xff);
    host.begins(1, 8);
    host.sends(1, 0, 8);
    assert_eq!(host.ends(1, 0).dirty, Pages::ZERO);
}

#[test]
fn rounds_go_in_pieces_short_enough_for_samples() {
    let mut host = Host::observed("hybrid:1,push=forecast", 200, |_| 0);
    host.begins(1, 200);
    let most = host.source.config().push_pages;
    for piece in 0..200_u64.div_ceil(most.0) {
        let first = piece * most.0;
        assert_eq!(host.source.next_pages().map(|run| run.first), Some(Gfn(first)));
        host.sends(1, first, most.0.min(200 - first));
    }
}

#[test]
fn what_is_too_small_is_named() {
    for strategy in ["markov-sdf:0.5", "filter=ppm", "postcopy,push=forecast"] {
        let config = config(strategy, 100);
        let needed = ForesightNeed::of(&config.strategy, Pages(100));
        assert!(needed.words > 0);
        let mut pending = vec![0; words_needed(Pages(100))];
        let (mut words, mut scratch) = (vec![0; needed.words], vec![0; needed.scratch]);
        let mut ranking = vec![Scored::default(); needed.ranking];
        for lacks in 0..3 {
            let less = |length: usize, part| length.saturating_sub(usize::from(part == lacks));
            let storage = ForesightStorage {
                words: &mut words[..less(needed.words, 0)],
                scratch: &mut scratch[..less(needed.scratch, 1)],
                ranking: &mut ranking[..less(needed.ranking, 2)],
            };
            let enough = [needed.words, needed.scratch, needed.ranking][lacks] == 0;
            let made = Source::looking_ahead(config.clone(), &mut pending, storage, Nanos::ZERO).map(drop);
            match made {
                Ok(()) => assert!(enough, "{strategy} without {lacks}"),
                Err(SourceStorageError::Foresight(error)) => assert_eq!(error.needed, needed, "{strategy}"),
                Err(error) => panic!("{strategy}: {error}"),
            }
            assert!(enough || made.is_err_and(|error| error.to_string().contains("ForesightNeed::of()")));
        }
        assert!(Source::new(config, &mut pending, Nanos::ZERO).is_err(), "{strategy}");
    }
    assert_eq!(
        ForesightNeed::of(&"hybrid:1".parse().expect("a strategy"), Pages(1 << 40)),
        ForesightNeed::default()
    );
}

proptest! {
    /// Whatever is sampled when: at a round's end exactly those pages are dirty that were held back and that were written
    /// since the end of the round before, as if nothing had been sampled.
    #[test]
    fn samples_lose_and_invent_nothing(
        strategy in prop::sample::select(vec![
            "qemu,filter=markov:half", "qemu,filter=markov", "qemu,filter=hazard", "qemu,filter=ppm", "qemu,filter=frequency",
        ]),
        learned in prop::collection::vec(any::<u64>(), 20),
        rounds in prop::collection::vec(prop::collection::vec((any::<u64>(), any::<u64>(), 0..60_u64), 1..12), 1..6),
    ) {
        let strategy = strategy.replace("qemu,", "switch=qemu,");
        let mut host = Host::observed(&strategy, 64, |window| learned[window as usize] & learned[0]);
        let mut to_send = u64::MAX;
        for (index, happens) in rounds.iter().enumerate() {
            let round = index as u32 + 1;
            let action = host.source.poll(host.now);
            let pages = host.source.pending().len();
            prop_assert_eq!(action, SourceAction::Send(SourceMessage::RoundStart { round, pages }));
            host.tell(SourceEvent::Done);
            let (mut sent, mut written, mut ended) = (0_u64, 0, false);
            for (a, b, pause) in happens {
                let writes = a & b;
                written |= writes;
                host.dirty |= writes;
                host.now = host.now.saturating_add(Nanos::from_millis(*pause));
                match host.source.poll(host.now) {
                    SourceAction::Sample => host.take_sample(),
                    SourceAction::SendPages { run, .. } => {
                        let bits = (u64::MAX >> (64 - run.count.0)) << run.first.0;
                        prop_assert_eq!(bits & !to_send, 0, "what was not dirty is sent");
                        sent |= bits;
                        host.tell(SourceEvent::PagesSent { data: run.count, zero: Pages::ZERO });
                    }
                    SourceAction::Send(SourceMessage::RoundEnd { .. }) => {
                        ended = true;
                        host.tell(SourceEvent::Done);
                    }
                    SourceAction::Wait { .. } => {}
                    action => prop_assert!(false, "{:?}", action),
                }
            }
            while !ended {
                match host.source.poll(host.now) {
                    SourceAction::Sample => host.take_sample(),
                    SourceAction::SendPages { run, .. } => {
                        sent |= (u64::MAX >> (64 - run.count.0)) << run.first.0;
                        host.tell(SourceEvent::PagesSent { data: run.count, zero: Pages::ZERO });
                    }
                    action => {
                        prop_assert_eq!(action, SourceAction::Send(SourceMessage::RoundEnd { round }));
                        ended = true;
                        host.tell(SourceEvent::Done);
                    }
                }
            }
            host.hears(&Message::RoundReached { round });
            let mut action = host.source.poll(host.now);
            if action == SourceAction::Sample {
                host.take_sample();
                action = host.source.poll(host.now);
            }
            prop_assert_eq!(action, SourceAction::Harvest);
            let dirty = core::mem::take(&mut host.dirty);
            host.tell(SourceEvent::Harvested(&[dirty]));
            let report = host.source.take_round().expect("a round is over");
            prop_assert_eq!(report.sent.0, u64::from(sent.count_ones()));
            to_send = to_send & !sent | written;
            prop_assert_eq!(report.dirty.0, u64::from(to_send.count_ones()));
            if report.verdict.decision != Decision::Continue {
                host.does(SourceAction::Pause);
                host.is_asked(SourceAction::Harvest);
                host.tell(SourceEvent::Harvested(&[0]));
                prop_assert_eq!(host.source.pending().words()[0], to_send);
                break;
            }
        }
    }
}
