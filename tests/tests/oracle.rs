//! Replay equivalence, live: whatever the strategy, the workload and the number of vCPUs, a guest that was moved while it
//! ran ends with the memory of one that was not.

use anyhow::ensure;
use dunlin_tests::oracle::{Verdict, expect_same_memory, expect_verified, with_enough_steps};
use dunlin_tests::pairs::cover_or_product;
use dunlin_tests::scene::{GuestOptions, Kind, PATIENCE, Scene};
use dunlin_tests::{Capability, require};
use serde_json::Value;

const STRATEGIES: [&str; 13] = [
    "precopy",
    "postcopy",
    "hybrid:1",
    "hybrid:2",
    "as-hybrid",
    "par-migrate",
    "pa-hybrid,cut=reconnect",
    "postcopy,push=bubble:3",
    "par-migrate,hold=hot",
    "markov-sdf:0.5",
    "hybrid:2,filter=hazard,push=forecast",
    "par-migrate,hold=hot,split=speed",
    "auto",
];
const WORKLOADS: [&str; 6] = [
    "seq,rate=8000",
    "uniform,rate=8000",
    "zipf:1,rate=8000",
    "hotset:0.1,rate=8000",
    "memcached,rate=8000",
    "phases:(seq,rate=4000)*2000+(uniform,rate=12000)*3000",
];
const VCPUS: [u32; 2] = [1, 2];
const FILLS: [&str; 2] = ["zero", "random"];

/// Steps of the whole guest: about two seconds at the rates above.
const STEPS: u64 = 16_000;

/// A link on which 32 MiB take a third of a second, and a downtime that only an empty rest fits, so that every strategy
/// that may enter post-copy does.
const LINK: [&str; 5] = ["--verify", "--bandwidth", "100MB/s", "--downtime", "1ms"];

/// Enough to see every page of a working set written, and too short for the guest to halt meanwhile.
const PROFILE: [&str; 2] = ["--profile", "400ms"];

/// A static copy that takes half a second, so that rounds go on beside it.
const STORAGE_LINK: [&str; 2] = ["--storage-bandwidth", "64MB/s"];

/// Moves a guest through `hops` further processes while it runs and compares its memory in the end.
fn check(options: &GuestOptions, strategy: &str, hops: u32) -> anyhow::Result<()> {
    check_between(options, strategy, &vec![&[][..]; hops as usize])
}

/// Moves a guest through one process after the other, each started with these arguments, and compares its memory in the end.
fn check_between(options: &GuestOptions, strategy: &str, receivers: &[&[&str]]) -> anyhow::Result<()> {
    check_with(options, strategy, receivers, &[], &mut |_| {})
}

/// The same with more arguments of the migrations, whose reports are shown to `seen`.
fn check_with(
    options: &GuestOptions,
    strategy: &str,
    receivers: &[&[&str]],
    more: &[&str],
    seen: &mut dyn FnMut(&Value),
) -> anyhow::Result<()> {
    let hops = receivers.len() as u64;
    let steps = STEPS * hops / u64::from(options.vcpus);
    with_enough_steps(options, steps, |options| {
        let scene = Scene::new()?;
        let mut holder = scene.guest("first", options)?;
        for (hop, receiver) in receivers.iter().enumerate() {
            let storage = scene.subfolder("storage")?;
            let storage = ["--storage", &storage];
            let target = scene.receiver(&format!("hop-{hop}"), &[&storage, *receiver].concat())?;
            let link = match strategy {
                // Pre-copy of a busy guest ends by the default downtime, the others by their rule.
                "precopy" => LINK[..3].to_vec(),
                _ if strategy.starts_with("par-migrate") => [&LINK[..3], &storage, &STORAGE_LINK].concat(),
                _ if strategy.starts_with("pa-hybrid") => [&LINK[..], &storage, &STORAGE_LINK].concat(),
                _ if looks_ahead(strategy) => [&LINK[..], &PROFILE].concat(),
                _ => LINK.to_vec(),
            };
            let report = match scene.migrate(&holder, &target, strategy, &[&link, more].concat()) {
                Err(error) if is_over(&error) => return Ok(Verdict::HaltedBefore),
                report => report?,
            };
            if !scene.status(&target).is_ok_and(|status| status["state"] == "running") {
                return Ok(Verdict::HaltedBefore);
            }
            expect_strategy(strategy, &report)?;
            expect_verified(&report)?;
            seen(&report);
            holder.moved_away()?;
            holder = target;
        }
        expect_same_memory(options, &holder.final_report()?)?;
        Ok(Verdict::InTime)
    })
}

