//! One migration of a guest that is at work, and what it cost.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dunlin_tests::linux::{Heard, Linux, LinuxOptions, PATIENCE, Role, Workload, longest_gap};
use dunlin_tests::process::Finished;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::super::dunlin::{Dunlin, number};
use super::arms::{Arm, BANDWIDTH, DOWNTIME, LIMIT, MEMORY};

/// How long the guest is looked at before a migration, and after it.
const WINDOW: Duration = Duration::from_secs(5);
/// How long a guest works before anything is measured.
const WARM_UP: Duration = Duration::from_secs(8);
/// It is steady if for so long…
const STEADY: Duration = Duration::from_secs(3);
/// …there was no longer time between two beats.
const STEADY_GAP: Duration = Duration::from_secs(1);
/// How long a migration may go on that was interrupted: one that is in post-copy already goes on to its end.
const ENDING: Duration = Duration::from_secs(120);
const PERIOD: Duration = Duration::from_millis(20);

/// A migration.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Trial {
    /// Whether the guest is where it was to be.
    pub(super) completed: bool,
    /// Why not.
    pub(super) reason: Option<String>,
    /// From the command to the end.
    pub(super) total_s: f64,
    /// The pause, if both ends of it were heard.
    pub(super) downtime_ms: Option<f64>,
    /// From the switch to the end; 0 without a switch.
    pub(super) postcopy_s: f64,
    /// All that was sent. QEMU does not say it of what was cancelled.
    pub(super) bytes: Option<f64>,
    /// Longest time without a beat of the guest, until some seconds after the end.
    pub(super) gap_ms: f64,
    /// By how much slower than before the guest worked from the beginning until some seconds after the end.
    pub(super) loss_per_mille: f64,
    /// Rounds of pre-copy.
    pub(super) rounds: usize,
}

impl Trial {
    fn new(report: &Value, gap: Duration, loss: f64) -> anyhow::Result<Self> {
        Ok(Self {
            completed: report["outcome"] == "completed",
            reason: report["reason"].as_str().map(str::to_owned),
            total_s: number(report, "/total_time_us")? / 1e6,
            downtime_ms: report["downtime_us"].as_f64().map(|us| us / 1e3),
            postcopy_s: report["postcopy"]["duration_us"].as_f64().unwrap_or_default() / 1e6,
            bytes: Some(number(report, "/bytes/total")?).filter(|bytes| *bytes > 0.0),
            gap_ms: gap.as_secs_f64() * 1e3,
            loss_per_mille: loss * 1e3,
            rounds: report["rounds"].as_array().map_or(0, Vec::len),
        })
    }

    /// Every number by its name.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "completed": self.completed,
            "reason": self.reason,
            "total_time_s": self.total_s,
            "downtime_ms": self.downtime_ms,
            "postcopy_s": self.postcopy_s,
            "bytes": self.bytes,
            "gap_ms": self.gap_ms,
            "loss_per_mille": self.loss_per_mille,
            "rounds": self.rounds,
        })
    }
}

/// For whoever waits.
impl std::fmt::Display for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.reason, self.completed) {
            (_, true) => {}
            (Some(reason), false) => write!(f, "NOT COMPLETED ({reason}), ")?,
            (None, false) => write!(f, "NOT COMPLETED, ")?,
        }
        write!(
            f,
            "{:.2} s, {} rounds, post-copy {:.3} s, downtime {}, gap {:.0} ms, {}, loss {:.0} per mille",
            self.total_s,
            self.rounds,
            self.postcopy_s,
            self.downtime_ms.map_or("unknown".into(), |ms| format!("{ms:.1} ms")),
            self.gap_ms,
            self.bytes
                .map_or("bytes unknown".into(), |bytes| format!("{:.1} MB", bytes / 1e6)),
            self.loss_per_mille,
        )
    }
}

/// A guest that goes from QEMU to QEMU.
pub(super) struct Traveller {
    options: LinuxOptions,
    holder: Linux,
}

