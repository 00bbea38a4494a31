//! The slow way of talking: while the network is down, each side reads in the storage directory where the other stands.

use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dunlin_core::message::TargetStanding;
use dunlin_core::migrate::TargetEvent;

use super::SharedTarget;
use super::static_reader::APPEARS_WITHIN;
use crate::storage::{SessionDirectory, SourceState, StorageError, TargetState};

/// How often the link is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How often something is written and read while it is down.
const EVERY: Duration = Duration::from_secs(1);

/// Writes where this side stands and reads where the source does, as long as the link is lost and nobody ends it; in the end
/// what became of the attempt.
pub(super) fn exchange(shared: &SharedTarget<'_>, directory: &SessionDirectory, over: &AtomicBool) {
    let (mut last, mut troubled, began, mut looked) = (None::<Instant>, false, Instant::now(), false);
    loop {
        let ends = over.load(Ordering::Acquire);
        if shared.lock().linked() {
            last = None;
        } else if ends || last.is_none_or(|last| last.elapsed() >= EVERY) {
            last = Some(Instant::now());
            match talk(shared, directory) {
                Ok(()) => troubled = false,
                Err(_) if is_over(shared) && is_gone(directory) => shared.feed(TargetEvent::SourceEnded),
                Err(error) if !std::mem::replace(&mut troubled, true) => {
                    eprintln!(
                        "dunlin: the storage directory does not carry messages to the source, which is tried again every second: {}",
                        crate::run::chain(&error)
                    );
                }
                Err(_) => {}
            }
        }
        if ends {
            return;
        }
        // Of a static copy its reader says so.
        let due = !looked && began.elapsed() >= APPEARS_WITHIN;
        looked |= due;
        if due && shared.lock().config().pb_data && !directory.appears() {
            let elsewhere = StorageError::Elsewhere(directory.path().into());
            eprintln!("dunlin: the end of the network will not be survived: {elsewhere}");
        }
        std::thread::park_timeout(LOOK);
    }
}

fn is_over(shared: &SharedTarget<'_>) -> bool {
    let standing = shared.lock().stored_standing();
    matches!(standing, Some(TargetStanding::Complete | TargetStanding::NeverTaken))
}

/// Only a source that has heard the last word removes what both have there. Where the whole directory is gone nothing is known.
fn is_gone(directory: &SessionDirectory) -> bool {
    let is_there = |path: &Path| path.try_exists().unwrap_or(true);
    !is_there(directory.path()) && directory.path().parent().is_some_and(is_there)
}

fn talk(shared: &SharedTarget<'_>, directory: &SessionDirectory) -> Result<(), StorageError> {
    let standing = shared.lock().stored_standing();
    let report = *shared.report.lock().unwrap_or_else(PoisonError::into_inner);
    match (standing, report) {
        (Some(TargetStanding::Complete), Some(report)) => directory.write_state(TargetState {
            standing: TargetStanding::Complete,
            report,
            unreadable: false,
        })?,
        // It is measured in a moment.
        (Some(TargetStanding::Complete) | None, _) => {}
        (Some(standing), _) => directory.write_state(TargetState {
            standing,
            report: Default::default(),
            unreadable: shared.unreadable.load(Ordering::Acquire),
        })?,
    }
    if let Some(state) = directory.read_state::<SourceState>()? {
        let given_up = state == SourceState::GivenUp;
        shared.feed(TargetEvent::SourceState { given_up });
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
