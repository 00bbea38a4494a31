//! What is known of a guest before its migration starts.

use super::{AccessClass, WwsCurve};
use crate::units::{Nanos, Pages};

/// A guest as it was measured for a while: what the cost models and the choice of a method go by.
///
/// Everything here is of the guest alone; link, downtime and goal come from elsewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Profile {
    /// All pages of guest RAM.
    pub total: Pages,
    /// Pages that are not all zero, at most `total`: what a full copy has to send.
    pub used: Pages,
    /// The mean number of distinct pages written in a window of each length.
    pub curve: WwsCurve,
    /// How long was measured. Nothing is known of windows longer than this; zero if nothing was measured.
    pub span: Nanos,
    /// How many vCPUs the guest has, at least 1.
    pub vcpus: u32,
    /// In which order pages are written.
    pub class: AccessClass,
    /// Reads of guest pages in the span, where the source of the trace counts them.
    pub reads: Option<u64>,
    /// Writes of guest pages in the span, where each one was seen; a dirty bitmap does not tell.
    pub writes: Option<u64>,
}

impl Profile {
    /// A profile with what every source can tell; the rest is unknown. `used` beyond `total` is cut, no vCPU is read as one.
    pub fn new(total: Pages, used: Pages, curve: WwsCurve, span: Nanos, vcpus: u32) -> Self {
        Self {
            total,
            used: used.min(total),
            curve,
            span,
            vcpus: vcpus.max(1),
            class: AccessClass::Unknown,
            reads: None,
            writes: None,
        }
    }

    /// The writable working set, as far as it was seen: distinct pages in the longest window, at most all pages.
    pub fn working_set(&self) -> Pages {
        self.curve.saturation().min(self.total)
    }

    /// Distinct pages dirtied in a window of this length, rounded down, at most all pages. O(log points).
    pub fn dirtied_in(&self, window: Nanos) -> Pages {
        self.curve.pages_in(window).min(self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_guest_has_more_used_or_dirty_pages_than_pages() {
        let curve = WwsCurve::new(&[(Nanos::from_millis(50), Pages(10)), (Nanos::from_secs(1), Pages(200))]);
        let profile = Profile::new(Pages(100), Pages(101), curve.expect("a curve"), Nanos::from_secs(1), 0);
        assert_eq!((profile.used, profile.vcpus), (Pages(100), 1));
        assert_eq!(profile.working_set(), Pages(100));
        assert_eq!(profile.dirtied_in(Nanos::from_millis(50)), Pages(10));
        assert_eq!(profile.dirtied_in(Nanos::from_secs(9)), Pages(100));
    }

    #[test]
    fn the_largest_guest_for_the_longest_time() {
        let curve = WwsCurve::new(&[(Nanos(u64::MAX), Pages(1 << 32))]).expect("a curve");
        let profile = Profile::new(Pages(1 << 32), Pages(1 << 32), curve, Nanos(u64::MAX), u32::MAX);
        assert_eq!(profile.working_set(), Pages(1 << 32));
        let day = Nanos::from_secs(86_400);
        assert_eq!(
            profile.dirtied_in(day).0,
            ((1u128 << 32) * u128::from(day.0) / u128::from(u64::MAX)) as u64
        );
    }
}
