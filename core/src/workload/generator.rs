//! The sequence of pages a vCPU touches.

use super::plan::{PlanError, check_vcpus, check_ws, part};
use super::random::Random;
use super::spec::{Milli, Pattern, Phase, PhaseAt, Spec};
use super::zipf::Zipf;
use crate::units::Pages;

/// Steps in a batch of an unpaced phase: about a millisecond where every instruction is emulated.
const UNPACED_BATCH: u64 = 64;
/// The most steps in a batch: progress must not stall where a vCPU is slower than its rate.
const MAX_BATCH: u64 = 1024;
/// Items of 1 KiB in a page of `memcached`.
const ITEMS_PER_PAGE: u64 = 4;
/// The exponent of the popularity of items in `memcached`.
const ITEM_EXPONENT: Milli = Milli(990);
/// Pages of the smallest region in `kernel`, and how many sizes there are from there on.
const REGION_PAGES: (u64, u64) = (16, 256);

/// What a step does to its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Reads it.
    Read,
    /// Writes it.
    Write,
    /// Leaves all pages alone; the step's page has no meaning.
    Nothing,
}

/// One step of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// A page of the working set, counted from 0.
    pub page: u64,
    /// What is done to it.
    pub kind: Kind,
}

/// The part of a [`Generator`] that changes from step to step; the rest follows from the spec and the guest's shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct GeneratorState {
    step: u64,
    random: Random,
    /// The next page of patterns that go through pages in order, counted from the first of this vCPU.
    cursor: u64,
    /// Pages left to write in order in `memcached` and `kernel`; the place among five steps in `lmbench`.
    counter: u64,
}

/// The endless sequence of steps of one vCPU: an iterator that never ends.
///
/// A step takes 4 to 40 integer instructions. Entering a phase costs more where the pattern needs tables, see [`Zipf`].
#[derive(Clone, Debug)]
pub struct Generator {
    spec: Spec,
    pages: u64,
    vcpus: u32,
    vcpu: u32,
    state: GeneratorState,
    // What follows from the phase.
    phase: usize,
    left: u64,
    pattern: Pattern,
    /// First page of this vCPU's own, and how many there are.
    first: u64,
    own: u64,
    /// Pages of the hot set, or those that are shared.
    special: u64,
    batch: u64,
    popularity: Popularity,
}

/// Which item is popular: Zipf's ranks, scattered over the items.
#[derive(Clone, Debug)]
struct Popularity {
    zipf: Zipf,
    items: u64,
    stride: u64,
}

impl Generator {
    /// The steps of vCPU `vcpu` of `vcpus` over a working set of `pages`.
    ///
    /// # Errors
    /// A [`PlanError`] if there is no such vCPU, or if the working set or that of a phase is too small or too large.
    pub fn new(spec: &Spec, pages: Pages, vcpus: u32, vcpu: u32, seed: u64) -> Result<Self, PlanError> {
        check_vcpus(vcpus)?;
        Self::simulated(spec, pages, vcpus, vcpu, seed)
    }

    /// The same for a guest that is only simulated: there is no limit to its vCPUs but that each needs a page, while the layout of
    /// a real one has room for [`MAX_VCPUS`](super::layout::MAX_VCPUS).
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[inline(always)]
    pub fn simulated(spec: &Spec, pages: Pages, vcpus: u32, vcpu: u32, seed: u64) -> Result<Self, PlanError> {
        if vcpu >= vcpus {
            return Err(PlanError::NoSuchVcpu { vcpu, vcpus });
        }
        check_ws(spec, pages.0, vcpus)?;
        let random = Random::new(seed, u64::from(vcpu));
        let mut generator = Self {
            spec: spec.clone(),
            pages: pages.0,
            vcpus,
            vcpu,
            state: GeneratorState {
                step: 0,
                random,
                cursor: 0,
                counter: 0,
            },
            phase: 0,
            left: 0,
            pattern: Pattern::Idle,
            first: 0,
            own: 1,
            special: 0,
            batch: 1,
            popularity: Popularity {
                zipf: Zipf::EMPTY,
                items: 1,
                stride: 1,
            },
        };
        generator.enter_phase();
        Ok(generator)
    }

    /// The same sequence from its first step on, given the seed that it was made with.
    pub(super) fn restarted(&self, seed: u64) -> Self {
        let mut generator = self.clone();
        generator.state.step = 0;
        generator.state.random = Random::new(seed, u64::from(self.vcpu));
        generator.enter_phase();
        generator
    }

    /// What must be kept to go on later with [`resume`](Self::resume).
    pub const fn state(&self) -> GeneratorState {
        self.state
    }

