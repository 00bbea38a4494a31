//! The target: a static copy is merged when it has ended well and every page is here, and the source is told once.

use dunlin_core::message::{AbortReason, Message, PROTOCOL_VERSION, SessionId, VmId};
use dunlin_core::migrate::{
    Target, TargetAction, TargetConfig, TargetEvent, TargetMessage, TargetOutcome, TargetRecord,
};
use dunlin_core::pageset::words_needed;
use dunlin_core::units::{Nanos, Pages};

use crate::{regions, run};

const NOW: Nanos = Nanos::from_secs(1);
const MERGED: TargetAction = TargetAction::Send(TargetMessage::StaticMerged);
const FAILED: TargetAction = TargetAction::Send(TargetMessage::StaticFailed);
const WAIT: TargetAction = TargetAction::Wait {
    until: Some(Nanos::from_secs(61)),
};

struct Host(Target<'static>);

impl Host {
    /// Up to the pages of round 1: six pages, a hole of two, and two pages.
    fn waiting_for_pages() -> Self {
        Self::waiting(false)
    }

    fn waiting(split: bool) -> Self {
        let config = TargetConfig {
            session: SessionId(1),
            vm: VmId(1),
            regions: regions(&[(0, 6), (8, 2)]),
            protocol: PROTOCOL_VERSION,
            verify: false,
            static_copy: true,
            pb_data: false,
            split,
            network_timeout: Nanos::from_secs(60),
        };
        let words = || vec![0; words_needed(Pages(10))].leak();
        let mut host = Self(Target::new(config, words(), words(), NOW).expect("storage fits"));
        host.does(TargetAction::CreateGuest);
        host.does(TargetAction::Record(TargetRecord::Receiving));
        host.does(TargetAction::Send(TargetMessage::Welcome {
            protocol: PROTOCOL_VERSION,
        }));
        host.is_asked(WAIT);
        host
    }

    fn tell(&mut self, event: TargetEvent<'_>) {
        self.0.on(NOW, event);
    }

    fn is_asked(&mut self, action: TargetAction) {
        assert_eq!(self.0.poll(NOW), action);
    }

    fn does(&mut self, action: TargetAction) {
        self.is_asked(action);
        self.tell(TargetEvent::Done);
    }

    fn is_lost(&mut self, reason: AbortReason) {
        self.does(TargetAction::Discard);
        self.does(TargetAction::Record(TargetRecord::NeverTaken));
        self.is_asked(TargetAction::Finish(TargetOutcome::Aborted(reason)));
    }
}

#[test]
fn the_source_is_told_once_and_rounds_go_on() {
    let mut host = Host::waiting_for_pages();
    host.tell(TargetEvent::StaticReceived(run(0, 6)));
    host.tell(TargetEvent::StaticReceived(run(8, 2)));
    host.is_asked(WAIT);
    host.tell(TargetEvent::StaticEnded);
    host.does(MERGED);
    host.is_asked(WAIT);
    let (round, pages) = (1, Pages(0));
    host.tell(TargetEvent::Message(&Message::RoundStart { round, pages }));
    host.tell(TargetEvent::Message(&Message::RoundEnd { round }));
    host.does(TargetAction::Send(TargetMessage::RoundReached { round }));
    host.is_asked(WAIT);
}

#[test]
fn a_copy_that_ends_without_every_page_is_none() {
    let mut host = Host::waiting_for_pages();
    host.tell(TargetEvent::StaticReceived(run(0, 6)));
    host.tell(TargetEvent::StaticReceived(run(8, 1)));
    host.tell(TargetEvent::StaticEnded);
    host.does(FAILED);
    host.is_asked(WAIT);
}

#[test]
fn pages_of_the_migration_channel_make_it_whole() {
    let mut host = Host::waiting_for_pages();
    host.tell(TargetEvent::StaticReceived(run(0, 6)));
    host.tell(TargetEvent::Received(run(8, 2)));
    host.tell(TargetEvent::StaticEnded);
    host.does(MERGED);
}

#[test]
fn the_rest_of_a_split_copy_comes_on_the_migration_channel() {
    let mut host = Host::waiting(true);
    host.tell(TargetEvent::StaticReceived(run(0, 6)));
    host.tell(TargetEvent::StaticEnded);
    host.is_asked(WAIT);
    host.tell(TargetEvent::Received(run(8, 1)));
    host.is_asked(WAIT);
    host.tell(TargetEvent::Received(run(9, 1)));
    host.does(MERGED);
    host.tell(TargetEvent::Received(run(9, 1)));
    host.is_asked(WAIT);
}

#[test]
fn pages_before_the_end_of_a_split_copy_do_not_end_it() {
    let mut host = Host::waiting(true);
    host.tell(TargetEvent::Received(run(0, 6)));
    host.tell(TargetEvent::Received(run(8, 2)));
    host.is_asked(WAIT);
    host.tell(TargetEvent::StaticEnded);
    host.does(MERGED);
}

#[test]
fn a_split_copy_can_fail() {
    let mut host = Host::waiting(true);
    host.tell(TargetEvent::StaticReceived(run(0, 6)));
    host.tell(TargetEvent::StaticFailed);
    host.does(FAILED);
    host.tell(TargetEvent::Received(run(8, 2)));
    host.is_asked(WAIT);
}

#[test]
fn a_copy_that_failed_stays_so() {
    let mut host = Host::waiting_for_pages();
    host.tell(TargetEvent::StaticReceived(run(0, 6)));
    host.tell(TargetEvent::StaticReceived(run(8, 2)));
    host.tell(TargetEvent::StaticFailed);
    host.tell(TargetEvent::StaticEnded);
    host.does(FAILED);
    host.tell(TargetEvent::StaticEnded);
    host.is_asked(WAIT);
}

#[test]
fn pages_outside_ram_are_no_copy_of_this_vm() {
    let mut host = Host::waiting_for_pages();
    host.tell(TargetEvent::StaticReceived(run(5, 2)));
    host.is_asked(TargetAction::Discard);
}

#[test]
fn a_source_that_cannot_be_told_is_gone() {
    let mut host = Host::waiting_for_pages();
    host.tell(TargetEvent::StaticFailed);
    host.is_asked(FAILED);
    host.tell(TargetEvent::Failed);
    host.is_lost(AbortReason::LinkLost);
}

#[test]
fn a_link_lost_meanwhile_ends_the_attempt() {
    let mut host = Host::waiting_for_pages();
    host.tell(TargetEvent::StaticFailed);
    host.is_asked(FAILED);
    host.tell(TargetEvent::LinkLost);
    host.is_lost(AbortReason::LinkLost);
}
