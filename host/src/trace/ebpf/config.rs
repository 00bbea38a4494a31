//! What is traced, where, and what becomes of it.

use std::fmt;

use dunlin_core::pageset::Run;
use dunlin_core::record::{Kind, REGIONS_MAX};
use dunlin_core::units::{Bytes, Pages};

use super::TracerError;
use crate::memory::GuestMemory;

/// What a tracer is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The process whose guest is traced, as the host numbers it.
    pub process: u32,
    /// Families of places in the kernel. At most one that sees writes.
    pub hooks: Vec<Hooks>,
    /// The guest's memory: 1 to [`REGIONS_MAX`] runs.
    pub regions: Vec<Region>,
    /// Which thread of the process is which vCPU.
    pub vcpus: Vec<(u32, u32)>,
    /// What becomes of the events.
    pub mode: Mode,
    /// Whether a thread's repeated writes of one page are reported each. Where the processor runs the guest, there are none in a
    /// dirty ring, unless it was harvested in between; where KVM emulates each instruction, every store is one.
    pub repeats: bool,
    /// Whether the kernel measures how long the programs run. It costs about 50 ns for each event, and needs CAP_SYS_ADMIN;
    /// without that it is left out.
    pub measure: bool,
}

/// A run of guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// KVM's number of the memory slot. Only the dirty ring needs it.
    pub slot: u16,
    /// Where the process has it mapped. Only page faults need it.
    pub address: u64,
    /// Which frames it is for the guest.
    pub run: Run,
}

/// What becomes of the events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// All of them, in order, through a buffer of this size (rounded up to a power of two of at least a page). An event takes 32
    /// bytes.
    Stream {
        /// Its size.
        buffer: Bytes,
    },
    /// Which pages were written in each window, one bit for each; with `counts` also how often, eight bytes for each. All twice.
    Windows {
        /// Whether writes are counted.
        counts: bool,
    },
}

/// A family of places in the kernel at which something can be seen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Hooks {
    /// The dirty ring of a VM that has one: each push, reset, and exit for a full ring.
    DirtyRing,
    /// The page tables that the processor walks for a guest: x86, hardware virtualisation, and somebody must have switched on
    /// KVM's dirty log.
    Mmu,
    /// The faults that lead to those changes, each before it is handled: also those of pages that are not tracked, or no memory.
    GuestFaults,
    /// Page faults of the process on its guest's memory, which must be write-protected by userfaultfd's WP_ASYNC (or be new).
    Faults,
    /// KVM's own marking of dirty pages, where the kernel lets its functions be traced.
    MarkDirty,
    /// Entries into the guest and exits from it. No writes.
    Exits,
    /// Waiting for missing pages (userfaultfd), where the kernel lets its functions be traced. No writes.
    Waits,
}

impl Hooks {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::DirtyRing,
        Self::Mmu,
        Self::GuestFaults,
        Self::Faults,
        Self::MarkDirty,
        Self::Exits,
        Self::Waits,
    ];

    /// A word for messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DirtyRing => "the dirty ring",
            Self::Mmu => "KVM's page tables",
            Self::GuestFaults => "the guest's page faults",
            Self::Faults => "page faults",
            Self::MarkDirty => "KVM's marking of dirty pages",
            Self::Exits => "exits",
            Self::Waits => "waits for missing pages",
        }
    }

    /// What is seen there.
    pub const fn kinds(self) -> &'static [Kind] {
        match self {
            Self::DirtyRing => &[Kind::RingPush, Kind::RingReset, Kind::RingExit],
            Self::Mmu => &[Kind::FastFault, Kind::SetSpte],
            Self::GuestFaults => &[Kind::GuestFault],
            Self::Faults => &[Kind::UserFault, Kind::KernelFault],
            Self::MarkDirty => &[Kind::MarkDirty],
            Self::Exits => &[Kind::UserspaceExit, Kind::Exit, Kind::Entry],
            Self::Waits => &[Kind::WaitBegin, Kind::WaitEnd],
        }
    }

    /// Whether writes are among it.
    pub fn sees_writes(self) -> bool {
        self.kinds().iter().any(|kind| kind.is_write())
    }

    /// Since which kernel the places are there, for a message.
    pub(super) const fn since(self) -> &'static str {
        match self {
            Self::DirtyRing => "KVM's dirty ring (Linux 5.11 on x86, 6.2 on arm64)",
            Self::Mmu => "KVM on x86 (Linux 5.16)",
            Self::GuestFaults => "KVM on x86 (Linux 6.1)",
            Self::Faults => "tracepoints of page faults (x86)",
            Self::Exits => "KVM",
            Self::MarkDirty | Self::Waits => "functions that can be traced (Linux 5.5)",
        }
    }
}