/// Whether a migration could not begin because the guest had halted, and its process has ended or is about to.
fn is_over(error: &anyhow::Error) -> bool {
    let words = format!("{error:#}");
    [
        "the VM has halted and its process is about to end",
        "no process answers at",
    ]
    .iter()
    .any(|over| words.contains(over))
}

/// Whether the guest is observed before it is moved.
fn looks_ahead(strategy: &str) -> bool {
    ["markov", "filter=", "forecast", "auto"]
        .iter()
        .any(|part| strategy.contains(part))
}

/// Checks that the migration was of the kind asked for.
fn expect_strategy(strategy: &str, report: &Value) -> anyhow::Result<()> {
    let samples = report["sampling"]["samples"].as_u64();
    ensure!(
        samples.is_some_and(|samples| samples > 0) == looks_ahead(strategy),
        "sampled though it does not look ahead, or not: {report}"
    );
    let rounds = report["rounds"].as_array().map_or(0, Vec::len);
    let has_postcopy = report["postcopy"].is_object();
    match strategy {
        "precopy" => ensure!(!has_postcopy && rounds >= 1, "pre-copy with post-copy: {report}"),
        "postcopy" | "postcopy,push=bubble:3" => ensure!(has_postcopy, "post-copy without post-copy: {report}"),
        "hybrid:1" => ensure!(has_postcopy && rounds == 1, "not one round, then post-copy: {report}"),
        "hybrid:2" => ensure!(has_postcopy && rounds == 2, "not two rounds, then post-copy: {report}"),
        // With the network's help the copy may be over with the first round.
        strategy if strategy.starts_with("par-migrate") => ensure!(
            !has_postcopy
                && rounds >= if strategy.contains("split") { 1 } else { 2 }
                && report["bytes"]["storage"].as_u64() > Some(0),
            "no static copy beside rounds: {report}"
        ),
        "auto" => ensure!(report["choice"]["why"].is_string(), "nothing was chosen: {report}"),
        // The rule decides by what it measures.
        _ => ensure!(rounds >= 1, "no round of pre-copy: {report}"),
    }
    Ok(())
}

/// All rows of the matrix for one strategy; one test per strategy, so that two run beside each other.
fn check_matrix(strategy: usize) {
    if !require(Capability::Kvm) || !require(Capability::Uffd) {
        return;
    }
    let rows = cover_or_product(&[STRATEGIES.len(), WORKLOADS.len(), VCPUS.len(), FILLS.len()]);
    let rows: Vec<_> = rows.into_iter().filter(|row| row[0] == strategy).collect();
    assert!(
        rows.len() >= WORKLOADS.len() || dunlin_tests::capability::shard() != (1, 1),
        "a cover meets every strategy with every workload"
    );
    for row in rows {
        let options = GuestOptions::new(Kind::Kvm, WORKLOADS[row[1]])
            .vcpus(VCPUS[row[2]])
            .with(["--fill", FILLS[row[3]]]);
        if let Err(error) = check(&options, STRATEGIES[strategy], 1) {
            panic!("{} of {:?}: {error:?}", STRATEGIES[strategy], options);
        }
    }
}

#[test]
fn kvm_precopy() {
    check_matrix(0);
}

#[test]
fn kvm_postcopy() {
    check_matrix(1);
}

#[test]
fn kvm_hybrid_1() {
    check_matrix(2);
}

#[test]
fn kvm_hybrid_2() {
    check_matrix(3);
}

#[test]
fn kvm_as_hybrid() {
    check_matrix(4);
}

#[test]
fn kvm_par_migrate() {
    check_matrix(5);
}

#[test]
fn kvm_pa_hybrid() {
    check_matrix(6);
}

#[test]
fn kvm_postcopy_with_bubbles() {
    check_matrix(7);
}

