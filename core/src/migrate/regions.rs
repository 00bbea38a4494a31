//! Sets of pages against the regions of a VM: a flat set has members for the holes, too, and these must stay out.

use crate::message::Region;
use crate::pageset::{PageSet, Run};
use crate::units::{Gfn, Pages};

/// Takes out every page that is in none of the regions, which ascend; how many there were.
///
/// O(words between the regions that hold pages).
pub(super) fn remove_outside(set: &mut PageSet<'_>, regions: &[Region]) -> Pages {
    let mut removed = Pages::ZERO;
    let mut free_from = Gfn::ZERO;
    for region in regions {
        let gap = Run::new(free_from, Pages(region.first.0.saturating_sub(free_from.0)));
        removed = removed.saturating_add(set.remove_run(gap));
        free_from = Run::new(region.first, region.pages).end();
    }
    // The set ends with the last region.
    removed
}

/// Pages from `first` to the end of its region, `None` if it lies in none. Linear in the number of regions.
pub(super) fn room_in_region(regions: &[Region], first: Gfn) -> Option<Pages> {
    let region = regions
        .iter()
        .map(|region| Run::new(region.first, region.pages))
        .find(|region| region.contains(first))?;
    Some(Pages(region.end().0 - first.0))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::pageset::words_needed;
    use std::vec;

    const REGIONS: [Region; 3] = [
        Region {
            first: Gfn(2),
            pages: Pages(60),
        },
        Region {
            first: Gfn(62),
            pages: Pages(10),
        },
        Region {
            first: Gfn(192),
            pages: Pages(8),
        },
    ];

    #[test]
    fn only_what_lies_in_a_region_stays() {
        let mut words = vec![0; words_needed(Pages(200))];
        let mut set = PageSet::new(&mut words, Pages(200)).expect("sized for it");
        set.fill();
        assert_eq!(remove_outside(&mut set, &REGIONS), Pages(2 + 120));
        let left: std::vec::Vec<Run> = set.runs().collect();
        assert_eq!(left, [Run::new(Gfn(2), Pages(70)), Run::new(Gfn(192), Pages(8))]);
        assert_eq!(remove_outside(&mut set, &REGIONS), Pages(0));
    }

    #[test]
    fn a_region_ends_where_the_next_begins() {
        for (first, room) in [
            (0, None),
            (2, Some(60)),
            (61, Some(1)),
            (62, Some(10)),
            (72, None),
            (199, Some(1)),
            (200, None),
        ] {
            assert_eq!(room_in_region(&REGIONS, Gfn(first)), room.map(Pages), "from {first}");
        }
    }
}
