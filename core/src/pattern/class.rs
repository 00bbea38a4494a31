//! The order in which a guest writes its pages, in one word.

use core::fmt;

/// In which order a guest writes its pages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum AccessClass {
    /// Not measured, or too few writes to tell.
    #[default]
    Unknown,
    /// Mostly neighbours in ascending or descending order, or a fixed distance apart, over pages not seen before.
    Stride,
    /// As [`Stride`](Self::Stride), over the same pages again and again.
    Loop,
    /// No order, and no page much more often than another.
    Random,
    /// No order, and a tenth of the pages gets far more than its share of the writes.
    HotCold,
}

impl fmt::Display for AccessClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Stride => "stride",
            Self::Loop => "loop",
            Self::Random => "random",
            Self::HotCold => "hot-cold",
        })
    }
}
