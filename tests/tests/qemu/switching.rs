//! The connection breaks in the very moment of the switch: whatever is reported is so, and the guest never runs twice.

use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dunlin_tests::process::{Dunlin, Finished};
use dunlin_tests::wire::Mode;
use serde_json::json;

use super::pair::{PATIENCE, Pair, can_run, config, expected};

/// What the source sends at the switch: the state of devices as one packet, whose last command runs the guest (`MIG_CMD_PACKAGED` and
/// `MIG_CMD_POSTCOPY_RUN` of migration/savevm.c).
const PACKET: [u8; 5] = [8, 0, 7, 0, 4];
const RUN: [u8; 5] = [8, 0, 5, 0, 0];

/// When the wire is cut.
#[derive(Clone, Copy)]
enum Moment {
    /// So many bytes behind these.
    Behind(&'static [u8], usize),
    /// So much later than the source says this.
    After(&'static str, Duration),
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Behind(bytes, more) => write!(f, "{more} bytes behind {bytes:x?}"),
            Self::After(status, time) => write!(f, "{time:?} after {status}"),
        }
    }
}

#[test]
fn what_is_said_of_a_cut_in_the_switch_is_so() -> anyhow::Result<()> {
    if !can_run() {
        return Ok(());
    }
    let millis = Duration::from_millis;
    let mut wrong = vec![];
    for moment in [
        Moment::Behind(&PACKET, 0),
        Moment::Behind(&PACKET, 2000),
        Moment::Behind(&RUN[..4], 0),
        Moment::Behind(&RUN, 0),
        Moment::Behind(&RUN, 1),
        Moment::Behind(&RUN, 100_000),
        Moment::After("active", millis(0)),
        Moment::After("active", millis(4)),
        Moment::After("postcopy-active", millis(0)),
        Moment::After("postcopy-active", millis(1)),
        Moment::After("postcopy-active", millis(3)),
        Moment::After("postcopy-active", millis(8)),
    ] {
        match cut_at(moment) {
            Ok(said) => eprintln!("{moment}: {said}"),
            Err(error) => wrong.push(format!("{moment}: {error:#}")),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Cuts, mends, and returns what was said, which was found to be so.
fn cut_at(moment: Moment) -> anyhow::Result<String> {
    let mut pair = Pair::new(&config())?;
    if let Moment::Behind(bytes, more) = moment {
        pair.wire.cut_behind(bytes, more);
    }
    let more = ["--postcopy-bandwidth", "20MB/s", "--network-timeout", "2s"];
    let mut migration = pair.start("migrate", "postcopy", &more)?;
    if let Moment::After(status, time) = moment {
        pair.wait_closely_for(status, Duration::ZERO)?;
        sleep(time);
        pair.wire.set(Mode::Cut)?;
    }
    let finished = follow(&mut pair, &mut migration)?;
    check(&mut pair, &finished).with_context(|| finished.to_string())
}

/// To the end: the wire is mended when it has been cut, and the guest never runs on both sides.
fn follow(pair: &mut Pair, migration: &mut Dunlin) -> anyhow::Result<Finished> {
    let (mut was_cut, deadline) = (false, Instant::now() + PATIENCE);
    while migration.is_running() {
        if pair.wire.is_cut() {
            was_cut = true;
            pair.wire.set(Mode::Whole)?;
        }
        let running = pair.running();
        ensure!(
            running != [Some(true); 2],
            "the guest runs twice: {}",
            migration.stderr()
        );
        ensure!(Instant::now() < deadline, "no end: {}", migration.stderr());
        sleep(Duration::from_millis(1));
    }
    ensure!(was_cut || pair.wire.is_cut(), "nothing was cut");
    migration.wait(PATIENCE)
}

/// What the report says of the guest, held against what both QEMUs say and against its memory.
fn check(pair: &mut Pair, finished: &Finished) -> anyhow::Result<String> {
    let report = finished.json()?;
    let word = |name: &str| report[name].as_str().unwrap_or_default().to_owned();
    let said = [word("outcome"), word("guest_is_on")];
    let running = pair.running();
    let whole = expected()?;
    match (said[0].as_str(), said[1].as_str()) {
        ("completed", "target") => {
            ensure!(
                finished.code == Some(0) && running == [Some(false), Some(true)],
                "{running:?}"
            );
            ensure!(pair.target.result()? == whole, "the memory differs");
        }
        ("failed", "source") => {
            ensure!(running[0] == Some(true) && running[1] != Some(true), "{running:?}");
            ensure!(pair.source.result()? == whole, "the memory differs");
        }
        // It was told to switch, and failed before it did.
        ("failed", "unknown") if running[0] == Some(true) => {
            ensure!(running[1] != Some(true), "{running:?}");
            ensure!(pair.source.result()? == whole, "the memory differs");
        }
        // The target has ended before it said that it runs the guest: all of it is at the source, as is said.
        ("failed", "unknown") => {
            ensure!(running == [Some(false), None], "{running:?}");
            ensure!(word("reason").contains("`cont` at the source"), "nothing is advised");
            // While the migration is paused, QEMU 7.2 refuses this.
            if pair.source.qmp.execute("cont", &json!({})).is_ok() {
                ensure!(pair.source.result()? == whole, "the memory at the source is not whole");
            }
        }
        // It has ended after it ran the guest: QEMU 7.2 does, in the first milliseconds.
        ("failed", "nobody") => {
            ensure!(running == [Some(false), None], "{running:?}");
            ensure!(report["downtime_us"].is_u64(), "the guest did not run on the target");
        }
        ("failed", "both") => ensure!(running.iter().all(Option::is_some), "{running:?}"),
        _ => bail!("a cut alone ends so: {said:?}, {running:?}"),
    }
    Ok(format!("{said:?} {running:?}"))
}
