//! A network that is cut in the midst of post-copy: who loses the guest, and who does not.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use dunlin::channel::FaultProxy;
use dunlin::report::Outcome;
use dunlin_tests::baseline::Baselines;
use dunlin_tests::process::{self, Dunlin};
use dunlin_tests::scene::{GuestOptions, Scene};
use serde_json::Value;

use super::catalogue::{Arm, NetworkCut};
use super::measure::{Hosts, Stage, report};
use super::setup::Setup;
use super::values::{self, Values};

/// After this silence the network counts as cut.
const NETWORK_TIMEOUT: &str = "1s";
/// The part of post-copy in which the cut falls.
const LATEST: f64 = 0.8;
/// How much longer than the migration the guest goes on, in seconds, so that it is not halted when it arrives.
const SECONDS_TO_SPARE: f64 = 3.0;

/// Moves `guest`, cuts the network at a random time of post-copy, and compares its memory in the end with that of the same
/// guest that was never moved.
pub(super) fn run(
    stage: &Stage,
    setup: &Setup,
    arm: &Arm,
    network: NetworkCut,
    guest: &GuestOptions,
    repetition: usize,
    limit: Duration,
) -> anyhow::Result<Values> {
    let copy = setup.link().copy_seconds();
    let seconds = setup.seconds_before(repetition) + arm.copies * copy + SECONDS_TO_SPARE;
    let guest = guest.clone().steps((seconds * setup.rate as f64) as u64);
    // The same for all arms.
    let share = LATEST * fastrand::Rng::with_seed(repetition as u64).f64();
    let mut hosts = stage.hosts(setup, arm, &guest)?;
    let story = Story {
        stage,
        setup,
        arm,
        network,
        delay: Duration::from_secs_f64(share * copy),
        limit,
    };
    let outcome = story.tell(&mut hosts, repetition);
    let mut values = outcome.map_err(|error| hosts.explain(&error))?;
    if values.remove(ARRIVED).is_some() {
        let moved = hosts.target.final_report().map_err(|error| hosts.explain(&error));
        drop(hosts);
        let baselines = Baselines::open(&process::target_folder()?, &stage.program)?;
        let undisturbed = || Scene::with_program(&stage.program)?.run_undisturbed(&guest);
        let still = baselines.get(&guest.args(), undisturbed)?;
        let equal = |moved: &Value| {
            let mut fields = ["steps", "ram_blake3"].into_iter();
            fields.all(|field| moved[field] == still[field])
        };
        match moved {
            Ok(moved) if equal(&moved) => {
                values.insert(values::SURVIVED.into(), 1.0);
            }
            Ok(moved) => arm.lost(&format!("memory differs: {moved} after the migration, {still} without")),
            Err(error) => arm.lost(&format!("{error:#}")),
        }
    }
    Ok(values)
}

impl Arm {
    fn lost(&self, why: &str) {
        eprintln!("{}: the guest was lost: {why}", self.name);
    }
}

/// Set while it is not known yet whether the memory that arrived is right.
const ARRIVED: &str = "arrived";

struct Story<'a> {
    stage: &'a Stage,
    setup: &'a Setup,
    arm: &'a Arm,
    network: NetworkCut,
    /// From the beginning of post-copy to the cut.
    delay: Duration,
    limit: Duration,
}

impl Story<'_> {
    fn tell(&self, hosts: &mut Hosts, repetition: usize) -> anyhow::Result<Values> {
        self.stage.reach(hosts, self.setup, repetition)?;
        let proxy = FaultProxy::start(&"127.0.0.1:0".parse()?, &hosts.target.listening()?.parse()?, vec![])?;
        let mut arguments: Vec<&str> = hosts.arguments.iter().map(String::as_str).collect();
        arguments.extend(["--network-timeout", NETWORK_TIMEOUT]);
        let to = proxy.address().to_string();
        let mut migration = hosts
            .scene
            .start_migration(&hosts.source, &to, &self.arm.strategy, &arguments)?;
        // A post-copy that is over before it is seen must not be waited for.
        hosts.scene.poll_status(&mut hosts.target, |status| {
            status["state"] == "post-copy" || status["state"] == "running"
        })?;
        thread::sleep(self.delay);
        proxy.refuse(true);
        proxy.cut();
        let cut = Instant::now();
        let state = hosts.scene.status(&hosts.target)?["state"].clone();
        ensure!(
            state == "post-copy" || state == "post-copy-paused",
            "post-copy was over before the network was cut: {state}"
        );
        if let Some(pause) = self.network.back_after {
            thread::sleep(pause);
            proxy.refuse(false);
        }
        // From here on whatever goes wrong is a guest that did not survive.
        let mut values = self.outcome(&mut migration).unwrap_or_else(|error| {
            self.arm.lost(&format!("{error:#}"));
            Values::from([(values::SURVIVED.into(), 0.0)])
        });
        values.insert(values::CUT_AFTER.into(), self.delay.as_secs_f64() * 1e3);
        values.insert(values::AFTER_CUT.into(), cut.elapsed().as_secs_f64() * 1e3);
        Ok(values)
    }

    /// What the migration says of itself.
    fn outcome(&self, migration: &mut Dunlin) -> anyhow::Result<Values> {
        let finished = self.stage.wait(migration, self.limit)?;
        let report = report(&finished)?;
        let mut values = Values::new();
        values.insert(values::SURVIVED.into(), 0.0);
        if report.outcome == Outcome::Completed {
            values.extend(values::of_report(&report, self.setup)?);
            values.insert(ARRIVED.into(), 1.0);
        } else {
            self.arm.lost(&report.reason.unwrap_or_default());
        }
        Ok(values)
    }
}
