//! All measurements of single writes together.

use core::fmt;

use super::{AccessOrder, HeatSlot, Intervals, NoTrail, OutsideTable, Profile, Sharing, Trail};
use crate::units::{Gfn, Nanos, Pages};

/// What a [`Profiler`] works on. All slices are overwritten.
#[derive(Debug)]
pub struct ProfilerTables<'a> {
    /// A word per page, for [`Intervals`].
    pub intervals: &'a mut [u64],
    /// A word per page, for [`Sharing`].
    pub sharing: &'a mut [u64],
    /// One per vCPU.
    pub trails: &'a mut [Trail],
    /// The sample of pages for the share of the hottest tenth; 4096 do for any guest.
    pub heat: &'a mut [HeatSlot],
}

/// Why a write was not counted, or not in full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ProfilerError {
    /// The page is outside a table. Nothing was counted, or everything but the sharing.
    Page(OutsideTable),
    /// The vCPU has no trail. The write counts for the working sets only.
    Vcpu(NoTrail),
}

impl fmt::Display for ProfilerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(error) => error.fmt(f),
            Self::Vcpu(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ProfilerError {}

/// Takes a trace of writes in and makes a [`Profile`] of it: [`Intervals`], [`AccessOrder`] and [`Sharing`] at once.
///
/// Memory: two words per page and those of its parts. O(1) per write, two words of the tables touched.
#[derive(Debug)]
pub struct Profiler<'a> {
    intervals: Intervals<'a>,
    order: AccessOrder<'a>,
    sharing: Sharing<'a>,
}

impl<'a> Profiler<'a> {
    /// A trace that starts at `start`. O(tables).
    pub fn new(tables: ProfilerTables<'a>, start: Nanos) -> Self {
        Self {
            intervals: Intervals::new(tables.intervals, start),
            order: AccessOrder::new(tables.trails, tables.heat),
            sharing: Sharing::new(tables.sharing),
        }
    }

    /// A write of page `gfn` by vCPU `vcpu` at `at`.
    ///
    /// # Errors
    /// [`ProfilerError`]; the parts count what they refused.
    pub fn on_write(&mut self, vcpu: u32, gfn: Gfn, at: Nanos) -> Result<(), ProfilerError> {
        let since = self.intervals.on_write(gfn, at).map_err(ProfilerError::Page)?;
        self.order
            .on_write(vcpu, gfn, since.is_some())
            .map_err(ProfilerError::Vcpu)?;
        self.sharing.on_write(vcpu, gfn).map_err(ProfilerError::Page)
    }

    /// How long pages were left alone.
    pub const fn intervals(&self) -> &Intervals<'a> {
        &self.intervals
    }

    /// In which order pages were written.
    pub const fn order(&self) -> &AccessOrder<'a> {
        &self.order
    }

    /// Which pages several vCPUs wrote.
    pub const fn sharing(&self) -> &Sharing<'a> {
        &self.sharing
    }

    /// The profile of a guest of `total` pages, `used` of them not zero, and `vcpus` vCPUs, as its trace is up to `end`. Reads
    /// are unknown. O(pages).
    pub fn profile(&self, total: Pages, used: Pages, vcpus: u32, end: Nanos) -> Profile {
        let sets = self.intervals.working_sets(end);
        Profile {
            class: self.order.class(),
            writes: Some(self.intervals.writes()),
            ..Profile::new(total, used, sets.curve(), sets.span(), vcpus)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::AccessClass;

    #[test]
    fn a_loop_over_a_hundred_pages() {
        let (mut intervals, mut sharing) = ([0; 100], [0; 99]);
        let (mut trails, mut heat) = ([Trail::default(); 1], [HeatSlot::default(); 64]);
        let tables = ProfilerTables {
            intervals: &mut intervals,
            sharing: &mut sharing,
            trails: &mut trails,
            heat: &mut heat,
        };
        let mut profiler = Profiler::new(tables, Nanos::from_secs(1));
        let mut refused = 0;
        for step in 0..10_000 {
            let at = Nanos(1_000_000_000 + step * 1000);
            refused += u32::from(profiler.on_write(0, Gfn(step % 100), at).is_err());
        }
        assert_eq!(refused, 100, "page 99 has no word for sharing");
        let outside = profiler.on_write(0, Gfn(100), Nanos::from_secs(2));
        assert!(matches!(outside, Err(ProfilerError::Page(_))));
        let nobody = profiler.on_write(1, Gfn(0), Nanos::from_secs(2));
        assert_eq!(nobody, Err(ProfilerError::Vcpu(NoTrail { vcpu: 1, vcpus: 1 })));
        let profile = profiler.profile(Pages(1000), Pages(500), 1, Nanos::from_secs(2));
        assert_eq!(
            (profile.class, profile.writes, profile.reads),
            (AccessClass::Loop, Some(10_001), None)
        );
        assert_eq!(profile.working_set(), Pages(100));
        assert_eq!(profiler.sharing().shared_pages().map(|share| share.milli()), Some(0));
    }
}
