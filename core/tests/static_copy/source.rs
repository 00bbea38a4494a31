//! The source: a round sends what is written meanwhile, or everything once the copy has failed; which round decides.

use dunlin_core::message::{Message, PROTOCOL_VERSION, SessionId, VmId};
use dunlin_core::migrate::{RoundReport, Source, SourceAction, SourceConfig, SourceEvent, SourceMessage};
use dunlin_core::switch::{Decision, Reason};
use dunlin_core::units::{Nanos, Pages};

use crate::{regions, run};

const SECOND: Nanos = Nanos::from_secs(1);
const WELCOME: Message<'_> = Message::Welcome {
    protocol: PROTOCOL_VERSION,
};
/// What the two regions have together.
pub(crate) const ALL: u64 = 8;

/// A host that does what it is asked to, between two moments a second apart.
pub(crate) struct Host {
    pub(crate) source: Source<'static>,
    pub(crate) now: Nanos,
}

impl Host {
    /// Up to the start of the static copy, which is asked for.
    pub(crate) fn starting(switch: &str) -> Self {
        Self::allowing(switch, Nanos::from_millis(300))
    }

    fn allowing(switch: &str, downtime: Nanos) -> Self {
        Self::of(&[(0, 6), (6, 2)], switch, downtime)
    }

    /// The same with other memory.
    pub(crate) fn of(shape: &[(u64, u64)], switch: &str, downtime: Nanos) -> Self {
        let strategy = format!("switch={switch},first=parallel").parse().expect("a strategy");
        let config = SourceConfig {
            downtime,
            min_round: Nanos::ZERO,
            network_timeout: Nanos::from_secs(1000),
            ..SourceConfig::new(SessionId(1), VmId(1), regions(shape), strategy)
        };
        let words = vec![0; Source::words_needed(&config)].leak();
        let source = Source::new(config, words, Nanos::ZERO).expect("storage fits");
        let mut host = Self { source, now: SECOND };
        host.does(SourceAction::Send(SourceMessage::Hello));
        host.hears(&WELCOME);
        if host.source.config().strategy.can_post_copy() {
            host.does(SourceAction::OpenFaultChannel);
        }
        host.does(SourceAction::StartTracking);
        host.is_asked(SourceAction::StartStatic);
        host
    }

    fn started(switch: &str) -> Self {
        let mut host = Self::starting(switch);
        host.tell(SourceEvent::Done);
        host
    }

    pub(crate) fn tell(&mut self, event: SourceEvent<'_>) {
        self.source.on(self.now, event);
    }

    pub(crate) fn hears(&mut self, message: &Message<'_>) {
        self.tell(SourceEvent::Message(message));
    }

    pub(crate) fn is_asked(&mut self, action: SourceAction) {
        assert_eq!(self.source.poll(self.now), action);
    }

    fn does(&mut self, action: SourceAction) {
        self.is_asked(action);
        self.tell(SourceEvent::Done);
    }

    pub(crate) fn begins(&mut self, round: u32, pages: u64) {
        let pages = Pages(pages);
        self.does(SourceAction::Send(SourceMessage::RoundStart { round, pages }));
    }

    pub(crate) fn sends(&mut self, round: u32, first: u64, count: u64) {
        let run = run(first, count);
        self.is_asked(SourceAction::SendPages { run, round });
        let (data, zero) = (run.count, Pages::ZERO);
        self.tell(SourceEvent::PagesSent { data, zero });
    }

    /// The target has everything a second later; these pages are dirty then.
    pub(crate) fn ends(&mut self, round: u32, dirty: u64) -> RoundReport {
        self.sends_round_end(round);
        self.reaches(round, dirty)
    }

    pub(crate) fn sends_round_end(&mut self, round: u32) {
        self.does(SourceAction::Send(SourceMessage::RoundEnd { round }));
    }

    pub(crate) fn reaches(&mut self, round: u32, dirty: u64) -> RoundReport {
        self.now = self.now.saturating_add(SECOND);
        self.hears(&Message::RoundReached { round });
        self.is_asked(SourceAction::Harvest);
        self.tell(SourceEvent::Harvested(&[dirty]));
        self.source.take_round().expect("a round is over")
    }
}

pub(crate) fn decided(report: &RoundReport) -> (Decision, Reason) {
    (report.verdict.decision, report.verdict.reason)
}

pub(crate) const RUNS: (Decision, Reason) = (Decision::Continue, Reason::StaticCopyRuns { until: u32::MAX });

#[test]
fn the_round_in_which_the_copy_is_merged_decides() {
    let mut host = Host::started("never");
    host.begins(1, 0);
    assert_eq!(decided(&host.ends(1, 0b11)), RUNS);
    host.begins(2, 2);
    host.sends(2, 0, 2);
    assert_eq!(decided(&host.ends(2, 0)), RUNS, "nothing is dirty, and still it waits");
    host.begins(3, 0);
    host.hears(&Message::StaticMerged);
    assert_eq!(decided(&host.ends(3, 0)), (Decision::StopCopy, Reason::Fits));
    host.is_asked(SourceAction::Pause);
}

#[test]
fn a_copy_that_is_merged_is_merged_once() {
    let mut host = Host::started("never");
    host.begins(1, 0);
    host.hears(&Message::StaticMerged);
    host.hears(&Message::StaticMerged);
    // What follows a message that cannot be.
    host.is_asked(SourceAction::StopTracking);
}

