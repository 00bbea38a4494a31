use super::*;
use crate::message::{Message, Mode, Regions, SessionId, TargetReport, TargetStanding, VmId};
use crate::migrate::{
    FaultAnswer, Phase, SourceAction, SourceConfig, SourceEvent, SourceMessage, SourceOutcome, SourceRecord,
};
use crate::pageset::words_needed;
use crate::units::Nanos;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

/// The longest push of these tests.
const MOST: u64 = 8;
const NOW: Nanos = Nanos(1);

/// A source of one or more regions, in post-copy without a page copied before.
struct Pushes {
    source: Source<'static>,
}

impl Pushes {
    /// Up to where the target has been told to run the VM.
    fn committed(strategy: &str, regions: &[(u64, u64)]) -> Self {
        let end = regions.iter().map(|(first, pages)| first + pages).max().unwrap_or(0);
        let regions: Regions = regions
            .iter()
            .map(|&(first, pages)| Region {
                first: Gfn(first),
                pages: Pages(pages),
            })
            .collect();
        let mut config = SourceConfig::new(SessionId(1), VmId(1), regions, strategy.parse().expect("a strategy"));
        config.push_pages = Pages(MOST);
        let storage = vec![0; words_needed(Pages(end))].leak();
        let mut pushes = Self {
            source: Source::new(config, storage, NOW).expect("storage fits"),
        };
        pushes.does(SourceAction::Send(SourceMessage::Hello));
        pushes.hears(Message::Welcome { protocol: 1 });
        pushes.does(SourceAction::OpenFaultChannel);
        pushes.does(SourceAction::Pause);
        pushes.does(SourceAction::SendHandOver(Mode::PostCopy));
        pushes.hears(Message::Ready);
        pushes.does(SourceAction::Record(SourceRecord::GivenUp));
        pushes.does(SourceAction::Send(SourceMessage::Commit));
        pushes
    }

    /// Up to where it pushes, in this order.
    fn recorded(order: &'static [Gfn], regions: &[(u64, u64)]) -> Self {
        let mut pushes = Self::committed("postcopy,push=recorded", regions);
        pushes.source = pushes.source.recorded(order);
        pushes.hears(Message::Running);
        pushes
    }

    /// Up to where it pushes.
    fn new(strategy: &str, regions: &[(u64, u64)]) -> Self {
        let mut pushes = Self::committed(strategy, regions);
        pushes.hears(Message::Running);
        pushes
    }

    fn does(&mut self, action: SourceAction) {
        assert_eq!(self.source.poll(NOW), action);
        self.source.on(NOW, SourceEvent::Done);
    }

    fn hears(&mut self, message: Message<'_>) {
        self.source.on(NOW, SourceEvent::Message(&message));
    }

    fn fault(&mut self, page: u64) {
        assert_eq!(self.source.on_fault_request(Gfn(page)), FaultAnswer::Send);
    }

    /// The next push, sent; `None` if nothing is left to be.
    fn next(&mut self) -> Option<Run> {
        let SourceAction::PushPages(run) = self.source.poll(NOW) else {
            return None;
        };
        self.source.on(
            NOW,
            SourceEvent::PagesSent {
                data: run.count,
                zero: Pages::ZERO,
            },
        );
        assert_eq!(
            self.source.phase(),
            Phase::PostCopy,
            "the conservation law is broken at {run}"
        );
        Some(run)
    }

    #[track_caller]
    fn expect(&mut self, pushes: &[(u64, u64)]) {
        for &(first, pages) in pushes {
            assert_eq!(self.next(), Some(Run::new(Gfn(first), Pages(pages))));
        }
    }
}

#[test]
fn a_push_begins_next_to_the_page_that_was_asked_for_last() {
    let mut pushes = Pushes::new("postcopy,push=bubble", &[(0, 200)]);
    pushes.expect(&[(0, 8), (8, 8)]);
    pushes.fault(100);
    pushes.expect(&[(101, 8), (92, 8), (109, 8), (84, 8)]);
    pushes.fault(40);
    pushes.expect(&[(41, 8), (32, 8)]);
}

#[test]
fn three_bubbles_take_turns_and_the_latest_goes_first() {
    let mut pushes = Pushes::new("postcopy,push=bubble:3", &[(0, 200)]);
    pushes.fault(100);
    pushes.fault(150);
    pushes.expect(&[(151, 8), (142, 8), (101, 8), (92, 8), (0, 8), (159, 8)]);
}

/// What is chosen early is old when it is sent.
#[test]
fn nothing_is_pushed_before_the_link_has_room() {
    let mut pushes = Pushes::new("postcopy,push=bubble", &[(0, 200)]);
    let room_at = NOW.saturating_add(Nanos::from_millis(5));
    pushes.source.on(NOW, SourceEvent::RoomAt(room_at));
    assert_eq!(pushes.source.poll(NOW), SourceAction::Wait { until: Some(room_at) });
    pushes.fault(100);
    pushes.source.on(NOW, SourceEvent::RoomAt(NOW));
    pushes.expect(&[(101, 8)]);
}

