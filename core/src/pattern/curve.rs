//! The working set as a function of how long one looks.

use core::fmt;

use crate::units::{Nanos, Pages};

/// Most points of a [`WwsCurve`].
pub const POINTS_MAX: usize = 32;

/// How many distinct pages a guest writes, on average, in a window of each length: its writable working set (Clark et al. 2005,
/// section 4), for all windows at once.
///
/// Points in between lie on straight lines, the first of them from nothing in no time; beyond the last window the curve stays
/// as it is. A curve from a real trace is concave (Denning, "Working Sets Past and Present", 1980); this type only asks that
/// it does not fall. 516 bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct WwsCurve {
    points: heapless::Vec<(Nanos, Pages), POINTS_MAX>,
}

/// Why points are no curve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum CurveError {
    /// More than [`POINTS_MAX`].
    TooManyPoints,
    /// A window that is not longer than the one before, or not longer than nothing.
    WindowNotLonger {
        /// Counted from 0.
        point: usize,
    },
    /// Fewer pages than in the shorter window before.
    Falls {
        /// Counted from 0.
        point: usize,
    },
}

impl fmt::Display for CurveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyPoints => write!(f, "a curve has at most {POINTS_MAX} points: leave some out"),
            Self::WindowNotLonger { point } => {
                write!(
                    f,
                    "the window of point {point} is not longer than the one before: sort the points"
                )
            }
            Self::Falls { point } => write!(
                f,
                "point {point} has fewer pages than the one before: a longer window cannot see fewer distinct pages"
            ),
        }
    }
}

impl core::error::Error for CurveError {}

impl WwsCurve {
    /// The curve of a guest that writes nothing.
    pub const FLAT: Self = Self {
        points: heapless::Vec::new(),
    };

    /// The curve through these points, windows ascending. O(points).
    ///
    /// # Errors
    /// [`CurveError`].
    pub fn new(points: &[(Nanos, Pages)]) -> Result<Self, CurveError> {
        let mut before = (Nanos::ZERO, Pages::ZERO);
        for (point, &(window, pages)) in points.iter().enumerate() {
            if window <= before.0 {
                return Err(CurveError::WindowNotLonger { point });
            }
            if pages < before.1 {
                return Err(CurveError::Falls { point });
            }
            before = (window, pages);
        }
        let points = heapless::Vec::from_slice(points).map_err(|_| CurveError::TooManyPoints)?;
        Ok(Self { points })
    }

    /// The points given.
    pub fn points(&self) -> &[(Nanos, Pages)] {
        &self.points
    }

    /// The distinct pages written in a window of this length, rounded down. O(log points).
    pub fn pages_in(&self, window: Nanos) -> Pages {
        let after = self.points.partition_point(|&(end, _)| end < window);
        let Some(&(end, at_end)) = self.points.get(after) else {
            return self.points.last().map_or(Pages::ZERO, |&(_, pages)| pages);
        };
        let (start, at_start) = match after {
            0 => (Nanos::ZERO, Pages::ZERO),
            _ => self.points[after - 1],
        };
        let rise = u128::from(at_end.0 - at_start.0) * u128::from(window.0 - start.0);
        // At most at_end − at_start, as the window ends no later than the segment.
        Pages(at_start.0 + (rise / u128::from(end.0 - start.0)) as u64)
    }

    /// The pages of the longest window: the least that is ever written.
    pub fn saturation(&self) -> Pages {
        self.points.last().map_or(Pages::ZERO, |&(_, pages)| pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn ms(points: &[(u64, u64)]) -> Vec<(Nanos, Pages)> {
        points
            .iter()
            .map(|&(ms, pages)| (Nanos::from_millis(ms), Pages(pages)))
            .collect()
    }

    #[test]
    fn points_are_joined_by_lines_and_the_last_holds() {
        let curve = WwsCurve::new(&ms(&[(10, 100), (20, 150), (40, 160)])).expect("a curve");
        let asked = [0, 5, 10, 15, 20, 39, 40, 1000].map(|ms| curve.pages_in(Nanos::from_millis(ms)).0);
        assert_eq!(asked, [0, 50, 100, 125, 150, 159, 160, 160]);
        assert_eq!(curve.saturation(), Pages(160));
        assert_eq!(WwsCurve::FLAT.pages_in(Nanos(u64::MAX)), Pages::ZERO);
    }

    #[test]
    fn the_largest_guest_and_the_longest_window_do_not_overflow() {
        let largest = (Nanos(u64::MAX), Pages(u64::MAX));
        let curve = WwsCurve::new(&[largest]).expect("a curve");
        assert_eq!(curve.pages_in(Nanos(u64::MAX)), Pages(u64::MAX));
        assert_eq!(curve.pages_in(Nanos(u64::MAX / 2)).0, u64::MAX / 2);
    }

    #[test]
    fn what_is_no_curve_is_refused() {
        assert_eq!(
            WwsCurve::new(&ms(&[(0, 1)])),
            Err(CurveError::WindowNotLonger { point: 0 })
        );
        assert_eq!(
            WwsCurve::new(&ms(&[(1, 1), (1, 2)])),
            Err(CurveError::WindowNotLonger { point: 1 })
        );
        assert_eq!(
            WwsCurve::new(&ms(&[(1, 2), (2, 1)])),
            Err(CurveError::Falls { point: 1 })
        );
        let many: Vec<_> = (1..=33).map(|n| (Nanos(n), Pages(n))).collect();
        assert_eq!(WwsCurve::new(&many), Err(CurveError::TooManyPoints));
    }

    proptest! {
        #[test]
        fn it_never_falls_and_meets_its_points(steps in prop::collection::vec((1..1_000_000_000u64, 0..1_000_000u64), 1..32), asked: [u32; 2]) {
            let mut at = (0, 0);
            let points: Vec<_> = steps.iter().map(|&(time, pages)| {
                at = (at.0 + time, at.1 + pages);
                (Nanos(at.0), Pages(at.1))
            }).collect();
            let curve = WwsCurve::new(&points).expect("ascending");
            for &(window, pages) in &points {
                prop_assert_eq!(curve.pages_in(window), pages);
            }
            let [shorter, longer] = [asked[0].min(asked[1]), asked[0].max(asked[1])].map(|window| Nanos(u64::from(window) * 8));
            prop_assert!(curve.pages_in(shorter) <= curve.pages_in(longer));
        }
    }
}
