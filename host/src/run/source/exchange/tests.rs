//! A source without a network, and a directory.

use std::fs;
use std::path::PathBuf;

use dunlin_core::message::{
    AbortReason, Message, PROTOCOL_VERSION, Region, SessionId, TargetReport, TargetStanding, VmId,
};
use dunlin_core::migrate::{Resolution, Source, SourceAction, SourceConfig, SourceRecord};
use dunlin_core::pageset::words_needed;
use dunlin_core::strategy::Strategy;
use dunlin_core::units::{Gfn, Nanos, Pages};

use super::*;
use crate::run::Clock;
use crate::storage::{SessionDirectory, Vm};

/// A source that has just committed, and its place in a directory.
struct Scene {
    root: tempfile::TempDir,
    folder: Folder,
    shared: SharedSource<'static>,
}

impl Scene {
    fn committed() -> Self {
        let root = tempfile::tempdir().unwrap();
        let vm = vm();
        let strategy = Strategy::parse("postcopy,cut=pbdata").unwrap();
        let config = SourceConfig::new(vm.session, vm.id, vm.regions.clone(), strategy);
        let storage = vec![0; words_needed(Pages(64))].leak();
        let source = Source::new(config, storage, Nanos::ZERO).unwrap();
        let scene = Self {
            folder: Folder::new(root.path().to_owned(), vm),
            root,
            shared: SharedSource::new(source, Clock::start()),
        };
        scene.folder.connected(None);
        scene.act();
        let protocol = PROTOCOL_VERSION;
        scene.hear(&Message::Welcome { protocol });
        scene.act();
        scene.hear(&Message::Ready);
        assert_eq!(scene.act(), Some(SourceRecord::GivenUp));
        scene
    }

    fn hear(&self, message: &Message<'_>) {
        self.shared.feed(SourceEvent::Message(message));
    }

    /// Carries out whatever it wants, up to its next wait; the last record it made, if any.
    fn act(&self) -> Option<SourceRecord> {
        let mut record = None;
        loop {
            let action = self.shared.lock().poll(self.shared.clock.now());
            match action {
                SourceAction::Wait { .. } | SourceAction::Finish(_) => return record,
                SourceAction::Record(made) => record = Some(made),
                SourceAction::Reconnect => {
                    self.shared.feed(SourceEvent::Failed);
                    continue;
                }
                _ => {}
            }
            self.shared.feed(SourceEvent::Done);
        }
    }

    fn talk(&self) {
        talk(&self.shared, &self.folder).unwrap();
    }

    /// The folder as the target has it.
    fn directory(&self) -> SessionDirectory {
        SessionDirectory::open(self.root.path(), vm(), None)
    }

    fn target_says(&self, standing: TargetStanding) {
        let report = TargetReport::default();
        let unreadable = false;
        let state = TargetState {
            standing,
            report,
            unreadable,
        };
        self.directory().write_state(state).unwrap();
    }

    fn said(&self) -> Option<SourceState> {
        self.directory().read_state().unwrap()
    }

    fn files(&self) -> Vec<PathBuf> {
        let folder = fs::read_dir(self.directory().path());
        folder.map_or(Vec::new(), |files| files.map(|file| file.unwrap().path()).collect())
    }
}

fn vm() -> Vm {
    let region = Region {
        first: Gfn(0),
        pages: Pages(64),
    };
    Vm {
        session: SessionId(1),
        id: VmId(9),
        regions: [region].into_iter().collect(),
    }
}

#[test]
fn a_target_that_wrote_that_it_is_whole_has_said_so() {
    let scene = Scene::committed();
    scene.shared.feed(SourceEvent::LinkLost);
    scene.talk();
    assert_eq!(scene.said(), Some(SourceState::GivenUp));
    scene.target_says(TargetStanding::PostCopy);
    scene.talk();
    scene.act();
    assert!(scene.shared.lock().stored_given_up().is_some(), "it is over too early");
    scene.target_says(TargetStanding::Complete);
    scene.talk();
    assert_eq!(scene.act(), Some(SourceRecord::MovedAway));
}

