//! The messages that source and target exchange, as plain types.
//!
//! Bulk data (runs of pages) is not in here: it travels as frames of its own (`wire`), so that a host can move it
//! between socket and guest memory without touching it.

use core::fmt;

use heapless::Vec;

use crate::units::{Bytes, Gfn, Nanos, PAGE_SIZE, Pages};

/// Longest signature of a hand-over, in bytes: an ECDSA P-256 signature in ASN.1 has at most 72, one by Ed25519 has 64.
pub const SIGNATURE_BYTES_MAX: usize = 128;

/// The protocol version this library speaks; peers settle on the highest version both know.
pub const PROTOCOL_VERSION: u16 = 1;
/// The oldest protocol version this library still speaks.
pub const PROTOCOL_VERSION_MIN: u16 = 1;
/// Most regions a VM description may have.
pub const REGIONS_MAX: usize = 8;
/// Most payload bytes of one control message.
pub const CONTROL_PAYLOAD_MAX: usize = 64 * 1024;
/// Most bytes of state, bitmap or hashes in one message; the rest of [`CONTROL_PAYLOAD_MAX`] is for the fields around it.
pub const CHUNK_BYTES_MAX: usize = 32 * 1024;
/// Most bytes of vCPU and device state of one VM.
pub const STATE_BYTES_MAX: u32 = 8 * 1024 * 1024;
/// Bytes of one encoded CPUID leaf: function, index, flags, eax, ebx, ecx, edx as little-endian `u32`.
pub const CPUID_ENTRY_BYTES: usize = 28;

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
        #[cfg_attr(feature = "wire", derive(serde::Serialize, serde::Deserialize))]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
    };
}

identity! {
    /// Names one attempt to migrate a VM; random, never used again.
    SessionId
}
identity! {
    /// Names a VM for its whole life, on whatever host it runs.
    VmId
}

bitflags::bitflags! {
    /// What a migration needs from the other side.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Capabilities: u32 {
        /// The target can run the guest with pages still missing.
        const POST_COPY = 1 << 0;
        /// Page runs carry an XXH3-64.
        const CHECKSUM = 1 << 1;
        /// The target keeps a hash of every page as installed.
        const VERIFY = 1 << 2;
        /// A cut connection can be taken up again.
        const RECONNECT = 1 << 3;
        /// The target reads a static copy of all pages from a storage directory that the source writes to.
        const STORAGE = 1 << 4;
        /// The target reads what is missing in post-copy from there, once the network is gone.
        const PB_DATA = 1 << 5;
        /// A part of what would go to the storage directory comes on the migration channel.
        const SPLIT = 1 << 6;
    }
}

impl Capabilities {
    /// Those that need a directory which both hosts mount.
    pub const IN_STORAGE: Self = Self::STORAGE.union(Self::PB_DATA);
}

#[cfg(feature = "wire")]
impl serde::Serialize for Capabilities {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.bits())
    }
}

#[cfg(feature = "wire")]
impl<'de> serde::Deserialize<'de> for Capabilities {
    /// Keeps bits it does not know, so that a newer peer's request is refused and not silently trimmed.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u32::deserialize(deserializer).map(Self::from_bits_retain)
    }
}

/// A contiguous piece of guest-physical memory that is RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "wire", derive(serde::Serialize, serde::Deserialize))]
pub struct Region {
    /// First frame.
    pub first: Gfn,
    /// Length in pages, at least one.
    pub pages: Pages,
}

/// The regions of a VM, ascending and disjoint.
pub type Regions = Vec<Region, REGIONS_MAX>;

/// What the source wants to move, sent before anything is changed or allocated on either side.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "wire", derive(serde::Serialize, serde::Deserialize))]
pub struct Hello<'a> {
    /// Oldest protocol version the source speaks.
    pub protocol_min: u16,
    /// Newest protocol version the source speaks.
    pub protocol_max: u16,
    /// What this migration needs of the target.
    pub capabilities: Capabilities,
    /// This attempt.
    pub session: SessionId,
    /// The VM to move.
    pub vm: VmId,
    /// Bytes per page, always [`PAGE_SIZE`] today.
    pub page_size: u32,
    /// The VM's RAM.
    pub regions: Regions,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest TSC rate in kHz; 0 for guests without one.
    pub tsc_khz: u32,
    /// Version of the vCPU state encoding.
    pub state_version: u16,
    /// Silence after which either side counts the link as lost.
    pub network_timeout: Nanos,
    /// CPUID leaves the target must cover, [`CPUID_ENTRY_BYTES`] each; empty for guests without CPUID.
    #[cfg_attr(feature = "wire", serde(borrow))]
    pub cpuid: &'a [u8],
    /// How to build the same VM again; opaque to this library.
    #[cfg_attr(feature = "wire", serde(borrow))]
    pub config: &'a [u8],
}

