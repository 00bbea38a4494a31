//! What it is worth to ask the agent in a guest: a Linux guest that has used half of its memory and freed it again, moved from QEMU to QEMU by
//! `dunlin qemu migrate` with `--agent` and without, and what the agent costs its guest.
//!
//! Each migration is of a guest that has just booted: one that was small once has zeros where it had freed pages. All of them have an agent, which
//! is not asked in one arm.

mod own;
mod trial;

use anyhow::Context as _;
use dunlin_core::units::Bytes;
use dunlin_tests::Capability;
use serde_json::Value;

use super::Setting;
use super::figure::{Figure, Table, Target, significant};
use super::sampling::Samples;
use trial::Trial;

const MEMORY: Bytes = Bytes(1 << 30);
const USED: Bytes = Bytes(512 << 20);
const MB_PER_S: u32 = 50;
const REPETITIONS: usize = 3;

const ARMS: [Arm; 4] = [Arm::Silent, Arm::Asked, Arm::SilentPrecopy, Arm::Hinting];

/// Whether the agent is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Arm {
    Silent,
    Asked,
    /// Not asked, without post-copy, with a balloon that is asked for free pages by QEMU as it copies, which it always is then.
    SilentPrecopy,
    /// Asked, the same.
    Hinting,
}

impl Arm {
    const fn name(self) -> &'static str {
        match self {
            Self::Silent => "not asked",
            Self::Asked => "asked",
            Self::SilentPrecopy => "not asked, free page hints",
            Self::Hinting => "asked, free page hints",
        }
    }

    const fn asks(self) -> bool {
        matches!(self, Self::Asked | Self::Hinting)
    }

    const fn is_precopy(self) -> bool {
        matches!(self, Self::SilentPrecopy | Self::Hinting)
    }
}

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let mut figures = of_linux(setting)?;
    if let Some((own, table)) = own::run(&setting.dunlin)? {
        setting.tables.lock().expect("no group has panicked").push(table);
        figures.extend(own);
    }
    Ok(figures)
}

fn of_linux(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    for needed in [Capability::LinuxGuests, Capability::Uffd] {
        if let Err(why) = needed.probe() {
            eprintln!("SKIP agents: {why}");
            return Ok(vec![]);
        }
    }
    let mut trials = vec![];
    for repetition in 0..REPETITIONS {
        for arm in in_turn(repetition) {
            let context = || format!("agent {}, repetition {}", arm.name(), repetition + 1);
            let trial = Trial::run(&setting.dunlin, arm).with_context(context)?;
            eprintln!("  repetition {} of {REPETITIONS}, {trial}", repetition + 1);
            trials.push(trial);
        }
    }
    setting
        .tables
        .lock()
        .expect("no group has panicked")
        .push(table(&trials));
    Ok(figures(&trials))
}

/// Another one first in each repetition.
fn in_turn(repetition: usize) -> [Arm; ARMS.len()] {
    let mut arms = ARMS;
    arms.rotate_left(repetition % ARMS.len());
    arms
}

fn median(trials: &[Trial], arm: Arm, value: impl Fn(&Trial) -> f64) -> f64 {
    let values = trials.iter().filter(|trial| trial.arm == arm).map(value);
    Samples::new(values.collect()).median()
}

