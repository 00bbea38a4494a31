//! What a workload does, as a value: patterns, rates, phases. Reading one from text is in `parse`.

use core::fmt;

use crate::units::{Bytes, PAGE_SIZE, Pages};

/// The most phases a spec has.
pub const MAX_PHASES: usize = 16;

/// The longest life of a page, in writes: a ledger entry counts twice as many.
pub const MAX_LIFE: u16 = 30_000;

/// The rate of `idle` where none is given: a batch of 64 empty steps per millisecond, so that an idle guest shows its
/// progress and yet leaves its processor alone.
pub(super) const IDLE_RATE: u32 = 64_000;

/// A number of thousandths, the fixed-point form of the arguments of patterns: 990 is 0.99.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Milli(pub u16);

impl Milli {
    /// This fraction of `pages`, rounded down but at least one page and at most all of them.
    pub(super) const fn of(self, pages: u64) -> u64 {
        let part = pages * self.0 as u64 / 1000;
        if part == 0 {
            1
        } else if part > pages {
            pages
        } else {
            part
        }
    }
}

impl fmt::Display for Milli {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 1000, self.0 % 1000);
        match rest {
            0 => write!(f, "{whole}"),
            _ if rest % 100 == 0 => write!(f, "{whole}.{}", rest / 100),
            _ if rest % 10 == 0 => write!(f, "{whole}.{:02}", rest / 10),
            _ => write!(f, "{whole}.{rest:03}"),
        }
    }
}

/// Which page is touched next, and how. Every vCPU follows the pattern in its own part of the working set, except in
/// [`Shared`](Pattern::Shared).
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Pattern {
    /// `idle`: no page is touched; steps, progress and pacing go on.
    Idle,
    /// `seq`: page after page is written, from the first to the last and again.
    Seq,
    /// `uniform`: every page is equally likely to be written next.
    Uniform,
    /// `zipf:S`: the k-th most popular page is written with probability proportional to k^-S, 0 ≤ S ≤ 3. Popularity is
    /// scattered over the pages, not sorted.
    Zipf(Milli),
    /// `hotset:F`: the first F of the pages, 0 < F < 1, get 90 % of the writes, the others 10 %; uniform within both.
    Hotset(Milli),
    /// `lmbench`: a stream over all pages in order, of every five steps two reads and three writes; which page is read
    /// and which is written changes from pass to pass.
    Lmbench,
    /// `memcached`: every page is written once in order, as a slab is preheated; then nine sets for one get of items of
    /// 1 KiB, whose popularity is Zipf's with S = 0.99, scattered over the slab.
    Memcached,
    /// `kernel`: one short-lived process after the other, as compilers are. Each writes a region of 16 to 271 pages (at
    /// most half of all) from start to end; three of four find theirs in the first quarter of the pages, where memory
    /// was freed just before, the others anywhere. One step in four reads some page, as headers are read.
    Kernel,
    /// `shared:F`: all vCPUs write the first F of the working set, 0 < F ≤ 1, each its own lines of each page; the rest
    /// is divided among them. Every page a vCPU may write is equally likely.
    Shared(Milli),
}

impl Pattern {
    /// The rate where the spec gives none, in steps/s for the whole guest.
    pub(super) const fn default_rate(self) -> u32 {
        match self {
            Self::Idle => IDLE_RATE,
            _ => 0,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("idle"),
            Self::Seq => f.write_str("seq"),
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(s) => write!(f, "zipf:{s}"),
            Self::Hotset(fraction) => write!(f, "hotset:{fraction}"),
            Self::Lmbench => f.write_str("lmbench"),
            Self::Memcached => f.write_str("memcached"),
            Self::Kernel => f.write_str("kernel"),
            Self::Shared(fraction) => write!(f, "shared:{fraction}"),
        }
    }
}

/// A pattern for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Phase {
    /// What is done.
    pub pattern: Pattern,
    /// Steps/s of the whole guest, all vCPUs together; 0 is as fast as it goes.
    pub rate: u32,
    /// The pages it is done to, if fewer than the working set: then each vCPU uses the first of its own.
    pub ws: Option<Pages>,
    /// Steps of each vCPU in this phase; 0 in a spec without phases, which goes on for ever.
    pub steps: u64,
}

