//! What the two say to each other.
//!
//! The host asks, the agent answers; an agent that has been asked nothing is silent. Whatever one of them does not know, it ignores: that
//! is how an older one goes on working with a newer one.

use bitflags::bitflags;
use dunlin_core::pageset::Run;
use dunlin_core::units::{Bytes, Gfn, Pages};
use heapless::{String, Vec};
use serde::{Deserialize, Serialize};

/// The protocol's version.
pub const PROTOCOL: u16 = 1;
/// Most runs of pages in one message.
pub const RUNS_MAX: usize = 32;
/// Most bytes of what an agent says of its kernel.
pub const KERNEL_MAX: usize = 64;

/// From the host to the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ToGuest {
    /// Who is there? Ends whatever was going on; the answer is [`ToHost::Hello`].
    Hello {
        /// The versions that the host speaks.
        min: u16,
        /// The newest of them.
        max: u16,
        /// Comes back in the answer, so that one to somebody else is not taken for it.
        nonce: u32,
    },
    /// Dirty tracking is on: from now on, which pages are soft? The answers are [`ToHost::Soft`] and, at last, [`ToHost::SoftEnd`] or
    /// [`ToHost::Refused`].
    OpenEpoch {
        /// Larger than those before.
        epoch: u32,
    },
    /// Nothing more is of use.
    CloseEpoch {
        /// Which.
        epoch: u32,
    },
    /// Something is about to happen, or has happened: the answer is [`ToHost::Acknowledged`].
    Notice {
        /// Comes back in the answer.
        id: u32,
        /// What.
        notice: Notice,
        /// What is asked for.
        work: Work,
        /// After this the host waits no longer.
        timeout_ms: u32,
    },
    /// How is it going? The answer is [`ToHost::Facts`].
    AskFacts {
        /// Comes back in the answer.
        id: u32,
    },
}

/// From the agent to the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[expect(
    clippy::large_enum_variant,
    reason = "there is no heap to put the largest on, and never more than one or two of them"
)]
pub enum ToHost {
    /// Here I am.
    Hello(AgentHello),
    /// Pages that were soft at some instant since the epoch was opened.
    Soft {
        /// Which epoch.
        epoch: u32,
        /// The pages, ascending.
        runs: Vec<SoftRun, RUNS_MAX>,
    },
    /// There are no more in this epoch.
    SoftEnd {
        /// Which.
        epoch: u32,
        /// How many pages all messages had.
        pages: Pages,
        /// Processor time that finding them took.
        cpu_us: u32,
    },
    /// There are none in this epoch.
    Refused {
        /// Which.
        epoch: u32,
        /// Why.
        why: Refusal,
    },
    /// A notice was acted upon.
    Acknowledged {
        /// Which.
        id: u32,
        /// What of it was done.
        done: Work,
        /// What was tried and failed.
        failed: Work,
    },
    /// How it is going.
    Facts {
        /// Which question this answers.
        id: u32,
        /// The answer.
        facts: Facts,
    },
}

/// What an agent says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct AgentHello {
    /// From [`ToGuest::Hello`].
    pub nonce: u32,
    /// The version that it will speak.
    pub protocol: u16,
    /// Of the guest, in bytes.
    pub page_size: u32,
    /// What it can do.
    pub abilities: Abilities,
    /// Its kernel, for people.
    pub kernel: String<KERNEL_MAX>,
}

/// Soft pages: whose contents nobody will read before they are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SoftRun {
    /// The first.
    pub first: Gfn,
    /// How many, in units of 4 KiB.
    pub pages: Pages,
    /// Why.
    pub kind: SoftKind,
}

impl SoftRun {
    /// The pages; `None` if there are none, or no such frames.
    pub const fn run(&self) -> Option<Run> {
        match self.first.0.checked_add(self.pages.0) {
            Some(_) if self.pages.0 > 0 => Some(Run::new(self.first, self.pages)),
            _ => None,
        }
    }
}

/// Why pages are soft.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum SoftKind {
    /// They belong to nobody.
    Free,
    /// The balloon has them.
    Balloon,
}

/// Why there are no hints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Refusal {
    /// The kernel fills free pages with a pattern and looks at it when it uses them again: a page of zeros would be an error to it.
    Poisoned,
    /// The kernel does not show which pages are free, or not to this process.
    Hidden,
    /// Pages are not of 4 KiB, or frames are not what the host calls them.
    Unlike,
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Poisoned => "the guest's kernel checks the contents of free pages (page_poison)",
            Self::Hidden => "the guest's kernel does not show which pages are free (/proc/kpageflags)",
            Self::Unlike => "the guest's page frames are not those of the host",
        })
    }
}

/// What a notice is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Notice {
    /// A migration is about to begin.
    BeforeMigration,
    /// It is over, and the guest runs elsewhere than before.
    AfterMigration,
    /// It is over, and the guest runs where it did.
    MigrationGivenUp,
}

bitflags! {
    /// What a notice asks for.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Work: u32 {
        /// Write what is dirty in the page cache to its files.
        const FLUSH = 1;
        /// Then forget the page cache and what else can be read again.
        const DROP_CACHES = 2;
        /// Tell the applications that have asked to be told.
        const HOOKS = 4;
    }

    /// What an agent can do.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Abilities: u32 {
        /// Say which pages are soft.
        const SOFT_PAGES = 1;
        /// Say how much memory is in use.
        const FACTS = 2;
        /// [`Work::FLUSH`] and [`Work::DROP_CACHES`].
        const CACHES = 4;
        /// [`Work::HOOKS`].
        const HOOKS = 8;
        /// The guest has a balloon.
        const BALLOON = 16;
    }
}

/// How a guest is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Facts {
    /// All memory that its kernel manages, without what the balloon has.
    pub total: Bytes,
    /// Memory that belongs to nobody.
    pub free: Bytes,
    /// Memory that could be used without swapping, by the kernel's estimate; free memory is part of it.
    pub available: Bytes,
    /// Memory in the page cache.
    pub cached: Bytes,
    /// What of that is to be written to files yet.
    pub dirty: Bytes,
    /// Swap space in use.
    pub swap_used: Bytes,
    /// Share of the last ten seconds in which something waited for memory, in thousandths.
    pub memory_pressure_milli: u32,
    /// Share of processor time in use since the question before, in thousandths of one processor.
    pub cpu_milli: u32,
    /// Bytes received and sent by network interfaces since the question before.
    pub network: Bytes,
}

/// Bits that a newer peer may set are kept, so that it can be told what of its wishes was known.
macro_rules! as_bits {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.bits().serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                u32::deserialize(deserializer).map(Self::from_bits_retain)
            }
        }

        #[cfg(feature = "defmt")]
        impl defmt::Format for $name {
            fn format(&self, f: defmt::Formatter<'_>) {
                defmt::write!(f, "{=u32:b}", self.bits());
            }
        }
    )*};
}
as_bits!(Work, Abilities);
