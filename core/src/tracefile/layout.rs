//! What encoder and decoder share of an item's bytes.

use super::{Item, ItemError, VCPU_UNKNOWN};
use crate::units::{Nanos, Pages};

/// How many last pages are remembered: those of vCPUs whose numbers are the same modulo this.
pub const SLOTS: usize = 64;

/// Most bytes of an item: tag, vCPU with its escape, two numbers.
pub(super) const ITEM_BYTES_MAX: usize = 1 + 3 + 8 + 8;

/// Tags, without what they announce.
pub(super) const DIRTY: u8 = 0b1000_0000;
pub(super) const OTHER: u8 = 0b1100_0000;
pub(super) const WRITE_VCPU: u8 = 0b0100_0000;
/// What the bits 3 to 5 of other tags say.
pub(super) const WINDOW_END: u8 = 0;
pub(super) const LOST: u8 = 1;
pub(super) const STEPS: u8 = 2;
pub(super) const END: u8 = 3;

/// The one byte of a write's vCPU behind which two more follow.
pub(super) const VCPU_ESCAPE: u8 = 0xff;
/// An unknown vCPU in two bytes.
pub(super) const VCPU_NONE: u16 = 0xffff;

/// Bytes of a number, by what three bits of a tag say of it.
pub(super) const LENGTHS: [u8; 8] = [0, 1, 2, 3, 4, 5, 6, 8];
/// Which bits of eight bytes belong to it.
pub(super) const MASKS: [u64; 8] = [
    0,
    0xff,
    0xffff,
    0xff_ffff,
    0xffff_ffff,
    0xff_ffff_ffff,
    0xffff_ffff_ffff,
    u64::MAX,
];

/// What three bits say of the shortest form of a number.
pub(super) const fn length_code(number: u64) -> u8 {
    let bytes = (64 - number.leading_zeros()).div_ceil(8) as u8;
    if bytes > 6 { 7 } else { bytes }
}

/// A difference, small where it is near zero.
pub(super) const fn zigzag(difference: u64) -> u64 {
    (difference << 1) ^ ((difference as i64 >> 63) as u64)
}

/// The difference of this zigzag number.
pub(super) const fn unzigzag(number: u64) -> u64 {
    (number >> 1) ^ (number & 1).wrapping_neg()
}

/// A vCPU in two bytes.
pub(super) const fn short_vcpu(vcpu: u32) -> u16 {
    // No trace tells more vCPUs apart than fit.
    if vcpu == VCPU_UNKNOWN { VCPU_NONE } else { vcpu as u16 }
}

/// The vCPU of these two bytes.
pub(super) const fn long_vcpu(short: u16) -> u32 {
    if short == VCPU_NONE { VCPU_UNKNOWN } else { short as u32 }
}

/// What the next item's numbers are differences to.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) at: u64,
    pub(super) vcpu: u32,
    pub(super) run_end: u64,
    pub(super) pages: [u64; SLOTS],
}

impl Context {
    /// At the beginning of a frame whose times go on from `at`.
    pub(super) const fn new(at: Nanos) -> Self {
        Self {
            at: at.0,
            vcpu: 0,
            run_end: 0,
            pages: [0; SLOTS],
        }
    }
}

/// The last page of this vCPU, and of others with it.
pub(super) const fn slot(vcpu: u32) -> usize {
    vcpu as usize % SLOTS
}

/// What an item may name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) span: u64,
    pub(super) vcpus: u32,
}

impl Limits {
    /// Checks what does not depend on other items.
    pub(super) fn check(self, item: &Item) -> Result<(), ItemError> {
        match *item {
            Item::Write { vcpu, gfn, .. } => {
                self.check_vcpu(vcpu)?;
                self.check_pages(gfn.0, 1)
            }
            Item::Dirty { run } if run.is_empty() => Err(ItemError::EmptyRun),
            Item::Dirty { run } => self.check_pages(run.first.0, run.count.0),
            Item::WindowEnd { vcpu, .. } | Item::Steps { vcpu, .. } => self.check_vcpu(vcpu),
            Item::Lost { .. } | Item::End { .. } => Ok(()),
        }
    }

    #[inline]
    fn check_vcpu(self, vcpu: u32) -> Result<(), ItemError> {
        if vcpu < self.vcpus || vcpu == VCPU_UNKNOWN {
            return Ok(());
        }
        Err(ItemError::Vcpu {
            vcpu,
            vcpus: self.vcpus,
        })
    }

    #[inline]
    fn check_pages(self, first: u64, count: u64) -> Result<(), ItemError> {
        if first < self.span && count <= self.span - first {
            return Ok(());
        }
        Err(ItemError::Page {
            gfn: crate::units::Gfn(first),
            count: Pages(count),
            span: Pages(self.span),
        })
    }
}