fn figures(trials: &[Trial]) -> Vec<Figure> {
    let ratio = |value: fn(&Trial) -> f64| median(trials, Arm::Asked, value) / median(trials, Arm::Silent, value);
    let both = |value: fn(&Trial) -> f64, unit: &str| {
        let [silent, asked] = [Arm::Silent, Arm::Asked].map(|arm| significant(median(trials, arm, value)));
        format!("{asked} to {silent} {unit}; medians of {REPETITIONS}")
    };
    let all = |value: fn(&Trial) -> f64| Samples::new(trials.iter().map(value).collect());
    let (megabytes, seconds) = (
        Trial::megabytes as fn(&Trial) -> f64,
        Trial::seconds as fn(&Trial) -> f64,
    );
    let epochs = all(|trial| trial.epoch_cpu_ms);
    let named = all(Trial::named_share);
    let idle = all(|trial| trial.idle_percent);
    let rss = all(|trial| trial.rss.0 as f64 / f64::from(1 << 20));
    vec![
        Figure::plain(
            "agent asked: bytes beside those of the same guest as it is",
            ratio(megabytes),
            "ratio",
        )
        .target(Target::AtMost(0.45))
        .beside(both(megabytes, "MB")),
        Figure::plain(
            "agent asked: time, making the guest small included, beside the same",
            ratio(seconds),
            "ratio",
        )
        .target(Target::AtMost(0.5))
        .beside(both(seconds, "s")),
        Figure::plain(
            "agent: the guest's processor time for naming its free pages",
            epochs.median(),
            "ms",
        )
        .target(Target::AtMost(200.0))
        .beside(format!(
            "1 GiB, emulated processor; median of {}; {} % of what is free is named",
            epochs.len(),
            significant(named.median() * 100.0)
        )),
        Figure::plain("agent: resident memory in the guest, most", rss.range().1, "MiB").target(Target::AtMost(4.0)),
        Figure::plain("agent: processor time while it is asked nothing", idle.median(), "%")
            .target(Target::AtMost(1.0))
            .beside(format!(
                "emulated processor; median of {} times {} s",
                idle.len(),
                trial::IDLE.as_secs()
            )),
    ]
}

fn table(trials: &[Trial]) -> Table {
    let row = |arm: Arm| {
        let text = |value: fn(&Trial) -> f64| significant(median(trials, arm, value));
        vec![
            arm.name().to_owned(),
            text(|trial| trial.preparing_s),
            text(|trial| trial.total_s),
            text(Trial::seconds),
            text(Trial::megabytes),
            text(|trial| trial.downtime_ms),
            text(|trial| trial.spared.0 as f64 / f64::from(1 << 20)),
            text(|trial| trial.command_s),
        ]
    };
    Table {
        name: "agent",
        about: format!(
            "An idle Linux guest of {} MiB with one processor that has used {} MiB and freed them, moved from QEMU to QEMU (emulated) at {MB_PER_S} MB/s by \
             `dunlin qemu migrate`, its agent asked (`--agent`) or not, and by `--strategy precopy` with a balloon that QEMU asks for free pages; \
             medians of {REPETITIONS}. What was spared is by the report, at most. The command ends when the guest has all of its memory again; \
             it runs on the target before that.",
            MEMORY.0 >> 20,
            USED.0 >> 20,
        ),
        header: [
            "agent",
            "preparing, s",
            "moving, s",
            "together, s",
            "MB",
            "downtime, ms",
            "spared, MiB",
            "command, s",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows: ARMS.map(row).to_vec(),
        data: trials.iter().map(Trial::to_json).collect::<Vec<Value>>().into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_are_ratios_of_medians() {
        let trial = |arm, bytes, total_s, preparing_s| Trial {
            arm,
            bytes,
            total_s,
            preparing_s,
            ..Trial::nothing(arm)
        };
        let trials = [
            trial(Arm::Silent, 64e6, 8.0, 0.0),
            trial(Arm::Asked, 16e6, 3.0, 1.0),
            trial(Arm::Asked, 8e6, 2.0, 1.0),
            trial(Arm::Asked, 90e6, 9.0, 1.0),
            trial(Arm::SilentPrecopy, 64e6, 8.0, 0.0),
            trial(Arm::Hinting, 16e6, 3.0, 0.0),
        ];
        let json = super::super::figure::to_json(&figures(&trials), &[table(&trials)]);
        let values: Vec<f64> = (0..2)
            .filter_map(|index| json["figures"][index]["value"].as_f64())
            .collect();
        assert_eq!(values, [0.25, 0.5]);
        assert_eq!(json["tables"][0]["rows"][1]["agent"], json!("asked"));
        assert_ne!(in_turn(0), in_turn(1));
    }
}
