//! The target.

use dunlin_core::message::{Message, Mode, SessionId, VmId};
use dunlin_core::migrate::{Phase, Target, TargetAction, TargetConfig, TargetEvent};
use dunlin_core::pageset::{Run, words_needed};
use dunlin_core::units::{Gfn, Nanos, Pages};

use crate::{Fate, NOW, PAGES, expect, regions, table};

/// In the order in which an attempt goes through them.
const STATES: [&str; 12] = [
    "builds the guest",
    "waits for pages",
    "within round 1",
    "after round 1",
    "makes pages missing",
    "ready, waits for the commit",
    "the same, with its source gone",
    "writes that it took the VM",
    "post-copy",
    "whole, waits for hashes",
    "said that it is complete",
    "drops all, after a failure",
];

fn new() -> Target<'static> {
    let config = TargetConfig {
        session: SessionId(1),
        vm: VmId(1),
        regions: regions(),
        protocol: 1,
        verify: true,
        static_copy: true,
        pb_data: true,
        split: false,
        network_timeout: Nanos::from_secs(3),
    };
    let words = || vec![0; words_needed(PAGES)].leak();
    Target::new(config, words(), words(), NOW).expect("storage fits")
}

/// Carries out what it wants, until it waits or wants that.
fn up_to(target: &mut Target<'_>, last: Option<TargetAction>) {
    loop {
        let action = target.poll(NOW);
        if Some(action) == last || matches!(action, TargetAction::Wait { .. } | TargetAction::Finish(_)) {
            return;
        }
        target.on(
            NOW,
            match action {
                TargetAction::CompareHashes => TargetEvent::Compared {
                    pages: PAGES.0,
                    mismatches: 0,
                },
                _ => TargetEvent::Done,
            },
        );
    }
}

fn hear(target: &mut Target<'_>, message: &Message<'_>) {
    target.on(NOW, TargetEvent::Message(message));
}

fn at(state: &str) -> Target<'static> {
    let mut target = new();
    let place = STATES.iter().position(|name| *name == state).expect("a state");
    for name in &STATES[..=place] {
        match *name {
            "builds the guest" => up_to(&mut target, Some(TargetAction::CreateGuest)),
            "waits for pages" => {
                target.on(NOW, TargetEvent::Done);
                up_to(&mut target, None);
            }
            "within round 1" => hear(
                &mut target,
                &Message::RoundStart {
                    round: 1,
                    pages: Pages(2),
                },
            ),
            "after round 1" => {
                target.on(NOW, TargetEvent::Received(Run::new(Gfn(0), Pages(2))));
                hear(&mut target, &Message::RoundEnd { round: 1 });
                up_to(&mut target, None);
            }
            "makes pages missing" => {
                hear(
                    &mut target,
                    &Message::HandOver {
                        mode: Mode::PostCopy,
                        state_bytes: 0,
                        final_dirty: Pages::ZERO,
                    },
                );
                up_to(&mut target, Some(TargetAction::PrepareMissing));
            }
            "ready, waits for the commit" => {
                target.on(NOW, TargetEvent::Done);
                up_to(&mut target, None);
            }
            "the same, with its source gone" => {
                let mut lost = at("ready, waits for the commit");
                lost.on(NOW, TargetEvent::LinkLost);
                if *name == state {
                    return lost;
                }
            }
            "writes that it took the VM" => {
                hear(&mut target, &Message::Commit);
                target.poll(NOW);
            }
            "post-copy" => {
                target.on(NOW, TargetEvent::Done);
                up_to(&mut target, None);
            }
            "whole, waits for hashes" => {
                let (run, demanded) = (Run::new(Gfn(0), PAGES), false);
                target.on(NOW, TargetEvent::Installed { run, demanded });
                up_to(&mut target, None);
            }
            "said that it is complete" => {
                hear(&mut target, &Message::HashesEnd);
                up_to(&mut target, None);
            }
            _ => {
                let mut failed = at("waits for pages");
                failed.on(NOW, TargetEvent::LinkLost);
                failed.poll(NOW);
                return failed;
            }
        }
    }
    target
}

fn fate(state: &str, message: &Message<'_>) -> Fate {
    let mut target = at(state);
    let (before, linked, phase) = (format!("{target:?}"), target.linked(), target.phase());
    hear(&mut target, message);
    let after = format!("{target:?}");
    if after == before {
        Fate::Ignored
    } else if target.phase() == Phase::Aborted && phase != Phase::Aborted {
        Fate::of_end(&after)
    } else if linked && !target.linked() {
        Fate::Dropped
    } else {
        Fate::Accepted
    }
}

#[test]
fn every_message_in_every_state_has_its_fate() {
    expect(&STATES, &table(&STATES, fate), include_str!("target.txt"));
}
