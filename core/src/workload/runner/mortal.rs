//! Pages that are freed, as a kernel's are: nobody reads them before they are used again, and whoever uses them clears them first.

use super::{Places, Runner, StampError};
use crate::pageset::Run;
use crate::units::{Gfn, PAGE_SIZE, Pages};
use crate::workload::{Fill, Plan, Ram, random};

/// Entries that are looked at in one go, where none is free.
const LOOK: u64 = 4096;

impl Runner {
    /// Steps of a workload whose pages have a life. A write that ends one leaves the page as it is, whoever may look.
    pub(super) fn run_mortal(&mut self, steps: u64, ram: &mut impl Ram) -> Result<(), StampError> {
        let (plan, vcpu, seed, life) = (self.plan, self.vcpu, self.seed, self.life);
        let (origin, ledger) = (self.generator.origin(), self.ledger);
        let (to_head, head_to_tail) = Places::offsets(vcpu);
        self.generator.run(steps, move |page, write| {
            let page = origin + page;
            let start = plan.gfn(page).0 * PAGE_SIZE;
            let places = Places::at(start + to_head, head_to_tail);
            let entry = ledger.wrapping_add(2 * page);
            let sequence = ram.read_u16(entry);
            if sequence != 0 && !places.hold(places.stamp(sequence), ram) {
                places.judge(sequence, |_| 0, ram)?;
            }
            if write {
                let next = next_in_life(seed, life, page, sequence);
                if sequence == 0 {
                    ram.clear_page(start);
                }
                if next != 0 {
                    places.put(places.stamp(next), ram);
                }
                ram.write_u16(entry, next);
            }
            Ok(())
        })
    }

    /// After all steps: clears every free page of this vCPU, so that what is in RAM follows from the boot block alone.
    /// Without a life, and before the last step, it does nothing. O(pages).
    pub fn settle(&self, ram: &mut impl Ram) {
        if self.life == 0 || !self.finished() {
            return;
        }
        let (ledger, pages) = self.plan.ledger(self.vcpu);
        for (page, entry) in pages.zip((ledger..).step_by(2)) {
            if ram.read_u16(entry) == 0 {
                ram.clear_page(self.plan.gfn(page).0 * PAGE_SIZE);
            }
        }
    }

    /// The sequence after a write to a page of the working set that has this one.
    pub(super) fn next_in_life(&self, page: u64, sequence: u16) -> u16 {
        next_in_life(self.seed, self.life, page, sequence)
    }

    /// What is in memory before the first write.
    pub const fn fill(&self) -> Fill {
        self.fill
    }
}

/// The first run of free pages of the working set at or after a frame, as the ledgers of all vCPUs say at this moment, and where to go on:
/// no run, with a place to go on, if there is none among the next pages; `None` if there are no more. Only of a workload whose pages
/// have a life; what is free may be in use as soon as this returns.
pub fn next_free(plan: &Plan, vcpus: u32, ram: &impl Ram, from: Gfn) -> Option<(Option<Run>, Gfn)> {
    let page = plan.page_at(from)?;
    let (ledger, pages) = (0..vcpus)
        .map(|vcpu| plan.ledger(vcpu))
        .find(|(_, pages)| pages.contains(&page))?;
    let end = pages.end.min(page + LOOK);
    let is_free = |page: &u64| ram.read_u16(ledger + 2 * (page - pages.start)) == 0;
    let next = |page: u64| {
        if page < plan.ws().0 {
            plan.gfn(page)
        } else {
            plan.end_gfn()
        }
    };
    let Some(first) = (page..end).find(is_free) else {
        return Some((None, next(end)));
    };
    // Runs do not go over a hole.
    let count = (first..end)
        .take_while(|page| is_free(page) && plan.gfn(*page).0 == plan.gfn(first).0 + (page - first))
        .count() as u64;
    Some((Some(Run::new(plan.gfn(first), Pages(count))), next(first + count)))
}

/// 0 at the end of a life, which has 2 to 1 + 2 N writes.
fn next_in_life(seed: u64, life: u16, page: u64, sequence: u16) -> u16 {
    let spread = 2 * u64::from(life);
    let last = 2 + random::mix(seed ^ page.wrapping_mul(random::GOLDEN)) % spread;
    let next = u64::from(sequence) + 1;
    if next < last { next as u16 } else { 0 }
}
