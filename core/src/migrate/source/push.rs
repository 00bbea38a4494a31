//! What post-copy pushes next: the strategy's order, within what the wire takes in one run.
//!
//! The order only points at pages of the pending set; whatever it does, each is taken out once, by a push or by a request of
//! the target's.

use super::{CHUNK, Source};
use crate::message::Region;
use crate::migrate::regions::room_in_region;
use crate::order::push::{AnyPush, Bubble, Direction, Forecast, Recorded, Sequential};
use crate::pageset::{PageSet, Run};
use crate::strategy::Push;
use crate::units::{Gfn, Pages};

#[cfg(test)]
mod tests;

/// The order, and what it has chosen and is not sent yet. No more memory than the order's few words, and the ranking of a
/// forecast.
#[derive(Debug)]
pub(super) struct Pushing<'w> {
    order: AnyPush<'w>,
    /// What follows, of a run that was chosen, in the next region: neighbouring regions may be neighbours in the set, and the
    /// target takes a run into one region.
    rest: Option<Run>,
}

impl<'w> Pushing<'w> {
    /// At the beginning of the order; a forecast is the sequential one until there is a [ranking](Self::rank),
    /// and so is a [recorded](Self::record) one.
    pub(super) fn new(push: Push) -> Self {
        let order = match push {
            Push::Bubble(pivots) => AnyPush::Bubble(Bubble::new(Direction::Dual, pivots)),
            Push::Sequential | Push::Forecast => AnyPush::Sequential(Sequential::new()),
            Push::Recorded => AnyPush::Recorded(Recorded::new(&[])),
        };
        Self { order, rest: None }
    }

    /// As it was recorded, if that is the order.
    pub(super) fn record(&mut self, order: &'w [Gfn]) {
        if let AnyPush::Recorded(recorded) = &mut self.order {
            *recorded = Recorded::new(order);
        }
    }

    /// From now on by this ranking.
    pub(super) fn rank(&mut self, ranking: Forecast<'w>) {
        self.order = AnyPush::Forecast(ranking);
        self.rest = None;
    }

    /// At the beginning of the order again: what it has gone past may be missing once more.
    pub(super) fn start_again(&mut self, push: Push) {
        match &mut self.order {
            AnyPush::Forecast(ranking) => {
                ranking.start_again();
                self.rest = None;
            }
            AnyPush::Recorded(recorded) => {
                recorded.start_again();
                self.rest = None;
            }
            _ => *self = Self::new(push),
        }
    }

    pub(super) fn on_fault(&mut self, gfn: Gfn) {
        self.order.on_fault(gfn);
    }

    /// Pages of `pending` in one of the regions, at most `max`.
    fn next_run(&mut self, pending: &PageSet<'_>, regions: &[Region], max: Pages) -> Option<Run> {
        let rest = self.rest.take();
        let left = rest.and_then(|rest| Some((first_of(rest, pending)?, rest.end())));
        let (mut run, end) = match left {
            Some(left) => left,
            None => self.order.next_run(pending, max).map(|run| (run, run.end()))?,
        };
        run.count = run.count.min(room_in_region(regions, run.first)?);
        let rest = Run::new(run.end(), Pages(end.0 - run.end().0));
        self.rest = (rest.count > Pages::ZERO).then_some(rest);
        Some(run)
    }
}

/// What of `rest` was not asked for meanwhile, up to the first page that was.
fn first_of(rest: Run, pending: &PageSet<'_>) -> Option<Run> {
    let run = pending.next_run(rest.first, rest.count)?;
    let room = rest.end().0.saturating_sub(run.first.0);
    (room > 0).then_some(Run::new(run.first, run.count.min(Pages(room))))
}

impl Source<'_> {
    /// Takes the next push out of the pending set.
    pub(super) fn next_push(&mut self) -> Option<Run> {
        let most = self.config.push_pages.clamp(Pages(1), CHUNK);
        let run = self.pushing.next_run(&self.pending, &self.config.regions, most)?;
        self.pending.remove_run(run);
        self.pushed_first += run.count.0;
        self.last_chunk = Some(run);
        Some(run)
    }
}
