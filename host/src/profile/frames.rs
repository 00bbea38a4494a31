//! RAM without what lies between its regions.

use dunlin_core::message::Regions;
use dunlin_core::units::{Gfn, PAGE_SIZE};

/// Numbers the pages of RAM from 0 on, in the order of their addresses.
#[derive(Clone, Debug)]
pub(super) struct Frames {
    /// First frame, pages, and pages of all regions before.
    regions: Vec<(u64, u64, u64)>,
}

impl Frames {
    pub(super) fn of(regions: &Regions) -> Self {
        let mut before = 0u64;
        let regions = regions.iter().map(|region| {
            let own = (region.first.0, region.pages.0, before);
            before = before.saturating_add(region.pages.0);
            own
        });
        Self {
            regions: regions.collect(),
        }
    }

    /// The number of a frame; `None` if it is no RAM. O(regions).
    #[inline]
    pub(super) fn number(&self, gfn: Gfn) -> Option<u64> {
        let inside = |&&(first, pages, _): &&(u64, u64, u64)| gfn.0.wrapping_sub(first) < pages;
        self.regions
            .iter()
            .find(inside)
            .map(|(first, _, before)| gfn.0 - first + before)
    }

    /// The address of the page of this number, or behind the last.
    pub(super) fn address(&self, number: u64) -> u64 {
        let region = self.regions.iter().rev().find(|region| region.2 <= number);
        region.map_or(0, |(first, _, before)| {
            (first + number - before).saturating_mul(PAGE_SIZE)
        })
    }

    /// Pages of RAM.
    pub(super) fn pages(&self) -> u64 {
        self.regions.last().map_or(0, |(_, pages, before)| pages + before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_core::message::Region;
    use dunlin_core::units::Pages;

    #[test]
    fn numbers_skip_the_hole() {
        let mut regions = Regions::new();
        for (first, pages) in [(0, 10), (100, 5)] {
            let region = Region {
                first: Gfn(first),
                pages: Pages(pages),
            };
            regions.push(region).unwrap();
        }
        let frames = Frames::of(&regions);
        let numbers = [0, 9, 10, 99, 100, 104, 105].map(|gfn| frames.number(Gfn(gfn)));
        assert_eq!(numbers, [Some(0), Some(9), None, None, Some(10), Some(14), None]);
        for number in 0..15 {
            let gfn = Gfn(frames.address(number) / PAGE_SIZE);
            assert_eq!(frames.number(gfn), Some(number));
        }
        assert_eq!((frames.address(15), frames.pages()), (105 * PAGE_SIZE, 15));
    }
}