impl Hello<'_> {
    /// Pages of RAM over all regions, stopping at the largest value.
    pub fn total_pages(&self) -> Pages {
        total_pages(&self.regions)
    }
}

/// Pages of RAM over all regions, stopping at the largest value.
pub fn total_pages(regions: &[Region]) -> Pages {
    regions
        .iter()
        .fold(Pages::ZERO, |sum, region| sum.saturating_add(region.pages))
}

/// One past the last frame of the last region: the length of a flat bitmap over the VM.
pub fn end_gfn(regions: &[Region]) -> Gfn {
    regions
        .last()
        .map_or(Gfn::ZERO, |region| Gfn(region.first.0.saturating_add(region.pages.0)))
}

/// Why a target refuses a VM. Decided before anything is allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "wire", derive(serde::Serialize, serde::Deserialize))]
pub enum Refusal {
    /// No common protocol version.
    Version {
        /// Oldest version the target speaks.
        min: u16,
        /// Newest version the target speaks.
        max: u16,
    },
    /// The target lacks something the migration needs.
    Capabilities {
        /// The bits of [`Capabilities`] it lacks.
        lacking: u32,
    },
    /// Another page size than the target's.
    PageSize {
        /// The target's page size in bytes.
        expected: u32,
    },
    /// Regions overlap, are out of order, empty, overflow, or lie too far apart.
    Regions,
    /// More memory than the target gives.
    Memory {
        /// What the VM has.
        asked: Bytes,
        /// The most the target takes.
        max: Bytes,
    },
    /// More vCPUs than the target gives, or none.
    Vcpus {
        /// What the VM has.
        asked: u8,
        /// The most the target takes.
        max: u8,
    },
    /// The VM uses a processor feature that the target does not have.
    Cpuid {
        /// CPUID function.
        function: u32,
        /// CPUID index.
        index: u32,
        /// 0 to 3 for eax to edx.
        register: u8,
        /// The bits that are missing.
        missing: u32,
    },
    /// CPUID bytes that are no CPUID table.
    CpuidMalformed,
    /// The target's TSC runs at another rate and cannot be scaled.
    Tsc {
        /// Rate of the target's TSC in kHz.
        expected: u32,
    },
    /// Another encoding of the vCPU state.
    StateVersion {
        /// The version the target reads.
        expected: u16,
    },
    /// The target is busy with another session, or holds a VM already.
    Busy,
    /// The target could not build the VM (its log says why).
    CannotBuild,
    /// The target could not write its hand-over record (its log says why).
    Record,
    /// A first message that is no request to migrate.
    NotHello,
    /// The target's policy does not allow it (its audit log says why).
    NotAllowed,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { min, max } => write!(
                f,
                "the target speaks protocol versions {min} to {max}; use the same release on both hosts"
            ),
            Self::Capabilities { lacking } if lacking & !Capabilities::IN_STORAGE.bits() == 0 => f.write_str(
                "the target knows no storage directory; start `dunlin receive` with --storage, or leave it out here and choose a strategy that needs none",
            ),
            Self::Capabilities { lacking } => write!(
                f,
                "the target lacks what this strategy needs (capability bits {lacking:#x}); run `dunlin doctor` there, or choose another strategy"
            ),
            Self::PageSize { expected } => write!(f, "the target uses pages of {expected} bytes"),
            Self::Regions => f.write_str("the VM's memory regions are empty, overlap, overflow or lie too far apart"),
            Self::Memory { asked, max } => write!(
                f,
                "the VM has {} MiB of memory, the target takes at most {} MiB; start `dunlin receive` with a larger --max-memory",
                asked.0.div_ceil(1 << 20),
                max.0 >> 20
            ),
            Self::Vcpus { asked, max } => write!(f, "the VM has {asked} vCPUs, the target takes 1 to {max}"),
            Self::Cpuid {
                function,
                index,
                register,
                missing,
            } => write!(
                f,
                "the target's processor lacks CPUID features the VM uses: leaf {function:#x}.{index}, register {}, bits {missing:#010x}",
                ["eax", "ebx", "ecx", "edx"].get(usize::from(*register)).unwrap_or(&"?")
            ),
            Self::CpuidMalformed => f.write_str("the VM's CPUID table is malformed"),
            Self::Tsc { expected } => write!(
                f,
                "the target's TSC runs at {expected} kHz and cannot be scaled to the VM's rate"
            ),
            Self::StateVersion { expected } => write!(
                f,
                "the target reads vCPU state version {expected}; use the same release on both hosts"
            ),
            Self::Busy => {
                f.write_str("the target already holds a VM or is receiving one; start another `dunlin receive`")
            }
            Self::CannotBuild => f.write_str("the target could not build the VM; its log says why"),
            Self::Record => f.write_str("the target could not write its hand-over record; check its --state directory"),
            Self::NotHello => f.write_str("the connection did not begin with a request to migrate"),
            Self::NotAllowed => f.write_str("the target's policy does not allow it; ask who administers that host"),
        }
    }
}

