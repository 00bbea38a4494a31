//! What a Linux guest says on its second serial port: a line each, and so are the commands it takes there.

use std::fmt;

/// The command to check everything. The answer is [`Line::Intact`] or [`Line::Corrupt`].
pub const CHECK: &str = "check";
/// The command to spoil a byte of what is checked, which shows that a check can fail. There is no answer.
pub const SPOIL: &str = "spoil";

/// A sign of life, five times a second as long as the guest runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Beat {
    /// Which it is, from 1.
    pub seq: u64,
    /// What the guest has done so far: steps of a workload, requests answered, files compiled, operations of a stressor. Of an idle
    /// guest, beats.
    pub steps: u64,
    /// Steps per second since the beat before, rounded down.
    pub per_s: u64,
    /// The guest's monotonic clock, milliseconds.
    pub monotonic_ms: u64,
}

/// A line from the guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Line {
    /// It lives.
    Beat(Beat),
    /// All that it has written is as it left it.
    Intact(Intact),
    /// Memory is not as the guest left it, and why it thinks so. It does nothing any more.
    Corrupt(String),
    /// Something else than memory is wrong with the guest. It does nothing any more.
    Failed(String),
}

/// The result of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Intact {
    /// How many pages were checked, or values, files or runs: see [`Workload`](super::Workload).
    pub pages: u64,
    /// [`Beat::steps`] at that time.
    pub steps: u64,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Beat(beat) => {
                let Beat {
                    seq,
                    steps,
                    per_s,
                    monotonic_ms,
                } = beat;
                write!(
                    f,
                    "beat seq={seq} steps={steps} per_s={per_s} monotonic_ms={monotonic_ms}"
                )
            }
            Self::Intact(Intact { pages, steps }) => write!(f, "intact pages={pages} steps={steps}"),
            Self::Corrupt(why) => write!(f, "CORRUPT {why}"),
            Self::Failed(why) => write!(f, "FAILED {why}"),
        }
    }
}

impl Line {
    /// Reads what [`Display`](fmt::Display) wrote; nothing for any other line.
    pub fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.trim().split_once(' ')?;
        let mut fields = rest.split(' ');
        let mut field = |name: &str| {
            let value = fields.next()?.strip_prefix(name)?.strip_prefix('=')?;
            value.parse().ok()
        };
        Some(match word {
            "beat" => Self::Beat(Beat {
                seq: field("seq")?,
                steps: field("steps")?,
                per_s: field("per_s")?,
                monotonic_ms: field("monotonic_ms")?,
            }),
            "intact" => Self::Intact(Intact {
                pages: field("pages")?,
                steps: field("steps")?,
            }),
            "CORRUPT" => Self::Corrupt(rest.to_owned()),
            "FAILED" => Self::Failed(rest.to_owned()),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are_written() {
        let beat = Beat {
            seq: 17,
            steps: 12345,
            per_s: 900,
            monotonic_ms: 6000,
        };
        let lines = [
            Line::Beat(beat),
            Line::Intact(Intact { pages: 3, steps: 4 }),
            Line::Corrupt("page=0x123 is stale".into()),
            Line::Failed("no memcached".into()),
        ];
        for line in lines {
            assert_eq!(Line::parse(&format!("{line}\r\n")), Some(line));
        }
        for other in [
            "",
            "beat",
            "beat seq=1",
            "beat seq=x steps=1 per_s=1 monotonic_ms=1",
            "hello world",
        ] {
            assert_eq!(Line::parse(other), None, "{other}");
        }
    }
}
