//! Integer quantities: what is counted stands in the type, arithmetic never rounds silently.

mod ratio;

pub use ratio::Ratio;

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
    /// Whole microseconds as nanoseconds.
    pub const fn from_micros(us: u64) -> Self {
        Self(us.saturating_mul(1_000))
    }

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

impl BytesPerSec {
    /// How long these bytes take at this rate, rounded up to whole nanoseconds. The largest time if it is longer
    /// (584 years), or if the rate is zero and there is something to send.
    pub const fn time_to_send(self, bytes: Bytes) -> Nanos {
        if bytes.0 == 0 {
            return Nanos::ZERO;
        }
        if self.0 == 0 {
            return Nanos(u64::MAX);
        }
        let nanos = (bytes.0 as u128 * 1_000_000_000).div_ceil(self.0 as u128);
        Nanos(if nanos > u64::MAX as u128 {
            u64::MAX
        } else {
            nanos as u64
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sending_takes_no_less_than_the_rate_allows() {
        assert_eq!(BytesPerSec(3).time_to_send(Bytes(1)), Nanos(333_333_334));
        assert_eq!(
            BytesPerSec(1 << 20).time_to_send(Bytes(1 << 30)),
            Nanos::from_secs(1024)
        );
        assert_eq!(BytesPerSec(0).time_to_send(Bytes(0)), Nanos::ZERO);
        assert_eq!(BytesPerSec(0).time_to_send(Bytes(1)), Nanos(u64::MAX));
        assert_eq!(BytesPerSec(1).time_to_send(Bytes(u64::MAX)), Nanos(u64::MAX));
        assert_eq!(BytesPerSec(u64::MAX).time_to_send(Bytes(u64::MAX)), Nanos::from_secs(1));
    }
}