/// Nothing is left to wait with.
#[test]
fn a_busy_link_does_not_hold_up_the_end() {
    let mut pushes = Pushes::new("postcopy", &[(0, 8)]);
    pushes.expect(&[(0, 8)]);
    pushes.source.on(NOW, SourceEvent::RoomAt(Nanos::from_secs(1)));
    pushes.hears(Message::Complete(TargetReport::default()));
    pushes.does(SourceAction::Send(SourceMessage::Bye));
}

#[test]
fn the_sequential_push_goes_its_way() {
    let mut pushes = Pushes::new("postcopy", &[(0, 200)]);
    pushes.expect(&[(0, 8)]);
    pushes.fault(100);
    pushes.fault(10);
    pushes.expect(&[(8, 2), (11, 8), (19, 8)]);
}

/// The guest runs on the target before the source hears so.
#[test]
fn pages_asked_for_before_the_first_push_count() {
    let mut pushes = Pushes::committed("postcopy,push=bubble", &[(0, 200)]);
    pushes.fault(100);
    pushes.hears(Message::Running);
    pushes.expect(&[(101, 8), (92, 8)]);
}

/// It may have been pushed before, and be on its way.
#[test]
fn a_page_asked_for_twice_is_pushed_around_again() {
    let mut pushes = Pushes::new("postcopy,push=bubble:3", &[(0, 200)]);
    pushes.fault(100);
    pushes.fault(150);
    pushes.expect(&[(151, 8)]);
    pushes.fault(100);
    pushes.expect(&[(101, 8), (92, 8), (159, 8)]);
}

#[test]
fn a_refused_request_moves_nothing() {
    let mut pushes = Pushes::new("postcopy,push=bubble", &[(0, 100), (150, 50)]);
    for outside in [100, 149, 200, u64::MAX] {
        assert_eq!(pushes.source.on_fault_request(Gfn(outside)), FaultAnswer::Refuse);
    }
    pushes.expect(&[(0, 8)]);
}

#[test]
fn a_run_over_the_border_of_two_regions_goes_in_two() {
    let mut pushes = Pushes::new("postcopy,push=bubble", &[(0, 100), (100, 100)]);
    pushes.fault(96);
    pushes.expect(&[(97, 3), (100, 5), (88, 8), (105, 8)]);
    pushes.fault(192);
    pushes.expect(&[(193, 7), (184, 8)]);

    let mut downwards = Pushes::new("postcopy,push=bubble", &[(0, 100), (100, 100)]);
    downwards.fault(104);
    downwards.expect(&[(105, 8), (96, 4)]);
    // What is left of the run comes next, but for what was asked for.
    downwards.fault(102);
    downwards.expect(&[(100, 2), (103, 1), (88, 8), (80, 8), (113, 8)]);

    let mut served = Pushes::new("postcopy,push=bubble", &[(0, 100), (100, 100)]);
    served.fault(98);
    served.expect(&[(99, 1)]);
    (100..107).for_each(|page| served.fault(page));
    served.expect(&[(107, 8)]);
}

/// What was pushed around may be lost with the connection, so the order begins with what the target says it lacks.
#[test]
fn a_new_connection_begins_the_order_anew() {
    let mut pushes = Pushes::new("postcopy,push=bubble", &[(0, 100), (100, 92)]);
    pushes.fault(95);
    pushes.expect(&[(96, 4)]);
    pushes.source.on(NOW, SourceEvent::LinkLost);
    let now = Nanos::from_secs(1);
    assert_eq!(pushes.source.poll(now), SourceAction::Reconnect);
    pushes.source.on(now, SourceEvent::Done);
    assert_eq!(
        pushes.source.poll(now),
        SourceAction::Send(SourceMessage::Resume { given_up: true })
    );
    pushes.source.on(now, SourceEvent::Done);
    pushes.hears(Message::Resumed(TargetStanding::PostCopy));
    let lacks = [0, 0xffff, u64::MAX].map(u64::to_le_bytes);
    pushes.hears(Message::Missing {
        first_word: 0,
        words: lacks.as_flattened(),
    });
    pushes.hears(Message::MissingEnd { pages: Pages(80) });
    pushes.does(SourceAction::OpenFaultChannel);
    // Neither next to 95 nor the rest of the run that was cut at 100.
    pushes.expect(&[(64, 8), (72, 8), (128, 8)]);
}