impl Traveller {
    /// Boots it, and waits until it is at work.
    ///
    /// # Errors
    /// If it does not boot, or is never steady.
    pub(super) fn start(workload: Workload) -> anyhow::Result<Self> {
        let options = LinuxOptions::new(workload).with_memory(MEMORY);
        let mut holder = Linux::start(&options, Role::Source)?;
        holder.wait_until_ready()?;
        // Before each value was set once, a memcached does nothing else.
        if let Workload::Memcached { values, .. } = options.workload {
            holder.wait_for_steps(values.into())?;
        }
        sleep(WARM_UP);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let last = holder.wait_for_beat()?.at;
            let recent = holder.beats().iter().filter(|heard| heard.at + STEADY >= last);
            if longest_gap(recent).is_some_and(|gap| gap <= STEADY_GAP) {
                return Ok(Self { options, holder });
            }
            ensure!(Instant::now() < deadline, "its beats are not steady");
        }
    }

    /// Moves it, and has it check its memory wherever it is then.
    ///
    /// # Errors
    /// If the guest is lost, or its memory is not as it should be. That a migration comes to no end, or fails and leaves the guest
    /// where it was, is none.
    pub(super) fn migrate(self, dunlin: &Dunlin, arm: &Arm) -> anyhow::Result<(Self, Trial)> {
        let Self { options, holder } = self;
        let mut source = holder;
        let mut target = Linux::start(&options, Role::Target)?;
        // The guest does nothing else while it checks its memory.
        let looked_from = source.wait_for_beat()?.at;
        sleep(WINDOW);
        let began = Instant::now();
        let finished = drive(dunlin, arm, &source, &target)?;
        let ended = Instant::now();
        sleep(WINDOW);
        let report = finished.json()?;
        let is_on = report["guest_is_on"].as_str().unwrap_or_default();
        let beats = sorted(source.beats(), target.beats());
        let mut holder = match is_on {
            "source" => source,
            "target" => target,
            _ => bail!("the guest is on {is_on}: {report}"),
        };
        let checked = holder.check();
        checked.with_context(|| format!("on the {is_on}, after a migration that ended so: {report}"))?;
        let near = beats.iter().filter(|heard| heard.at + STEADY_GAP >= began);
        let gap = longest_gap(near).context("the guest does not beat")?;
        let loss = loss(&beats, looked_from, began, ended + WINDOW).context("too few steps before the migration")?;
        let trial = Trial::new(&report, gap, loss)?;
        Ok((Self { options, holder }, trial))
    }
}

/// Runs `dunlin qemu migrate` to its end; after [`LIMIT`], asks it to cancel.
fn drive(dunlin: &Dunlin, arm: &Arm, source: &Linux, target: &Linux) -> anyhow::Result<Finished> {
    let scene = dunlin.scene()?;
    let path = |name: &str| scene.folder().join(name).display().to_string();
    let rate = format!("{}B/s", BANDWIDTH.0);
    let arguments = [
        ("--source", source.socket().display().to_string()),
        ("--target", target.socket().display().to_string()),
        ("--to", format!("unix:{}", path("migration"))),
        ("--state", path("state")),
        ("--strategy", arm.strategy.clone()),
        ("--bandwidth", rate.clone()),
        ("--postcopy-bandwidth", rate),
        ("--downtime", format!("{}ms", DOWNTIME.as_millis())),
    ];
    let words = arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
    let fixed = ["qemu", "migrate", "--json"].map(str::to_owned);
    let mut migration = scene.dunlin(fixed.into_iter().chain(words))?;
    let deadline = Instant::now() + LIMIT;
    while migration.is_running() && Instant::now() < deadline {
        sleep(PERIOD);
    }
    if migration.is_running() {
        migration.signal(Signal::INT)?;
    }
    let finished = migration.wait(ENDING)?;
    ensure!(matches!(finished.code, Some(0 | 1)), "{finished}");
    Ok(finished)
}

/// The beats of a guest that was heard in two places.
fn sorted(here: &[Heard], there: &[Heard]) -> Vec<Heard> {
    let mut beats = [here, there].concat();
    beats.sort_by_key(|heard| heard.at);
    beats
}

/// By how much slower, as a part of it, the guest was from `began` to `to` than from `from` to `began`.
fn loss(beats: &[Heard], from: Instant, began: Instant, to: Instant) -> Option<f64> {
    let before = Stretch::within(beats, from, began)?;
    // A guest that does no more steps at all has lost everything.
    let meanwhile = Stretch::within(beats, before.last.at, to);
    Some(1.0 - meanwhile.map_or(0.0, |meanwhile| meanwhile.steps_per_s() / before.steps_per_s()))
}

