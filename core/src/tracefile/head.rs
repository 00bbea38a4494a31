//! What a trace says of itself.

use core::fmt;

use super::frame::HEADER_BYTES;
use super::layout::Limits;
use super::{FrameHeader, FrameKind, HeadError, Item, ItemError, TracefileError};
use crate::message::{REGIONS_MAX, Region, Regions};
use crate::units::{Gfn, Nanos, Pages};

/// Most bytes of a guest's name; a longer one is cut at a character.
pub const GUEST_NAME_MAX: usize = 64;
/// Most vCPUs that a trace tells apart.
pub const VCPUS_MAX: u32 = 1024;

/// Stands before the first item.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// What saw the writes.
    pub source: Source,
    /// Guest RAM. Frame numbers outside are not in a trace.
    pub regions: Regions,
    /// Pages of RAM that were not all zero when the recording began; all pages if nobody looked.
    pub used: Pages,
    /// vCPUs of the guest, 1 to [`VCPUS_MAX`].
    pub vcpus: u32,
    /// The time between two looks, for sources that look every so often; zero for those that see each write.
    pub window: Nanos,
    /// Wall clock at the start, in nanoseconds since 1970; zero if unknown, as in traces made by a simulator.
    pub started_unix_ns: u64,
    /// The guest's name, or whatever tells a reader which guest this was.
    pub guest: heapless::String<GUEST_NAME_MAX>,
}

impl Head {
    /// One more than the highest frame number of RAM: the length of a table with a place for each.
    pub fn span(&self) -> Pages {
        let end = |region: &crate::message::Region| region.first.0.saturating_add(region.pages.0);
        Pages(self.regions.iter().map(end).max().unwrap_or(0))
    }

    /// Pages of RAM.
    pub fn total(&self) -> Pages {
        let pages = self.regions.iter().map(|region| region.pages.0);
        Pages(pages.fold(0, u64::saturating_add))
    }

    /// Checks that there can be such a guest.
    ///
    /// # Errors
    /// [`HeadError`].
    pub fn check(&self) -> Result<(), HeadError> {
        if self.regions.is_empty() {
            return Err(HeadError::NoRegions);
        }
        let mut end = 0;
        for region in &self.regions {
            if region.pages.0 == 0 {
                return Err(HeadError::Region);
            }
            if region.first.0 < end {
                return Err(HeadError::Order);
            }
            end = region.first.0.checked_add(region.pages.0).ok_or(HeadError::Region)?;
        }
        if !(1..=VCPUS_MAX).contains(&self.vcpus) {
            return Err(HeadError::Vcpus(self.vcpus));
        }
        let (used, total) = (self.used, self.total());
        if used > total {
            return Err(HeadError::Used { used, total });
        }
        Ok(())
    }

    /// Checks that an item can be in a trace with this head: its pages below [`span`](Self::span), its vCPU one of the guest's.
    ///
    /// # Errors
    /// [`ItemError::Page`], [`EmptyRun`](ItemError::EmptyRun) or [`Vcpu`](ItemError::Vcpu).
    pub fn check_item(&self, item: &Item) -> Result<(), ItemError> {
        self.limits().check(item)
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            span: self.span().0,
            vcpus: self.vcpus,
        }
    }

    /// Reads the payload of the frame with this header, the first of a trace. Linear.
    ///
    /// # Errors
    /// [`TracefileError::HeadPlace`], [`PayloadChecksum`](TracefileError::PayloadChecksum),
    /// [`HeadEncoding`](TracefileError::HeadEncoding), [`Source`](TracefileError::Source) or [`Head`](TracefileError::Head).
    pub fn decode(header: &FrameHeader, payload: &[u8]) -> Result<Self, TracefileError> {
        if header.kind != FrameKind::Head || header.sequence != 0 {
            return Err(TracefileError::HeadPlace);
        }
        header.check_payload(payload)?;
        let Ok((stored, [])) = postcard::take_from_bytes::<Stored<'_>>(payload) else {
            return Err(TracefileError::HeadEncoding);
        };
        let regions = stored.regions.iter().map(|&(first, pages)| Region {
            first: Gfn(first),
            pages: Pages(pages),
        });
        let head = Self {
            source: Source::from_name(stored.source).ok_or(TracefileError::Source)?,
            regions: regions.collect(),
            used: Pages(stored.used),
            vcpus: stored.vcpus,
            window: Nanos(stored.window_ns),
            started_unix_ns: stored.started_unix_ns,
            guest: heapless::String::try_from(stored.guest).map_err(|_| TracefileError::HeadEncoding)?,
        };
        head.check()?;
        Ok(head)
    }

    /// Writes the frame of this head, its header included, and returns how many bytes it takes; `None` if there is no room.
    pub(super) fn encode(&self, buffer: &mut [u8]) -> Option<usize> {
        let regions = self.regions.iter().map(|region| (region.first.0, region.pages.0));
        let stored = Stored {
            source: self.source.name(),
            regions: regions.collect(),
            used: self.used.0,
            vcpus: self.vcpus,
            window_ns: self.window.0,
            started_unix_ns: self.started_unix_ns,
            guest: &self.guest,
        };
        let (place, rest) = buffer.split_first_chunk_mut::<HEADER_BYTES>()?;
        let payload = postcard::to_slice(&stored, rest).ok()?;
        let header = FrameHeader {
            kind: FrameKind::Head,
            sequence: 0,
            bytes: payload.len() as u32,
            items: 0,
            checksum: super::frame::checksum(payload),
            from: Nanos::ZERO,
            to: Nanos::ZERO,
        };
        *place = header.encode();
        Some(HEADER_BYTES + payload.len())
    }
}

