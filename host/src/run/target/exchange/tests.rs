//! A target without a network, and a directory.

use std::sync::Arc;

use dunlin_core::message::{Message, Mode, SessionId, TargetReport, VmId};
use dunlin_core::migrate::{TargetAction, TargetRecord};
use dunlin_core::pageset::Run;
use dunlin_core::units::{Gfn, Pages};

use super::super::merge::tests::shared_with;
use super::*;
use crate::memory::GuestMemory;
use crate::memory::tests::memory;
use crate::storage::Vm;

const MIB: u64 = 1 << 20;

/// A target that has been handed a VM over and knows the final dirty set, and the folder of the session.
pub(in super::super) struct Scene {
    _root: tempfile::TempDir,
    pub(in super::super) directory: SessionDirectory,
    pub(in super::super) memory: Arc<GuestMemory>,
    pub(in super::super) shared: SharedTarget<'static>,
}

impl Scene {
    /// Ready to run, with the pages of this word of the bitmap missing.
    pub(in super::super) fn ready(missing: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let memory = Arc::new(memory(MIB));
        let shared = shared_with(&memory, false);
        let vm = Vm {
            session: SessionId(1),
            id: VmId(9),
            regions: crate::run::vm::regions(memory.layout()),
        };
        let directory = SessionDirectory::create(root.path(), vm, None).unwrap();
        let scene = Self {
            _root: root,
            directory,
            memory,
            shared,
        };
        scene.act();
        scene
            .shared
            .feed(TargetEvent::StaticReceived(Run::new(Gfn(0), Pages(256))));
        scene.shared.feed(TargetEvent::StaticEnded);
        scene.act();
        let words = missing.to_le_bytes();
        scene.hear(&Message::FinalSet {
            first_word: 0,
            words: &words,
        });
        scene.hear(&Message::HandOver {
            mode: Mode::PostCopy,
            state_bytes: 0,
            final_dirty: Pages(u64::from(missing.count_ones())),
        });
        assert_eq!(scene.act(), None, "it waits for the commit");
        scene
    }

    /// The same, and it runs.
    pub(in super::super) fn running(missing: u64) -> Self {
        let scene = Self::ready(missing);
        scene.hear(&Message::Commit);
        scene.act();
        assert!(scene.shared.lock().running());
        scene
    }

    fn hear(&self, message: &Message<'_>) {
        self.shared.feed(TargetEvent::Message(message));
    }

    fn talk(&self) {
        talk(&self.shared, &self.directory).unwrap();
    }

    /// Carries out whatever it wants, up to its next wait; the last record it made, if any.
    fn act(&self) -> Option<TargetRecord> {
        let mut record = None;
        loop {
            let now = self.shared.now();
            let action = self.shared.lock().poll(now);
            match action {
                TargetAction::Wait { .. } | TargetAction::Finish(_) => return record,
                TargetAction::Record(made @ (TargetRecord::Taken | TargetRecord::Complete)) => record = Some(made),
                _ => {}
            }
            self.shared.feed(TargetEvent::Done);
        }
    }

    fn said(&self) -> Option<TargetState> {
        self.directory.read_state().unwrap()
    }
}

#[test]
fn a_source_that_wrote_that_it_gave_up_has_said_so() {
    let scene = Scene::ready(0b11);
    scene.shared.feed(TargetEvent::LinkLost);
    scene.talk();
    assert_eq!(scene.act(), None, "nobody has said anything");
    assert_eq!(scene.said(), None);
    scene.directory.write_state(SourceState::GivenUp).unwrap();
    scene.talk();
    assert_eq!(scene.act(), Some(TargetRecord::Taken));
    scene.talk();
    assert_eq!(scene.said().unwrap().standing, TargetStanding::PostCopy);
}

#[test]
fn a_source_that_runs_its_guest_ends_the_attempt() {
    let scene = Scene::ready(0);
    scene.shared.feed(TargetEvent::LinkLost);
    scene.directory.write_state(SourceState::RunsHere).unwrap();
    scene.talk();
    assert_eq!(scene.act(), None);
    scene.talk();
    assert_eq!(scene.said().unwrap().standing, TargetStanding::NeverTaken);
}

#[test]
fn a_whole_guest_is_told_with_what_was_measured() {
    let scene = Scene::running(0b101);
    scene.shared.feed(TargetEvent::LinkLost);
    scene
        .shared
        .feed(TargetEvent::InstalledFromStorage(Run::new(Gfn(0), Pages(3))));
    assert_eq!(scene.act(), Some(TargetRecord::Complete));
    scene.talk();
    assert_eq!(scene.said(), None, "it is not measured yet");
    let report = TargetReport {
        stored: 2,
        ..TargetReport::default()
    };
    *scene.shared.report.lock().unwrap() = Some(report);
    scene.talk();
    let standing = TargetStanding::Complete;
    assert_eq!(
        scene.said(),
        Some(TargetState {
            standing,
            report,
            unreadable: false
        })
    );
}

/// Ended or not, nothing is written while the link is believed in; at the end of one that is lost, the last word is.
#[test]
fn nothing_is_written_while_there_is_a_network() {
    let scene = Scene::running(1);
    let over = AtomicBool::new(true);
    exchange(&scene.shared, &scene.directory, &over);
    assert_eq!(scene.said(), None);
    scene.shared.feed(TargetEvent::LinkLost);
    exchange(&scene.shared, &scene.directory, &over);
    assert_eq!(scene.said().unwrap().standing, TargetStanding::PostCopy);
}

/// As long as the directory itself is there: one that is not mounted any more says nothing of the source.
#[test]
fn a_source_that_removed_its_folder_has_heard_that_the_guest_is_whole() {
    for mounted in [true, false] {
        let scene = Scene::running(1);
        scene.shared.feed(TargetEvent::LinkLost);
        scene
            .shared
            .feed(TargetEvent::InstalledFromStorage(Run::new(Gfn(0), Pages(1))));
        scene.act();
        *scene.shared.report.lock().unwrap() = Some(TargetReport::default());
        scene.talk();
        let folder = scene.directory.path();
        std::fs::remove_dir_all(if mounted { folder } else { folder.parent().unwrap() }).unwrap();
        let over = AtomicBool::new(true);
        exchange(&scene.shared, &scene.directory, &over);
        let now = scene.shared.now();
        let next = scene.shared.lock().poll(now);
        assert_eq!(matches!(next, TargetAction::Finish(_)), mounted, "{next:?}");
    }
}
