//! What a target makes of the source's messages and pages.

use super::{Outstanding, Step, Target, Via};
use crate::message::{
    AbortReason, Message, Mode, SIGNATURE_BYTES_MAX, STATE_BYTES_MAX, Violation, run_in_regions, total_pages,
};
use crate::migrate::regions::remove_outside;
use crate::pageset::{PageSetError, Run};
use crate::units::{Gfn, Pages};

impl Target<'_> {
    pub(super) fn message(&mut self, message: &Message<'_>) {
        if !self.link && !matches!(message, Message::Commit | Message::Abort(_)) {
            // Of a connection that is lost: it is said again on the next. What the source has decided it has decided.
            return;
        }
        if self.outstanding == Outstanding::Step && answers(message, self.step) {
            // It arrived, then, though the host has not said yet that it was sent.
            self.done();
        }
        match (message, self.step) {
            (Message::RoundStart { round, pages }, Step::AwaitPages) if !self.in_round => {
                self.round_start(*round, *pages)
            }
            (Message::RoundEnd { round }, Step::AwaitPages) if self.in_round && *round == self.round => {
                self.in_round = false;
                self.step = Step::RoundReached;
            }
            (Message::FinalSet { first_word, words }, Step::AwaitPages) if !self.in_round => {
                self.final_set(*first_word, words);
            }
            (Message::State { offset, bytes }, Step::AwaitPages) if !self.in_round => self.state(*offset, bytes.len()),
            (
                Message::HandOver {
                    mode,
                    state_bytes,
                    final_dirty,
                },
                Step::AwaitPages,
            ) if !self.in_round => self.hand_over(*mode, *state_bytes, *final_dirty),
            (Message::Commit, Step::AwaitCommit) => self.step = Step::RecordTaken,
            (Message::Signed { signature }, _) if signature.len() <= SIGNATURE_BYTES_MAX => {}
            (Message::Abort(reason), _) if !self.committed() => {
                self.link = false;
                self.fail(match reason {
                    AbortReason::Cancelled => AbortReason::Cancelled,
                    _ => AbortReason::Peer,
                });
            }
            (Message::Hashes { first, bytes }, _) if self.hears_hashes() => self.hashes(*first, bytes),
            (Message::HashesEnd, _) if self.hears_hashes() => self.hashes_ended = true,
            (Message::Bye, Step::AwaitBye) => self.step = self.completed(),
            _ => self.violation(Violation::UnexpectedMessage),
        }
    }

    fn round_start(&mut self, round: u32, pages: Pages) {
        if self.round.checked_add(1) != Some(round) || pages > total_pages(&self.config.regions) {
            return self.violation(Violation::Round);
        }
        (self.round, self.round_pages, self.in_round) = (round, pages, true);
    }

    fn state(&mut self, offset: u32, length: usize) {
        let end = u32::try_from(length).ok().and_then(|length| offset.checked_add(length));
        match end {
            Some(end) if offset == self.state_received && end <= STATE_BYTES_MAX => self.state_received = end,
            _ => self.violation(Violation::StateChunk),
        }
    }

    fn final_set(&mut self, first_word: u64, words: &[u8]) {
        let (chunks, rest) = words.as_chunks::<8>();
        let Ok(first) = usize::try_from(first_word) else {
            return self.violation(Violation::BitmapChunk);
        };
        if !rest.is_empty() {
            return self.violation(Violation::BitmapChunk);
        }
        for (index, bytes) in chunks.iter().enumerate() {
            let at = first.checked_add(index);
            if at.is_none_or(|at| self.missing.union_words(at, &[u64::from_le_bytes(*bytes)]).is_err()) {
                return self.violation(Violation::BitmapChunk);
            }
        }
    }

    /// Fixes what is missing: everything never received, and everything dirty in the end, whichever channel brought an older copy.
    fn hand_over(&mut self, mode: Mode, state_bytes: u32, final_dirty: Pages) {
        if state_bytes != self.state_received {
            return self.violation(Violation::StateChunk);
        }
        if remove_outside(&mut self.missing, &self.config.regions) > Pages::ZERO {
            return self.violation(Violation::PageOutside);
        }
        if self.missing.len() != final_dirty {
            return self.violation(Violation::DirtyCount);
        }
        let total = total_pages(&self.config.regions);
        if mode == Mode::StopCopy && (self.received.len() != total || !self.missing.is_empty()) {
            return self.violation(Violation::PagesMissing);
        }
        for index in 0..self.config.regions.len() {
            let region = self.config.regions[index];
            if self.add_never_received(Run::new(region.first, region.pages)).is_err() {
                return self.violation(Violation::BitmapChunk);
            }
        }
        self.totals.missing_at_start = self.missing.len();
        self.handover = Some(mode);
        self.step = if mode == Mode::PostCopy {
            Step::PrepareMissing
        } else {
            Step::Restore
        };
    }

    fn add_never_received(&mut self, region: Run) -> Result<(), PageSetError> {
        let mut at = region.first;
        while at < region.end() {
            let next = self
                .received
                .next_run(at, Pages(u64::MAX))
                .filter(|run| run.first < region.end());
            let gap_end = next.map_or(region.end(), |run| run.first);
            if gap_end > at {
                self.missing.insert_run(Run::new(at, Pages(gap_end.0 - at.0)))?;
            }
            at = next.map_or(region.end(), Run::end);
        }
        Ok(())
    }

    /// Once for each connection, by a source that said it would.
    fn hears_hashes(&self) -> bool {
        self.running && self.config.verify && !self.hashes_ended
    }

    fn hashes(&mut self, first: Gfn, bytes: &[u8]) {
        let count = bytes.len() as u64 / 8;
        let whole = bytes.len().is_multiple_of(8) && run_in_regions(&self.config.regions, first, count);
        if !whole || first < self.hashed_to {
            return self.violation(Violation::Hashes);
        }
        self.hashed_to = Gfn(first.0 + count);
    }

    pub(super) fn receive(&mut self, run: Run) {
        if self.outstanding == Outstanding::Step && matches!(self.step, Step::Welcome | Step::RoundReached) {
            self.done();
        }
        if self.step != Step::AwaitPages {
            self.violation(Violation::UnexpectedMessage);
        } else if !run_in_regions(&self.config.regions, run.first, run.count.0)
            || self.received.insert_run(run).is_err()
        {
            self.violation(Violation::PageOutside);
        } else {
            self.complete_static();
        }
    }

    pub(super) fn install(&mut self, run: Run, via: Via) {
        if self.handover.is_none() {
            return self.violation(Violation::UnexpectedMessage);
        }
        if !run_in_regions(&self.config.regions, run.first, run.count.0) {
            return self.violation(Violation::PageOutside);
        }
        let removed = self.missing.remove_run(run);
        let total = match via {
            Via::Demand => &mut self.totals.demanded,
            Via::Push => &mut self.totals.pushed,
            Via::Storage => &mut self.totals.stored,
        };
        *total += removed.0;
        debug_assert_eq!(
            self.totals.demanded + self.totals.pushed + self.totals.stored + self.missing.len().0,
            self.totals.missing_at_start.0,
            "what was installed and what is missing make what was missing"
        );
    }
}

/// Whether a message answers what this step sends.
fn answers(message: &Message<'_>, step: Step) -> bool {
    matches!(
        (message, step),
        (
            Message::RoundStart { .. } | Message::FinalSet { .. } | Message::State { .. } | Message::HandOver { .. },
            Step::Welcome | Step::RoundReached
        ) | (Message::Commit, Step::Ready)
            | (Message::Bye, Step::Complete)
    )
}