/// What the agent in the guest is like, where pages have a life: all but the first are there to be endured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Conduct {
    /// `honest`: names pages that are free.
    #[default]
    Honest,
    /// `none`: there is no agent.
    None,
    /// `wild`: names pages that are free, and others that do not exist, and all of them twice.
    Wild,
    /// `traitor`: names pages that are in use, which the guest loses.
    Traitor,
    /// `flood`: says the same over and over.
    Flood,
    /// `stall`: stops in the middle of a word.
    Stall,
    /// `restart`: forgets after some words what it was asked.
    Restart,
}

impl Conduct {
    /// All of them, by the number that stands for each in a boot block.
    pub(super) const ALL: [Self; 7] = [
        Self::Honest,
        Self::None,
        Self::Wild,
        Self::Traitor,
        Self::Flood,
        Self::Stall,
        Self::Restart,
    ];

    /// As it stands in a workload.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Honest => "honest",
            Self::None => "none",
            Self::Wild => "wild",
            Self::Traitor => "traitor",
            Self::Flood => "flood",
            Self::Stall => "stall",
            Self::Restart => "restart",
        }
    }
}

/// A workload: one pattern for ever, or up to [`MAX_PHASES`] phases that start over when the last one ends.
///
/// As text: `name[:arg][,rate=12000][,ws=64MiB][,life=20]`, or `phases:(seq,rate=1000)*50000+(uniform)*50000[,ws=64MiB]` with
/// lengths in steps of each vCPU; a rate behind the phases holds for those that have none. Rates are in steps/s of the
/// whole guest (0: unpaced) and may end in k or M; sizes end in B, kB, MB, GB, KiB, MiB or GiB, are rounded down to
/// whole pages, and default to all memory that is left. `idle` has rate 64000 unless told otherwise, everything
/// else is unpaced. Printing a spec and reading it again gives the same spec.
///
/// With `life=N` a page is freed when it is written for about the N-th time, each page after another number of writes, and belongs to nobody
/// until it is written again: it is cleared then, and nothing reads it before. Pages that were never written are free, too. What is in
/// free pages is cleared when all steps are done. A guest under KVM then has an agent that says which pages are free; `agent=` makes it
/// a bad one, to be endured.
///
/// Each phase starts its pattern from the beginning whenever it is entered; only the random numbers go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spec {
    pub(super) phases: heapless::Vec<Phase, MAX_PHASES>,
    pub(super) listed: bool,
    pub(super) ws: Option<Pages>,
    /// Mean number of writes after which a page is freed; 0 for never.
    pub(super) life: u16,
    pub(super) agent: Conduct,
}

/// Where a vCPU is in its spec after some steps: the phase its next step belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PhaseAt {
    /// Which phase, counted from 0.
    pub index: usize,
    /// Steps of it that are done.
    pub done: u64,
    /// Steps of it that are left; `u64::MAX` if it goes on for ever.
    pub left: u64,
}

impl Spec {
    /// This pattern for ever, at its default rate, over all memory that is left. Arguments out of range are brought to
    /// the nearest inside.
    pub fn new(pattern: Pattern) -> Self {
        let pattern = match pattern {
            Pattern::Zipf(Milli(s)) => Pattern::Zipf(Milli(s.min(3000))),
            Pattern::Hotset(Milli(fraction)) => Pattern::Hotset(Milli(fraction.clamp(1, 999))),
            Pattern::Shared(Milli(fraction)) => Pattern::Shared(Milli(fraction.clamp(1, 1000))),
            other => other,
        };
        let phase = Phase {
            pattern,
            rate: pattern.default_rate(),
            ws: None,
            steps: 0,
        };
        Self {
            phases: heapless::Vec::from_iter([phase]),
            listed: false,
            ws: None,
            life: 0,
            agent: Conduct::Honest,
        }
    }

