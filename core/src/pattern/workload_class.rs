//! What kind of work a guest does, as far as a migration feels it.

use core::fmt;

use super::Profile;
use crate::units::{Bytes, BytesPerSec, Nanos, PAGE_SIZE, Pages};

/// Counters of the guest over the profile's span, where there are any.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Counters {
    /// Time its vCPUs ran, summed over them.
    pub cpu: Option<Nanos>,
    /// What it received and sent over its network.
    pub network: Option<Bytes>,
}

/// What the guest is busy with most, in this order if with several.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Intensity {
    /// Writing to at least a tenth of its memory.
    Memory,
    /// Its network: at least a quarter of what the link would carry.
    Network,
    /// Computing: its vCPUs ran at least half of the time.
    Cpu,
    /// None of these, or no counter tells.
    None,
}

/// Whether writes come so fast that pre-copy has to fight them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Access {
    /// Pages are dirtied much slower than the link sends them.
    ReadIntensive,
    /// Pages are dirtied at least half as fast as the link sends them.
    WriteIntensive,
}

/// The class of a guest's workload.
///
/// The classes are those of Ilma, "Workload Aware Live Migration of Virtual Machines" (proposal, 2023, section 1): memory-,
/// CPU- or network-intensive, and read- or write-intensive. It takes CPU- and network-intensive guests for read-intensive.
/// That does not hold in general, as a numeric kernel that works in place keeps its CPU busy *and* dirties memory as
/// fast as it can; so here the two are judged apart, and writes by what was measured of them:
///
/// * **write-intensive**: let W be the working set and T the time in which the link sends it; the guest dirties at
///   least W/2 in T. Half is where QEMU starts to slow a guest down (`throttle-trigger-threshold`). If it is between a
///   quarter and a half, counted reads and writes decide where there are both: more writes than reads are write-intensive. A
///   working set below a hundredth of memory is read-intensive however often it is written: stop-and-copy takes care of it.
/// * **memory-intensive**: W is at least a tenth of the guest's memory.
/// * **network-intensive**, **CPU-intensive**: by the counters, as [`Intensity`] says.
///
/// The proposal leaves its thresholds open; these are ours.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct WorkloadClass {
    /// What it is busy with most.
    pub intensity: Intensity,
    /// How fast it writes, against the link.
    pub access: Access,
}

impl WorkloadClass {
    /// The class of this guest on a link of this bandwidth. A bandwidth of 0 makes every guest write-intensive that writes
    /// enough. O(log points), exact in integers; a `Profile` of no span has no network or CPU use.
    pub fn of(profile: &Profile, counters: &Counters, link: BytesPerSec) -> Self {
        Self {
            intensity: intensity(profile, counters, link),
            access: access(profile, link),
        }
    }
}

fn intensity(profile: &Profile, counters: &Counters, link: BytesPerSec) -> Intensity {
    let span = u128::from(profile.span.0);
    let at_least = |part: u64, times: u128, whole: u128| part > 0 && u128::from(part) * times >= whole;
    let carried = span * u128::from(link.0) / 1_000_000_000;
    let offered = span * u128::from(profile.vcpus);
    if at_least(profile.working_set().0, 10, u128::from(profile.total.0)) {
        Intensity::Memory
    } else if span > 0 && counters.network.is_some_and(|bytes| at_least(bytes.0, 4, carried)) {
        Intensity::Network
    } else if span > 0 && counters.cpu.is_some_and(|time| at_least(time.0, 2, offered)) {
        Intensity::Cpu
    } else {
        Intensity::None
    }
}

fn access(profile: &Profile, link: BytesPerSec) -> Access {
    let set = profile.working_set();
    if set == Pages::ZERO || u128::from(set.0) * 100 < u128::from(profile.total.0) {
        return Access::ReadIntensive;
    }
    let send = link.time_to_send(Bytes(set.0.saturating_mul(PAGE_SIZE)));
    // Quarters of the working set that are dirty again by the time it is sent.
    let quarters = u128::from(profile.dirtied_in(send).0) * 4 / u128::from(set.0);
    let writes_more = matches!((profile.writes, profile.reads), (Some(writes), Some(reads)) if writes > reads);
    if quarters >= 2 || quarters == 1 && writes_more {
        Access::WriteIntensive
    } else {
        Access::ReadIntensive
    }
}

impl fmt::Display for Intensity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory-intensive",
            Self::Network => "network-intensive",
            Self::Cpu => "CPU-intensive",
            Self::None => "not intensive",
        })
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadIntensive => "read-intensive",
            Self::WriteIntensive => "write-intensive",
        })
    }
}

