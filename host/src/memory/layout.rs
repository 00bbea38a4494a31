//! Where guest RAM lies in guest-physical space.

use dunlin_core::units::{Bytes, Gfn, PAGE_SIZE, Pages};

use super::{MemoryError, Run};

/// First page of the hole: 0xfee00000, where x86 puts the local APIC. KVM answers there itself and never looks at RAM.
pub const HOLE_FIRST: Gfn = Gfn(0xfee00);

/// Length of the hole. 64 pages rather than one, so that words of a dirty bitmap never span two regions.
pub const HOLE_PAGES: Pages = Pages(64);

/// Largest guest that can be described: half of what a 47-bit user address space could map.
pub const MAX_BYTES: Bytes = Bytes(1 << 46);

/// The RAM of a guest as runs of guest-physical pages.
///
/// Everything that tracks or moves memory uses one flat index from page 0 to [`end_gfn`](Self::end_gfn); the hole has
/// positions there that are never RAM and never dirty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryLayout {
    regions: [Run; 2],
    count: usize,
}

impl MemoryLayout {
    /// The layout of a guest with this much RAM.
    ///
    /// # Errors
    /// Zero bytes, part of a page, or more than [`MAX_BYTES`].
    pub fn new(bytes: Bytes) -> Result<Self, MemoryError> {
        if bytes.0 == 0 {
            return Err(MemoryError::Zero);
        }
        if !bytes.0.is_multiple_of(PAGE_SIZE) {
            return Err(MemoryError::PartialPage { bytes });
        }
        if bytes > MAX_BYTES {
            return Err(MemoryError::TooLarge {
                bytes,
                limit: MAX_BYTES,
            });
        }
        let pages = bytes.0 / PAGE_SIZE;
        let low = pages.min(HOLE_FIRST.0);
        let high = pages - low;
        Ok(Self {
            regions: [
                Run {
                    first: Gfn(0),
                    count: Pages(low),
                },
                Run {
                    first: Gfn(HOLE_FIRST.0 + HOLE_PAGES.0),
                    count: Pages(high),
                },
            ],
            count: if high == 0 { 1 } else { 2 },
        })
    }

    /// RAM, ascending; one region, or two around the hole.
    pub fn regions(&self) -> &[Run] {
        &self.regions[..self.count]
    }

    /// One past the last RAM page.
    pub fn end_gfn(&self) -> Gfn {
        let last = self.regions[self.count - 1];
        Gfn(last.first.0 + last.count.0)
    }

    /// RAM without the hole.
    pub fn pages(&self) -> Pages {
        Pages(self.regions().iter().map(|region| region.count.0).sum())
    }

    /// RAM without the hole.
    pub fn bytes(&self) -> Bytes {
        self.pages().bytes()
    }

    /// 64-bit words of a bitmap over `0..end_gfn`.
    pub fn words(&self) -> usize {
        usize::try_from(self.end_gfn().0.div_ceil(64)).expect("bounded by MAX_BYTES")
    }

    /// Whether all of `run` is RAM. An empty run is RAM if its position is, or lies at the end of a region.
    pub fn contains(&self, run: Run) -> bool {
        let Some(end) = run.first.0.checked_add(run.count.0) else {
            return false;
        };
        self.regions()
            .iter()
            .any(|region| run.first >= region.first && end <= region.first.0 + region.count.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn layout(bytes: u64) -> MemoryLayout {
        MemoryLayout::new(Bytes(bytes)).unwrap()
    }

    #[test]
    fn refuses_what_is_no_memory() {
        assert!(matches!(MemoryLayout::new(Bytes(0)), Err(MemoryError::Zero)));
        assert!(matches!(
            MemoryLayout::new(Bytes(4097)),
            Err(MemoryError::PartialPage { .. })
        ));
        assert!(matches!(
            MemoryLayout::new(Bytes(MAX_BYTES.0 + 4096)),
            Err(MemoryError::TooLarge { .. })
        ));
        assert!(matches!(
            MemoryLayout::new(Bytes(u64::MAX - 4095)),
            Err(MemoryError::TooLarge { .. })
        ));
    }

    #[test]
    fn small_guests_have_one_region() {
        let small = layout(32 * MIB);
        assert_eq!(
            small.regions(),
            [Run {
                first: Gfn(0),
                count: Pages(8192)
            }]
        );
        assert_eq!(small.end_gfn(), Gfn(8192));
        assert_eq!(small.words(), 128);
        assert_eq!(layout(4078 * MIB).regions().len(), 1);
    }

    #[test]
    fn the_apic_page_is_never_ram() {
        let just_over = layout(4078 * MIB + 4096);
        assert_eq!(
            just_over.regions()[1],
            Run {
                first: Gfn(0xfee40),
                count: Pages(1)
            }
        );
        let large = layout(8192 * MIB);
        assert_eq!(large.pages(), Pages(8192 * 256));
        assert_eq!(large.end_gfn(), Gfn(8192 * 256 + 64));
        assert!(!large.contains(Run {
            first: HOLE_FIRST,
            count: Pages(1)
        }));
        assert!(!large.contains(Run {
            first: Gfn(HOLE_FIRST.0 - 1),
            count: Pages(2)
        }));
        assert!(!large.contains(Run {
            first: Gfn(0xfee3f),
            count: Pages(2)
        }));
        assert!(large.contains(Run {
            first: Gfn(0xfee40),
            count: Pages(2)
        }));
        assert!(!large.contains(Run {
            first: Gfn(0xfee40),
            count: Pages(u64::MAX)
        }));
    }

    #[test]
    fn regions_start_at_bitmap_words() {
        for region in layout(16384 * MIB).regions() {
            assert_eq!(region.first.0 % 64, 0);
        }
    }
}
