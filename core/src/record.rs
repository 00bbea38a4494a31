//! What an eBPF program says of one event, in the layout in which it puts it into its ring buffer.
//!
//! 24 bytes without padding, in the byte order of the machine: the buffer never leaves it. The buffer adds 8 bytes to each.

/// One event.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// Of a write: the guest frame number. Of other kinds: what [`Kind`] says.
    pub value: u64,
    /// The kernel's number of the thread in which it happened.
    pub tid: u32,
    /// Of a ring push: the memory slot, in bit 15 the address space. Of a ring reset: the vCPU, or [`NO_VCPU`].
    pub slot: u16,
    /// A [`Kind`].
    pub kind: u16,
}

/// The vCPU of a ring reset when the program could not find out which it was.
pub const NO_VCPU: u16 = u16::MAX;

impl Record {
    /// Length of the layout.
    pub const BYTES: usize = 24;

    /// A record as the ring buffer holds it; `None` if it is not [`BYTES`](Self::BYTES) long.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (at_ns, rest) = bytes.split_first_chunk()?;
        let (value, rest) = rest.split_first_chunk()?;
        let (tid, rest) = rest.split_first_chunk()?;
        let (slot, kind) = rest.split_first_chunk()?;
        Some(Self {
            at_ns: u64::from_ne_bytes(*at_ns),
            value: u64::from_ne_bytes(*value),
            tid: u32::from_ne_bytes(*tid),
            slot: u16::from_ne_bytes(*slot),
            kind: u16::from_ne_bytes(kind.try_into().ok()?),
        })
    }
}

/// What happened. The numbers are those in [`Record::kind`], and where [`counter`] counts the kind.
#[repr(u16)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// A page went into a vCPU's dirty ring (`kvm_dirty_ring_push`).
    RingPush = 0,
    /// A dirty ring was harvested and its pages were protected anew (`kvm_dirty_ring_reset`). `value` is 0.
    RingReset = 1,
    /// A vCPU left the guest for its full ring (`kvm_dirty_ring_exit`). `value` is 0.
    RingExit = 2,
    /// The guest faulted on a page in order to write it (`kvm_page_fault`).
    GuestFault = 3,
    /// A page table entry was made writable without a lock (`fast_page_fault`).
    FastFault = 4,
    /// A writable page table entry was set (`kvm_mmu_set_spte`).
    SetSpte = 5,
    /// A thread in user mode faulted on guest memory in order to write it (`page_fault_user`).
    UserFault = 6,
    /// The kernel did, for example for a guest whose instructions it emulates (`page_fault_kernel`).
    KernelFault = 7,
    /// KVM gave control back to its user (`kvm_userspace_exit`). `value` is KVM's exit reason.
    UserspaceExit = 8,
    /// The guest left the processor (`kvm_exit`). `value` is 0.
    Exit = 9,
    /// The guest went onto the processor (`kvm_entry`). `value` is 0.
    Entry = 10,
    /// KVM marked a page dirty (entry of `mark_page_dirty_in_slot`).
    MarkDirty = 11,
    /// A thread began to wait for a missing page (entry of `handle_userfault`). `value` is the kernel's reason flags.
    WaitBegin = 12,
    /// It ended to wait (exit of `handle_userfault`). `value` is 0.
    WaitEnd = 13,
}

impl Kind {
    /// All of them, each at its number.
    pub const ALL: [Self; 14] = [
        Self::RingPush,
        Self::RingReset,
        Self::RingExit,
        Self::GuestFault,
        Self::FastFault,
        Self::SetSpte,
        Self::UserFault,
        Self::KernelFault,
        Self::UserspaceExit,
        Self::Exit,
        Self::Entry,
        Self::MarkDirty,
        Self::WaitBegin,
        Self::WaitEnd,
    ];

    /// The kind of this number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The kernel's name for the place where it happens.
    pub const fn hook(self) -> &'static str {
        match self {
            Self::RingPush => "kvm_dirty_ring_push",
            Self::RingReset => "kvm_dirty_ring_reset",
            Self::RingExit => "kvm_dirty_ring_exit",
            Self::GuestFault => "kvm_page_fault",
            Self::FastFault => "fast_page_fault",
            Self::SetSpte => "kvm_mmu_set_spte",
            Self::UserFault => "page_fault_user",
            Self::KernelFault => "page_fault_kernel",
            Self::UserspaceExit => "kvm_userspace_exit",
            Self::Exit => "kvm_exit",
            Self::Entry => "kvm_entry",
            Self::MarkDirty => "mark_page_dirty_in_slot",
            Self::WaitBegin | Self::WaitEnd => "handle_userfault",
        }
    }

    /// Whether a record of this kind says that a page was written.
    pub const fn is_write(self) -> bool {
        match self {
            Self::RingPush
            | Self::GuestFault
            | Self::FastFault
            | Self::SetSpte
            | Self::UserFault
            | Self::KernelFault
            | Self::MarkDirty => true,
            Self::RingReset
            | Self::RingExit
            | Self::UserspaceExit
            | Self::Exit
            | Self::Entry
            | Self::WaitBegin
            | Self::WaitEnd => false,
        }
    }
}

/// Where each processor's counters lie: first the events of each [`Kind`] that concern the traced process, then these.
pub mod counter {
    /// Events for which the ring buffer had no room.
    pub const LOST: usize = 16;
    /// Writes to the page that the same thread had written last, which were left out.
    pub const REPEATS: usize = 17;
    /// Writes outside the guest memory that was given to the tracer.
    pub const OUTSIDE: usize = 18;
    /// Events whose page could not be read.
    pub const UNREADABLE: usize = 19;
    /// How many counters there are.
    pub const COUNT: usize = 20;
}

/// Words that the tracer and the eBPF programs share.
pub mod control {
    /// Goes up whenever pages were protected anew: a write to a thread's last page then is no repeat.
    pub const EPOCH: usize = 0;
    /// Which half of the tables the programs write: 0 or 1.
    pub const HALF: usize = 1;
    /// How many words there are.
    pub const COUNT: usize = 2;
}

/// Most runs of guest memory that the programs tell apart.
pub const REGIONS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_has_no_padding() {
        assert_eq!(size_of::<Record>(), Record::BYTES);
        assert_eq!(align_of::<Record>(), 8);
    }

    #[test]
    fn bytes_become_the_record_they_were() {
        let mut bytes = [0; Record::BYTES];
        bytes[..8].copy_from_slice(&1_u64.to_ne_bytes());
        bytes[8..16].copy_from_slice(&0x1234_5678_9abc_u64.to_ne_bytes());
        bytes[16..20].copy_from_slice(&4711_u32.to_ne_bytes());
        bytes[20..22].copy_from_slice(&0x8001_u16.to_ne_bytes());
        bytes[22..].copy_from_slice(&7_u16.to_ne_bytes());
        let record = Record {
            at_ns: 1,
            value: 0x1234_5678_9abc,
            tid: 4711,
            slot: 0x8001,
            kind: 7,
        };
        assert_eq!(Record::from_bytes(&bytes), Some(record));
        assert_eq!(Record::from_bytes(&bytes[..23]), None);
        assert_eq!(Record::from_bytes(&[0; 25]), None);
    }

    #[test]
    fn kinds_stand_at_their_numbers() {
        for (number, kind) in (0..).zip(Kind::ALL) {
            assert_eq!(kind as u16, number);
            assert_eq!(Kind::from_number(number), Some(kind));
        }
        assert_eq!(Kind::from_number(14), None);
        assert!(Kind::ALL.len() <= counter::LOST);
    }
}
