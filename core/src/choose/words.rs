//! Numbers and strategies as a person reads them.

use core::fmt;

use crate::strategy::{Strategy, SwitchRule};
use crate::units::{Bytes, Nanos};

/// A time with three digits and a unit, rounded down: `12.3 s`, `240 ms`.
pub(super) struct Time(pub(super) Nanos);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.0;
        if nanos == u64::MAX {
            return f.write_str("for ever");
        }
        let units = [
            (3_600_000_000_000, "h"),
            (60_000_000_000, "min"),
            (1_000_000_000, "s"),
            (1_000_000, "ms"),
            (1_000, "us"),
        ];
        // Minutes begin at two, so that 90 s stay what they are.
        let large = units
            .into_iter()
            .find(|(size, name)| nanos >= size * if matches!(*name, "h" | "min") { 2 } else { 1 });
        match large {
            Some((size, name)) => write!(f, "{} {name}", Digits(nanos, size)),
            None => write!(f, "{nanos} ns"),
        }
    }
}

/// An amount of memory with three digits and a unit, rounded down: `1.25 GiB`.
pub(super) struct Memory(pub(super) Bytes);

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.0;
        let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.into_iter().find(|(size, _)| bytes >= *size) {
            Some((size, name)) => write!(f, "{} {name}", Digits(bytes, size)),
            None => write!(f, "{bytes} B"),
        }
    }
}

/// A quotient with three digits, or all digits before the point.
struct Digits(u64, u64);

impl fmt::Display for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(amount, size) = *self;
        let (whole, rest) = (amount / size, u128::from(amount % size));
        match whole {
            0..10 => write!(f, "{whole}.{:02}", rest * 100 / u128::from(size)),
            10..100 => write!(f, "{whole}.{}", rest * 10 / u128::from(size)),
            _ => write!(f, "{whole}"),
        }
    }
}

/// A strategy by its preset, with what differs from it; [`Strategy::parse`] reads it.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a>(pub &'a Strategy);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let strategy = self.0;
        let plain = Strategy::with_switch(strategy.switch);
        match strategy.switch {
            SwitchRule::Never => f.write_str("precopy"),
            SwitchRule::Rounds(0) => f.write_str("postcopy"),
            SwitchRule::Rounds(rounds) => write!(f, "hybrid:{rounds}"),
            SwitchRule::Lambda => f.write_str("as-hybrid"),
            SwitchRule::Dyn => f.write_str("dyn-hybrid"),
            SwitchRule::Heuristic => f.write_str("heuristic-hybrid"),
            rule => write!(f, "switch={rule}"),
        }?;
        if strategy.first != plain.first {
            write!(f, ",first={}", strategy.first)?;
        }
        if strategy.filter != plain.filter {
            write!(f, ",filter={}", strategy.filter)?;
        }
        if strategy.push != plain.push {
            write!(f, ",push={}", strategy.push)?;
        }
        // What follows from the other keys is not repeated.
        if strategy.cut != plain.cut && strategy.first == plain.first {
            write!(f, ",cut={}", strategy.cut)?;
        }
        if strategy.slow != plain.slow {
            write!(f, ",slow={}", strategy.slow)?;
        }
        if strategy.clear != plain.clear {
            write!(f, ",clear={}", strategy.clear)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn numbers_have_three_digits() {
        let times = [
            0,
            999,
            1500,
            240_000_000,
            12_345_678_901,
            119_000_000_000,
            125_000_000_000,
            7_300_000_000_000,
            u64::MAX,
        ];
        let words = times.map(|nanos| Time(Nanos(nanos)).to_string());
        assert_eq!(
            words,
            [
                "0 ns", "999 ns", "1.50 us", "240 ms", "12.3 s", "119 s", "2.08 min", "2.02 h", "for ever"
            ]
        );
        let sizes = [0, 1023, 1536, 5 << 30, 1 << 44].map(|bytes| Memory(Bytes(bytes)).to_string());
        assert_eq!(sizes, ["0 B", "1023 B", "1.50 KiB", "5.00 GiB", "16.0 TiB"]);
    }

    #[test]
    fn a_name_is_read_back() {
        let texts = [
            "precopy",
            "postcopy",
            "hybrid:3",
            "as-hybrid",
            "dyn-hybrid",
            "heuristic-hybrid",
            "switch=sdf:auto",
            "switch=xen",
            "hybrid:1,push=forecast,clear=late",
            "precopy,slow=auto-converge",
            "markov-sdf:0.5",
            "par-migrate",
            "pa-hybrid",
            "postcopy,cut=fail",
        ];
        for text in texts {
            let strategy: Strategy = text.parse().expect(text);
            assert_eq!(
                Name(&strategy).to_string().parse(),
                Ok(strategy),
                "{text}: {}",
                Name(&strategy)
            );
        }
        for candidate in super::super::CANDIDATES {
            assert_eq!(
                Name(&candidate).to_string().parse(),
                Ok(candidate),
                "{}",
                Name(&candidate)
            );
        }
        let name = |text: &str| Name(&text.parse().expect(text)).to_string();
        assert_eq!(name("switch=rounds:2"), "hybrid:2");
        assert_eq!(name("pa-hybrid"), "as-hybrid,first=parallel");
    }
}
