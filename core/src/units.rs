//! Integer quantities: what is counted stands in the type, arithmetic never rounds silently.

/// Bytes per guest page. Dunlin tracks and moves memory in 4 KiB pages, whatever maps them.
pub const PAGE_SIZE: u64 = 4096;

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        #[cfg_attr(any(feature = "wire", feature = "workload"), derive(serde::Serialize, serde::Deserialize))]
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        pub struct $name(pub u64);

        impl $name {
            /// Nothing.
            pub const ZERO: Self = Self(0);

            /// Sum, stopping at the largest value.
            pub const fn saturating_add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }

            /// Difference, stopping at zero.
            pub const fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

quantity! {
    /// Guest frame number: guest-physical address divided by [`PAGE_SIZE`].
    Gfn
}
quantity! {
    /// A number of pages of [`PAGE_SIZE`] bytes.
    Pages
}
quantity! {
    /// A number of bytes.
    Bytes
}
quantity! {
    /// Nanoseconds; as a point in time, since an origin the caller chose. Only differences carry meaning.
    Nanos
}
quantity! {
    /// Bytes per second.
    BytesPerSec
}

impl Pages {
    /// The bytes these pages hold, stopping at the largest value.
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(PAGE_SIZE))
    }
}

impl Nanos {
    /// Whole milliseconds as nanoseconds.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms.saturating_mul(1_000_000))
    }

    /// Whole seconds as nanoseconds.
    pub const fn from_secs(s: u64) -> Self {
        Self(s.saturating_mul(1_000_000_000))
    }

    /// Microseconds, rounded down.
    pub const fn as_micros(self) -> u64 {
        self.0 / 1_000
    }
}
