//! When pages were harvested or protected anew.

use dunlin_core::tracefile::VCPU_UNKNOWN;
use dunlin_core::units::Nanos;

use crate::report::HarvestReport;

/// Makes windows of ends of windows. Where each vCPU's ring is harvested by itself, the windows are those of one of them: of the
/// first, as long as no other is harvested twice meanwhile.
#[derive(Clone, Debug, Default)]
pub(super) struct Harvest {
    leader: Option<u32>,
    /// Harvested since the last window ended.
    since: Vec<u32>,
    ended: Nanos,
    windows: u64,
    longest: Nanos,
}

impl Harvest {
    /// A harvest; true if it ends a window. O(vCPUs) at worst.
    pub(super) fn on_end(&mut self, at: Nanos, vcpu: u32) -> bool {
        let leads = vcpu == VCPU_UNKNOWN || *self.leader.get_or_insert(vcpu) == vcpu;
        if !leads && !self.since.contains(&vcpu) {
            self.since.push(vcpu);
            return false;
        }
        if vcpu != VCPU_UNKNOWN {
            self.leader = Some(vcpu);
        }
        self.since.clear();
        let length = at.saturating_sub(self.ended);
        // Two ends at once are one.
        if length == Nanos::ZERO {
            return false;
        }
        self.ended = at;
        self.windows += 1;
        self.longest = self.longest.max(length);
        true
    }

    /// When the last window ended.
    pub(super) const fn ended(&self) -> Nanos {
        self.ended
    }

    /// The mean length; `None` without a window.
    pub(super) const fn mean(&self) -> Option<Nanos> {
        match self.ended.0.checked_div(self.windows) {
            Some(mean) => Some(Nanos(mean)),
            None => None,
        }
    }

    /// The longest that a page may have been written again without being seen, at `end`.
    pub(super) fn longest(&self, end: Nanos) -> Nanos {
        self.longest.max(end.saturating_sub(self.ended))
    }

    pub(super) fn report(&self) -> Option<HarvestReport> {
        Some(HarvestReport {
            windows: self.windows,
            mean_us: self.mean()?.as_micros(),
            longest_us: self.longest.as_micros(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(ends: &[(u64, u32)]) -> Vec<u64> {
        let mut harvest = Harvest::default();
        let ending = ends.iter().filter(|&&(at, vcpu)| harvest.on_end(Nanos(at), vcpu));
        ending.map(|end| end.0).collect()
    }

    #[test]
    fn windows_are_those_of_all_or_of_one() {
        let all = VCPU_UNKNOWN;
        assert_eq!(windows(&[(5, all), (9, all), (9, all), (20, all)]), [5, 9, 20]);
        assert_eq!(windows(&[(5, 1), (6, 0), (10, 1), (11, 0), (15, 1)]), [5, 10, 15]);
        // The first is not harvested any more.
        assert_eq!(windows(&[(5, 1), (6, 0), (10, 0), (12, 2), (15, 0)]), [5, 10, 15]);
        assert!(windows(&[]).is_empty());
    }

    #[test]
    fn lengths_are_measured() {
        let mut harvest = Harvest::default();
        assert_eq!((harvest.mean(), harvest.report()), (None, None));
        for at in [1_000, 5_000, 6_000] {
            assert!(harvest.on_end(Nanos(at), VCPU_UNKNOWN));
        }
        let report = HarvestReport {
            windows: 3,
            mean_us: 2,
            longest_us: 4,
        };
        assert_eq!(
            (harvest.report(), harvest.longest(Nanos(6_500))),
            (Some(report), Nanos(4_000))
        );
        assert_eq!(harvest.longest(Nanos(11_000)), Nanos(5_000));
    }
}
