//! Checking a whole working set at once, also pages that no later step may come to.

use super::{Places, Runner, StampError};
use crate::units::{Gfn, PAGE_SIZE, Pages};
use crate::workload::layout::MAX_VCPUS;
use crate::workload::stamp::StampErrorKind;
use crate::workload::{Fill, Kind, Ram};

impl Runner {
    /// Checks every page that this vCPU has an entry in its ledger for, and the ledger, against what follows from the boot block
    /// after [`steps`](Self::steps) steps, all of which are generated anew: unlike the checks of single steps, this finds a page that
    /// went back in time together with its ledger. Of a page it checks this vCPU's stamps and all words where no vCPU's stamps
    /// are. Returns how many pages this vCPU has written.
    ///
    /// `sequences` is room to work in, whatever it holds: as many entries as the working set has pages. Takes as long as the
    /// steps did, and some instructions per word of the working set.
    ///
    /// # Errors
    /// The first page that is not as it should be; its frame is one of the ledger's if that is wrong.
    ///
    /// # Panics
    /// If `sequences` is too short.
    pub fn check_all(&self, ram: &impl Ram, sequences: &mut [u16]) -> Result<Pages, StampError> {
        let sequences = &mut sequences[..self.plan.ws().0 as usize];
        self.replay(sequences);
        let (to_head, head_to_tail) = Places::offsets(self.vcpu);
        let (ledger, pages) = self.plan.ledger(self.vcpu);
        let fill = |address| self.fill.word(self.seed, address);
        let mut written = 0;
        for (page, entry) in pages.zip((ledger..).step_by(2)) {
            let sequence = sequences[page as usize];
            let found = ram.read_u16(entry);
            if found != sequence {
                return Err(StampError {
                    kind: StampErrorKind::Stale,
                    gfn: Gfn(entry / PAGE_SIZE),
                    expected: sequence.into(),
                    found: found.into(),
                });
            }
            if sequence == 0 && self.life != 0 {
                // Nobody's: whatever is in it.
                continue;
            }
            let start = self.plan.gfn(page).0 * PAGE_SIZE;
            let places = Places::at(start + to_head, head_to_tail);
            if sequence == 0 || !places.hold(places.stamp(sequence), ram) {
                places.judge(sequence, fill, ram)?;
            }
            let rest = if self.life == 0 { self.fill } else { Fill::Zero };
            check_rest(start, rest, self.seed, ram)?;
            written += u64::from(sequence != 0);
        }
        Ok(Pages(written))
    }

    /// Counts the writes of each page as the ledger does.
    fn replay(&self, sequences: &mut [u16]) {
        sequences.fill(0);
        let mut generator = self.generator.restarted(self.seed);
        while generator.steps() < self.steps() {
            let steps = generator.left_in_phase().min(self.steps() - generator.steps());
            let Ok(()) = generator.run_steps(steps, |step| {
                if step.kind == Kind::Write {
                    let sequence = &mut sequences[step.page as usize];
                    *sequence = match self.life {
                        0 => sequence.wrapping_add(1).max(1),
                        _ => self.next_in_life(step.page, *sequence),
                    };
                }
                Ok::<(), core::convert::Infallible>(())
            });
        }
    }
}

/// Checks the words of a page that are nobody's stamps: they are as they were filled.
fn check_rest(start: u64, fill: Fill, seed: u64, ram: &impl Ram) -> Result<(), StampError> {
    for offset in (0..PAGE_SIZE).step_by(8).filter(|offset| !is_place(*offset)) {
        let (expected, found) = (fill.word(seed, start + offset), ram.read_u64(start + offset));
        if found != expected {
            return Err(StampError {
                kind: StampErrorKind::Corrupt,
                gfn: Gfn(start / PAGE_SIZE),
                expected,
                found,
            });
        }
    }
    Ok(())
}

/// Whether some vCPU has a stamp at this offset in a page.
fn is_place(offset: u64) -> bool {
    (0..MAX_VCPUS).any(|vcpu| {
        let (head, head_to_tail) = Places::offsets(vcpu);
        Places::at(head, head_to_tail).are_at(offset)
    })
}
