//! A guest of pages: which are touched when, and by whom that is waited for.

mod generated;
mod recorded;

use dunlin_core::pageset::PageSet;
use dunlin_core::units::{Gfn, Nanos};
use dunlin_core::workload::{Fill, Kind, Step};

use self::generated::Generated;
use self::recorded::Recorded;
use super::{Bookkeeping, SimError, SimSetup, Work};

/// A vCPU that waits for a page from `at` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    pub(super) at: Nanos,
    pub(super) gfn: Gfn,
}

/// The vCPUs and what is known of the pages.
#[derive(Debug)]
pub(super) struct Guest {
    books: Bookkeeping,
    vcpus: Vec<Vcpu>,
    tracking: bool,
    dirty: Vec<u64>,
    /// Pages that are not all zero; empty if none is.
    filled: Vec<u64>,
    /// Writes to each page, if contents are followed.
    pub(super) versions: Vec<u32>,
    stall: Nanos,
    longest_gap: Nanos,
}

#[derive(Debug)]
struct Vcpu {
    writes: Writes,
    waits_for: Option<Gfn>,
}

/// Where a vCPU's steps come from.
#[derive(Debug)]
enum Writes {
    Generated(Box<Generated>),
    Recorded(Recorded),
}

impl Guest {
    pub(super) fn new(setup: &SimSetup) -> Result<Self, SimError> {
        let pages = setup.pages();
        let room = pages.saturating_sub(setup.bookkeeping.pages());
        let writes: Vec<Writes> = match &setup.workload {
            Work::Generated(spec) => {
                let of_vcpu = |vcpu| {
                    Generated::new(spec, room, vcpu, setup).map(|generated| Writes::Generated(Box::new(generated)))
                };
                let all = (0..setup.vcpus).map(of_vcpu);
                all.collect::<Result<_, _>>().map_err(SimError::Plan)?
            }
            Work::Recorded(recording) => {
                recording.check_fits(room, setup.vcpus)?;
                let of_vcpu = |vcpu| Writes::Recorded(Recorded::new(recording, vcpu, setup.step_cost));
                (0..setup.vcpus).map(of_vcpu).collect()
            }
        };
        let vcpus = writes.into_iter().map(|writes| Vcpu {
            writes,
            waits_for: None,
        });
        let words = pages.0.div_ceil(64) as usize;
        Ok(Self {
            books: setup.bookkeeping,
            vcpus: vcpus.collect(),
            tracking: false,
            dirty: vec![0; words],
            filled: if setup.fill == Fill::Zero {
                filled(setup, words)
            } else {
                Vec::new()
            },
            versions: vec![0; if setup.check { pages.0 as usize } else { 0 }],
            stall: Nanos::ZERO,
            longest_gap: Nanos::ZERO,
        })
    }

