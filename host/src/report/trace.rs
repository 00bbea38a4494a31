//! What a recorded trace of page writes says, as a document.

use serde::{Deserialize, Serialize};

use super::ReportSchema;

/// All that is made of one trace. Times are in microseconds unless the name says otherwise, pages have 4096 bytes, shares are in
/// thousandths. What the source cannot tell is `null`, or an empty list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceReport {
    /// Which document this is.
    pub schema: ReportSchema,
    /// What saw the writes.
    pub source: String,
    /// Writes that the source knows it has missed; `null` if it missed some and cannot say how many.
    pub lost_events: Option<u64>,
    /// What tracing took; `null` for a trace that was cut off.
    pub overhead: Option<TraceOverhead>,
    /// How many pages were dirtied over time; `null` if nothing was recorded.
    pub rate: Option<RateReport>,
    /// The writable working set: distinct pages in windows of growing length.
    pub wws: Vec<WwsPoint>,
    /// How long pages were left alone between two writes; `null` if none was written twice.
    pub intervals: Option<IntervalReport>,
    /// Where was written when; `null` if nothing was.
    pub heat: Option<HeatReport>,
    /// In which order pages were written.
    pub order: OrderReport,
    /// Who wrote, by falling share.
    pub vcpus: Vec<VcpuShare>,
    /// Events of which nobody knows the vCPU.
    pub events_of_unknown_vcpu: u64,
    /// Which pages several vCPUs wrote; `null` if the source does not tell vCPUs apart, or there is one.
    pub sharing: Option<SharingReport>,
    /// The pages written most.
    pub hot: HotReport,
    /// What that means for a migration.
    pub workload: WorkloadReport,
    /// Which pages were written first.
    pub first_touch: FirstTouchReport,
    /// The guest's own count of its steps; `null` if it keeps none.
    pub steps: Option<StepsReport>,
    /// The file.
    pub trace: String,
    /// The guest.
    pub guest: TracedGuest,
    /// What the source tells apart.
    pub resolution: ResolutionName,
    /// What it cannot see.
    pub cannot_see: String,
    /// How often pages were harvested or protected anew; `null` for a source that sees each write.
    pub harvest: Option<HarvestReport>,
    /// Wall clock at the start, in nanoseconds since 1970.
    pub started_unix_ns: Option<u64>,
    /// How long was recorded.
    pub duration_us: u64,
    /// False if the trace was cut off: it has no end of its own.
    pub complete: bool,
    /// What was seen: writes, first writes, or pages dirty in a window, as the resolution says.
    pub events: u64,
    /// When losses were found out, the first of them.
    pub losses: Vec<LossReport>,
    /// What a reader has to know beside the numbers.
    pub notes: Vec<String>,
}

/// What a source tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResolutionName {
    /// Every write.
    EveryWrite,
    /// The first write of a page since it was last harvested or protected.
    FirstWrites,
    /// Which pages were written in each window.
    Windows,
}

/// What tracing took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceOverhead {
    /// CPU time in the kernel and in the tracer.
    pub cpu_us: u64,
    /// The same relative to one CPU, in thousandths.
    pub of_one_cpu_milli: u64,
    /// The same for each event, in nanoseconds; `null` without any.
    pub per_event_ns: Option<u64>,
}

/// A guest as its trace describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedGuest {
    /// Its name.
    pub name: String,
    /// Its RAM in bytes.
    pub memory_bytes: u64,
    /// Bytes of pages that were not all zero at the start, or were written since.
    pub used_bytes: u64,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// Distinct pages written.
    pub written_pages: u64,
}

/// How often pages were harvested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HarvestReport {
    /// Windows that were closed by a harvest.
    pub windows: u64,
    /// Their mean length.
    pub mean_us: u64,
    /// The longest.
    pub longest_us: u64,
}

/// When writes were found to be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossReport {
    /// Since the start.
    pub at_us: u64,
    /// How many; `null` if that is not known.
    pub events: Option<u64>,
}

/// Distinct pages dirtied per second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RateReport {
    /// Over windows of one length.
    #[serde(flatten)]
    pub windows: RateWindows,
    /// The course: neighbouring windows together, as many as fit a picture.
    pub series: Vec<RatePoint>,
    /// The same over windows of other lengths: pages written again within a window count once, so longer windows have lower rates.
    pub other_windows: Vec<RateWindows>,
    /// Events per second.
    pub events_per_s: f64,
}

/// Rates over windows of one length.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RateWindows {
    /// Their length, the mean one where harvests give it.
    pub window_us: f64,
    /// How many were whole.
    pub windows: u64,
    /// Distinct pages of all windows over the length of all.
    pub mean_pages_per_s: f64,
    /// The same in bytes per second.
    pub mean_bytes_per_s: f64,
    /// The variance over the windows, in (pages/s)².
    pub variance: f64,
    /// Its square root, in pages/s.
    pub stddev_pages_per_s: f64,
    /// The least of a window.
    pub min_pages_per_s: f64,
    /// The most.
    pub max_pages_per_s: f64,
}

/// A stretch of the course.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RatePoint {
    /// Where it begins.
    pub at_us: u64,
    /// How long it is.
    pub duration_us: u64,
    /// Mean over its windows.
    pub pages_per_s: f64,
    /// The most of one of its windows.
    pub peak_pages_per_s: f64,
}

