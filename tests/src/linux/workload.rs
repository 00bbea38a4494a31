//! What a Linux guest does.

use dunlin_core::workload::Fill;

use super::packages::Program;

/// What a Linux guest does, all of it checked on demand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Workload {
    /// Runs one of Dunlin's own workloads over memory of its own. A check looks at every word of the working set, and counts the
    /// pages that were ever written.
    Pages {
        /// What to do, as `dunlin` takes it: `uniform,rate=2000,ws=64MiB`. The working set must be given; it decides how much
        /// memory is needed.
        spec: String,
        /// What is in the working set before its first write.
        fill: Fill,
    },
    /// Nothing but heartbeats. A check has nothing to look at.
    Idle,
    /// A memcached, and a client that sets four values for each that it gets. Steps are requests; a check gets and counts all
    /// values.
    Memcached {
        /// How many values of a kibibyte there are.
        values: u32,
        /// How many requests a second, 0: as many as the processor can; some ten thousands, which dirty a hundred MB a second.
        rate: u32,
    },
    /// A C compiler that compiles generated files, over and over. Steps are compiled files, and each is as the one before of the
    /// same source; a check looks at all that are there, and counts them.
    Compile,
    /// The vm stressor of stress-ng in runs of some seconds, which verify what they wrote. Steps are its operations; a check waits
    /// until a run has ended well, and counts the pages that it worked on.
    StressVm {
        /// On how much memory.
        mebibytes: u32,
    },
}

impl Workload {
    /// One of Dunlin's own workloads over memory that is zero at first.
    pub fn pages(spec: &str) -> Self {
        Self::Pages {
            spec: spec.to_owned(),
            fill: Fill::Zero,
        }
    }

    /// A memcached of the size for a guest of 256 MiB, at 5000 requests a second.
    pub const fn memcached() -> Self {
        Self::Memcached {
            values: 48 << 10,
            rate: 5000,
        }
    }

    /// A stressor of the size for a guest of 256 MiB.
    pub const fn stress_vm() -> Self {
        Self::StressVm { mebibytes: 64 }
    }

    /// The program of another package that it needs.
    pub(super) const fn program(&self) -> Option<Program> {
        match self {
            Self::Pages { .. } | Self::Idle => None,
            Self::Memcached { .. } => Some(Program::Memcached),
            Self::Compile => Some(Program::Compiler),
            Self::StressVm { .. } => Some(Program::StressNg),
        }
    }

    /// The arguments of the guest's program.
    pub(super) fn arguments(&self) -> Vec<String> {
        match self {
            Self::Pages { spec, fill } => {
                let fill = match fill {
                    Fill::Zero => "zero",
                    Fill::Random => "random",
                };
                vec!["pages".into(), spec.clone(), fill.into()]
            }
            Self::Idle => vec!["idle".into()],
            Self::Memcached { values, rate } => vec!["memcached".into(), values.to_string(), rate.to_string()],
            Self::Compile => vec!["compile".into()],
            Self::StressVm { mebibytes } => vec!["stress-vm".into(), mebibytes.to_string()],
        }
    }
}
