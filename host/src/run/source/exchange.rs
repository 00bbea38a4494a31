//! The slow way of talking: while the network is down, each side reads in the storage directory where the other stands.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dunlin_core::migrate::{SourceEvent, SourceOutcome};

use super::folder::Folder;
use super::link::SharedSource;
use crate::storage::{SourceState, StorageError, TargetState};

/// How often the link is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How often something is written and read while it is down.
const EVERY: Duration = Duration::from_secs(1);
/// How often the folder is shown to be in use while it is up: an hour without a sign makes it one that was left behind.
const TOUCH_EVERY: Duration = Duration::from_secs(300);

/// Writes where this side stands and reads where the target does, as long as the link is lost and nobody ends it.
pub(super) fn exchange(shared: &SharedSource<'_>, folder: &Folder, over: &AtomicBool) {
    let (mut last, mut troubled, mut touched) = (None::<Instant>, false, Instant::now());
    // The target sees in time whether both mean the same directory.
    if let Err(error) = folder.make() {
        shared.warn(format!(
            "the storage directory is of no use now, which is tried again when it is needed: {}",
            crate::run::chain(&error)
        ));
    }
    while !over.load(Ordering::Acquire) {
        std::thread::park_timeout(LOOK);
        if shared.lock().linked() {
            last = None;
            if touched.elapsed() >= TOUCH_EVERY {
                folder.touch();
                touched = Instant::now();
            }
            continue;
        }
        if last.is_some_and(|last| last.elapsed() < EVERY) {
            continue;
        }
        last = Some(Instant::now());
        match talk(shared, folder) {
            Ok(()) => troubled = false,
            Err(error) if !std::mem::replace(&mut troubled, true) => {
                shared.warn(format!(
                    "the storage directory does not carry messages to the target, which is tried again every second: {}",
                    crate::run::chain(&error)
                ));
            }
            Err(_) => {}
        }
    }
}

fn talk(shared: &SharedSource<'_>, folder: &Folder) -> Result<(), StorageError> {
    folder.say(|| {
        let given_up = shared.lock().stored_given_up()?;
        Some(if given_up {
            SourceState::GivenUp
        } else {
            SourceState::RunsHere
        })
    })?;
    if let Some(said) = folder.directory()?.read_state::<TargetState>()? {
        let TargetState { standing, report, .. } = said;
        shared.feed(SourceEvent::TargetState { standing, report });
        if said.unreadable {
            shared.feed(SourceEvent::PbDataFailed);
        }
    }
    Ok(())
}

/// What becomes of the folder, now that the attempt has ended so.
pub(super) fn leave(folder: &Folder, outcome: SourceOutcome) {
    let left = match outcome {
        SourceOutcome::Aborted {
            target_may_hold: true, ..
        } => folder.keep_word(SourceState::RunsHere),
        SourceOutcome::GaveUp => {
            folder.keep();
            Ok(())
        }
        SourceOutcome::Completed | SourceOutcome::Aborted { .. } | SourceOutcome::Refused(_) | SourceOutcome::Lost => {
            folder.remove()
        }
    };
    if let Err(error) = left {
        eprintln!("dunlin: {}", crate::run::chain(&error));
    }
}

#[cfg(test)]
mod tests;