/// A point of the working-set curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WwsPoint {
    /// The window's length.
    pub window_us: u64,
    /// Distinct pages in a window of this length, in the mean, rounded: at least so many.
    pub pages: u64,
    /// At most so many: more than `pages` where the source does not see each write, or by rounding.
    pub pages_high: u64,
}

/// A histogram of re-dirty intervals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntervalReport {
    /// How many.
    pub count: u64,
    /// Half of them are no longer than this, in nanoseconds, the upper end of its bucket.
    pub median_ns: u64,
    /// Nine tenths.
    pub p90_ns: u64,
    /// 99 hundredths.
    pub p99_ns: u64,
    /// Intervals shorter than this are not seen; 0 for a source that sees each write.
    pub resolved_from_ns: u64,
    /// Buckets that hold something, ascending.
    pub buckets: Vec<IntervalBucket>,
}

/// A bucket of intervals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntervalBucket {
    /// The shortest that falls into it, in nanoseconds.
    pub from_ns: u64,
    /// The longest.
    pub to_ns: u64,
    /// How many did.
    pub count: u64,
}

/// Events by time and address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeatReport {
    /// How long a column is. The first begins with the recording; the last may be shorter.
    pub column_us: u64,
    /// How many pages of RAM a row has. Rows leave out what is no RAM.
    pub row_pages: u64,
    /// The guest-physical address at which each row begins, lowest first.
    pub row_addresses: Vec<u64>,
    /// The page after the last of the highest row, as an address.
    pub end_address: u64,
    /// Events: a list for each column, with a number for each row.
    pub columns: Vec<Vec<u64>>,
}

impl HeatReport {
    /// For pictures: as if the last column, of a recording that long, were as long as the others.
    pub(crate) fn evened(&self, duration_us: u64) -> Self {
        let mut evened = self.clone();
        let before = self
            .column_us
            .saturating_mul(self.columns.len().saturating_sub(1) as u64);
        let rest = duration_us.saturating_sub(before);
        if let Some(last) = evened.columns.last_mut()
            && (1..self.column_us).contains(&rest)
        {
            for events in last {
                *events = (u128::from(*events) * u128::from(self.column_us) / u128::from(rest)) as u64;
            }
        }
        evened
    }
}

/// The order of writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderReport {
    /// `stride`, `loop`, `random`, `hot-cold`, or `unknown`.
    pub class: String,
    /// Of each vCPU's steps from page to page, those that went on as before.
    pub in_order_milli: Option<u64>,
    /// What that rests on.
    pub by: OrderBasis,
}

/// What an order was seen in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrderBasis {
    /// Every write.
    Writes,
    /// The first write of each page in each window: pages written often look like others.
    FirstWrites,
    /// Nothing: the source has no order.
    Nothing,
}

/// A vCPU's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuShare {
    /// Which.
    pub vcpu: u32,
    /// Events of it.
    pub events: u64,
    /// Of all with a known vCPU.
    pub share_milli: u64,
}

/// Pages of several vCPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharingReport {
    /// Pages written by exactly one vCPU, by two, and so on, up to 48; where there are more vCPUs, those whose numbers are equal
    /// modulo 48 count as one.
    pub pages_by_writers: Vec<u64>,
    /// Of the pages written, those that several vCPUs wrote.
    pub shared_pages_milli: u64,
    /// Of the events, those on a page that another vCPU had written last.
    pub crossing_events_milli: u64,
}

/// How uneven writes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotReport {
    /// The pages with the most events, most first.
    pub pages: Vec<HotPage>,
    /// Of the events, those on the hottest hundredth of the pages written (at least one page).
    pub hottest_hundredth_milli: Option<u64>,
    /// Those on the hottest tenth.
    pub hottest_tenth_milli: Option<u64>,
    /// The fewest pages that have half of the events.
    pub pages_with_half: Option<u64>,
}

/// A page and how often it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotPage {
    /// Its frame number.
    pub gfn: u64,
    /// Its guest-physical address.
    pub address: u64,
    /// Events on it.
    pub events: u64,
}

/// What kind of load it is for a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadReport {
    /// The working set as far as it was seen, relative to RAM.
    pub working_set_milli: u64,
    /// Whether it is memory-intensive: the working set is a tenth of RAM or more.
    pub memory_intensive: bool,
    /// Over links that are not faster than this it is write-intensive: a copy of the working set leaves half of it dirty again. `null` if
    /// over none.
    pub write_intensive_up_to_bytes_per_s: Option<u64>,
    /// CPU time and network traffic are not in a trace.
    pub cpu_intensive: Option<bool>,
    /// As above.
    pub network_intensive: Option<bool>,
}

/// When pages were written for the first time in the recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstTouchReport {
    /// How many were.
    pub pages: u64,
    /// When half of them had been.
    pub half_us: Option<u64>,
    /// When nine tenths had been.
    pub nine_tenths_us: Option<u64>,
    /// The course: pages that had been written by then.
    pub course: Vec<TouchPoint>,
}

/// How many pages had been written by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TouchPoint {
    /// Since the start.
    pub at_us: u64,
    /// Distinct pages.
    pub pages: u64,
}

/// The guest's own count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepsReport {
    /// Steps that all vCPUs did between the first and the last reading of each.
    pub steps: u64,
    /// Between the earliest and the latest reading.
    pub over_us: u64,
}
