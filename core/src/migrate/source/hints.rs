//! Pages that need not be sent because the guest says that nobody will read them.
//!
//! A *hint* names pages that were soft (free, or ballooned) at some instant after dirty tracking was switched on and an *epoch* was opened.
//! Such a page is not sent; the target is told that it is zero, which costs a frame per run, and it stays absent there: a first touch
//! fills it with zeros at once, in post-copy, too, where nobody is asked for it.
//!
//! **Law.** A hint takes a page only out of the first full set. A page that any reading of the dirty log has found since tracking began is
//! never taken, and one that is found later, whenever it was hinted, is dirty like any other. It holds because:
//!
//! * hints are listened to in one step alone, before the first page is sent, in which the log is not read. A write since the epoch
//!   was opened is in the log, and the next reading brings the page back;
//! * what was sampled before that step is remembered, and no hint touches it;
//! * nothing that the target's host reads itself is taken, nor anything outside the guest.
//!
//! So an honest agent loses nothing, however late its words come, and one that lies loses what it called soft and the guest has not written
//! since tracking began. QEMU's free page hints say the same to the same kind of log, and are off as soon as post-copy is allowed
//! (hw/virtio/virtio-balloon.c), because a page that its target was never told of would be waited for.
//!
//! The copy waits for hints, at most for [`hint_patience`](super::SourceConfig::hint_patience): a scan of a gibibyte takes a fraction of what sending it does.

use super::{Source, SourceAction, Step};
use crate::message::{AbortReason, Mode};
use crate::migrate::regions::room_in_region;
use crate::pageset::{PageSet, PageSetError, Run, words_needed};
use crate::units::{Gfn, Nanos, Pages};

/// Most pages of one frame that tells of zeros.
const TOLD_MAX: Pages = Pages(1 << 18);

/// Three [`PageSet`]s over the VM, borrowed.
#[derive(Debug)]
pub(super) struct Hints<'w> {
    /// Zero on the target because of a hint, and not found dirty since.
    zeroed: PageSet<'w>,
    /// Of these, the target is still to be told.
    untold: PageSet<'w>,
    /// Found dirty before hints were asked for.
    touched: PageSet<'w>,
    taken: Pages,
    /// Requests of the target for pages that it was told are zero.
    requests: u64,
}

/// Sets that hints need.
pub(super) const HINT_SETS: usize = 3;

impl<'w> Hints<'w> {
    /// With words for one set after the other.
    pub(super) fn new(words: &'w mut [u64], pages: Pages) -> Result<Self, PageSetError> {
        let (zeroed, rest) = words.split_at_mut(words_needed(pages));
        let (untold, touched) = rest.split_at_mut(words_needed(pages));
        Ok(Self {
            zeroed: PageSet::new(zeroed, pages)?,
            untold: PageSet::new(untold, pages)?,
            touched: PageSet::new(touched, pages)?,
            taken: Pages::ZERO,
            requests: 0,
        })
    }

    /// The target asks for a page. O(1).
    pub(super) fn on_fault(&mut self, gfn: Gfn) {
        self.requests += u64::from(self.zeroed.contains(gfn));
    }

    /// A reading of the dirty log that is not remembered elsewhere.
    pub(super) fn sampled(&mut self, words: &[u64]) -> Result<(), PageSetError> {
        self.touched.union_words(0, words).map(drop)
    }

    /// Takes what is soft out of what is to be sent. O(words of the run).
    fn take(&mut self, run: Run, pending: &mut PageSet<'_>) -> Result<(), PageSetError> {
        let mut from = run.first;
        while let Some(mut found) = pending.next_run(from, Pages(run.end().0.saturating_sub(from.0))) {
            let Some(room) = run.end().0.checked_sub(found.first.0).filter(|room| *room > 0) else {
                break;
            };
            found.count = found.count.min(Pages(room));
            from = found.end();
            self.take_untouched(found, pending)?;
        }
        Ok(())
    }

    fn take_untouched(&mut self, run: Run, pending: &mut PageSet<'_>) -> Result<(), PageSetError> {
        let mut from = run.first;
        while from < run.end() {
            let left = Pages(run.end().0 - from.0);
            let touched = self
                .touched
                .next_run(from, left)
                .filter(|found| found.first < run.end());
            let end = touched.map_or(run.end(), |found| found.first);
            let soft = Run::new(from, Pages(end.0 - from.0));
            pending.remove_run(soft);
            self.taken = self.taken.saturating_add(self.zeroed.insert_run(soft)?);
            self.untold.insert_run(soft)?;
            from = touched.map_or(run.end(), Run::end);
        }
        Ok(())
    }

    fn give_back(&mut self, run: Run, pending: &mut PageSet<'_>) -> Result<(), PageSetError> {
        while let Some(found) = self
            .zeroed
            .next_run(run.first, run.count)
            .filter(|it| it.first < run.end())
        {
            let found = Run::new(found.first, found.count.min(Pages(run.end().0 - found.first.0)));
            self.zeroed.remove_run(found);
            self.untold.remove_run(found);
            self.taken = self.taken.saturating_sub(found.count);
            pending.insert_run(found)?;
        }
        Ok(())
    }
}

