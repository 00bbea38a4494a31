//! The source.

use dunlin_core::message::{Message, SessionId, TargetStanding, VmId};
use dunlin_core::migrate::{Phase, Source, SourceAction, SourceConfig, SourceEvent, SourceMessage, SourceRecord};
use dunlin_core::units::{Nanos, Pages};

use crate::{Fate, NOW, expect, regions, table};

/// In the order in which an attempt goes through them.
const STATES: [&str; 14] = [
    "asked to migrate",
    "opens the fault channel",
    "sends the pages of round 1",
    "waits for the end of round 1",
    "pauses the guest",
    "waits for the target to be ready",
    "writes that it gave the VM up",
    "said commit",
    "pushes",
    "sent all, waits for the end",
    "given up, without a target",
    "asked a target that is back",
    "hears what is missing",
    "lets the guest run, after a failure",
];

fn new() -> Source<'static> {
    let strategy = "hybrid:1".parse().expect("a strategy");
    let mut config = SourceConfig::new(SessionId(1), VmId(1), regions(), strategy);
    // Nothing fits it, so that post-copy follows.
    config.downtime = Nanos::ZERO;
    let storage = vec![0; Source::words_needed(&config)].leak();
    Source::new(config, storage, NOW).expect("storage fits")
}

/// Carries out what it wants until it waits, or wants what `last` says, which is then under way.
fn up_to(source: &mut Source<'_>, last: impl Fn(SourceAction) -> bool) {
    loop {
        let action = source.poll(NOW);
        if last(action) || matches!(action, SourceAction::Wait { .. } | SourceAction::Finish(_)) {
            return;
        }
        done(source, action);
    }
}

fn done(source: &mut Source<'_>, action: SourceAction) {
    let sent = |run: dunlin_core::pageset::Run| SourceEvent::PagesSent {
        data: run.count,
        zero: Pages::ZERO,
    };
    source.on(
        NOW,
        match action {
            SourceAction::SendPages { run, .. } | SourceAction::PushPages(run) => sent(run),
            // All is dirty again.
            SourceAction::Harvest => SourceEvent::Harvested(&[15]),
            _ => SourceEvent::Done,
        },
    );
}

fn waits(_: SourceAction) -> bool {
    false
}

fn hear(source: &mut Source<'_>, message: &Message<'_>) {
    source.on(NOW, SourceEvent::Message(message));
}

fn at(state: &str) -> Source<'static> {
    let mut source = new();
    let place = STATES.iter().position(|name| *name == state).expect("a state");
    let mut doing = SourceAction::Wait { until: None };
    for name in &STATES[..=place] {
        match *name {
            "asked to migrate" => up_to(&mut source, waits),
            "opens the fault channel" => {
                hear(&mut source, &Message::Welcome { protocol: 1 });
                doing = begin(&mut source, |action| action == SourceAction::OpenFaultChannel);
            }
            "sends the pages of round 1" => {
                done(&mut source, doing);
                doing = begin(&mut source, |action| matches!(action, SourceAction::SendPages { .. }));
            }
            "waits for the end of round 1" => {
                done(&mut source, doing);
                up_to(&mut source, waits);
            }
            "pauses the guest" => {
                // A round without a duration would have had all the bandwidth there can be.
                let later = source.config().min_round.saturating_add(Nanos::from_secs(1));
                source.on(later, SourceEvent::Message(&Message::RoundReached { round: 1 }));
                let later = later.saturating_add(later);
                let mut action = source.poll(later);
                while action != SourceAction::Pause {
                    done(&mut source, action);
                    action = source.poll(later);
                }
                doing = action;
            }
            "waits for the target to be ready" => {
                done(&mut source, doing);
                up_to(&mut source, waits);
            }
            "writes that it gave the VM up" => {
                hear(&mut source, &Message::Ready);
                doing = begin(&mut source, |action| {
                    action == SourceAction::Record(SourceRecord::GivenUp)
                });
            }
            "said commit" => {
                done(&mut source, doing);
                up_to(&mut source, waits);
            }
            "pushes" => {
                hear(&mut source, &Message::Running);
                doing = begin(&mut source, |action| matches!(action, SourceAction::PushPages(_)));
            }
            "sent all, waits for the end" => {
                done(&mut source, doing);
                up_to(&mut source, waits);
            }
            "given up, without a target" => {
                source = at("said commit");
                source.on(NOW, SourceEvent::LinkLost);
                source.poll(NOW);
            }
            "asked a target that is back" => {
                let later = NOW.saturating_add(Nanos::from_secs(60));
                assert_eq!(source.poll(later), SourceAction::Reconnect);
                source.on(NOW, SourceEvent::Done);
                let resume = SourceAction::Send(SourceMessage::Resume { given_up: true });
                assert_eq!(source.poll(NOW), resume);
                source.on(NOW, SourceEvent::Done);
                source.poll(NOW);
            }
            "hears what is missing" => {
                hear(&mut source, &Message::Resumed(TargetStanding::PostCopy));
                source.poll(NOW);
            }
            _ => {
                source = at("waits for the end of round 1");
                source.on(NOW, SourceEvent::LinkLost);
                source.poll(NOW);
            }
        }
    }
    source
}

/// Up to an action that is then under way.
fn begin(source: &mut Source<'_>, wanted: impl Fn(SourceAction) -> bool) -> SourceAction {
    loop {
        let action = source.poll(NOW);
        if wanted(action) {
            return action;
        }
        assert!(
            !matches!(action, SourceAction::Wait { .. } | SourceAction::Finish(_)),
            "{action:?} instead"
        );
        done(source, action);
    }
}

fn fate(state: &str, message: &Message<'_>) -> Fate {
    let mut source = at(state);
    let (before, linked, phase) = (format!("{source:?}"), source.linked(), source.phase());
    hear(&mut source, message);
    let ended = |phase| matches!(phase, Phase::Aborted);
    let after = format!("{source:?}");
    if after == before {
        Fate::Ignored
    } else if ended(source.phase()) && !ended(phase) {
        Fate::of_end(&after)
    } else if linked && !source.linked() {
        Fate::Dropped
    } else {
        Fate::Accepted
    }
}

#[test]
fn every_message_in_every_state_has_its_fate() {
    expect(&STATES, &table(&STATES, fate), include_str!("source.txt"));
}
