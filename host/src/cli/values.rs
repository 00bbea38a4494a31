//! Sizes, rates and times as people write them.

use dunlin_core::choose::{Goal, Metric};
use dunlin_core::units::{Bytes, BytesPerSec};
use parse_size::Error as SizeError;
use std::{fmt, time::Duration};

/// Why a text is no value of its kind. The messages say how to write one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// No size.
    #[error(
        "not a size: write a number with B, kB, MB, GB (powers of 1000) or KiB, MiB, GiB (powers of 1024), 512MiB for example"
    )]
    Size,
    /// More bytes than can be counted.
    #[error("more than 16 EiB, which no computer can count: write a smaller size")]
    LargeSize,
    /// A small b.
    #[error("a small b means bits: write B for bytes, 25MB/s for 200 Mbit/s")]
    Bits,
    /// No rate.
    #[error("not a rate: write a size per second, 32MB/s or 1GiB/s for example")]
    Rate,
    /// A rate of nothing.
    #[error("a rate of nothing never ends: write at least 1B/s, or leave the option out for no limit")]
    ZeroRate,
    /// No time.
    #[error("not a time: write a number with us, ms, s, m or h, 300ms for example")]
    Time,
    /// A shorter time than there may be.
    #[error("too short a time: write at least {0}")]
    ShortTime(Micros),
}

/// A time in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(Duration::from_micros(self.0)).fmt(f)
    }
}

/// `512MiB`, `4GB`, `4096`.
///
/// # Errors
/// [`ValueError::Size`], [`ValueError::LargeSize`], [`ValueError::Bits`].
pub fn size(text: &str) -> Result<Bytes, ValueError> {
    if text.ends_with('b') {
        return Err(ValueError::Bits);
    }
    match parse_size::parse_size(text) {
        Ok(bytes) => Ok(Bytes(bytes)),
        Err(SizeError::PosOverflow) => Err(ValueError::LargeSize),
        Err(_) => Err(ValueError::Size),
    }
}

/// `32MB/s`, `1GiB/s`; the `/s` may be left out, the unit may not: a forgotten one would make a link of some bytes a second.
///
/// # Errors
/// [`ValueError::Rate`], [`ValueError::ZeroRate`], and those of [`size`].
pub fn rate(text: &str) -> Result<BytesPerSec, ValueError> {
    match size(text.strip_suffix("/s").unwrap_or(text)) {
        Ok(Bytes(0)) => Err(ValueError::ZeroRate),
        Ok(_) if text.ends_with(|last: char| last.is_ascii_digit()) => Err(ValueError::Rate),
        Ok(Bytes(bytes)) => Ok(BytesPerSec(bytes)),
        Err(error @ (ValueError::LargeSize | ValueError::Bits)) => Err(error),
        Err(_) => Err(ValueError::Rate),
    }
}

/// `300ms`, `3s`, `0s`.
///
/// # Errors
/// [`ValueError::Time`].
pub fn time(text: &str) -> Result<Micros, ValueError> {
    let time = humantime::parse_duration(text).map_err(|_| ValueError::Time)?;
    u64::try_from(time.as_micros())
        .map(Micros)
        .map_err(|_| ValueError::Time)
}

/// As [`time()`], but at least a millisecond.
///
/// # Errors
/// [`ValueError::Time`], [`ValueError::ShortTime`].
pub fn positive_time(text: &str) -> Result<Micros, ValueError> {
    const LEAST: Micros = Micros(1000);
    match time(text)? {
        time if time < LEAST => Err(ValueError::ShortTime(LEAST)),
        time => Ok(time),
    }
}

/// The longest pause where nobody says otherwise.
const DOWNTIME: Micros = Micros(300_000);

/// The pause that pre-copy aims at: what was given, or the usual one, unless the goal allows less.
pub fn downtime(given: Option<Micros>, goal: Option<&Goal>) -> Micros {
    let bounds = goal.map_or(&[][..], Goal::bounds).iter();
    let allowed = bounds.filter(|bound| bound.metric == Metric::Downtime);
    let least = allowed.map(|bound| Micros((bound.limit / 1000).max(1))).min();
    given.unwrap_or_else(|| least.map_or(DOWNTIME, |least| least.min(DOWNTIME)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_goal_may_ask_for_a_shorter_pause() {
        let pause = |given: Option<u64>, goal: &str| downtime(given.map(Micros), goal.parse().ok().as_ref()).0;
        assert_eq!(pause(None, "downtime<30ms"), 30_000);
        assert_eq!(pause(None, "downtime<2s"), 300_000);
        assert_eq!(pause(None, "time<9s"), 300_000);
        assert_eq!(pause(Some(50_000), "downtime<30ms"), 50_000);
        assert_eq!(downtime(None, None), DOWNTIME);
    }

    #[test]
    fn sizes_have_either_kind_of_unit() {
        let sizes = [
            ("512MiB", 512 << 20),
            ("1GB", 1_000_000_000),
            ("4096", 4096),
            ("1.5KiB", 1536),
            ("0", 0),
            ("64 kB", 64_000),
        ];
        for (text, bytes) in sizes {
            assert_eq!(size(text), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "much", "-5", "5 apples", "MiB", "0x10"] {
            assert_eq!(size(text), Err(ValueError::Size), "{text}");
        }
        for text in ["18446744073709551616", "16EiB", "99999999999999999999GiB"] {
            assert_eq!(size(text), Err(ValueError::LargeSize), "{text}");
        }
    }

    #[test]
    fn rates_are_sizes_per_second() {
        assert_eq!(rate("32MB/s"), Ok(BytesPerSec(32_000_000)));
        assert_eq!(rate("1GiB"), Ok(BytesPerSec(1 << 30)));
        assert_eq!(rate("0MB/s"), Err(ValueError::ZeroRate));
        assert_eq!(rate("fast"), Err(ValueError::Rate));
        assert_eq!(rate("200"), Err(ValueError::Rate));
        assert_eq!(rate("200B"), Ok(BytesPerSec(200)));
        assert_eq!(rate("200Mb/s"), Err(ValueError::Bits));
        assert_eq!(size("5kb"), Err(ValueError::Bits));
        assert_eq!(rate("0"), Err(ValueError::ZeroRate));
        assert_eq!(rate("5MB/m"), Err(ValueError::Rate));
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(time("300ms"), Ok(Micros(300_000)));
        assert_eq!(time("1m 30s"), Ok(Micros(90_000_000)));
        assert_eq!(positive_time("3s"), Ok(Micros(3_000_000)));
        for text in ["", "300", "-5ms", "soon", "99999999999999y"] {
            assert_eq!(time(text), Err(ValueError::Time), "{text}");
        }
        assert_eq!(
            positive_time("0s").unwrap_err().to_string(),
            "too short a time: write at least 1ms"
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,20}") {
            let _ = (size(&text), rate(&text), time(&text));
        }

        #[test]
        fn times_read_as_they_are_written(micros: u64) {
            prop_assert_eq!(time(&Micros(micros).to_string()), Ok(Micros(micros)));
        }
    }
}
