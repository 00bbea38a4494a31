//! Memory is made ready for announced pages while others are still on their way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread::{Scope, ScopedJoinHandle};

use dunlin_core::pageset::Run;

use crate::memory::GuestMemory;

/// Announcements remembered; the source is never more than one chunk ahead.
const REMEMBERED: usize = 64;

/// A thread that populates what was announced.
pub(super) struct Populator<'s> {
    runs: Option<SyncSender<Run>>,
    thread: Option<ScopedJoinHandle<'s, ()>>,
    told: VecDeque<Run>,
}

impl<'s> Populator<'s> {
    pub(super) fn new() -> Self {
        Self {
            runs: None,
            thread: None,
            told: VecDeque::with_capacity(REMEMBERED),
        }
    }

    /// Starts the thread; `huge` if the memory will never be watched by userfaultfd.
    pub(super) fn start(&mut self, scope: &'s Scope<'s, '_>, memory: Arc<GuestMemory>, huge: bool) {
        // A source that announces faster than memory comes into being gains nothing by it, and must not fill ours with its words.
        let (runs, announced) = mpsc::sync_channel(REMEMBERED);
        self.runs = Some(runs);
        self.thread = Some(scope.spawn(move || {
            for run in announced {
                // Memory that cannot be had now is asked for again, and missed by name, when the data arrives.
                let _ = if huge {
                    memory.populate_huge(run)
                } else {
                    memory.populate(run)
                };
            }
        }));
    }

    /// Data for this run comes soon. With many announced before it, it comes into being when the data arrives.
    pub(super) fn tell(&mut self, run: Run) {
        if let Some(runs) = &self.runs
            && runs.try_send(run).is_ok()
        {
            if self.told.len() == REMEMBERED {
                self.told.pop_front();
            }
            self.told.push_back(run);
        }
    }

    /// Whether a run lies in one that was announced.
    pub(super) fn is_told_of(&self, run: Run) -> bool {
        let within = |told: &Run| told.first <= run.first && run.end() <= told.end();
        self.told.iter().rev().any(within)
    }

    /// Ends the thread, after what it was told of. Nothing comes into being behind the caller's back afterwards.
    pub(super) fn finish(&mut self) {
        self.runs = None;
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed; the pages come into being when they are written.
            let _ = thread.join();
        }
    }
}