    /// Goes on from `state`, which must come from a generator made with the same arguments; false, with nothing
    /// changed, if it cannot.
    pub fn resume(&mut self, state: GeneratorState) -> bool {
        let mut other = self.clone();
        other.state.step = state.step;
        other.enter_phase();
        let (cursor, counter) = (state.cursor, state.counter);
        let possible = state.step < 1 << 63
            && match other.pattern {
                Pattern::Seq => cursor < other.own && counter == 0,
                Pattern::Lmbench => cursor < other.own && counter < 5,
                Pattern::Memcached => cursor == 0 && counter <= other.own,
                Pattern::Kernel => cursor <= other.own && counter <= other.own - cursor,
                Pattern::Idle | Pattern::Uniform | Pattern::Zipf(_) | Pattern::Hotset(_) | Pattern::Shared(_) => {
                    cursor == 0 && counter == 0
                }
            };
        if possible {
            other.state = state;
            *self = other;
        }
        possible
    }

    /// Steps done.
    pub const fn steps(&self) -> u64 {
        self.state.step
    }

    /// Where the next step is in the spec.
    pub fn phase(&self) -> PhaseAt {
        self.spec.phase_at(self.state.step)
    }

    /// Which phase the next step belongs to, counted from 0.
    pub const fn phase_index(&self) -> usize {
        self.phase
    }

    /// How many steps the next batch has: about a millisecond's worth at the phase's rate, 64 if it is unpaced, at most
    /// 1024, and never beyond the end of the phase.
    #[inline]
    pub const fn batch(&self) -> u64 {
        if self.batch < self.left { self.batch } else { self.left }
    }

    /// Whether the next step, and so the rest of the phase, touches no page.
    pub const fn is_idle(&self) -> bool {
        matches!(self.pattern, Pattern::Idle)
    }

    /// Steps until the phase of the next step ends; `u64::MAX` if it goes on for ever.
    pub const fn left_in_phase(&self) -> u64 {
        self.left
    }

    /// Does the next `steps` steps, at most [`left_in_phase`](Self::left_in_phase), as so many calls of
    /// [`next`](Iterator::next) would, and some times faster: calls `each` with every one that touches a page. Stops at the first
    /// error; the step that failed counts as done.
    ///
    /// # Errors
    /// That of `each`.
    pub fn run_steps<E>(&mut self, steps: u64, mut each: impl FnMut(Step) -> Result<(), E>) -> Result<(), E> {
        let origin = self.origin();
        self.run(steps.min(self.left), |page, write| {
            each(Step {
                page: origin + page,
                kind: if write { Kind::Write } else { Kind::Read },
            })
        })
    }

    /// The page from which [`run`](Self::run) counts in this phase.
    pub(super) const fn origin(&self) -> u64 {
        match self.pattern {
            Pattern::Shared(_) => 0,
            _ => self.first,
        }
    }

    /// Does the next `steps` steps, at most [`batch`](Self::batch): calls `touch` with each page, counted from
    /// [`origin`](Self::origin), and whether it is written. Idle steps call nothing and cost nothing. Stops at the
    /// first error; the step that failed counts as done.
    #[inline(always)]
    pub(super) fn run<E>(&mut self, steps: u64, mut touch: impl FnMut(u64, bool) -> Result<(), E>) -> Result<(), E> {
        let own = self.own;
        let mut at = At {
            left: steps,
            random: self.state.random,
            cursor: self.state.cursor,
            counter: self.state.counter,
        };
        let result = match self.pattern {
            Pattern::Idle => {
                at.left = 0;
                Ok(())
            }
            Pattern::Seq => repeat(&mut at, move |at| touch(at.cycle(own), true)),
            Pattern::Uniform => repeat(&mut at, move |at| touch(at.random.below(own), true)),
            Pattern::Zipf(_) => {
                let popularity = &self.popularity;
                repeat(&mut at, move |at| touch(popularity.item(&mut at.random), true))
            }
            Pattern::Hotset(_) => {
                let (hot, cold) = (self.special, own - self.special);
                repeat(&mut at, move |at| {
                    let page = if at.random.below(10) == 0 && cold > 0 {
                        hot + at.random.below(cold)
                    } else {
                        at.random.below(hot)
                    };
                    touch(page, true)
                })
            }
            Pattern::Lmbench => {
                // Without the shift, a multiple of five pages would have some that are only ever read.
                let shift = u64::from(own.is_multiple_of(5));
                repeat(&mut at, move |at| {
                    let write = at.counter >= 2;
                    let page = at.cycle(own);
                    at.counter += if at.cursor == 0 { 1 + shift } else { 1 };
                    at.counter -= if at.counter >= 5 { 5 } else { 0 };
                    touch(page, write)
                })
            }
            Pattern::Memcached => {
                let popularity = &self.popularity;
                repeat(&mut at, move |at| {
                    if at.counter > 0 {
                        at.counter -= 1;
                        return touch(own - at.counter - 1, true);
                    }
                    let item = popularity.item(&mut at.random);
                    touch(item / ITEMS_PER_PAGE, at.random.below(10) != 0)
                })
            }
            Pattern::Kernel => repeat(&mut at, move |at| {
                if at.random.below(4) == 0 {
                    return touch(at.random.below(own), false);
                }
                if at.counter == 0 {
                    at.new_region(own);
                }
                let page = at.cursor;
                at.cursor += 1;
                at.counter -= 1;
                touch(page, true)
            }),
            Pattern::Shared(_) => {
                let (shared, skip) = (self.special, self.first - self.special);
                repeat(&mut at, move |at| {
                    let page = at.random.below(shared + own);
                    touch(if page < shared { page } else { page + skip }, true)
                })
            }
        };
        let At {
            left,
            random,
            cursor,
            counter,
        } = at;
        let done = steps - left;
        self.state = GeneratorState {
            step: self.state.step + done,
            random,
            cursor,
            counter,
        };
        self.left -= done;
        if self.left == 0 {
            self.enter_phase();
        }
        result
    }