#[test]
fn all_pages_follow_in_the_round_in_which_the_copy_fails() {
    let mut host = Host::started("lambda");
    host.begins(1, 0);
    assert_eq!(decided(&host.ends(1, 0b111)), RUNS);
    host.begins(2, 3);
    host.sends(2, 0, 3);
    assert_eq!(decided(&host.ends(2, 0b1111)), RUNS);
    host.begins(3, 4);
    host.sends(3, 0, 4);
    assert_eq!(decided(&host.ends(3, 0b1_1111)), RUNS);
    host.begins(4, 5);
    host.is_asked(SourceAction::SendPages {
        run: run(0, 5),
        round: 4,
    });
    host.tell(SourceEvent::StaticFailed);
    assert_eq!(host.source.round_pages(), Pages(5 + ALL));
    let (data, zero) = (Pages(3), Pages(2));
    host.tell(SourceEvent::PagesSent { data, zero });
    // From where it was; each run in one region.
    host.sends(4, 5, 1);
    host.sends(4, 6, 2);
    host.sends(4, 0, 5);
    let report = host.ends(4, 0b1111_1111);
    // Two rounds with λ above 1 are behind it, and forgotten.
    assert_eq!(
        decided(&report),
        (Decision::Continue, Reason::LambdaTooFew { values: 1 })
    );
    assert_eq!(
        (report.sent, report.zero, report.dirty),
        (Pages(11), Pages(2), Pages(ALL))
    );
    assert_eq!(
        report.sdf_milli, -181,
        "(8 − 2 − 8) / 11: all of memory but the zero pages was to be sent"
    );
    // The target may have found out as well, or finished all the same.
    host.hears(&Message::StaticFailed);
    host.hears(&Message::StaticMerged);
    host.does(SourceAction::StopStatic);
    host.begins(5, ALL);
}

#[test]
fn a_copy_that_fails_as_a_round_begins_is_made_up_for_in_it() {
    let mut host = Host::started("lambda");
    host.begins(1, 0);
    host.ends(1, 0b1);
    let (round, pages) = (2, Pages(1));
    host.is_asked(SourceAction::Send(SourceMessage::RoundStart { round, pages }));
    host.tell(SourceEvent::StaticFailed);
    host.tell(SourceEvent::Done);
    host.sends(2, 0, 6);
    host.sends(2, 6, 2);
    let report = host.ends(2, 0b1111_1111);
    assert_eq!(
        decided(&report),
        (Decision::Continue, Reason::LambdaTooFew { values: 1 })
    );
    assert_eq!((report.sent, report.sdf_milli), (Pages(ALL), 0));
}

#[test]
fn a_copy_that_fails_between_rounds_is_made_up_for_in_the_next() {
    let mut host = Host::started("lambda");
    host.begins(1, 0);
    host.does(SourceAction::Send(SourceMessage::RoundEnd { round: 1 }));
    host.hears(&Message::StaticFailed);
    let next = (Decision::Continue, Reason::StaticCopyRuns { until: 2 });
    assert_eq!(decided(&host.reaches(1, 0)), next);
    host.does(SourceAction::StopStatic);
    host.begins(2, ALL);
    host.sends(2, 0, 6);
    host.sends(2, 6, 2);
    let report = host.ends(2, 0b1111_1111);
    let too_few = Reason::LambdaTooFew { values: 2 };
    assert_eq!(decided(&report), (Decision::Continue, too_few));
    host.begins(3, ALL);
}

#[test]
fn a_copy_that_cannot_begin_is_done_without() {
    for failure in [
        &[SourceEvent::Failed][..],
        &[SourceEvent::StaticFailed, SourceEvent::Done],
    ] {
        let mut host = Host::starting("never");
        for event in failure {
            host.tell(event.clone());
        }
        // Some of it may be there.
        host.does(SourceAction::StopStatic);
        host.begins(1, ALL);
        host.sends(1, 0, 6);
        host.sends(1, 6, 2);
        assert_eq!(decided(&host.ends(1, 0)), (Decision::StopCopy, Reason::Fits));
        host.is_asked(SourceAction::Pause);
    }
}

#[test]
fn the_hand_over_takes_its_part_of_the_downtime() {
    // A page takes 125 ms, and 2 ms are the hand-over's.
    for (downtime, decision) in [(126, Decision::Continue), (127, Decision::StopCopy)] {
        let mut host = Host::allowing("never", Nanos::from_millis(downtime));
        host.tell(SourceEvent::Failed);
        host.does(SourceAction::StopStatic);
        host.begins(1, ALL);
        host.sends(1, 0, 6);
        host.sends(1, 6, 2);
        assert_eq!(host.ends(1, 1).verdict.decision, decision, "{downtime} ms");
    }
}

#[test]
fn a_copy_that_is_written_before_it_has_begun_is_given_up_if_nobody_merges_it() {
    let mut host = Host::starting("never");
    host.tell(SourceEvent::StaticWritten);
    host.tell(SourceEvent::Done);
    for round in 1..=30 {
        host.begins(round, 0);
        assert_eq!(decided(&host.ends(round, 0)).0, Decision::Continue);
    }
    host.does(SourceAction::StopStatic);
    host.begins(31, ALL);
}

#[test]
fn who_leaves_stops_the_copy() {
    for starting in [true, false] {
        let mut host = Host::starting("never");
        if !starting {
            host.tell(SourceEvent::Done);
            host.begins(1, 0);
        }
        host.tell(SourceEvent::Cancel);
        host.does(SourceAction::StopTracking);
        host.does(SourceAction::StopStatic);
    }
}
