//! The source with `hold=hot`: which rounds leave pages for later, and what becomes of these when the copy ends.

use dunlin_core::message::Message;
use dunlin_core::migrate::{SourceAction, SourceEvent, SourceMessage};
use dunlin_core::switch::{Decision, Reason};
use dunlin_core::units::{Gfn, Nanos, Pages};

use crate::source::{ALL, Host, RUNS, decided};

/// In round 3, which leaves pages 0 to 2 for later: the first two were sent in round 2, which tells how fast the channel is, and
/// an eighth of the copy has taken two seconds.
fn holding() -> Host {
    let mut host = Host::starting("lambda,hold=hot");
    host.tell(SourceEvent::Done);
    host.begins(1, 0);
    assert_eq!(decided(&host.ends(1, 0b11)), RUNS);
    assert!(host.source.next_static(host.now, Pages(1)).is_some());
    host.begins(2, 2);
    assert_eq!(host.source.held_back(), Pages::ZERO);
    host.sends(2, 0, 2);
    assert_eq!(decided(&host.ends(2, 0b111)), RUNS);
    host.begins(3, 0);
    assert_eq!(
        (host.source.held_back(), host.source.pending().len()),
        (Pages(3), Pages(0))
    );
    host
}

fn first_value(host: &mut Host, round: u32, dirty: u64) {
    let report = host.ends(round, dirty);
    let (decision, reason) = decided(&report);
    assert_eq!(
        (decision, reason),
        (Decision::Continue, Reason::LambdaTooFew { values: 1 }),
        "what the rule heard of rounds that held pages back is forgotten"
    );
}

#[test]
fn what_is_held_back_is_dirty() {
    let mut host = holding();
    let report = host.ends(3, 0b1100);
    assert_eq!(decided(&report), RUNS);
    assert_eq!((report.sent, report.dirty), (Pages(0), Pages(4)));
    host.begins(4, 0);
    assert_eq!(host.source.held_back(), Pages(4));
}

#[test]
fn the_round_in_which_the_copy_is_merged_sends_what_was_held_back() {
    let mut host = holding();
    host.hears(&Message::StaticMerged);
    assert_eq!(
        (host.source.held_back(), host.source.round_pages()),
        (Pages(0), Pages(3))
    );
    host.sends(3, 0, 3);
    first_value(&mut host, 3, 0b11_1111);
    host.begins(4, 6);
}

#[test]
fn a_round_that_has_ended_does_not_decide() {
    let mut host = holding();
    host.sends_round_end(3);
    host.hears(&Message::StaticMerged);
    let until = Reason::StaticCopyRuns { until: 4 };
    assert_eq!(decided(&host.reaches(3, 0)), (Decision::Continue, until));
    host.begins(4, 3);
    host.sends(4, 0, 3);
    first_value(&mut host, 4, 0b11_1111);
}

#[test]
fn a_copy_that_fails_leaves_nothing_behind() {
    let mut host = holding();
    host.tell(SourceEvent::StaticFailed);
    assert_eq!(
        (host.source.held_back(), host.source.round_pages()),
        (Pages(0), Pages(ALL))
    );
    host.sends(3, 0, 6);
    host.sends(3, 6, 2);
    first_value(&mut host, 3, 0b1111_1111);
}

/// A page of the copy that a round has sent, that was written since and stays behind: only the source knows that it is dirty.
#[test]
fn a_split_copy_that_fails_leaves_nothing_behind_either() {
    let mut host = Host::of(&[(0, 1024)], "never,hold=hot,split=speed", Nanos::from_millis(300));
    for _ in 0..16 {
        assert!(host.source.next_static(host.now, Pages(1)).is_some());
    }
    host.tell(SourceEvent::Done);
    host.begins(1, 64);
    host.sends(1, 960, 64);
    host.sends_round_end(1);
    host.now = host.now.saturating_add(Nanos::from_secs(1));
    host.hears(&Message::RoundReached { round: 1 });
    host.is_asked(SourceAction::Harvest);
    let mut dirty = [0; 16];
    dirty[15] = 1 << 40;
    host.tell(SourceEvent::Harvested(&dirty));
    let SourceAction::Send(SourceMessage::RoundStart { round: 2, .. }) = host.source.poll(host.now) else {
        panic!("a round should begin");
    };
    host.tell(SourceEvent::Done);
    assert_eq!(host.source.held_back(), Pages(1));
    host.tell(SourceEvent::StaticFailed);
    assert_eq!(host.source.held_back(), Pages(0));
    assert!(
        host.source.pending().contains(Gfn(15 * 64 + 40)),
        "a stale page stays at the target"
    );
}

#[test]
fn what_is_held_back_is_part_of_the_last_harvest() {
    let mut host = holding();
    host.hears(&Message::StaticMerged);
    host.sends(3, 0, 3);
    host.ends(3, 0b1_0000);
    host.begins(4, 1);
    assert_eq!(host.source.held_back(), Pages(0), "the copy is merged");
    host.sends(4, 4, 1);
}

#[test]
fn how_far_the_copy_is_follows_from_what_was_taken() {
    let mut host = Host::starting("lambda,hold=hot");
    host.tell(SourceEvent::Done);
    let mut taken = Vec::new();
    while let Some(run) = host.source.next_static(host.now, Pages(4)) {
        taken.push((run.first.0, run.count.0));
        host.now = host.now.saturating_add(Nanos::from_millis(10));
    }
    assert_eq!(taken, [(0, 4), (4, 2), (6, 2)], "each in one region");
}