    /// The same with another rate in every phase, in steps/s of the whole guest; 0 is unpaced.
    #[must_use]
    pub fn with_rate(mut self, rate: u32) -> Self {
        for phase in &mut self.phases {
            phase.rate = rate;
        }
        self
    }

    /// The same with another working set; `None` is all memory that is left.
    #[must_use]
    pub fn with_ws(mut self, ws: Option<Pages>) -> Self {
        self.ws = ws;
        self
    }

    /// The same with pages that are freed after about so many writes, at most [`MAX_LIFE`]; 0 for never, and where vCPUs share pages.
    #[must_use]
    pub fn with_life(mut self, life: u16) -> Self {
        self.life = if self.shares_pages() { 0 } else { life.min(MAX_LIFE) };
        self
    }

    /// After how many writes a page is freed in the mean; 0 for never.
    pub const fn life(&self) -> u16 {
        self.life
    }

    /// What the agent in the guest is like; none where pages are never freed.
    pub const fn agent(&self) -> Conduct {
        match self.life {
            0 => Conduct::None,
            _ => self.agent,
        }
    }

    /// The working set, if the spec limits it.
    pub const fn ws(&self) -> Option<Pages> {
        self.ws
    }

    /// The phases in order: at least one. The only one of a spec without a list of phases has length 0.
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// Whether vCPUs share pages in some phase, so that each needs a ledger over the whole working set.
    pub fn shares_pages(&self) -> bool {
        self.phases
            .iter()
            .any(|phase| matches!(phase.pattern, Pattern::Shared(_)))
    }

    /// The phase that step `step` of a vCPU belongs to, counted from 0. Linear in the number of phases.
    pub fn phase_at(&self, step: u64) -> PhaseAt {
        let cycle: u64 = self.phases.iter().fold(0, |sum, phase| sum.saturating_add(phase.steps));
        if cycle == 0 {
            return PhaseAt {
                index: 0,
                done: step,
                left: u64::MAX,
            };
        }
        let mut done = step % cycle;
        for (index, phase) in self.phases.iter().enumerate() {
            if done < phase.steps {
                return PhaseAt {
                    index,
                    done,
                    left: phase.steps - done,
                };
            }
            done -= phase.steps;
        }
        unreachable!("a step number below the sum of all lengths lies in one of them")
    }

    /// The rate at which the whole guest should go while a vCPU does step `step`, in steps/s; 0 is unpaced.
    pub fn rate_at(&self, step: u64) -> u32 {
        self.phases[self.phase_at(step).index].rate
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.listed {
            f.write_str("phases:")?;
        }
        for (index, phase) in self.phases.iter().enumerate() {
            if index > 0 {
                f.write_str("+")?;
            }
            if self.listed {
                f.write_str("(")?;
            }
            write!(f, "{}", phase.pattern)?;
            if phase.rate != phase.pattern.default_rate() {
                write!(f, ",rate={}", phase.rate)?;
            }
            if let Some(ws) = phase.ws {
                write!(f, ",ws={}", Size(ws))?;
            }
            if self.listed {
                write!(f, ")*{}", phase.steps)?;
            }
        }
        if let Some(ws) = self.ws {
            write!(f, ",ws={}", Size(ws))?;
        }
        match (self.life, self.agent) {
            (0, _) => Ok(()),
            (life, Conduct::Honest) => write!(f, ",life={life}"),
            (life, agent) => write!(f, ",life={life},agent={}", agent.name()),
        }
    }
}

/// Whole pages in the largest unit that divides them.
struct Size(Pages);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Bytes(bytes) = self.0.bytes();
        const { assert!(PAGE_SIZE.is_multiple_of(1024)) };
        match bytes {
            _ if bytes.is_multiple_of(1 << 30) => write!(f, "{}GiB", bytes >> 30),
            _ if bytes.is_multiple_of(1 << 20) => write!(f, "{}MiB", bytes >> 20),
            _ => write!(f, "{}KiB", bytes >> 10),
        }
    }
}