impl<'w> Source<'w> {
    /// Pages that are zero on the target because of hints, whatever is in them here; `None` without an agent. A host that compares memory
    /// takes them for zero.
    pub fn zeroed(&self) -> Option<&PageSet<'w>> {
        self.hints.as_ref().map(|hints| &hints.zeroed)
    }

    /// Pages that hints have taken out of the first full set.
    pub fn hinted(&self) -> Pages {
        self.hints.as_ref().map_or(Pages::ZERO, |hints| hints.taken)
    }

    /// How often the target asked for a page that it had been told is zero: never, unless it has forgotten.
    pub fn hinted_requests(&self) -> u64 {
        self.hints.as_ref().map_or(0, |hints| hints.requests)
    }

    /// Until when hints are waited for; `None` if they are not, or not any more.
    pub fn listens_until(&self) -> Option<Nanos> {
        match self.step {
            Step::AwaitHints { until } => Some(until),
            _ => None,
        }
    }

    /// Before the first page is sent: hints, if there is somebody to give them.
    pub(super) fn before_copy(&mut self, now: Nanos) -> Step {
        match self.hints {
            Some(_) => Step::OpenEpoch,
            None => self.begin_copy(now),
        }
    }

    pub(super) fn begin_copy(&mut self, now: Nanos) -> Step {
        if self.switcher.starts_with_post_copy() {
            Step::Pause(Mode::PostCopy)
        } else {
            self.after_tracking(now)
        }
    }

    pub(super) fn epoch_opened(&self, now: Nanos) -> Step {
        let patience = self.config.hint_patience.unwrap_or_default();
        Step::AwaitHints {
            until: now.saturating_add(patience),
        }
    }

    /// What comes at any other time is too late, or was not asked for.
    pub(super) fn on_hint(&mut self, run: Run) {
        let (Step::AwaitHints { .. }, Some(hints)) = (self.step, &mut self.hints) else {
            return;
        };
        let host_pages = self.config.host_pages.iter();
        let taken = hints.take(run, &mut self.pending).and_then(|()| {
            host_pages
                .copied()
                .try_for_each(|page| hints.give_back(page, &mut self.pending))
        });
        if taken.is_err() {
            // The sets have the capacity of the pending one.
            self.abort(AbortReason::Internal);
        }
    }

    pub(super) fn hints_ended(&mut self) {
        if matches!(self.step, Step::AwaitHints { .. }) {
            self.previous_dirty = self.pending.len();
            self.step = Step::TellHints;
        }
    }

    /// The next run that the target is to be told of.
    pub(super) fn tell_hint(&mut self) -> Option<SourceAction> {
        let hints = self.hints.as_mut()?;
        let mut run = hints.untold.next_run(Gfn::ZERO, TOLD_MAX)?;
        run.count = run.count.min(room_in_region(&self.config.regions, run.first)?);
        hints.untold.remove_run(run);
        Some(SourceAction::SendZeros(run))
    }

    /// What is dirty now is not zero there any more.
    pub(super) fn end_hints_of_dirty(&mut self) {
        if let Some(hints) = &mut self.hints {
            hints.zeroed.subtract(&self.pending);
        }
    }

    /// What was put back to be sent is zero there all the same: how many pages that are.
    pub(super) fn keep_hints(&mut self) -> Pages {
        match &self.hints {
            Some(hints) => self.pending.subtract(&hints.zeroed),
            None => Pages::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    const END: u64 = 200;

    fn runs() -> impl Strategy<Value = Vec<Run>> {
        prop::collection::vec((0..END + 50, 0..60_u64), 0..12).prop_map(|runs| {
            let run = |&(first, count): &(u64, u64)| Run::new(Gfn(first), Pages(count));
            runs.iter().map(run).collect()
        })
    }

    fn pages(set: &PageSet<'_>) -> Vec<u64> {
        set.runs().flat_map(|run| run.first.0..run.end().0).collect()
    }

    proptest! {
        /// Against single pages: what is taken was to be sent, hinted, and never touched; nothing is in two places or in none.
        #[test]
        fn takes_what_was_hinted_and_untouched(
            initial in runs(), touched in runs(), hinted in runs(), host in runs(),
        ) {
            let words = words_needed(Pages(END));
            let (mut of_pending, mut of_hints) = (vec![0; words], vec![0; HINT_SETS * words]);
            let mut pending = PageSet::new(&mut of_pending, Pages(END)).unwrap();
            let mut hints = Hints::new(&mut of_hints, Pages(END)).unwrap();
            let inside = |run: &Run| Run::new(run.first, Pages(run.count.0.min(END.saturating_sub(run.first.0))));
            for run in &initial {
                pending.insert_run(inside(run)).unwrap();
            }
            for run in &touched {
                hints.touched.insert_run(inside(run)).unwrap();
            }
            let (before, touched) = (pages(&pending), pages(&hints.touched));
            for run in &hinted {
                hints.take(*run, &mut pending).unwrap();
            }
            for run in &host {
                hints.give_back(*run, &mut pending).unwrap();
            }
            let within = |runs: &[Run], page: &u64| runs.iter().any(|run| (run.first.0..run.end().0).contains(page));
            let (soft, rest): (Vec<u64>, Vec<u64>) = before.iter().partition(|page| {
                within(&hinted, page) && !touched.contains(page) && !within(&host, page)
            });
            prop_assert_eq!(&pages(&hints.zeroed), &soft);
            prop_assert_eq!(&pages(&hints.untold), &soft);
            prop_assert_eq!(hints.taken, Pages(soft.len() as u64));
            prop_assert_eq!(pages(&pending), rest);
        }
    }
}