impl core::error::Error for Refusal {}

/// How a migration ends its pre-copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "wire", derive(serde::Serialize, serde::Deserialize))]
pub enum Mode {
    /// Everything was sent; nothing is missing when the guest runs on the target.
    StopCopy,
    /// The guest runs on the target while pages are still missing.
    PostCopy,
}

/// Why one side ends an attempt before the hand-over is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "wire", derive(serde::Serialize, serde::Deserialize))]
pub enum AbortReason {
    /// A person cancelled it.
    Cancelled,
    /// The other side sent something that does not belong here.
    Protocol(Violation),
    /// The connection broke.
    LinkLost,
    /// Nothing was heard for too long.
    Silence,
    /// The guest could not be paused, saved or tracked on the source.
    SourceGuest,
    /// The guest could not be built, restored or run on the target.
    TargetGuest,
    /// A hand-over record could not be written.
    Record,
    /// The other side ended this attempt for its own reason (its log says which).
    Peer,
    /// The target process was restarted and provably never ran the VM.
    TargetRestarted,
    /// A person said so.
    Resolved,
    /// A conservation law did not hold: a defect of this library.
    Internal,
}

impl fmt::Display for AbortReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("cancelled"),
            Self::Protocol(violation) => write!(f, "the other side broke the protocol: {violation}"),
            Self::LinkLost => f.write_str("the connection was lost; check the network, then migrate again"),
            Self::Silence => f.write_str(
                "nothing was heard from the other side for too long; check the network, or raise --network-timeout",
            ),
            Self::SourceGuest => {
                f.write_str("the guest could not be paused, saved or tracked on the source; its log says why")
            }
            Self::TargetGuest => {
                f.write_str("the guest could not be built, restored or run on the target; its log says why")
            }
            Self::Record => f.write_str(
                "a hand-over record could not be written; check space and permissions of the --state directories",
            ),
            Self::Peer => f.write_str("the other side ended the attempt; its log says why"),
            Self::TargetRestarted => {
                f.write_str("the target process was restarted and never ran the VM; migrate again")
            }
            Self::Resolved => f.write_str("resolved by hand"),
            Self::Internal => f.write_str("a conservation law did not hold; please report this as a defect"),
        }
    }
}

