//! What was counted, and what it cost.

use std::fmt;

use dunlin_core::record::{Kind, counter};
use dunlin_core::units::Nanos;

/// Counts of all processors since the tracer was attached.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    sums: [u64; counter::COUNT],
    lost: Vec<u64>,
    missed: u64,
}

impl Counters {
    /// Adds up the counters of all processors; `missed` is what the kernel says of the programs.
    pub(super) fn new(processors: impl Iterator<Item = [u64; counter::COUNT]>, missed: u64) -> Self {
        let mut counters = Self {
            missed,
            ..Self::default()
        };
        for processor in processors {
            for (sum, count) in counters.sums.iter_mut().zip(processor) {
                *sum = sum.saturating_add(count);
            }
            counters.lost.push(processor[counter::LOST]);
        }
        counters
    }

    /// Events of a kind that concerned the traced process, whatever became of them.
    pub fn events(&self, kind: Kind) -> u64 {
        self.sums[usize::from(kind as u16)]
    }

    /// Events of all kinds.
    pub fn all_events(&self) -> u64 {
        Kind::ALL.iter().map(|kind| self.events(*kind)).sum()
    }

    /// Events that are in no stream and in no table: those for which the buffer had no room, and those that came while the same
    /// program was interrupted on the same processor, for which the kernel does not run it again. The latter are not among the
    /// events of their kind.
    pub fn lost(&self) -> u64 {
        self.sums[counter::LOST].saturating_add(self.missed)
    }

    /// Events for which the buffer had no room, for each processor.
    pub fn lost_by_processor(&self) -> &[u64] {
        &self.lost
    }

    /// Writes to the page that the same thread had written last, which were left out.
    pub fn repeats(&self) -> u64 {
        self.sums[counter::REPEATS]
    }

    /// Writes outside the memory that is traced. They are not among the events of their kind.
    pub fn outside(&self) -> u64 {
        self.sums[counter::OUTSIDE]
    }

    /// Events whose page could not be read. They are not among the events of their kind.
    pub fn unreadable(&self) -> u64 {
        self.sums[counter::UNREADABLE]
    }
}

/// What the program at one place took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgramTime {
    /// The place.
    pub hook: &'static str,
    /// How often it ran, for whatever process.
    pub runs: u64,
    /// CPU time of all runs, with what the measuring itself takes.
    pub time: Nanos,
}

/// What tracing took since the tracer was attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Overhead {
    /// Each program; empty if nobody measured them.
    pub programs: Vec<ProgramTime>,
    /// CPU time of the threads that read the events, while they did.
    pub reader: Nanos,
}

impl Overhead {
    /// CPU time in the kernel; `None` if nobody measured it.
    pub fn kernel(&self) -> Option<Nanos> {
        let sum = self.programs.iter().map(|program| program.time.0).sum();
        (!self.programs.is_empty()).then_some(Nanos(sum))
    }

    /// All CPU time that is known.
    pub fn total(&self) -> Nanos {
        self.kernel().unwrap_or(Nanos::ZERO).saturating_add(self.reader)
    }
}

impl fmt::Display for Overhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kernel() {
            None => f.write_str("kernel not measured")?,
            Some(time) => {
                let runs: u64 = self.programs.iter().map(|program| program.runs).sum();
                let each = time.0.checked_div(runs).unwrap_or(0);
                write!(f, "{} us in the kernel ({runs} runs of {each} ns)", time.0 / 1000)?;
            }
        }
        write!(f, ", {} us of reading", self.reader.0 / 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_added_up() {
        let mut one = [0; counter::COUNT];
        one[usize::from(Kind::RingPush as u16)] = 10;
        one[counter::LOST] = 3;
        let mut other = one;
        other[counter::LOST] = 4;
        other[counter::REPEATS] = 5;
        let counters = Counters::new([one, other].into_iter(), 2);
        assert_eq!(counters.events(Kind::RingPush), 20);
        assert_eq!(counters.all_events(), 20);
        assert_eq!(counters.lost(), 9);
        assert_eq!(counters.lost_by_processor(), [3, 4]);
        assert_eq!(counters.repeats(), 5);
        assert_eq!((counters.outside(), counters.unreadable()), (0, 0));
    }

    #[test]
    fn overhead_is_said_in_one_line() {
        let mut overhead = Overhead {
            programs: vec![],
            reader: Nanos(5_000),
        };
        assert_eq!(overhead.kernel(), None);
        assert_eq!(overhead.total(), Nanos(5_000));
        assert_eq!(overhead.to_string(), "kernel not measured, 5 us of reading");
        overhead.programs.push(ProgramTime {
            hook: "kvm_exit",
            runs: 100,
            time: Nanos(20_000),
        });
        assert_eq!(overhead.total(), Nanos(25_000));
        assert_eq!(
            overhead.to_string(),
            "20 us in the kernel (100 runs of 200 ns), 5 us of reading"
        );
    }
}