fn small_regions() -> impl Strategy<Value = Vec<(u64, u64)>> {
    // Gaps of 0 pages make neighbours.
    prop::collection::vec((0..3_u64, 1..40_u64), 1..5).prop_map(|parts| {
        let mut end = 0;
        let place = |(gap, pages)| {
            let region = (end + gap, pages);
            end += gap + pages;
            region
        };
        parts.into_iter().map(place).collect()
    })
}

proptest! {
    /// Whatever is asked for and when, each page goes once for its own sake: pushed, or asked for before it was.
    #[test]
    fn every_page_goes_once(
        strategy in prop::sample::select(vec![
            "postcopy", "postcopy,push=bubble", "postcopy,push=bubble:3", "postcopy,push=bubble:7",
        ]),
        regions in small_regions(),
        asked in prop::collection::vec(prop::option::of(0..140_u64), 0..120),
    ) {
        let mut pushes = Pushes::new(strategy, &regions);
        let in_region = |run: Run| {
            let whole = |&(first, pages): &(u64, u64)| first <= run.first.0 && run.end().0 <= first + pages;
            regions.iter().any(whole)
        };
        let mut went = [0; 200];
        for what in asked.into_iter().chain(std::iter::repeat(None)) {
            match what {
                Some(page) if in_region(Run::new(Gfn(page), Pages(1))) => {
                    pushes.fault(page);
                    went[page as usize] += u32::from(went[page as usize] == 0);
                }
                Some(_) => {}
                None => {
                    let Some(run) = pushes.next() else { break };
                    prop_assert!(in_region(run), "{} is not in one region", run);
                    prop_assert!((1..=MOST).contains(&run.count.0), "{} is too long", run);
                    (run.first.0..run.end().0).for_each(|page| went[page as usize] += 1);
                }
            }
        }
        for (first, pages) in regions {
            prop_assert!(went[first as usize..(first + pages) as usize].iter().all(|times| *times == 1), "{:?}", went);
        }
        pushes.hears(Message::Complete(crate::message::TargetReport::default()));
        pushes.does(SourceAction::Send(SourceMessage::Bye));
        pushes.does(SourceAction::Record(SourceRecord::MovedAway));
        prop_assert_eq!(pushes.source.poll(NOW), SourceAction::Finish(SourceOutcome::Completed));
    }
}

/// Neighbours of the recording go together; what is not in it follows, what the VM does not have never goes.
#[test]
fn a_recorded_order_is_followed() {
    static ORDER: [Gfn; 6] = [Gfn(40), Gfn(41), Gfn(7), Gfn(999), Gfn(40), Gfn(99)];
    let mut pushes = Pushes::recorded(&ORDER, &[(0, 10), (40, 2), (90, 10)]);
    pushes.expect(&[(40, 2), (7, 1), (99, 1), (0, 7), (8, 2), (90, 8), (98, 1)]);
    assert_eq!(pushes.next(), None);
}

#[test]
fn without_a_recording_pages_go_upwards() {
    let mut pushes = Pushes::new("postcopy,push=recorded", &[(0, 10)]);
    pushes.expect(&[(0, 8), (8, 2)]);
    // Only where it is the order.
    static ORDER: [Gfn; 1] = [Gfn(5)];
    let mut pushes = Pushes::committed("postcopy", &[(0, 10)]);
    pushes.source = pushes.source.recorded(&ORDER);
    pushes.hears(Message::Running);
    pushes.expect(&[(0, 8), (8, 2)]);
}

/// What was pushed may be what was lost with the connection.
#[test]
fn a_recorded_order_begins_again_with_a_new_connection() {
    static ORDER: [Gfn; 3] = [Gfn(6), Gfn(2), Gfn(4)];
    let mut pushes = Pushes::recorded(&ORDER, &[(0, 8)]);
    pushes.expect(&[(6, 1), (2, 1)]);
    pushes.source.on(NOW, SourceEvent::LinkLost);
    let later = NOW.saturating_add(Nanos::from_secs(1));
    for (action, message) in [
        (SourceAction::Reconnect, None),
        (
            SourceAction::Send(SourceMessage::Resume { given_up: true }),
            Some(Message::Resumed(TargetStanding::PostCopy)),
        ),
    ] {
        assert_eq!(pushes.source.poll(later), action);
        pushes.source.on(later, SourceEvent::Done);
        if let Some(message) = message {
            pushes.source.on(later, SourceEvent::Message(&message));
        }
    }
    let words = 0b0111_1111_u64.to_le_bytes();
    for message in [
        Message::Missing {
            first_word: 0,
            words: &words,
        },
        Message::MissingEnd { pages: Pages(7) },
    ] {
        pushes.source.on(later, SourceEvent::Message(&message));
    }
    assert_eq!(pushes.source.poll(later), SourceAction::OpenFaultChannel);
    pushes.source.on(later, SourceEvent::Done);
    pushes.expect(&[(6, 1), (2, 1), (4, 1), (0, 2), (3, 1), (5, 1)]);
}