/// What exactly the other side did wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "wire", derive(serde::Serialize, serde::Deserialize))]
pub enum Violation {
    /// A message that does not belong to this phase.
    UnexpectedMessage,
    /// A page outside the VM's RAM.
    PageOutside,
    /// A bitmap chunk outside the VM, or not whole words.
    BitmapChunk,
    /// State that is larger than announced or allowed, or not contiguous.
    StateChunk,
    /// The hand-over announced another number of dirty pages than the bitmap holds.
    DirtyCount,
    /// Stop-and-copy was announced while pages had never been sent.
    PagesMissing,
    /// Another session than the one in progress.
    WrongSession,
    /// A frame that cannot be decoded (bad magic, checksum, length or sequence).
    Frame,
    /// A run of pages whose checksum does not match its bytes.
    PageChecksum,
    /// Verification hashes that are not contiguous or too many.
    Hashes,
    /// A protocol version that was not offered.
    Version,
    /// A round that is not the one after the last, or has more pages than the VM.
    Round,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnexpectedMessage => "a message that does not belong to this phase",
            Self::PageOutside => "a page outside the VM's memory",
            Self::BitmapChunk => "a malformed piece of a bitmap",
            Self::StateChunk => "vCPU state larger than announced, or not contiguous",
            Self::DirtyCount => "another number of dirty pages than announced",
            Self::PagesMissing => "stop-and-copy although pages were never sent",
            Self::WrongSession => "a message of another session",
            Self::Frame => "a frame that cannot be decoded",
            Self::PageChecksum => "pages whose checksum does not match",
            Self::Hashes => "verification hashes that are not contiguous",
            Self::Version => "a protocol version that was not offered; use the same release on both hosts",
            Self::Round => "a round out of order, or of more pages than the VM has",
        })
    }
}

/// Where a target stands, told to a source that reconnects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "wire", derive(serde::Serialize, serde::Deserialize))]
pub enum TargetStanding {
    /// Ready, waiting for the commit.
    Ready,
    /// Runs the VM and lacks nothing.
    Complete,
    /// Runs the VM; a description of what is missing follows.
    PostCopy,
    /// Never ran the VM in this session and never will.
    NeverTaken,
    /// Knows nothing of this session.
    Unknown,
}

/// What the target measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "wire", derive(serde::Serialize, serde::Deserialize))]
pub struct TargetReport {
    /// From running to the guest's first progress.
    pub first_progress_gap: Nanos,
    /// Longest gap in the guest's progress on the target, until completion.
    pub guest_gap: Nanos,
    /// Steps of all vCPUs at completion.
    pub steps: u64,
    /// From running to the last missing page, zero for stop-and-copy.
    pub postcopy_duration: Nanos,
    /// Demand faults that had to be asked for.
    pub faults: u64,
    /// Pages installed by the background push.
    pub pushed: u64,
    /// Pages installed from the storage channel because the network was gone.
    pub stored: u64,
    /// Median of fault read to page installed.
    pub fault_p50: Nanos,
    /// 99th percentile of the same.
    pub fault_p99: Nanos,
    /// Pages compared and pages that differed, if verification was asked for.
    pub verified: Option<(u64, u64)>,
}

