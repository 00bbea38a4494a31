//! A run: neighbouring pages.

use crate::units::{Gfn, Pages};

/// The pages `first` .. `first + count`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(
    any(feature = "wire", feature = "workload"),
    derive(serde::Serialize, serde::Deserialize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Run {
    /// The lowest page.
    pub first: Gfn,
    /// How many pages; none is allowed.
    pub count: Pages,
}

impl Run {
    /// `count` pages from `first` on.
    pub const fn new(first: Gfn, count: Pages) -> Self {
        Self { first, count }
    }

    /// The page after the last, stopping at the largest number.
    pub const fn end(self) -> Gfn {
        Gfn(self.first.0.saturating_add(self.count.0))
    }

    /// True if there is no page in it.
    pub const fn is_empty(self) -> bool {
        self.count.0 == 0
    }

    /// True if the page is one of the run's.
    pub const fn contains(self, gfn: Gfn) -> bool {
        gfn.0 >= self.first.0 && gfn.0 - self.first.0 < self.count.0
    }
}

impl core::fmt::Display for Run {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}+{}", self.first, self.count)
    }
}