#[test]
fn kvm_par_migrate_with_hold_back() {
    check_matrix(8);
}

#[test]
fn kvm_markov_sdf() {
    check_matrix(9);
}

#[test]
fn kvm_hazard_and_forecast() {
    check_matrix(10);
}

#[test]
fn kvm_par_migrate_over_both_channels() {
    check_matrix(11);
}

#[test]
fn kvm_auto() {
    check_matrix(12);
}

#[test]
fn thread_guest_by_every_strategy() {
    for (index, strategy) in STRATEGIES.iter().enumerate() {
        let needs_faults = *strategy != "precopy" && !strategy.starts_with("par-migrate");
        if needs_faults && !require(Capability::Uffd) {
            continue;
        }
        let vcpus = VCPUS[index % VCPUS.len()];
        let options = GuestOptions::new(Kind::Thread, WORKLOADS[index % WORKLOADS.len()])
            .vcpus(vcpus)
            .with(["--fill", FILLS[index % FILLS.len()]]);
        if let Err(error) = check(&options, strategy, 1) {
            panic!("{strategy} of {options:?}: {error:?}");
        }
    }
}

#[test]
fn there_and_back_again() {
    if !require(Capability::Kvm) || !require(Capability::Uffd) {
        return;
    }
    for (strategy, workload) in [
        ("precopy", WORKLOADS[3]),
        ("postcopy", WORKLOADS[1]),
        ("hybrid:1", WORKLOADS[5]),
    ] {
        let options = GuestOptions::new(Kind::Kvm, workload)
            .vcpus(2)
            .with(["--fill", "random"]);
        if let Err(error) = check(&options, strategy, 2) {
            panic!("{strategy} of {options:?}: {error:?}");
        }
    }
}

/// A target tracks as it is told to, whatever the source does; both ways the guest loses nothing.
#[test]
fn between_bitmaps_and_dirty_rings() {
    if !require(Capability::Kvm) || !require(Capability::DirtyRing) || !require(Capability::Uffd) {
        return;
    }
    let ring = ["--tracking", "ring"];
    for (strategy, workload, vcpus) in [
        ("precopy", WORKLOADS[1], 2),
        ("postcopy", WORKLOADS[2], 1),
        ("hybrid:2", WORKLOADS[5], 2),
        ("markov-sdf:0.5", WORKLOADS[3], 1),
        ("par-migrate", WORKLOADS[4], 2),
    ] {
        let options = GuestOptions::new(Kind::Kvm, workload)
            .vcpus(vcpus)
            .with(["--fill", "random"]);
        // Into a ring, from ring to ring, and out of it again.
        for receivers in [&[&ring[..]][..], &[&ring[..], &ring[..], &[][..]][..]] {
            if receivers.len() > 1 && !dunlin_tests::capability::full() && strategy != "hybrid:2" {
                continue;
            }
            let options = options.clone().with(["--tracking", "ring"]);
            if let Err(error) = check_between(&options, strategy, receivers) {
                panic!("{strategy} of {options:?} by {receivers:?}: {error:?}");
            }
        }
    }
}

/// Rings so small that they overrun all the time: every harvest names every page, and nothing is lost.
#[test]
fn dirty_rings_that_overrun() {
    if !require(Capability::Kvm) || !require(Capability::DirtyRing) || !require(Capability::Uffd) {
        return;
    }
    let small = ["--tracking", "ring", "--ring-size", "2048"];
    for strategy in ["hybrid:2", "as-hybrid"] {
        let options = GuestOptions::new(Kind::Kvm, "uniform,rate=1000000")
            .vcpus(2)
            .with(small);
        // So fast a guest has done many steps when it arrives.
        if let Err(error) = check_between(&options, strategy, &[&small[..]]) {
            panic!("{strategy} of {options:?}: {error:?}");
        }
    }
}