/// Everything that is said on the control side of the migration channel, and at the start of the fault channel.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "wire", derive(serde::Serialize, serde::Deserialize))]
pub enum Message<'a> {
    /// Source: this is what I want to move.
    #[cfg_attr(feature = "wire", serde(borrow))]
    Hello(Hello<'a>),
    /// Target: send it.
    Welcome {
        /// The version both will speak.
        protocol: u16,
    },
    /// Target: no.
    Refused(Refusal),
    /// Source, first on the fault channel: this connection belongs to a session.
    Attach {
        /// The session.
        session: SessionId,
    },
    /// Target: the fault channel is open.
    Attached,
    /// Source: a round begins.
    RoundStart {
        /// Counted from 1.
        round: u32,
        /// Pages it will send.
        pages: Pages,
    },
    /// Source: all pages of the round have been sent.
    RoundEnd {
        /// The round.
        round: u32,
    },
    /// Target: everything of the round has arrived and stands in memory.
    RoundReached {
        /// The round.
        round: u32,
    },
    /// Source: a piece of the final dirty set.
    FinalSet {
        /// Index of the first 64-page word.
        first_word: u64,
        /// Whole little-endian words; pieces that are all zero are not sent.
        #[cfg_attr(feature = "wire", serde(borrow))]
        words: &'a [u8],
    },
    /// Source: a piece of vCPU and device state.
    State {
        /// Where it belongs.
        offset: u32,
        /// The bytes.
        #[cfg_attr(feature = "wire", serde(borrow))]
        bytes: &'a [u8],
    },
    /// Source: everything for the hand-over has been sent.
    HandOver {
        /// How.
        mode: Mode,
        /// Length of the state.
        state_bytes: u32,
        /// Members of the final dirty set.
        final_dirty: Pages,
    },
    /// Target: I can run it.
    Ready,
    /// Source: I gave it up; it is yours.
    Commit,
    /// Target: it runs here.
    Running,
    /// Either side before the hand-over is given up, or the target before it took the VM: this attempt is over, and whoever
    /// says so will not run the VM in this session (target) or runs it on (source).
    Abort(AbortReason),
    /// Source on a new connection: where do you stand?
    Resume {
        /// The session.
        session: SessionId,
        /// The VM.
        vm: VmId,
        /// The source's record says given-up; otherwise the source runs the VM and the session is over.
        given_up: bool,
    },
    /// Target's answer.
    Resumed(TargetStanding),
    /// Target: a piece of the set of missing pages.
    Missing {
        /// Index of the first 64-page word.
        first_word: u64,
        /// Whole little-endian words; pieces that are all zero are not sent.
        #[cfg_attr(feature = "wire", serde(borrow))]
        words: &'a [u8],
    },
    /// Target: the set of missing pages has been sent.
    MissingEnd {
        /// How many it has.
        pages: Pages,
    },
    /// Source: hashes of consecutive RAM pages.
    Hashes {
        /// Frame of the first.
        first: Gfn,
        /// XXH3-64 values, little-endian.
        #[cfg_attr(feature = "wire", serde(borrow))]
        bytes: &'a [u8],
    },
    /// Source: all hashes have been sent.
    HashesEnd,
    /// Target: nothing is missing, and this is what it cost.
    Complete(TargetReport),
    /// Source: memory freed, goodbye.
    Bye,
    /// Target: all pages of the static copy stand in memory, but for those that came on the migration channel before.
    StaticMerged,
    /// Target: the static copy is of no use here (its log says why); what it was to bring must come otherwise.
    StaticFailed,
    /// Either side, before [`Ready`](Self::Ready) or [`Commit`](Self::Commit): my signature of what is handed over. It is for the logs
    /// of the hosts: nothing is decided by it here, and a host that wants one does not go on without.
    Signed {
        /// At most [`SIGNATURE_BYTES_MAX`].
        #[cfg_attr(feature = "wire", serde(borrow))]
        signature: &'a [u8],
    },
}

/// Checks that regions are non-empty, ascending, disjoint and do not overflow.
///
/// # Errors
/// [`Refusal::Regions`] otherwise.
pub fn check_regions(regions: &[Region]) -> Result<(), Refusal> {
    let mut free_from = 0u64;
    for region in regions {
        let end = region.first.0.checked_add(region.pages.0).ok_or(Refusal::Regions)?;
        if region.pages.0 == 0 || region.first.0 < free_from || end.checked_mul(PAGE_SIZE).is_none() {
            return Err(Refusal::Regions);
        }
        free_from = end;
    }
    if regions.is_empty() {
        Err(Refusal::Regions)
    } else {
        Ok(())
    }
}

/// Whether `count` pages from `first` all lie in one of `regions`. Linear in the number of regions.
pub fn run_in_regions(regions: &[Region], first: Gfn, count: u64) -> bool {
    let Some(end) = first.0.checked_add(count) else {
        return false;
    };
    count > 0
        && regions
            .iter()
            .any(|region| first.0 >= region.first.0 && end <= region.first.0.saturating_add(region.pages.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(first: u64, pages: u64) -> Region {
        Region {
            first: Gfn(first),
            pages: Pages(pages),
        }
    }

    #[test]
    fn regions_must_ascend_without_overlap_or_overflow() {
        assert_eq!(check_regions(&[region(0, 8), region(8, 1)]), Ok(()));
        for bad in [
            &[][..],
            &[region(0, 0)],
            &[region(0, 8), region(7, 1)],
            &[region(8, 8), region(0, 4)],
            &[region(1, u64::MAX)],
            &[region(0, u64::MAX / PAGE_SIZE + 1)],
        ] {
            assert_eq!(check_regions(bad), Err(Refusal::Regions), "{bad:?}");
        }
    }

    #[test]
    fn runs_must_lie_in_one_region() {
        let regions = [region(0, 10), region(20, 10)];
        assert!(run_in_regions(&regions, Gfn(0), 10));
        assert!(run_in_regions(&regions, Gfn(29), 1));
        for (first, count) in [(0, 0), (0, 11), (9, 2), (15, 1), (29, 2), (u64::MAX, 2)] {
            assert!(!run_in_regions(&regions, Gfn(first), count), "{first}+{count}");
        }
    }
}
