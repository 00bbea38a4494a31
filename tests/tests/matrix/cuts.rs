//! Cuts at random places of post-copy: as many migrations complete as were cut.

use anyhow::{Context as _, ensure};
use dunlin_tests::capability::full;
use dunlin_tests::relay::{Deed, Place, Random, Relay, Trigger};
use dunlin_tests::scene::PATIENCE;

use crate::case::{WORKLOADS, guest};
use crate::pool::{self, Ending};
use crate::verdict::Stage;

const STRATEGIES: [&str; 6] = [
    "postcopy",
    "postcopy,cut=reconnect",
    "hybrid:1,cut=reconnect",
    "postcopy,push=bubble:3,cut=reconnect",
    "hybrid:1,first=parallel,cut=both",
    "postcopy,cut=pbdata",
];
const PLACES: [Place; 4] = [Place::Push, Place::Demand, Place::Answer, Place::Running];
const DEEDS: [Deed; 2] = [Deed::Reset, Deed::Close];
/// Seeds that follow one whose migration was over before its place came.
const FURTHER: u64 = 1 << 32;
const ATTEMPTS: u64 = 8;

#[test]
fn cuts_in_post_copy() {
    if !crate::can() {
        return;
    }
    let count = if full() { 200 } else { 10 };
    let seeds: Vec<u64> = (0..count).collect();
    pool::run_all("cuts_in_post_copy", &seeds, run);
}

/// A migration that was cut, and has completed.
fn run(seed: u64) -> anyhow::Result<Ending> {
    for attempt in 0..ATTEMPTS {
        if cut(seed + attempt * FURTHER)? {
            return Ok("cut and complete");
        }
    }
    anyhow::bail!("{ATTEMPTS} migrations were over before they could be cut")
}

/// False if the place did not come.
fn cut(seed: u64) -> anyhow::Result<bool> {
    let mut random = Random::new(seed);
    let strategy = STRATEGIES[seed as usize % STRATEGIES.len()];
    let mut choose = |count: usize| random.next() as usize % count;
    let (workload, place) = (WORKLOADS[choose(WORKLOADS.len())], PLACES[choose(PLACES.len())]);
    let deed = DEEDS[choose(DEEDS.len())];
    let context = || format!("{deed:?} at {place:?}, {strategy}, {workload}");
    let mut stage = Stage::new(guest(workload, seed))?;
    let trigger = Trigger::new(place, random.next());
    let relay = Relay::start(stage.target.listening()?, deed, trigger, random)?;
    let to = relay.address().to_string();
    // Whoever cuts says so: silence is only that of a slow machine. Ten times as long a whole guest waits to be compared.
    let link = [
        "--verify",
        "--bandwidth",
        "16MB/s",
        "--downtime",
        "1ms",
        "--network-timeout",
        "6s",
    ];
    let arguments = [&link[..], &["--storage", &stage.storage]].concat();
    let mut migration = stage.scene.start_migration(&stage.source, &to, strategy, &arguments)?;
    let finished = migration.wait(2 * PATIENCE)?;
    let report = finished.json().with_context(context)?;
    ensure!(
        report["outcome"] == "completed",
        "{}: the cut should be mended: {finished}",
        context()
    );
    stage.arrived(&finished).with_context(context)?;
    Ok(relay.has_struck())
}
