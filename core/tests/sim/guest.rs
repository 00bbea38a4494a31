//! The guest: it writes wherever it runs, waits for pages that are missing, and notices stale ones.

use super::*;

/// Who runs the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    Source,
    Nobody,
    Target,
}

/// A page that the target's host reads itself.
pub(super) fn host_page(shape: Shape) -> u64 {
    shape[0].1.min(4) - 1
}

impl World {
    pub(super) fn is_ram(&self, page: u64) -> bool {
        self.shape
            .iter()
            .any(|&(first, pages)| (first..first + pages).contains(&page))
    }

    pub(super) fn guest_writes(&mut self) {
        let (first, pages) = self.shape[self.below(self.shape.len() as u64) as usize];
        let page = (first + self.below(pages.min(60))) as usize;
        self.writes += 1;
        match self.owner {
            Owner::Nobody => {}
            Owner::Source => {
                self.truth[page] = self.writes;
                self.source_memory[page] = self.writes;
                self.dirty[page] |= self.tracking;
                self.written[page] |= self.tracking;
                self.soft[page] = false;
            }
            Owner::Target => match self.target_memory[page] {
                None if self.waiting.contains(&(page as u64)) => {}
                None => self.waiting.push(page as u64),
                Some(found) => {
                    let right = found == self.truth[page] || self.soft[page];
                    assert!(right, "{self}: the guest read a stale page {page}");
                    self.soft[page] = false;
                    self.truth[page] = self.writes;
                    self.target_memory[page] = Some(self.writes);
                }
            },
        }
    }

    /// The guest begins to run on the target: whatever is there must be right.
    pub(super) fn check_target_memory(&self) {
        for (page, value) in self.target_memory.iter().enumerate() {
            let right = value.is_none_or(|value| value == self.truth[page] || self.soft[page]);
            assert!(
                right,
                "{self}: page {page} is stale when the guest starts on the target"
            );
        }
        let host_page = host_page(self.shape) as usize;
        assert!(
            self.target_memory[host_page].is_some(),
            "{self}: a host page is missing"
        );
    }

    /// The target's fault server asks for a page that a vCPU waits for; the same page may be asked for again.
    pub(super) fn ask_for_pages(&mut self) -> bool {
        let Some(target) = &self.target else { return false };
        if self.waiting.is_empty() {
            return false;
        }
        let decided: Vec<_> = self
            .waiting
            .iter()
            .map(|page| (*page, target.on_fault(Gfn(*page))))
            .collect();
        for (page, decision) in decided {
            let absent = self.target_memory[page as usize].is_none();
            let expected = if absent {
                FaultDecision::Request
            } else {
                FaultDecision::ZeroFill
            };
            assert_eq!(decision, expected, "{self}: page {page}, absent: {absent}");
        }
        self.waiting.retain(|page| self.target_memory[*page as usize].is_none());
        if self.waiting.is_empty() {
            return true;
        }
        let chosen = self.below(self.waiting.len() as u64) as usize;
        self.link.fault.send_to_source(Frame::Request(self.waiting[chosen]))
    }

    /// Puts pages in that are absent, as userfaultfd does.
    pub(super) fn install(&mut self, first: u64, values: &[u64], demanded: bool) {
        self.put_in(first, values);
        let run = Run::new(Gfn(first), Pages(values.len() as u64));
        self.tell_target(TargetEvent::Installed { run, demanded });
    }

    pub(super) fn put_in(&mut self, first: u64, values: &[u64]) {
        for (index, value) in values.iter().enumerate() {
            let page = first as usize + index;
            if self.target_memory[page].is_none() {
                let right = *value == self.truth[page] || self.soft[page];
                assert!(right, "{self}: a stale page {page} was installed");
                self.target_memory[page] = Some(*value);
                self.installed_hash[page] = hash(*value);
            }
        }
    }
}
