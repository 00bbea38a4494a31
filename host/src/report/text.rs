//! Numbers for people: three significant digits and a unit, counts with separators.

use std::{error::Error, time::Duration};

/// A count with separators: `16,384`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in binary units: `63.9 MiB`.
pub fn bytes(number: u64) -> String {
    scaled(number, 1024, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// Bytes per second in decimal units, as networks are measured: `32.1 MB/s`.
pub fn rate(per_second: u64) -> String {
    scaled(
        per_second,
        1000,
        &["B/s", "kB/s", "MB/s", "GB/s", "TB/s", "PB/s", "EB/s"],
    )
}

/// A time: `121 µs`, `3.42 ms`, `2.31 s`, `3m 20s`.
pub fn duration(time: Duration) -> String {
    // From here on nobody wants to compute the minutes.
    if time >= Duration::from_secs(120) {
        let (minutes, seconds) = (time.as_secs() / 60, time.as_secs() % 60);
        return match minutes {
            0..60 => format!("{minutes}m {seconds:02}s"),
            _ => format!("{}h {:02}m", minutes / 60, minutes % 60),
        };
    }
    match u64::try_from(time.as_micros()).unwrap_or(u64::MAX) {
        0 if !time.is_zero() => format!("{} ns", time.as_nanos()),
        micros => scaled(micros, 1000, &["µs", "ms", "s"]),
    }
}

/// A number given in thousandths: `0.496`.
pub fn milli(thousandths: i64) -> String {
    let sign = if thousandths < 0 { "-" } else { "" };
    let magnitude = thousandths.unsigned_abs();
    format!("{sign}{}.{:03}", magnitude / 1000, magnitude % 1000)
}

/// An error with its causes: `cannot read the record: Input/output error (os error 5)`.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // A transparent wrapper says the same as what it wraps.
        if !text.ends_with(&more) {
            text += &format!(": {more}");
        }
        cause = error.source();
    }
    text
}

/// Three significant digits in the largest unit that leaves a whole part; the smallest unit has no fraction.
fn scaled(number: u64, step: u64, units: &[&str]) -> String {
    let mut unit = 0;
    let mut size: u64 = 1;
    // "1000 kB" is never printed: what rounds up to a whole step takes the next unit.
    while unit + 1 < units.len() {
        let next = u128::from(size) * u128::from(step);
        let threshold = if unit == 0 { next * 2000 } else { next * 1999 };
        if u128::from(number) * 2000 < threshold {
            break;
        }
        unit += 1;
        size *= step;
    }
    if unit == 0 {
        return format!("{number} {}", units[0]);
    }
    let digits = |decimals: u32| {
        let power = 10u128.pow(decimals);
        (u128::from(number) * power * 2 + u128::from(size)) / (u128::from(size) * 2)
    };
    let (hundredths, tenths) = (digits(2), digits(1));
    let text = if hundredths < 1000 {
        format!("{}.{:02}", hundredths / 100, hundredths % 100)
    } else if tenths < 1000 {
        format!("{}.{}", tenths / 10, tenths % 10)
    } else {
        digits(0).to_string()
    };
    format!("{text} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1000, "1000 B"),
            (1024, "1.00 KiB"),
            (10_234, "9.99 KiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
        assert_eq!(bytes(67_108_864), "64.0 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(rate(32_100_000), "32.1 MB/s");
        assert_eq!(rate(999_999), "1.00 MB/s");
        assert_eq!(rate(999_400), "999 kB/s");
    }

    #[test]
    fn times_have_the_unit_people_use() {
        let texts = [
            (0, "0 µs"),
            (121, "121 µs"),
            (3_420, "3.42 ms"),
            (2_314_567, "2.31 s"),
            (119_000_000, "119 s"),
        ];
        for (micros, text) in texts {
            assert_eq!(duration(Duration::from_micros(micros)), text);
        }
        assert_eq!(duration(Duration::from_nanos(350)), "350 ns");
        assert_eq!(duration(Duration::from_secs(200)), "3m 20s");
        assert_eq!(duration(Duration::from_secs(7_380)), "2h 03m");
        assert_eq!(duration(Duration::MAX), "5124095576030431h 00m");
    }

    #[test]
    fn separators_stand_every_three_digits() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
        assert_eq!(
            (milli(496), milli(-12), milli(2_500)),
            ("0.496".into(), "-0.012".into(), "2.500".into())
        );
        assert_eq!(milli(i64::MIN).chars().next(), Some('-'));
    }

    #[test]
    fn causes_stand_behind_their_error() {
        let error = crate::channel::ChannelError::Io {
            action: "read from",
            peer: "host:7".into(),
            source: std::io::Error::other("the cable is cut"),
        };
        assert_eq!(chain(&error), "cannot read from host:7: the cable is cut");
        assert_eq!(
            chain(&crate::control::ControlError::from(error)),
            "cannot read from host:7: the cable is cut"
        );
    }

    proptest! {
        #[test]
        fn no_number_is_too_large_or_misleading(number: u64) {
            for text in [bytes(number), rate(number)] {
                let (value, _) = text.split_once(' ').unwrap();
                prop_assert!(value.len() <= 4, "{text}");
            }
            prop_assert_eq!(count(number).replace(',', ""), number.to_string());
        }
    }
}
