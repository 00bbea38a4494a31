//! How fast something goes, in exact integers.

use crate::units::{Nanos, Pages};

/// Pages and the time they took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Speed {
    pub(super) pages: Pages,
    pub(super) time: Nanos,
}

impl Speed {
    pub(super) const fn new(pages: Pages, time: Nanos) -> Self {
        Self { pages, time }
    }

    /// Whether there were any pages.
    pub(super) fn is_known(self) -> bool {
        self.pages > Pages::ZERO
    }

    pub(super) fn add(&mut self, pages: Pages, time: Nanos) {
        self.pages = self.pages.saturating_add(pages);
        self.time = self.time.saturating_add(time);
    }

    /// How long `pages` take, rounded down, stopping at the largest time; `None` as long as there were no pages.
    pub(super) fn time_for(self, pages: Pages) -> Option<Nanos> {
        let nanos = (u128::from(pages.0) * u128::from(self.time.0)).checked_div(u128::from(self.pages.0))?;
        Some(Nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Pages in `time`, rounded down, stopping at the largest number; none if the time they took is zero.
    pub(super) fn pages_in(self, time: Nanos) -> Pages {
        let pages = (u128::from(self.pages.0) * u128::from(time.0)).checked_div(u128::from(self.time.0));
        Pages(pages.map_or(0, |pages| u64::try_from(pages).unwrap_or(u64::MAX)))
    }

    /// How long `pages` take if this and another carry them together, rounded down, stopping at the largest time; `None` as
    /// long as neither has carried anything.
    pub(super) fn time_beside(self, other: Self, pages: Pages) -> Option<Nanos> {
        let [here, there] = self.weighed_against(other);
        let time = (u128::from(self.time.0.max(1))).saturating_mul(u128::from(other.time.0.max(1)));
        let nanos = time
            .saturating_mul(u128::from(pages.0))
            .checked_div(here.saturating_add(there))?;
        Some(Nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// The part of `pages` that this carries while another carries the rest, rounded down; none if neither is known.
    pub(super) fn part_beside(self, other: Self, pages: Pages) -> Pages {
        let [here, there] = self.weighed_against(other);
        // Both below 2^127, so that the product with pages is what may have to be cut: by the same shift above and below.
        let shift = 64_u32.saturating_sub(here.max(there).leading_zeros());
        let (here, all) = (here >> shift, (here >> shift) + (there >> shift));
        let part = (u128::from(pages.0) * here).checked_div(all);
        Pages(part.map_or(0, |part| u64::try_from(part).unwrap_or(u64::MAX)))
    }

    /// True if this is less than one `times`-th of the other.
    pub(super) fn is_slower_than(self, other: Self, times: u64) -> bool {
        let [here, there] = self.weighed_against(other);
        here.saturating_mul(u128::from(times)) < there
    }

    /// This and the other over a common denominator.
    fn weighed_against(self, other: Self) -> [u128; 2] {
        let weight = |one: Self, by: Self| u128::from(one.pages.0) * u128::from(by.time.0.max(1));
        [weight(self, other), weight(other, self)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn speed(pages: u64, time: u64) -> Speed {
        Speed::new(Pages(pages), Nanos(time))
    }

    #[test]
    fn two_speeds_add_up() {
        for (one, other, pages, time, part) in [
            (speed(100, 1000), speed(100, 1000), 100, Some(500), 50),
            (speed(300, 1000), speed(10, 100), 100, Some(250), 75),
            (speed(1, 3), speed(1, 3), 1, Some(1), 0),
            (speed(0, 0), speed(5, 10), 100, Some(200), 0),
            (speed(5, 10), speed(0, 0), 100, Some(200), 100),
            (speed(0, 0), speed(0, 0), 100, None, 0),
        ] {
            assert_eq!(
                one.time_beside(other, Pages(pages)),
                time.map(Nanos),
                "{one:?}, {other:?}"
            );
            assert_eq!(one.part_beside(other, Pages(pages)), Pages(part), "{one:?}, {other:?}");
        }
    }

    #[test]
    fn one_speed_is_told_from_another() {
        let sixteenth = speed(1, 16);
        assert!(!sixteenth.is_slower_than(speed(1, 1), 16));
        assert!(sixteenth.is_slower_than(speed(1, 1), 15));
        assert!(speed(0, 1000).is_slower_than(speed(1, 1000), 16));
        assert!(!speed(0, 0).is_slower_than(speed(0, 0), 16));
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let (most, least) = (speed(u64::MAX, u64::MAX), speed(1, u64::MAX));
        for (one, other) in [(most, most), (most, least), (least, most), (least, least)] {
            let part = one.part_beside(other, Pages(u64::MAX));
            let expected = if one.pages == other.pages { u64::MAX / 2 } else { 0 };
            assert!(part.0 >= expected, "{one:?}, {other:?}: {part}");
            assert!(one.time_beside(other, Pages(u64::MAX)).is_some());
            assert!(!one.is_slower_than(one, 16));
        }
    }
}
