//! What a recording brought.

use super::{RecordSchema, bytes, count, duration};
use serde::{Deserialize, Serialize};
use std::{fmt::Write, path::PathBuf, time::Duration};

/// The answer to `dunlin record`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordReport {
    /// Which document this is.
    pub schema: RecordSchema,
    /// The guest's name.
    pub guest: String,
    /// What saw the writes.
    pub source: String,
    /// What it cannot see.
    pub cannot_see: String,
    /// The trace.
    pub file: PathBuf,
    /// Its size.
    pub file_bytes: u64,
    /// How long was recorded.
    pub duration_us: u64,
    /// The time between two looks.
    pub window_us: u64,
    /// Looks.
    pub windows: u64,
    /// Single writes in the trace.
    pub events: u64,
    /// Pages that were written in some window, each counted once for every such window; 0 from sources that see single writes.
    pub dirty_pages: u64,
    /// Writes that are known to be missing; `None` if it is known that there are some, but not how many.
    pub lost_events: Option<u64>,
    /// How often a dirty ring was full before it was harvested.
    pub overruns: u64,
    /// What it took.
    pub overhead: OverheadReport,
    /// Why it ended before its time; `None` if it did not.
    pub ended_early: Option<String>,
}

/// What recording took of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverheadReport {
    /// CPU time of the recorder, of the harvesting threads in the guest's process, and of programs in the kernel.
    pub cpu_us: u64,
    /// The same in thousandths of one processor.
    pub cpu_milli: u64,
    /// What of it programs in the kernel took; `None` if there are none, or nobody measured them.
    #[serde(default)]
    pub kernel: Option<KernelReport>,
}

/// What programs in the kernel took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelReport {
    /// CPU time, with that of measuring it (about 50 ns for each run).
    pub cpu_us: u64,
    /// How often they ran.
    pub runs: u64,
}

impl OverheadReport {
    /// Of so much CPU time in so much time.
    pub fn new(cpu_us: u64, duration_us: u64) -> Self {
        let milli = (u128::from(cpu_us) * 1000).checked_div(duration_us.into());
        Self {
            cpu_us,
            cpu_milli: milli.map_or(0, |milli| u64::try_from(milli).unwrap_or(u64::MAX)),
            kernel: None,
        }
    }
}

/// The report for people.
pub fn record_summary(report: &RecordReport) -> String {
    let micros = |micros| duration(Duration::from_micros(micros));
    let lost = match report.lost_events {
        Some(0) => "none".to_owned(),
        Some(events) => count(events),
        None => format!("some: the dirty ring overran {} times", count(report.overruns)),
    };
    let mut text = String::new();
    let mut line = |name: &str, value: &str| writeln!(text, "{name:<11} {value}").expect("a string takes everything");
    line("guest", &report.guest);
    line("source", &report.source);
    line("not seen", &report.cannot_see);
    line(
        "recorded",
        &format!("{}, {} windows", micros(report.duration_us), count(report.windows)),
    );
    if report.events > 0 || report.dirty_pages == 0 {
        line("writes", &count(report.events));
    } else {
        let per_window = report.dirty_pages.checked_div(report.windows).unwrap_or(0);
        line(
            "pages",
            &format!(
                "{} written, {} a window on average",
                count(report.dirty_pages),
                count(per_window)
            ),
        );
    }
    line("lost", &lost);
    let overhead = &report.overhead;
    let unmeasured = match report.source.starts_with("ebpf:") {
        true => " without that of programs in the kernel, whose measuring needs CAP_SYS_ADMIN",
        false => "",
    };
    let kernel = overhead.kernel.as_ref().map_or_else(
        || unmeasured.to_owned(),
        |kernel| {
            let each = kernel.cpu_us.saturating_mul(1000).checked_div(kernel.runs).unwrap_or(0);
            let runs = count(kernel.runs);
            format!(
                ", {} of it by programs in the kernel ({runs} runs, {each} ns each)",
                micros(kernel.cpu_us)
            )
        },
    );
    line(
        "overhead",
        &format!(
            "{} of CPU, {}.{} % of one processor{kernel}; what the guest waits at each first write is not in it",
            micros(overhead.cpu_us),
            overhead.cpu_milli / 10,
            overhead.cpu_milli % 10
        ),
    );
    line(
        "file",
        &format!("{}, {}", report.file.display(), bytes(report.file_bytes)),
    );
    if let Some(why) = &report.ended_early {
        line("ended early", why);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report() -> RecordReport {
        RecordReport {
            schema: RecordSchema,
            guest: "web".into(),
            source: "kvm-dirty-bitmap".into(),
            cannot_see: "the order".into(),
            file: "web.dtrace".into(),
            file_bytes: 2048,
            duration_us: 10_000_000,
            window_us: 50_000,
            windows: 200,
            events: 0,
            dirty_pages: 40_000,
            lost_events: Some(0),
            overruns: 0,
            overhead: OverheadReport::new(120_000, 10_000_000),
            ended_early: None,
        }
    }

    #[test]
    fn the_document_is_the_contract() {
        let expected = json!({
            "schema": "dunlin.record.v1", "guest": "web", "source": "kvm-dirty-bitmap", "cannot_see": "the order",
            "file": "web.dtrace", "file_bytes": 2048, "duration_us": 10_000_000, "window_us": 50_000, "windows": 200,
            "events": 0, "dirty_pages": 40_000, "lost_events": 0, "overruns": 0,
            "overhead": {"cpu_us": 120_000, "cpu_milli": 12, "kernel": null}, "ended_early": null,
        });
        assert_eq!(serde_json::to_value(report()).unwrap(), expected);
        assert_eq!(serde_json::from_value::<RecordReport>(expected).unwrap(), report());
    }

    #[test]
    fn a_person_reads_what_matters() {
        let text = record_summary(&report());
        assert!(
            text.contains("pages       40,000 written, 200 a window on average\n"),
            "{text}"
        );
        assert!(text.contains("1.2 % of one processor"), "{text}");
        let text = record_summary(&RecordReport {
            lost_events: None,
            overruns: 3,
            events: 12,
            ended_early: Some("a migration began".into()),
            ..report()
        });
        assert!(
            text.contains("lost        some: the dirty ring overran 3 times\n"),
            "{text}"
        );
        assert!(text.contains("ended early a migration began\n"), "{text}");
    }
}