impl fmt::Display for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Pages have to be found by 32-bit numbers, in two halves.
const PAGES_MAX: u64 = 1 << 31;

impl Config {
    /// The regions of a guest of this process.
    pub fn regions_of(memory: &GuestMemory) -> Vec<Region> {
        let regions = (0..).zip(memory.layout().regions());
        let region = regions.map(|(slot, run)| Region {
            slot,
            address: memory.host_address(run.first),
            run: *run,
        });
        region.collect()
    }

    /// Checks everything that needs no kernel.
    pub(super) fn check(&self) -> Result<(), TracerError> {
        if self.hooks.is_empty() {
            return Err(TracerError::NoHooks);
        }
        let mut writers = self.hooks.iter().filter(|hooks| hooks.sees_writes());
        if let (Some(first), Some(second)) = (writers.next(), writers.next()) {
            return Err(TracerError::TwoWriteSources {
                first: first.name(),
                second: second.name(),
            });
        }
        let runs = self.regions.len();
        if runs > REGIONS_MAX {
            return Err(TracerError::Regions { runs });
        }
        match self.regions.iter().find(|region| !is_memory(region.run)) {
            Some(Region { run, .. }) => Err(TracerError::Region {
                first: run.first.0,
                pages: run.count.0,
            }),
            None => Ok(()),
        }
    }

    /// One past the last frame, rounded up to whole words of a bitmap.
    pub(super) fn span(&self) -> Pages {
        let end = self.regions.iter().map(|region| region.run.end().0).max();
        Pages(end.unwrap_or(0).next_multiple_of(64))
    }

    /// Bytes of kernel memory for the buffer or the tables, and what they are.
    pub(super) fn kernel_memory(&self) -> (u64, String) {
        match self.mode {
            Mode::Stream { buffer } => (buffer.0, "The buffer for events".into()),
            Mode::Windows { counts } => {
                let pages = self.span().0;
                let counted = if counts { pages.saturating_mul(16) } else { 0 };
                (counted.saturating_add(pages / 4), format!("Tables for {pages} pages"))
            }
        }
    }
}

fn is_memory(run: Run) -> bool {
    let end = run.first.0.checked_add(run.count.0);
    run.count.0 > 0 && end.is_some_and(|end| end <= PAGES_MAX)
}

#[cfg(test)]
mod tests {
    use dunlin_core::units::Gfn;

    use super::*;

    fn config(hooks: &[Hooks]) -> Config {
        Config {
            process: 1,
            hooks: hooks.to_vec(),
            regions: vec![region(0, 1000)],
            vcpus: vec![],
            mode: Mode::Windows { counts: true },
            repeats: false,
            measure: false,
        }
    }

    fn region(first: u64, pages: u64) -> Region {
        Region {
            slot: 0,
            address: 0,
            run: Run::new(Gfn(first), Pages(pages)),
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(config(&[Hooks::DirtyRing, Hooks::Exits]).check().is_ok());
        assert!(matches!(config(&[]).check(), Err(TracerError::NoHooks)));
        let two = config(&[Hooks::Faults, Hooks::Exits, Hooks::Mmu]);
        assert!(matches!(two.check(), Err(TracerError::TwoWriteSources { .. })));
        let mut many = config(&[Hooks::Mmu]);
        many.regions = vec![region(0, 1); REGIONS_MAX + 1];
        assert!(matches!(many.check(), Err(TracerError::Regions { runs: 9 })));
        for (first, pages) in [(0, 0), (1, u64::MAX), (0, PAGES_MAX + 1)] {
            let mut wrong = config(&[Hooks::Mmu]);
            wrong.regions = vec![region(first, pages)];
            assert!(
                matches!(wrong.check(), Err(TracerError::Region { .. })),
                "{first}+{pages}"
            );
        }
    }

    #[test]
    fn kernel_memory_is_counted() {
        let mut config = config(&[Hooks::Faults]);
        assert_eq!(config.span(), Pages(1024));
        assert_eq!(config.kernel_memory().0, 1024 / 4 + 1024 * 16);
        config.mode = Mode::Windows { counts: false };
        assert_eq!(config.kernel_memory().0, 1024 / 4);
        config.mode = Mode::Stream { buffer: Bytes(1 << 20) };
        assert_eq!(config.kernel_memory().0, 1 << 20);
    }

    #[test]
    fn every_kind_belongs_to_one_family() {
        for kind in Kind::ALL {
            let families = Hooks::ALL.iter().filter(|hooks| hooks.kinds().contains(&kind));
            assert_eq!(families.count(), 1, "{kind:?}");
        }
    }
}