    /// Starts the phase that the next step belongs to.
    #[cold]
    fn enter_phase(&mut self) {
        let PhaseAt { index, left, .. } = self.spec.phase_at(self.state.step);
        let Phase { pattern, rate, ws, .. } = self.spec.phases()[index];
        let pages = ws.map_or(self.pages, |ws| ws.0);
        let shared = match pattern {
            Pattern::Shared(fraction) => fraction.of(pages),
            _ => 0,
        };
        let rest = part(pages - shared, self.vcpus, self.vcpu);
        // A smaller working set takes the first pages of each vCPU's part, so that parts never overlap; between shared
        // pages the ledger has room for any page.
        let first = match pattern {
            Pattern::Shared(_) => shared + rest.start,
            _ => part(self.pages, self.vcpus, self.vcpu).start,
        };
        let own = rest.end - rest.start;
        self.phase = index;
        self.left = left;
        self.pattern = pattern;
        (self.first, self.own) = (first, own);
        self.batch = match rate {
            0 => UNPACED_BATCH,
            rate => (u64::from(rate) / (1000 * u64::from(self.vcpus))).clamp(1, MAX_BATCH),
        };
        (self.state.cursor, self.state.counter) = (0, 0);
        match pattern {
            Pattern::Shared(_) => self.special = shared,
            Pattern::Hotset(fraction) => self.special = fraction.of(own),
            Pattern::Zipf(exponent) => self.popularity.set(exponent, own),
            Pattern::Memcached => {
                self.state.counter = own;
                self.popularity.set(ITEM_EXPONENT, own * ITEMS_PER_PAGE);
            }
            _ => {}
        }
    }
}

impl Iterator for Generator {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let mut step = Step {
            page: 0,
            kind: Kind::Nothing,
        };
        let origin = self.origin();
        let Ok(()) = self.run(1, |page, write| {
            step = Step {
                page: origin + page,
                kind: if write { Kind::Write } else { Kind::Read },
            };
            Ok::<(), core::convert::Infallible>(())
        });
        Some(step)
    }
}

/// What changes from step to step while a phase lasts: steps left, and the rest as in [`GeneratorState`].
#[derive(Clone, Copy)]
struct At {
    left: u64,
    random: Random,
    cursor: u64,
    counter: u64,
}

/// Does `step` until none is left or one fails.
///
/// A function of its own for each pattern, over a copy of what changes and constants of its own, so that everything
/// stays in registers: where every instruction is emulated this decides how many pages a guest can write.
#[inline(never)]
fn repeat<E>(at: &mut At, mut step: impl FnMut(&mut At) -> Result<(), E>) -> Result<(), E> {
    let mut local = *at;
    let mut result = Ok(());
    while local.left > 0 && result.is_ok() {
        local.left -= 1;
        result = step(&mut local);
    }
    *at = local;
    result
}

impl At {
    /// The next page in order, the first after the last.
    #[inline(always)]
    const fn cycle(&mut self, pages: u64) -> u64 {
        let page = self.cursor;
        self.cursor = if page + 1 == pages { 0 } else { page + 1 };
        page
    }

    /// Gives a new process its memory.
    #[cold]
    fn new_region(&mut self, pages: u64) {
        let (least, sizes) = REGION_PAGES;
        let size = (least + self.random.below(sizes)).min(pages.div_ceil(2));
        let range = if self.random.below(4) == 0 {
            pages
        } else {
            (pages / 4).max(size)
        };
        self.cursor = self.random.below(range - size + 1);
        self.counter = size;
    }
}

impl Popularity {
    fn set(&mut self, exponent: Milli, items: u64) {
        if !self.zipf.is(exponent, items) {
            self.zipf = Zipf::new(exponent, items);
        }
        self.items = items;
        // Near the golden ratio neighbouring ranks land far apart; without a common divisor every item has one rank.
        self.stride = (items * 618 / 1000).max(1);
        while greatest_common_divisor(self.stride, items) != 1 {
            self.stride += 1;
        }
    }

    #[inline(always)]
    fn item(&self, random: &mut Random) -> u64 {
        self.zipf.draw(random) * self.stride % self.items
    }
}

const fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
