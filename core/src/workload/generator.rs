//! The sequence of pages a vCPU touches.

use super::plan::{PlanError, check_vcpus, check_ws, part};
use super::random::{Random, scale};
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
/// A step costs 10 to 60 integer instructions. Entering a phase costs more where the pattern needs tables, see [`Zipf`].
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

    /// What must be kept to go on later with [`resume`](Self::resume).
    pub const fn state(&self) -> GeneratorState {
        self.state
    }

    /// Goes on from `state`, which must come from a generator made with the same arguments; false, with nothing changed,
    /// if it cannot.
    pub fn resume(&mut self, state: GeneratorState) -> bool {
        let mut other = self.clone();
        other.state.step = state.step;
        other.enter_phase();
        let (cursor, counter) = (state.cursor, state.counter);
        let possible = state.step < 1 << 63
            && match other.pattern {
                Pattern::Lmbench => cursor < other.own && counter < 5,
                Pattern::Memcached => cursor == 0 && counter <= other.own,
                Pattern::Kernel => cursor <= other.own && counter <= other.own - cursor,
                _ => cursor < other.own && counter == 0,
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
    #[inline]
    pub const fn is_idle(&self) -> bool {
        matches!(self.pattern, Pattern::Idle)
    }

    /// Does `steps` steps at once, at most [`batch`](Self::batch), in a phase that [is idle](Self::is_idle).
    pub fn skip_idle(&mut self, steps: u64) {
        debug_assert!(self.is_idle() && steps <= self.left);
        self.advance(steps);
    }

    /// The next step.
    #[inline]
    pub fn next_step(&mut self) -> Step {
        let (page, kind) = match self.pattern {
            Pattern::Idle => (0, Kind::Nothing),
            Pattern::Seq => (self.first + self.cycle(), Kind::Write),
            Pattern::Uniform => (self.first + self.state.random.below(self.own), Kind::Write),
            Pattern::Zipf(_) => (self.first + self.popularity.item(&mut self.state.random), Kind::Write),
            Pattern::Hotset(_) => (self.first + self.hot_or_cold(), Kind::Write),
            Pattern::Lmbench => self.stream(),
            Pattern::Memcached => self.get_or_set(),
            Pattern::Kernel => self.compile(),
            Pattern::Shared(_) => {
                let page = self.state.random.below(self.special + self.own);
                let page = if page < self.special {
                    page
                } else {
                    self.first + (page - self.special)
                };
                (page, Kind::Write)
            }
        };
        self.advance(1);
        Step { page, kind }
    }

    #[inline]
    fn advance(&mut self, steps: u64) {
        self.state.step += steps;
        self.left -= steps;
        if self.left == 0 {
            self.enter_phase();
        }
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

    /// The next page in order, the first after the last.
    #[inline]
    fn cycle(&mut self) -> u64 {
        let page = self.state.cursor;
        self.state.cursor = if page + 1 == self.own { 0 } else { page + 1 };
        page
    }

    fn hot_or_cold(&mut self) -> u64 {
        let (hot, cold) = (self.special, self.own - self.special);
        let bits = self.state.random.next_u64();
        let (choice, place) = (bits & 0xffff_ffff, bits >> 32);
        if scale(choice, 10) == 0 && cold > 0 {
            hot + scale(place, cold)
        } else {
            scale(place, hot)
        }
    }

    fn stream(&mut self) -> (u64, Kind) {
        let kind = if self.state.counter < 2 {
            Kind::Read
        } else {
            Kind::Write
        };
        let page = self.cycle();
        // Without the shift, a multiple of five pages would have some that are only ever read.
        let shift = u64::from(self.state.cursor == 0 && self.own.is_multiple_of(5));
        self.state.counter = (self.state.counter + 1 + shift) % 5;
        (self.first + page, kind)
    }

    fn get_or_set(&mut self) -> (u64, Kind) {
        if self.state.counter > 0 {
            let page = self.own - self.state.counter;
            self.state.counter -= 1;
            return (self.first + page, Kind::Write);
        }
        let item = self.popularity.item(&mut self.state.random);
        let kind = if self.state.random.below(10) == 0 {
            Kind::Read
        } else {
            Kind::Write
        };
        (self.first + item / ITEMS_PER_PAGE, kind)
    }

    fn compile(&mut self) -> (u64, Kind) {
        let bits = self.state.random.next_u64();
        if bits & 3 == 0 {
            return (self.first + scale(bits >> 32, self.own), Kind::Read);
        }
        if self.state.counter == 0 {
            let (least, sizes) = REGION_PAGES;
            let size = (least + self.state.random.below(sizes)).min(self.own.div_ceil(2));
            let range = if (bits >> 2) & 3 == 0 {
                self.own
            } else {
                (self.own / 4).max(size)
            };
            self.state.cursor = scale(bits >> 32, range - size + 1);
            self.state.counter = size;
        }
        let page = self.state.cursor;
        self.state.cursor += 1;
        self.state.counter -= 1;
        (self.first + page, Kind::Write)
    }
}

impl Iterator for Generator {
    type Item = Step;

    #[inline]
    fn next(&mut self) -> Option<Step> {
        Some(self.next_step())
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

    #[inline]
    fn item(&self, random: &mut Random) -> u64 {
        self.zipf.draw(random) * self.stride % self.items
    }
}

const fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
