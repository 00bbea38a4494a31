//! Switch rules beside each other, with Linux guests that run what others wrote, moved from one stock QEMU to another.
//!
//! A guest boots once per repetition and is moved on by one rule after the other, so that what it holds and what else the machine does
//! is alike for all; every repetition begins with another rule. After each migration it checks its memory, and if that is not as it
//! should be, there are no figures.
//!
//! This takes up to 40 minutes, so it is only run when it is asked for by its name. [`REPETITIONS`] and [`GUESTS`] in the environment
//! make it shorter: `DUNLIN_RULES_REPETITIONS=1 DUNLIN_RULES_GUESTS=memcached cargo xtask bench rules` takes four minutes.

mod arms;
mod judge;
mod table;
mod trial;

use std::env;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dunlin_tests::Capability;
use dunlin_tests::linux::Workload;

use super::Setting;
use super::figure::Figure;
use arms::Arm;
use judge::{Comparison, Summary};
use trial::{Traveller, Trial};

/// Environment variable with the number of repetitions.
const REPETITIONS: &str = "DUNLIN_RULES_REPETITIONS";
/// Environment variable with the names of guests, separated by commas.
const GUESTS: &str = "DUNLIN_RULES_GUESTS";
/// How many there are if nothing is said.
const USUAL_REPETITIONS: usize = 3;

/// What is measured, and what was.
struct Plan {
    guests: Vec<(&'static str, Workload)>,
    arms: Vec<Arm>,
    repetitions: usize,
    done: Vec<Done>,
    began: Instant,
}

/// A migration of a guest by an arm.
struct Done {
    guest: &'static str,
    arm: &'static str,
    trial: Trial,
}

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    for needed in [Capability::LinuxGuests, Capability::Uffd] {
        if let Err(why) = needed.probe() {
            eprintln!("SKIP switch rules: {why}");
            return Ok(vec![]);
        }
    }
    let names = env::var(GUESTS).ok();
    let repetitions = env::var(REPETITIONS).ok();
    let mut plan = Plan {
        guests: arms::guests(names.as_deref())?,
        arms: arms::arms(),
        repetitions: self::repetitions(repetitions.as_deref())?,
        done: vec![],
        began: Instant::now(),
    };
    for repetition in 0..plan.repetitions {
        for (guest, workload) in plan.guests.clone() {
            let context = || format!("{guest}, repetition {}", repetition + 1);
            plan.repeat(setting, guest, workload, repetition)
                .with_context(context)?;
        }
    }
    let results = plan.results();
    let table = table::table(&results, |guest, arm| plan.of(guest, arm), &plan.arms);
    setting.tables.lock().expect("no group has panicked").push(table);
    Ok(judge::figures(&results))
}

fn repetitions(text: Option<&str>) -> anyhow::Result<usize> {
    let Some(text) = text else {
        return Ok(USUAL_REPETITIONS);
    };
    let count = text
        .parse()
        .with_context(|| format!("{REPETITIONS} is `{text}`: no number"))?;
    ensure!(count > 0, "{REPETITIONS} is 0: nothing would be measured");
    Ok(count)
}

impl Plan {
    /// Moves a guest by every arm.
    fn repeat(
        &mut self,
        setting: &Setting,
        guest: &'static str,
        workload: Workload,
        repetition: usize,
    ) -> anyhow::Result<()> {
        let mut traveller = Traveller::start(workload)?;
        for arm in in_turn(&self.arms, repetition) {
            let moved = traveller.migrate(&setting.dunlin, &arm);
            let (there, trial) = moved.with_context(|| format!("the migration by {}", arm.name))?;
            traveller = there;
            eprintln!(
                "  {guest}, repetition {} of {}, {}: {trial}",
                repetition + 1,
                self.repetitions,
                arm.name,
            );
            let arm = arm.name;
            self.done.push(Done { guest, arm, trial });
            let all = self.guests.len() * self.arms.len() * self.repetitions;
            let left = left(self.began.elapsed(), self.done.len(), all);
            eprintln!("  {} of {all} migrations; {} min left", self.done.len(), minutes(left));
        }
        Ok(())
    }

    /// In order.
    fn of(&self, guest: &str, arm: &str) -> Vec<Trial> {
        let done = self.done.iter().filter(|done| (done.guest, done.arm) == (guest, arm));
        done.map(|done| done.trial.clone()).collect()
    }

    fn results(&self) -> Vec<Comparison> {
        let summary = |guest, arm: &Arm| Summary::new(arm.name, &self.of(guest, arm.name));
        let result = |&(guest, _): &(&'static str, _)| Comparison {
            guest,
            arms: self.arms.iter().map(|arm| summary(guest, arm)).collect(),
        };
        self.guests.iter().map(result).collect()
    }
}

/// All arms, in each repetition with another one first: a guest that was moved often may be another one than at the beginning.
fn in_turn(arms: &[Arm], repetition: usize) -> Vec<Arm> {
    // No divisor of the usual number of arms, so that neighbours are not always first together.
    const STRIDE: usize = 3;
    let mut arms = arms.to_vec();
    let first = repetition * STRIDE % arms.len();
    arms.rotate_left(first);
    arms
}

/// How long it will still take if it goes on as so far.
fn left(elapsed: Duration, done: usize, all: usize) -> Duration {
    elapsed.mul_f64(all.saturating_sub(done) as f64 / done as f64)
}

fn minutes(time: Duration) -> u64 {
    time.as_secs().div_ceil(60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_a_number() {
        let count = |text| repetitions(text).ok();
        assert_eq!(count(None), Some(USUAL_REPETITIONS));
        assert_eq!(count(Some("1")), Some(1));
        assert_eq!((count(Some("0")), count(Some("few"))), (None, None));
    }

    #[test]
    fn every_arm_takes_part_and_another_one_begins() {
        let arms = arms::arms();
        let first: Vec<&str> = (0..3).map(|repetition| in_turn(&arms, repetition)[0].name).collect();
        assert_eq!(first, ["qemu", "kubevirt-stall", "optimal"]);
        for repetition in 0..10 {
            let turn = in_turn(&arms, repetition);
            assert!(turn.len() == arms.len() && arms.iter().all(|arm| turn.contains(arm)));
        }
    }

    #[test]
    fn what_is_left_takes_as_long_as_what_is_done() {
        let left = left(Duration::from_secs(60), 2, 8);
        assert_eq!((left, minutes(left)), (Duration::from_secs(180), 3));
        assert_eq!(minutes(Duration::from_secs(61)), 2);
    }
}