/// A head as it is stored. The order of the fields is that of the file.
#[derive(serde::Serialize, serde::Deserialize)]
struct Stored<'a> {
    source: &'a str,
    regions: heapless::Vec<(u64, u64), REGIONS_MAX>,
    used: u64,
    vcpus: u32,
    window_ns: u64,
    started_unix_ns: u64,
    guest: &'a str,
}

/// What saw the writes, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Source {
    /// eBPF at the tracepoint `kvm_dirty_ring_push`.
    RingPush,
    /// eBPF at `kvm_page_fault`, `fast_page_fault` and `kvm_mmu_set_spte`, on hardware KVM with a dirty bitmap.
    SptePermission,
    /// eBPF at the entry of `mark_page_dirty_in_slot`.
    MarkDirty,
    /// eBPF at `page_fault_kernel` or `page_fault_user` while pages are write-protected by userfaultfd WP_ASYNC.
    WriteProtectFault,
    /// A KVM dirty ring, harvested every so often.
    Ring,
    /// A KVM dirty bitmap, harvested every so often.
    Bitmap,
    /// `PAGEMAP_SCAN` every so often.
    PagemapScan,
    /// A dirty bitmap that the guest's own hypervisor harvests.
    Hypervisor,
    /// A generator of writes, without a guest.
    Generator,
    /// A file of some other program.
    Imported,
}

/// What a [`Source`] tells apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Resolution {
    /// Every write, in order, with its vCPU.
    EveryWrite,
    /// The first write of a page since it was last harvested or protected, in order.
    FirstWrites,
    /// Which pages were written in each window; neither order nor how often.
    Windows,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::RingPush,
        Self::SptePermission,
        Self::MarkDirty,
        Self::WriteProtectFault,
        Self::Ring,
        Self::Bitmap,
        Self::PagemapScan,
        Self::Hypervisor,
        Self::Generator,
        Self::Imported,
    ];

    /// As it stands in reports and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RingPush => "ebpf:kvm_dirty_ring_push",
            Self::SptePermission => "ebpf:kvm_mmu",
            Self::MarkDirty => "ebpf:mark_page_dirty_in_slot",
            Self::WriteProtectFault => "ebpf:page_fault_kernel",
            Self::Ring => "kvm-dirty-ring",
            Self::Bitmap => "kvm-dirty-bitmap",
            Self::PagemapScan => "pagemap-scan",
            Self::Hypervisor => "hypervisor",
            Self::Generator => "generator",
            Self::Imported => "imported",
        }
    }

    /// The source of this [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.name() == name)
    }

    /// What it tells apart, on KVM with hardware support. Where KVM emulates every instruction, a dirty ring has each write and
    /// not only the first since the last harvest.
    pub const fn resolution(self) -> Resolution {
        match self {
            Self::Generator | Self::Imported => Resolution::EveryWrite,
            Self::RingPush | Self::SptePermission | Self::MarkDirty | Self::WriteProtectFault => {
                Resolution::FirstWrites
            }
            Self::Ring | Self::Bitmap | Self::PagemapScan | Self::Hypervisor => Resolution::Windows,
        }
    }

    /// What it cannot see, in a sentence for a reader of a report.
    pub const fn cannot_see(self) -> &'static str {
        match self {
            Self::RingPush => "on hardware KVM, writes to a page between its first write and the next harvest",
            Self::SptePermission | Self::MarkDirty => {
                "writes to a page between its first write and the next harvest of the dirty bitmap"
            }
            Self::WriteProtectFault => "writes to a page between its first write and the next time it is protected",
            Self::Ring => "when in a window a page was written; the order is that of each vCPU's ring",
            Self::Bitmap | Self::PagemapScan => {
                "when, how often, in which order and by which vCPU pages were written within a window"
            }
            Self::Hypervisor => "anything but which pages its hypervisor called dirty in a window",
            Self::Generator => "nothing: every write was generated",
            Self::Imported => "what the program that wrote the file did not see",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        for source in Source::ALL {
            assert_eq!(Source::from_name(source.name()), Some(source));
        }
        assert_eq!(Source::from_name("gossip"), None);
    }
}