    /// Steps of all vCPUs.
    pub(super) fn steps(&self) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.writes.steps()).sum()
    }

    /// How often the trace has started over, at most; 0 without one.
    pub(super) fn times_over(&self) -> u64 {
        let of_vcpu = |vcpu: &Vcpu| match &vcpu.writes {
            Writes::Generated(_) => 0,
            Writes::Recorded(recorded) => recorded.times_over(),
        };
        self.vcpus.iter().map(of_vcpu).max().unwrap_or(0)
    }

    /// How long vCPUs waited for pages, together, of waits that are over.
    pub(super) const fn stall(&self) -> Nanos {
        self.stall
    }

    /// The longest time without a step of a vCPU that was to do some, since the last call.
    pub(super) fn take_longest_gap(&mut self) -> Nanos {
        std::mem::take(&mut self.longest_gap)
    }

    pub(super) fn start_tracking(&mut self) {
        self.tracking = true;
        self.dirty.fill(0);
    }

    pub(super) fn stop_tracking(&mut self) {
        self.tracking = false;
    }

    /// The dirty bits, cleared: swapped with `words`, which are of the same length and become zero here.
    pub(super) fn harvest(&mut self, words: &mut Vec<u64>) {
        words.fill(0);
        std::mem::swap(words, &mut self.dirty);
    }

    /// Pages of `first` and `count` more that are all zero.
    pub(super) fn zero_pages(&self, first: Gfn, count: u64) -> u64 {
        if self.filled.is_empty() {
            return 0;
        }
        let filled =
            (first.0..first.0 + count).filter(|page| self.filled[(page / 64) as usize] >> (page % 64) & 1 == 1);
        count - filled.count() as u64
    }

    /// Runs at the source, where every page is, up to `until`.
    pub(super) fn run_to(&mut self, until: Nanos) {
        for vcpu in &mut self.vcpus {
            vcpu.waits_for = None;
        }
        self.run(until, |_| None, |_| {});
    }

    /// The same as far as anybody asks before the next [`run_to`](Self::run_to) what the guest has written: only contents and
    /// zero pages are read page by page, and long stretches cost less than many short ones.
    pub(super) fn run_if_read(&mut self, until: Nanos) {
        if !self.filled.is_empty() || !self.versions.is_empty() {
            self.run_to(until);
        }
    }

    /// Runs at the target up to `until`; a vCPU that touches a missing page, or notes that it does on one, waits and is added to
    /// `faults`.
    pub(super) fn run_with_missing(&mut self, until: Nanos, missing: &PageSet<'_>, faults: &mut Vec<Fault>) {
        let books = self.books;
        let lacks = |page| {
            let mut needed = books.entry_of(page).into_iter().chain([Gfn(page)]);
            needed.find(|gfn| missing.contains(*gfn))
        };
        self.run(until, lacks, |fault| faults.push(fault));
    }

    #[inline]
    fn run(&mut self, until: Nanos, lacks: impl Fn(u64) -> Option<Gfn>, mut fault: impl FnMut(Fault)) {
        let first = self.books.pages().0;
        let tracking = self.tracking;
        let (dirty, filled) = (self.dirty.as_mut_slice(), self.filled.as_mut_slice());
        let (fills, versions) = (!filled.is_empty(), self.versions.as_mut_slice());
        let mut touch = |step: Step| {
            // The workload counts its pages from the first of its own.
            let page = first + step.page;
            if let Some(gfn) = lacks(page) {
                return Err((step, gfn));
            }
            if step.kind == Kind::Write {
                let (word, bit) = ((page / 64) as usize, 1 << (page % 64));
                if tracking {
                    dirty[word] |= bit;
                }
                // A random access less where all pages are filled from the start.
                if fills {
                    filled[word] |= bit;
                }
                if let Some(version) = versions.get_mut(page as usize) {
                    *version += 1;
                }
            }
            Ok(())
        };
        for vcpu in &mut self.vcpus {
            if vcpu.waits_for.is_some() {
                continue;
            }
            let missed = match &mut vcpu.writes {
                Writes::Generated(generated) => generated.run(until, &mut touch, &mut self.longest_gap),
                Writes::Recorded(recorded) => recorded.run(until, &mut touch, &mut self.longest_gap),
            };
            if let Some(missed) = missed {
                vcpu.waits_for = Some(missed.gfn);
                fault(missed);
            }
        }
    }

    /// Pages have come: who waits for one of them goes on.
    pub(super) fn wake(&mut self, first: Gfn, count: u64, now: Nanos) {
        for vcpu in &mut self.vcpus {
            let comes = vcpu
                .waits_for
                .is_some_and(|gfn| gfn >= first && gfn.0 < first.0 + count);
            if comes {
                vcpu.waits_for = None;
                self.stall = self.stall.saturating_add(now.saturating_sub(vcpu.writes.free()));
                vcpu.writes.wait_until(now);
            }
        }
    }

    /// What a step takes from now on.
    pub(super) fn set_step_cost(&mut self, cost: Nanos) {
        for vcpu in &mut self.vcpus {
            vcpu.writes.set_step_cost(cost);
        }
    }

    /// It was paused, or has not run: goes on at `now`.
    pub(super) fn resume(&mut self, now: Nanos) {
        for vcpu in &mut self.vcpus {
            vcpu.writes.wait_until(now);
        }
    }
}

/// The pages that are not zero from the start.
fn filled(setup: &SimSetup, words: usize) -> Vec<u64> {
    let mut filled = vec![0; words];
    let (pages, first) = (setup.pages().0, setup.bookkeeping.pages().0);
    let mut left = setup.used.map_or(0, |used| used.0.min(pages));
    let mut fill = |page: u64| {
        let (word, bit) = (&mut filled[(page / 64) as usize], 1 << (page % 64));
        let is_new = left > 0 && *word & bit == 0;
        if is_new {
            *word |= bit;
            left -= 1;
        }
        left > 0
    };
    let _ = match &setup.workload {
        Work::Recorded(recording) => {
            recording.written().map(|page| first + page).all(&mut fill) && (0..pages).all(fill)
        }
        Work::Generated(_) => (0..pages).all(fill),
    };
    filled
}

impl Writes {
    fn steps(&self) -> u64 {
        match self {
            Self::Generated(generated) => generated.steps(),
            Self::Recorded(recorded) => recorded.steps(),
        }
    }

    /// When the vCPU is done with its last step, or since when it waits.
    const fn free(&self) -> Nanos {
        match self {
            Self::Generated(generated) => generated.free(),
            Self::Recorded(recorded) => recorded.free(),
        }
    }

    /// It does nothing before `time`.
    fn wait_until(&mut self, time: Nanos) {
        match self {
            Self::Generated(generated) => generated.wait_until(time),
            Self::Recorded(recorded) => recorded.wait_until(time),
        }
    }

    const fn set_step_cost(&mut self, cost: Nanos) {
        match self {
            Self::Generated(generated) => generated.set_step_cost(cost),
            Self::Recorded(recorded) => recorded.set_step_cost(cost),
        }
    }
}
