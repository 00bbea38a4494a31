//! Post-copy in which the target fetches page after page: one request, one page, and then the next.

use std::collections::VecDeque;

use dunlin_core::units::{Gfn, Nanos};

use super::world::World;

/// What is asked for on the one connection there is.
#[derive(Debug, Default)]
pub(super) struct Pull {
    waiting: VecDeque<Gfn>,
    in_flight: Option<Gfn>,
}

impl World<'_, '_> {
    /// The guest needs a page: it is asked for when the connection is free, before any that nobody needs yet.
    pub(super) fn pull_for_guest(&mut self, gfn: Gfn, at: Nanos) {
        if self.pull.in_flight == Some(gfn) || self.pull.waiting.contains(&gfn) {
            return;
        }
        self.pull.waiting.push_back(gfn);
        self.pull_next(at);
    }

    /// A page has come, or there is a reason to begin.
    pub(super) fn pull_next(&mut self, at: Nanos) {
        if self.pull.in_flight.is_some_and(|gfn| self.lacks(gfn)) {
            return;
        }
        self.pull.in_flight = None;
        let next = loop {
            match self.pull.waiting.pop_front() {
                Some(gfn) if !self.lacks(gfn) => {}
                other => break other,
            }
        };
        let missing = self.target.as_ref().map(dunlin_core::migrate::Target::missing);
        let Some(gfn) = next.or_else(|| missing.and_then(|missing| missing.runs().next()).map(|run| run.first)) else {
            return;
        };
        self.pull.in_flight = Some(gfn);
        self.send_request(gfn, at);
    }

    fn lacks(&self, gfn: Gfn) -> bool {
        self.target
            .as_ref()
            .is_some_and(|target| target.missing().contains(gfn))
    }
}
