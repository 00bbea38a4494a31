//! A guest of pages: which are touched when, and by whom that is waited for.

use dunlin_core::pageset::PageSet;
use dunlin_core::units::{Gfn, Nanos};
use dunlin_core::workload::{Fill, Generator, Kind, Spec, Step};

use super::{SimError, SimSetup};

/// How far behind its rate a vCPU may be and still catch up: that of [`dunlin_core::workload::Pacer`].
const CATCH_UP: Nanos = Nanos::from_millis(50);

/// A vCPU that waits for a page from `at` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    pub(super) at: Nanos,
    pub(super) gfn: Gfn,
}

/// The vCPUs and what is known of the pages.
#[derive(Debug)]
pub(super) struct Guest {
    spec: Spec,
    vcpus: Vec<Vcpu>,
    step_cost: Nanos,
    tracking: bool,
    dirty: Vec<u64>,
    /// Pages that are not all zero.
    filled: Vec<u64>,
    fills: bool,
    /// Writes to each page, if contents are followed.
    pub(super) versions: Vec<u32>,
    stall: Nanos,
    longest_gap: Nanos,
}

#[derive(Debug)]
struct Vcpu {
    generator: Generator,
    /// A step that could not be done.
    held_up: Option<Step>,
    waits_for: Option<Gfn>,
    /// When it may do its next step by its rate, and with what is left of a nanosecond.
    due: Nanos,
    rest: u64,
    /// When it is done with the last.
    free: Nanos,
    phase: usize,
    /// Nanoseconds from step to step: a fraction. 0 if there is no rate.
    interval: (u64, u64),
    last_step: Nanos,
}

impl Guest {
    pub(super) fn new(setup: &SimSetup) -> Result<Self, SimError> {
        let pages = setup.pages();
        let working_set = setup.workload.ws().unwrap_or(pages).min(pages);
        let vcpus = (0..setup.vcpus).map(|vcpu| {
            let generator = Generator::new(&setup.workload, working_set, setup.vcpus, vcpu, setup.seed)?;
            let mut vcpu = Vcpu {
                generator,
                held_up: None,
                waits_for: None,
                due: Nanos::ZERO,
                rest: 0,
                free: Nanos::ZERO,
                phase: usize::MAX,
                interval: (0, 1),
                last_step: Nanos::ZERO,
            };
            vcpu.enter_phase(&setup.workload, setup.vcpus);
            Ok(vcpu)
        });
        let words = pages.0.div_ceil(64) as usize;
        let filled = if setup.fill == Fill::Zero { 0 } else { u64::MAX };
        Ok(Self {
            spec: setup.workload.clone(),
            vcpus: vcpus.collect::<Result<_, _>>().map_err(SimError::Plan)?,
            step_cost: setup.step_cost,
            tracking: false,
            dirty: vec![0; words],
            filled: vec![filled; words],
            fills: setup.fill == Fill::Zero,
            versions: if setup.check { vec![0; pages.0 as usize] } else { vec![] },
            stall: Nanos::ZERO,
            longest_gap: Nanos::ZERO,
        })
    }

    /// Steps of all vCPUs.
    pub(super) fn steps(&self) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.generator.steps()).sum::<u64>()
            - self.vcpus.iter().filter(|vcpu| vcpu.held_up.is_some()).count() as u64
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
        let filled =
            (first.0..first.0 + count).filter(|page| self.filled[(page / 64) as usize] >> (page % 64) & 1 == 1);
        count - filled.count() as u64
    }

    /// Runs at the source, where every page is, up to `until`.
    pub(super) fn run_to(&mut self, until: Nanos) {
        for index in 0..self.vcpus.len() {
            loop {
                let vcpu = &mut self.vcpus[index];
                let at = vcpu.next_at();
                if at >= until {
                    break;
                }
                let step = vcpu.take_step();
                self.done(index, at, step);
            }
        }
    }

    /// Runs at the target up to `until`; a vCPU that touches a missing page waits, and is added to `faults`.
    pub(super) fn run_with_missing(&mut self, until: Nanos, missing: &PageSet<'_>, faults: &mut Vec<Fault>) {
        for index in 0..self.vcpus.len() {
            loop {
                let vcpu = &mut self.vcpus[index];
                let at = vcpu.next_at();
                if vcpu.waits_for.is_some() || at >= until {
                    break;
                }
                let step = vcpu.take_step();
                let gfn = Gfn(step.page);
                if step.kind != Kind::Nothing && missing.contains(gfn) {
                    vcpu.held_up = Some(step);
                    vcpu.waits_for = Some(gfn);
                    vcpu.free = at;
                    faults.push(Fault { at, gfn });
                    break;
                }
                self.done(index, at, step);
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
                self.stall = self.stall.saturating_add(now.saturating_sub(vcpu.free));
                vcpu.free = now;
            }
        }
    }

    /// What a step takes from now on.
    pub(super) const fn set_step_cost(&mut self, cost: Nanos) {
        self.step_cost = cost;
    }

    /// It was paused, or has not run: goes on at `now`.
    pub(super) fn resume(&mut self, now: Nanos) {
        for vcpu in &mut self.vcpus {
            vcpu.free = vcpu.free.max(now);
        }
    }

    fn done(&mut self, index: usize, at: Nanos, step: Step) {
        if step.kind == Kind::Write {
            let (word, bit) = ((step.page / 64) as usize, 1 << (step.page % 64));
            if self.tracking {
                self.dirty[word] |= bit;
            }
            // A random access less where all pages are filled from the start.
            if self.fills {
                self.filled[word] |= bit;
            }
            if let Some(version) = self.versions.get_mut(step.page as usize) {
                *version += 1;
            }
        }
        let vcpus = self.vcpus.len() as u32;
        let vcpu = &mut self.vcpus[index];
        self.longest_gap = self.longest_gap.max(at.saturating_sub(vcpu.last_step));
        vcpu.last_step = at;
        vcpu.free = at.saturating_add(self.step_cost);
        if vcpu.interval.0 == 0 {
            vcpu.due = vcpu.free;
        } else {
            let nanos = vcpu.interval.0 + vcpu.rest;
            let due = vcpu.due.saturating_add(Nanos(nanos / vcpu.interval.1));
            vcpu.rest = nanos % vcpu.interval.1;
            vcpu.due = due.max(at.saturating_sub(CATCH_UP));
        }
        if vcpu.generator.phase_index() != vcpu.phase {
            vcpu.enter_phase(&self.spec, vcpus);
        }
    }
}

impl Vcpu {
    fn enter_phase(&mut self, spec: &Spec, vcpus: u32) {
        self.phase = self.generator.phase_index();
        let rate = u64::from(spec.rate_at(self.generator.steps()));
        self.interval = match rate {
            0 => (0, 1),
            rate => (u64::from(vcpus) * 1_000_000_000, rate),
        };
        self.rest = 0;
    }

    fn next_at(&self) -> Nanos {
        self.due.max(self.free)
    }

    fn take_step(&mut self) -> Step {
        match self.held_up.take() {
            Some(step) => step,
            None => self.generator.next().expect("it never ends"),
        }
    }
}