/// Part of a guest's life, from one heartbeat after a step to another. One that says only every few seconds how far it is would else be
/// said to do nothing between two of these.
struct Stretch {
    first: Heard,
    last: Heard,
}

impl Stretch {
    /// The longest between these times; nothing if there are not two such heartbeats.
    fn within(beats: &[Heard], from: Instant, to: Instant) -> Option<Self> {
        let rises = beats.windows(2).filter(|pair| pair[1].beat.steps > pair[0].beat.steps);
        let mut rises = rises.map(|pair| pair[1]).filter(|rise| (from..=to).contains(&rise.at));
        let first = rises.next()?;
        let last = rises.next_back()?;
        Some(Self { first, last })
    }

    fn steps_per_s(&self) -> f64 {
        let steps = self.last.beat.steps.saturating_sub(self.first.beat.steps);
        steps as f64 / self.last.at.duration_since(self.first.at).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_tests::linux::Beat;

    fn heard(start: Instant, ms: u64, steps: u64) -> Heard {
        let beat = Beat {
            seq: ms / 200,
            steps,
            per_s: 0,
            monotonic_ms: ms,
        };
        Heard {
            beat,
            at: start + Duration::from_millis(ms),
        }
    }

    #[test]
    fn rates_are_between_steps() {
        let start = Instant::now();
        let rate = |beats: &[Heard], from, to| {
            let at = |ms| start + Duration::from_millis(ms);
            Stretch::within(beats, at(from), at(to)).map(|stretch| stretch.steps_per_s())
        };
        // Ten steps at the end of every other second.
        let beats: Vec<Heard> = (0..60).map(|beat| heard(start, beat * 200, beat / 10 * 10)).collect();
        assert_eq!(rate(&beats, 3500, 9500), Some(5.0));
        assert_eq!(rate(&beats, 4000, 6000), Some(5.0));
        assert_eq!(rate(&beats, 4100, 7900), None);
        assert_eq!(rate(&beats, 4100, 5900), None);
        assert_eq!(rate(&[], 0, 1), None);
    }

    #[test]
    fn a_pause_is_a_loss() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let here: Vec<Heard> = (0..21).map(|beat| heard(start, beat * 200, beat)).collect();
        let there: Vec<Heard> = (21..40).map(|beat| heard(start, beat * 200 + 4000, beat)).collect();
        let beats = sorted(&there, &here);
        // Of the 26 steps of these 5.2 s, 20 are missing.
        let lost = loss(&beats, at(0), at(4100), at(9200)).expect("there are steps");
        assert!((lost - 20.0 / 26.0).abs() < 1e-9, "{lost}");
        assert_eq!(loss(&beats, at(0), at(4100), at(4500)), Some(1.0));
        assert_eq!(loss(&beats, at(3900), at(4100), at(9200)), None);
    }

    #[test]
    fn reports_are_read() {
        let mut report = json!({
            "outcome": "completed", "reason": null, "total_time_us": 6_100_000, "downtime_us": 12_500, "rounds": [1, 2],
            "postcopy": { "duration_us": 700_000 }, "bytes": { "total": 1000 },
        });
        let trial = Trial::new(&report, Duration::from_millis(400), 0.25).expect("a report");
        assert!(trial.completed && trial.rounds == 2);
        assert_eq!(
            (trial.total_s, trial.downtime_ms, trial.postcopy_s),
            (6.1, Some(12.5), 0.7)
        );
        assert_eq!((trial.gap_ms, trial.loss_per_mille), (400.0, 250.0));
        report["outcome"] = json!("cancelled");
        report["reason"] = json!("it was cancelled");
        report["postcopy"] = Value::Null;
        report["downtime_us"] = Value::Null;
        let trial = Trial::new(&report, Duration::ZERO, 0.0).expect("a report");
        assert_eq!(
            (trial.completed, trial.downtime_ms, trial.postcopy_s),
            (false, None, 0.0)
        );
        assert!(
            trial.to_string().starts_with("NOT COMPLETED (it was cancelled)"),
            "{trial}"
        );
    }
}