#[test]
fn a_target_that_never_took_the_guest_gives_it_back() {
    let scene = Scene::committed();
    scene.shared.feed(SourceEvent::LinkLost);
    scene.talk();
    scene.target_says(TargetStanding::NeverTaken);
    scene.talk();
    assert_eq!(scene.act(), Some(SourceRecord::Running));
}

/// A person knows that the target is dead. Should it be alive after all, it must not find the old word.
#[test]
fn a_word_is_taken_back() {
    let scene = Scene::committed();
    scene.folder.take_back().unwrap();
    assert_eq!(scene.said(), None, "nothing was said");
    scene.shared.feed(SourceEvent::LinkLost);
    scene.talk();
    scene.shared.lock().resolve(Resolution::RunHere).unwrap();
    scene.talk();
    assert_eq!(scene.said(), Some(SourceState::GivenUp), "it is not on record yet");
    scene.folder.take_back().unwrap();
    scene.talk();
    assert_eq!(scene.said(), Some(SourceState::RunsHere));
}

/// Silence alone ended the attempt: nothing was written before.
#[test]
fn a_target_that_may_hold_a_copy_finds_a_word_even_without_a_folder() {
    let scene = Scene::committed();
    let outcome = SourceOutcome::Aborted {
        reason: AbortReason::Silence,
        target_may_hold: true,
    };
    leave(&scene.folder, outcome);
    assert_eq!(scene.said(), Some(SourceState::RunsHere));
}

#[test]
fn a_folder_that_vanished_is_made_anew() {
    let scene = Scene::committed();
    scene.shared.feed(SourceEvent::LinkLost);
    scene.talk();
    fs::remove_dir_all(scene.directory().path()).unwrap();
    scene.talk();
    assert_eq!(scene.said(), Some(SourceState::GivenUp));
}

#[test]
fn a_folder_in_use_is_not_quiet() {
    let scene = Scene::committed();
    scene.shared.feed(SourceEvent::LinkLost);
    scene.talk();
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
    for path in scene.files().iter().chain([&scene.directory().path().to_owned()]) {
        fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
    }
    let quiet = || crate::storage::leftovers(scene.root.path()).unwrap()[0].quiet;
    assert!(quiet() >= Duration::from_secs(3600));
    scene.folder.touch();
    assert!(quiet() < Duration::from_secs(3600));
}

#[test]
fn the_folder_is_left_as_the_target_may_need_it() {
    let aborted = |target_may_hold| SourceOutcome::Aborted {
        reason: AbortReason::Silence,
        target_may_hold,
    };
    for (outcome, left) in [
        (SourceOutcome::Completed, &[][..]),
        (SourceOutcome::Lost, &[]),
        (aborted(false), &[]),
        (aborted(true), &["source.state"]),
        (SourceOutcome::GaveUp, &["pbdata-000000.segment", "source.state"]),
    ] {
        let scene = Scene::committed();
        scene.shared.feed(SourceEvent::LinkLost);
        scene.talk();
        for name in ["pbdata-000000.segment", ".pbdata-000001.unfinished"] {
            fs::write(scene.directory().path().join(name), "pages").unwrap();
        }
        leave(&scene.folder, outcome);
        let mut files = scene.files();
        files.retain(|file| file.extension().is_none_or(|extension| extension != "unfinished"));
        files.sort();
        let expected: Vec<PathBuf> = left.iter().map(|name| scene.directory().path().join(name)).collect();
        assert_eq!(files, expected, "{outcome:?}");
        if outcome == aborted(true) {
            assert_eq!(scene.said(), Some(SourceState::RunsHere));
        }
    }
}

#[test]
fn nothing_is_written_while_there_is_a_network() {
    let scene = Scene::committed();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let talking = scope.spawn(|| exchange(&scene.shared, &scene.folder, &over));
        std::thread::sleep(3 * LOOK);
        assert_eq!(scene.files(), Vec::<PathBuf>::new());
        scene.shared.feed(SourceEvent::LinkLost);
        let deadline = Instant::now() + Duration::from_secs(60);
        while scene.files().is_empty() {
            assert!(Instant::now() < deadline, "it never says anything");
            std::thread::sleep(LOOK);
        }
        over.store(true, Ordering::Release);
        talking.thread().unpark();
    });
}
