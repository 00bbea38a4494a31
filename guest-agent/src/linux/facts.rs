//! How the guest is doing, from /proc.

use std::fs;
use std::time::Instant;

use dunlin_agent::message::Facts;
use dunlin_core::units::Bytes;

/// Reads facts; some are since the time before.
#[derive(Debug)]
pub(super) struct FactsReader {
    before: Option<Before>,
}

#[derive(Debug)]
struct Before {
    at: Instant,
    busy_ticks: u64,
    network: u64,
}

/// Of /proc/stat: USER_HZ, which is 100 on every architecture that there is a guest for.
const TICKS_PER_SEC: u64 = 100;

impl FactsReader {
    pub(super) fn new() -> Self {
        Self { before: None }
    }

    pub(super) fn read(&mut self) -> Facts {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let mut facts = memory(&text("/proc/meminfo"));
        facts.memory_pressure_milli = pressure_milli(&text("/proc/pressure/memory"));
        let now = Before {
            at: Instant::now(),
            busy_ticks: busy_ticks(&text("/proc/stat")),
            network: network(&text("/proc/net/dev")),
        };
        if let Some(before) = &self.before {
            let elapsed_ms = u64::try_from(now.at.duration_since(before.at).as_millis()).unwrap_or(u64::MAX);
            let busy = now.busy_ticks.saturating_sub(before.busy_ticks);
            let busy_ms = busy.saturating_mul(1000 / TICKS_PER_SEC);
            let milli = busy_ms.saturating_mul(1000).checked_div(elapsed_ms).unwrap_or(0);
            facts.cpu_milli = u32::try_from(milli).unwrap_or(u32::MAX);
            facts.network = Bytes(now.network.saturating_sub(before.network));
        }
        self.before = Some(now);
        facts
    }
}

/// Whether a balloon driver is bound to a device.
pub(super) fn has_balloon() -> bool {
    fs::read_dir("/sys/bus/virtio/drivers/virtio_balloon").is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|it| it.file_name().to_string_lossy().starts_with("virtio")))
    })
}

fn memory(text: &str) -> Facts {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        Bytes(kib.unwrap_or(0).saturating_mul(1024))
    };
    Facts {
        total: bytes("MemTotal"),
        free: bytes("MemFree"),
        available: bytes("MemAvailable"),
        cached: bytes("Cached"),
        dirty: bytes("Dirty"),
        swap_used: bytes("SwapTotal").saturating_sub(bytes("SwapFree")),
        ..Facts::default()
    }
}

/// `some avg10=0.25 …`, in per cent, as thousandths.
fn pressure_milli(text: &str) -> u32 {
    let some = text.lines().find(|line| line.starts_with("some "));
    let percent = some.and_then(|line| line.split(' ').find_map(|word| word.strip_prefix("avg10=")));
    let (whole, part) = percent.and_then(|text| text.split_once('.')).unwrap_or(("0", "0"));
    let tenths = part.chars().next().and_then(|digit| digit.to_digit(10)).unwrap_or(0);
    whole
        .parse::<u32>()
        .unwrap_or(0)
        .saturating_mul(10)
        .saturating_add(tenths)
}

/// Everything but idling and waiting for a disk, of all processors.
fn busy_ticks(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "));
    let ticks: Vec<u64> = line
        .map(|line| {
            line.split_ascii_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect()
        })
        .unwrap_or_default();
    // user nice system idle iowait irq softirq steal; guest time is part of user time.
    [0, 1, 2, 5, 6].iter().filter_map(|index| ticks.get(*index)).sum()
}

/// Bytes received and sent by all interfaces but the loopback one.
fn network(text: &str) -> u64 {
    let interfaces = text.lines().filter_map(|line| line.split_once(':'));
    interfaces
        .filter(|(name, _)| name.trim() != "lo")
        .flat_map(|(_, counts)| {
            let counts: Vec<u64> = counts
                .split_ascii_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect();
            [counts.first().copied(), counts.get(8).copied()]
        })
        .flatten()
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_by_its_names() {
        let text = "MemTotal:        1000000 kB\nMemFree:          400000 kB\nMemAvailable:     600000 kB\nBuffers: 1 kB\n\
                    Cached:           200000 kB\nSwapCached:            5 kB\nSwapTotal:         10000 kB\nSwapFree:           9990 kB\nDirty:                16 kB\n";
        let facts = memory(text);
        assert_eq!(
            (facts.total, facts.free, facts.available),
            (Bytes(1_024_000_000), Bytes(409_600_000), Bytes(614_400_000))
        );
        assert_eq!(
            (facts.cached, facts.dirty, facts.swap_used),
            (Bytes(204_800_000), Bytes(16_384), Bytes(10_240))
        );
        assert_eq!(memory("garbage"), Facts::default());
    }

    #[test]
    fn the_rest_is_read_as_well() {
        assert_eq!(
            pressure_milli("some avg10=12.34 avg60=0.00 avg300=0.00 total=5\nfull avg10=99.00"),
            123
        );
        assert_eq!(pressure_milli(""), 0);
        assert_eq!(busy_ticks("cpu  10 20 30 4000 500 6 7 8 0 0\ncpu0 1 1 1"), 73);
        let text = "Inter-| Receive\n face |bytes\n    lo: 5 0 0 0 0 0 0 0 5 0\n  eth0: 100 1 0 0 0 0 0 0 20 1 0\n";
        assert_eq!(network(text), 120);
    }

    #[test]
    fn the_machine_that_this_runs_on_has_memory() {
        let facts = FactsReader::new().read();
        assert!(facts.total > Bytes::ZERO && facts.available <= facts.total);
    }
}