/// With an agent in the guest that says which pages are free, while the guest frees and uses them.
#[test]
fn with_hints() {
    if !require(Capability::Kvm) || !require(Capability::Uffd) {
        return;
    }
    for (strategy, vcpus, fill) in [
        ("precopy", 1, "random"),
        ("postcopy", 2, "random"),
        ("hybrid:1", 1, "zero"),
        ("as-hybrid", 2, "random"),
        ("par-migrate", 1, "random"),
        ("pa-hybrid,cut=reconnect", 1, "random"),
        ("postcopy,push=bubble:3", 1, "random"),
        ("par-migrate,hold=hot", 1, "random"),
        ("markov-sdf:0.5", 1, "random"),
        ("hybrid:2,filter=hazard,push=forecast", 1, "random"),
        ("auto", 1, "random"),
    ] {
        let options = GuestOptions::new(Kind::Kvm, "uniform,rate=8000,life=3")
            .vcpus(vcpus)
            .with(["--fill", fill]);
        let mut hinted = 0;
        let result = check_with(
            &options,
            strategy,
            &[&[]],
            &["--network-timeout", "20s"],
            &mut |report| {
                hinted += report["hints"]["pages"].as_u64().unwrap_or(0);
            },
        );
        if let Err(error) = result {
            panic!("{strategy} of {options:?}: {error:?}");
        }
        assert!(hinted > 100, "{strategy}: {hinted} pages were not moved");
    }
}

/// Agents that misbehave do the host no harm, and but for the one that lies about pages in use, nor do they the guest.
#[test]
fn with_agents_that_misbehave() {
    if !require(Capability::Kvm) || !require(Capability::Uffd) {
        return;
    }
    for (agent, strategies) in [
        ("none", &["hybrid:1"][..]),
        ("wild", &["postcopy", "par-migrate"]),
        ("flood", &["as-hybrid"]),
        ("stall", &["precopy", "postcopy,push=bubble:3"]),
        ("restart", &["pa-hybrid,cut=reconnect"]),
    ] {
        for &strategy in strategies {
            let workload = format!("uniform,rate=8000,life=3,agent={agent}");
            let options = GuestOptions::new(Kind::Kvm, &workload).with(["--fill", "random"]);
            // A guest that halts just before it is moved is not asked: another one is.
            let hints = (0..4).find_map(|_| {
                let mut hints = Value::Null;
                let result = check_with(
                    &options,
                    strategy,
                    &[&[]],
                    &["--hint-timeout", "300ms"],
                    &mut |report| {
                        hints = report["hints"].clone();
                    },
                );
                if let Err(error) = result {
                    panic!("{agent}, {strategy}: {error:?}");
                }
                (!hints.is_null()).then_some(hints)
            });
            let hints = hints.unwrap_or_else(|| panic!("{agent}, {strategy}: every guest had halted"));
            match agent {
                "wild" => assert!(
                    hints["outside_pages"].as_u64() > Some(0) && hints["end"] == "complete",
                    "{hints}"
                ),
                _ => assert_eq!(hints["end"], "timed-out", "{agent}: {hints}"),
            }
        }
    }
}

/// One that calls pages free which are in use loses them to its own guest, which fails; the process that runs it there ends as for any
/// guest that fails, and a guest beside it does not notice.
#[test]
fn an_agent_that_lies_harms_its_guest_alone() -> anyhow::Result<()> {
    if !require(Capability::Kvm) || !require(Capability::Uffd) {
        return Ok(());
    }
    let of = |agent: &str| GuestOptions::new(Kind::Kvm, format!("uniform,rate=8000,life=9,agent={agent}"));
    let honest = of("honest").steps(STEPS).with(["--fill", "random"]);
    let lying = of("traitor").steps(1 << 40).with(["--fill", "random"]);
    let scene = Scene::new()?;
    let lying = scene.guest("lying", &lying)?;
    let has_used_much = |status: &Value| status["steps"].as_u64() > Some(STEPS / 4);
    let lying = scene.wait_status(lying, has_used_much)?;
    let mut beside = scene.guest("honest", &honest)?;
    let mut target = scene.receiver("lying-target", &[])?;
    let report = scene.migrate(&lying, &target, "postcopy", &LINK)?;
    ensure!(report["hints"]["pages"].as_u64() > Some(100), "{report}");
    let finished = target.process.wait(2 * PATIENCE)?;
    ensure!(finished.code.is_some_and(|code| code != 0), "{finished}");
    // It may have lost its program as well.
    ensure!(finished.to_string().contains("the VM has failed"), "{finished}");
    expect_same_memory(&honest, &beside.final_report()?)
}
