//! The source with `split=speed`: what a round takes of the copy, and what becomes of it when the copy fails.

use dunlin_core::message::Message;
use dunlin_core::migrate::{SourceAction, SourceEvent};
use dunlin_core::units::{Nanos, Pages};

use crate::run;
use crate::source::{ALL, Host, RUNS, decided};

/// In round 1, which sends pages 4 to 7; the host has taken the first four.
fn sharing() -> Host {
    let mut host = Host::starting("never,split=speed");
    assert_eq!(host.source.next_static(host.now, Pages(4)), Some(run(0, 4)));
    host.tell(SourceEvent::Done);
    host.begins(1, 4);
    host
}

#[test]
fn a_round_takes_what_the_host_has_not_begun() {
    let mut host = sharing();
    assert_eq!(host.source.next_static(host.now, Pages(4)), None);
    host.sends(1, 4, 2);
    host.sends(1, 6, 2);
    let report = host.ends(1, 0b1);
    assert_eq!(decided(&report), RUNS);
    assert_eq!((report.sent, report.dirty), (Pages(4), Pages(1)));
    assert_eq!(
        report.sdf_milli,
        1000 * (ALL as i64 + 4 - 1) / 4,
        "what it took was added to what was to be sent"
    );
    host.begins(2, 1);
    host.hears(&Message::StaticMerged);
    host.sends(2, 0, 1);
    host.ends(2, 0);
    host.is_asked(SourceAction::Pause);
}

#[test]
fn what_a_round_took_is_not_sent_again_when_the_copy_fails() {
    let mut host = sharing();
    host.sends(1, 4, 2);
    host.tell(SourceEvent::StaticFailed);
    assert_eq!(host.source.round_pages(), Pages(ALL));
    host.sends(1, 6, 2);
    host.sends(1, 0, 4);
    host.ends(1, 0);
    host.is_asked(SourceAction::StopStatic);
    assert!(!host.source.static_too_slow());
}

#[test]
fn a_channel_that_does_not_begin_is_given_up_after_a_second() {
    for (milli, given_up) in [(999, false), (1000, true)] {
        let mut host = Host::starting("never,split=speed");
        host.tell(SourceEvent::Done);
        host.begins(1, ALL);
        host.sends(1, 0, 6);
        host.sends(1, 6, 2);
        let began = host.now;
        host.sends_round_end(1);
        host.now = began.saturating_add(Nanos::from_millis(milli));
        host.hears(&Message::RoundReached { round: 1 });
        host.is_asked(SourceAction::Harvest);
        host.tell(SourceEvent::Harvested(&[0]));
        let next = host.source.poll(host.now);
        assert_eq!(next == SourceAction::StopStatic, given_up, "{milli} ms: {next:?}");
        assert_eq!(host.source.static_too_slow(), given_up, "{milli} ms");
    }
}