impl fmt::Display for WorkloadClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.intensity, self.access)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::WwsCurve;
    use std::string::ToString;

    const SECOND: Nanos = Nanos::from_secs(1);
    /// 100 000 pages per second.
    const LINK: BytesPerSec = BytesPerSec(100_000 * PAGE_SIZE);

    /// A guest of 100 000 pages that dirties so many in a tenth of a second and in a second.
    fn guest(tenth: u64, second: u64) -> Profile {
        let curve = WwsCurve::new(&[(Nanos::from_millis(100), Pages(tenth)), (SECOND, Pages(second))]);
        Profile::new(Pages(100_000), Pages(80_000), curve.expect("a curve"), SECOND, 4)
    }

    fn class(profile: &Profile, counters: Counters) -> (Intensity, Access) {
        let WorkloadClass { intensity, access } = WorkloadClass::of(profile, &counters, LINK);
        (intensity, access)
    }

    fn cpu(millis: u64) -> Counters {
        Counters {
            cpu: Some(Nanos::from_millis(millis)),
            network: None,
        }
    }

    #[test]
    fn a_busy_cpu_does_not_make_a_guest_read_intensive() {
        // The working set of 20 000 pages takes 200 ms; in these it dirties nearly all of it.
        let in_place = guest(18_000, 20_000);
        assert_eq!(class(&in_place, cpu(4000)), (Intensity::Memory, Access::WriteIntensive));
        // 9 000 pages are less than a tenth of memory: what keeps it busy is computing, and still it writes fast.
        let smaller = guest(8_000, 9_000);
        assert_eq!(class(&smaller, cpu(4000)), (Intensity::Cpu, Access::WriteIntensive));
        assert_eq!(class(&smaller, cpu(2000)).0, Intensity::Cpu);
        assert_eq!(class(&smaller, cpu(1999)).0, Intensity::None);
    }

    #[test]
    fn half_of_the_working_set_in_the_time_to_send_it() {
        // 10 000 pages take 100 ms.
        assert_eq!(
            class(&guest(5_000, 10_000), Counters::default()).1,
            Access::WriteIntensive
        );
        assert_eq!(
            class(&guest(4_999, 10_000), Counters::default()).1,
            Access::ReadIntensive
        );
    }

    #[test]
    fn between_a_quarter_and_a_half_counted_reads_decide() {
        let between = |tenth, reads, writes| {
            let profile = Profile {
                reads,
                writes,
                ..guest(tenth, 10_000)
            };
            class(&profile, Counters::default()).1
        };
        assert_eq!(between(2_500, Some(10), Some(11)), Access::WriteIntensive);
        assert_eq!(between(2_500, Some(11), Some(11)), Access::ReadIntensive);
        assert_eq!(between(2_500, None, Some(11)), Access::ReadIntensive);
        assert_eq!(between(2_499, Some(10), Some(11)), Access::ReadIntensive);
    }

    #[test]
    fn a_tiny_working_set_is_no_matter() {
        // Written all the time, in less than it takes to send it.
        let always = |pages| {
            let curve = WwsCurve::new(&[(Nanos::from_millis(1), Pages(pages))]).expect("a curve");
            let profile = Profile { curve, ..guest(0, 0) };
            class(&profile, Counters::default()).1
        };
        assert_eq!(always(999), Access::ReadIntensive);
        assert_eq!(always(1000), Access::WriteIntensive);
    }

    #[test]
    fn a_server_that_only_answers() {
        let quarter = Counters {
            cpu: Some(Nanos::from_secs(4)),
            network: Some(Bytes(LINK.0 / 4)),
        };
        let server = guest(500, 2_000);
        assert_eq!(class(&server, quarter), (Intensity::Network, Access::ReadIntensive));
        let text = WorkloadClass::of(&server, &quarter, LINK).to_string();
        assert_eq!(text, "network-intensive, read-intensive");
        let less = Counters {
            network: Some(Bytes(LINK.0 / 4 - 1)),
            ..quarter
        };
        assert_eq!(class(&server, less).0, Intensity::Cpu);
    }

    #[test]
    fn nothing_measured_and_the_largest_numbers() {
        let nothing = Profile::new(Pages(1), Pages(1), WwsCurve::FLAT, Nanos::ZERO, 1);
        assert_eq!(class(&nothing, cpu(0)), (Intensity::None, Access::ReadIntensive));
        assert_eq!(class(&nothing, cpu(5)), (Intensity::None, Access::ReadIntensive));
        let curve = WwsCurve::new(&[(Nanos(u64::MAX), Pages(u64::MAX))]).expect("a curve");
        let huge = Profile::new(Pages(u64::MAX), Pages(u64::MAX), curve, Nanos(u64::MAX), u32::MAX);
        let all = Counters {
            cpu: Some(Nanos(u64::MAX)),
            network: Some(Bytes(u64::MAX)),
        };
        for link in [0, 1, u64::MAX] {
            assert_eq!(
                WorkloadClass::of(&huge, &all, BytesPerSec(link)).intensity,
                Intensity::Memory
            );
        }
        assert_eq!(
            WorkloadClass::of(&guest(1000, 1000), &all, BytesPerSec(0)).access,
            Access::WriteIntensive
        );
    }
}
