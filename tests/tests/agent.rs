//! The agent in a Linux guest: what it says, whoever asks, and how small a guest makes itself before `dunlin qemu` moves it.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use dunlin_agent::host::{EpochEnd, Ignored};
use dunlin_agent::message::{Abilities, Notice, Refusal, Work};
use dunlin_core::units::{Bytes, Gfn};
use dunlin_tests::linux::agent::AgentLine;
use dunlin_tests::linux::{Linux, LinuxOptions, Role, Workload};
use dunlin_tests::process::Finished;
use dunlin_tests::scene::Scene;
use dunlin_tests::{Capability, require};
use serde_json::{Value, json};

/// Longer than a migration takes on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(120);

fn idle() -> LinuxOptions {
    LinuxOptions::new(Workload::Idle).with_agent()
}

#[test]
fn an_agent_says_what_its_guest_knows() -> anyhow::Result<()> {
    if !require(Capability::LinuxGuests) {
        return Ok(());
    }
    let options = idle();
    let mut guest = Linux::start(&options, Role::Source)?;
    guest.wait_until_ready()?;
    let mut agent = guest.agent()?;
    let hello = agent.hello().context("it has said who it is")?;
    ensure!(hello.kernel.starts_with("Linux 6."), "{hello:?}");
    let everything =
        Abilities::SOFT_PAGES | Abilities::FACTS | Abilities::CACHES | Abilities::HOOKS | Abilities::BALLOON;
    ensure!(hello.abilities == everything, "{hello:?}");
    epoch_is_as_the_facts(&mut agent, &options)?;
    let work = Work::FLUSH | Work::DROP_CACHES | Work::HOOKS;
    let answer = agent.notify(Notice::BeforeMigration, work)?;
    ensure!(answer == (work, Work::empty()), "{answer:?}");
    let told = guest.wait_until_told(1)?;
    ensure!(told[0].what == "before-migration", "{told:?}");
    // Whoever comes next finds it as it was, whatever is on the line.
    agent.write(&[0x55; 5000])?;
    agent.write(&[0, 1, 2, 0])?;
    agent.facts().context("after garbage")?;
    agent.write(&[7; 100])?;
    drop(agent);
    for visit in 0..3 {
        let mut agent = guest.agent().with_context(|| format!("visit {visit}"))?;
        epoch_is_as_the_facts(&mut agent, &options).with_context(|| format!("visit {visit}"))?;
        ensure!(agent.statistics().unknown == 0, "{:?}", agent.statistics());
    }
    guest.check()?;
    Ok(())
}

/// Nearly all that the guest calls free it names, page by page.
fn epoch_is_as_the_facts(agent: &mut AgentLine, options: &LinuxOptions) -> anyhow::Result<()> {
    /// What an idle guest may free meanwhile.
    const MORE: u64 = 1 << 20;
    let before = agent.facts()?;
    let epoch = agent.epoch()?;
    let after = agent.facts()?;
    let memory = options.all_memory();
    ensure!(
        before.total <= memory && before.total.0 >= memory.0 / 2,
        "{before:?} of {memory}"
    );
    ensure!(
        before.free <= before.available && before.available <= before.total,
        "{before:?}"
    );
    let EpochEnd::Complete { cpu_us } = epoch.end else {
        anyhow::bail!("{:?}", epoch.end);
    };
    ensure!(cpu_us > 0, "it took no time");
    let named = epoch.free().bytes();
    let (least, most) = (before.free.min(after.free), before.free.max(after.free));
    ensure!(
        named.0 >= least.0 / 10 * 6 && named.0 <= most.0 + MORE,
        "{named} bytes named, of {least} to {most} that are free"
    );
    ensure!(agent.ignored() == Ignored::default(), "{:?}", agent.ignored());
    let mut end = Gfn::ZERO;
    for (run, kind) in &epoch.runs {
        ensure!(run.first >= end, "{run} ({kind:?}) is named after what ends with {end}");
        end = Gfn(run.first.0 + run.count.0);
    }
    Ok(())
}

#[test]
fn a_kernel_that_looks_at_free_pages_gives_no_hints() -> anyhow::Result<()> {
    if !require(Capability::LinuxGuests) {
        return Ok(());
    }
    let mut options = idle().with_memory(Bytes(128 << 20));
    options.parameters = "page_poison=1".into();
    let mut guest = Linux::start(&options, Role::Source)?;
    guest.wait_until_ready()?;
    let mut agent = guest.agent()?;
    let can = agent
        .hello()
        .map(|hello| hello.abilities.contains(Abilities::SOFT_PAGES));
    ensure!(can == Some(false), "{:?}", agent.hello());
    let epoch = agent.epoch()?;
    ensure!(epoch.end == EpochEnd::Refused(Refusal::Poisoned), "{epoch:?}");
    agent.facts()?;
    Ok(())
}

/// A guest with an agent, wherever it is.
struct Pair {
    source: Linux,
    target: Linux,
    scene: Scene,
}

impl Pair {
    fn start(options: &LinuxOptions) -> anyhow::Result<Self> {
        let scene = Scene::new()?;
        let target = Linux::start(options, Role::Target)?;
        let mut source = Linux::start(options, Role::Source)?;
        source.wait_until_ready()?;
        Ok(Self { source, target, scene })
    }

    /// Moves the guest, whose agent is asked at these sockets.
    fn migrate(&self, agents: [&Path; 2]) -> anyhow::Result<Value> {
        let finished = self.finish(agents, &[])?;
        ensure!(finished.code == Some(0), "{finished}");
        finished.json()
    }

    fn finish(&self, agents: [&Path; 2], more: &[&str]) -> anyhow::Result<Finished> {
        self.finish_by("precopy", agents, more)
    }

    fn finish_by(&self, strategy: &str, agents: [&Path; 2], more: &[&str]) -> anyhow::Result<Finished> {
        let file = |name: &str| self.scene.folder().join(name).display().to_string();
        let arguments = [
            ("--source", self.source.socket().display().to_string()),
            ("--target", self.target.socket().display().to_string()),
            ("--to", format!("unix:{}", file("migration"))),
            ("--state", file("state")),
            ("--strategy", strategy.to_owned()),
            ("--agent", format!("unix:{}", agents[0].display())),
            ("--target-agent", format!("unix:{}", agents[1].display())),
        ];
        let words = arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        let fixed = ["qemu", "migrate", "--json"].iter().chain(more);
        let fixed = fixed.map(|word| (*word).to_owned());
        self.scene.dunlin(fixed.chain(words))?.wait(PATIENCE)
    }

    /// The guest lives where it is now, and its memory is as it left it.
    fn is_well(&mut self) -> anyhow::Result<()> {
        let steps = self.source.last_beat().context("it beat")?.beat.steps;
        self.target.wait_for_steps(steps + 1)?;
        self.target.check()?;
        Ok(())
    }
}

fn balloon(guest: &mut Linux) -> anyhow::Result<u64> {
    let answer = guest.qmp.execute("query-balloon", &json!({}))?;
    answer["actual"].as_u64().context("a size")
}

#[test]
fn a_guest_is_small_while_it_is_moved() -> anyhow::Result<()> {
    if !require(Capability::LinuxGuests) {
        return Ok(());
    }
    for workload in [Workload::Idle, Workload::pages("uniform,rate=500,ws=32MiB")] {
        let what = format!("{workload:?}");
        shrinks_and_grows(&LinuxOptions::new(workload).with_agent()).context(what)?;
    }
    Ok(())
}

fn shrinks_and_grows(options: &LinuxOptions) -> anyhow::Result<()> {
    let mut pair = Pair::start(options)?;
    let original = balloon(&mut pair.source)?;
    ensure!(original == options.all_memory().0, "{original}");
    let agents = [pair.source.agent_socket(), pair.target.agent_socket()];
    let report = pair.migrate([&agents[0], &agents[1]])?;
    let guest = &report["guest"];
    let bytes = |name: &str| guest[name].as_u64().with_context(|| format!("no {name}: {report}"));
    let spared = guest["spared"].as_array().map_or(0, Vec::len);
    ensure!(spared > 0 && guest["by_free_page_hints"] == false, "{report}");
    ensure!(bytes("memory_bytes")? == original, "{report}");
    // It keeps what it uses, and a reserve of 32 MiB.
    ensure!(bytes("least_memory_bytes")? < original / 4 * 3, "{report}");
    ensure!(guest["restored"] == true && guest["was_short"] == false, "{report}");
    ensure!(
        guest["done_before"] == json!(["flush", "drop_caches", "hooks"]),
        "{report}"
    );
    ensure!(guest["done_after"] == json!(["hooks"]), "{report}");
    ensure!(
        guest["failed"] == json!([]) && report["warnings"] == json!([]),
        "{report}"
    );
    ensure!(report["guest_is_on"] == "target", "{report}");
    pair.is_well().with_context(|| report.to_string())?;
    ensure!(balloon(&mut pair.target)? == original, "{report}");
    let told = [pair.source.wait_until_told(1)?, pair.target.wait_until_told(1)?];
    let told: Vec<&str> = told.iter().flatten().map(|told| told.what.as_str()).collect();
    ensure!(told == ["before-migration", "after-migration"], "{told:?}");
    // The agent has moved as well.
    let facts = pair.target.agent()?.facts()?;
    ensure!(facts.total.0 >= original / 2, "{facts:?}");
    Ok(())
}

#[test]
fn free_pages_are_hinted_where_no_post_copy_follows() -> anyhow::Result<()> {
    if !require(Capability::LinuxGuests) {
        return Ok(());
    }
    let options = LinuxOptions::new(Workload::pages("uniform,rate=500,ws=32MiB")).with_free_page_hints();
    let mut pair = Pair::start(&options)?;
    let original = balloon(&mut pair.source)?;
    let agents = [pair.source.agent_socket(), pair.target.agent_socket()];
    // So slow that the copy does not overtake the hints.
    let finished = pair.finish([&agents[0], &agents[1]], &["--bandwidth", "20MB/s"])?;
    ensure!(finished.code == Some(0), "{finished}");
    let report = finished.json()?;
    let guest = &report["guest"];
    ensure!(
        guest["by_free_page_hints"] == true && guest["memory_bytes"].is_null() && guest["restored"].is_null(),
        "{report}"
    );
    let spared: u64 = (guest["spared"].as_array().into_iter().flatten())
        .filter_map(|saving| saving["bytes_at_most"].as_u64())
        .sum();
    // Half of the guest is free, and not all of it in blocks that are large enough to be named.
    ensure!(spared > original / 8 && spared < original, "{spared}: {report}");
    ensure!(report["warnings"] == json!([]), "{report}");
    pair.is_well().with_context(|| report.to_string())?;
    ensure!(balloon(&mut pair.target)? == original, "{report}");
    // Where post-copy may follow, the same balloon lends.
    let mut pair = Pair::start(&options)?;
    let agents = [pair.source.agent_socket(), pair.target.agent_socket()];
    let finished = pair.finish_by("lambda", [&agents[0], &agents[1]], &[])?;
    ensure!(finished.code == Some(0), "{finished}");
    let report = finished.json()?;
    let guest = &report["guest"];
    ensure!(
        guest["by_free_page_hints"] == false && guest["restored"] == true,
        "{report}"
    );
    pair.is_well().with_context(|| report.to_string())?;
    Ok(())
}

#[test]
fn a_guest_that_is_not_moved_gets_its_memory_back() -> anyhow::Result<()> {
    if !require(Capability::LinuxGuests) {
        return Ok(());
    }
    let mut pair = Pair::start(&idle())?;
    let original = balloon(&mut pair.source)?;
    let agents = [pair.source.agent_socket(), pair.target.agent_socket()];
    let nowhere = format!("unix:{}", pair.scene.folder().join("nowhere/at-all").display());
    let finished = pair.finish([&agents[0], &agents[1]], &["--listen", &nowhere])?;
    ensure!(finished.code.is_some_and(|code| code != 0), "{finished}");
    ensure!(balloon(&mut pair.source)? == original, "{finished}");
    let told = pair.source.wait_until_told(2)?;
    let told: Vec<&str> = told.iter().map(|told| told.what.as_str()).collect();
    ensure!(
        told == ["before-migration", "migration-given-up"],
        "{told:?}: {finished}"
    );
    pair.source.check()?;
    Ok(())
}

#[test]
fn a_target_with_other_devices_is_said_to_be_one() -> anyhow::Result<()> {
    if !require(Capability::LinuxGuests) {
        return Ok(());
    }
    let options = LinuxOptions::new(Workload::Idle).with_memory(Bytes(128 << 20));
    let mut pair = Pair::start(&options.clone().with_agent())?;
    let agents = [pair.source.agent_socket(), pair.target.agent_socket()];
    // It does not know the serial port and the balloon, and ends when it is to load them.
    pair.target = Linux::start(&options, Role::Target)?;
    let finished = pair.finish([&agents[0], &agents[1]], &[])?;
    ensure!(finished.code.is_some_and(|code| code != 0), "{finished}");
    let report = finished.json()?;
    ensure!(report["outcome"] == "failed", "{report}");
    let found = report["findings"].to_string();
    ensure!(found.contains("the target lacks virtio-balloon-pci"), "{report}");
    let reason = report["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("same devices in the same order"), "{report}");
    // The port's own mistakes are told before anything begins.
    let monitor = pair.source.socket().to_owned();
    let finished = pair.finish([&monitor, &agents[1]], &[])?;
    ensure!(
        finished.code == Some(2) && finished.to_string().contains("--agent is a QMP socket"),
        "{finished}"
    );
    Ok(())
}

#[test]
fn a_guest_whose_agent_is_silent_is_moved_as_it_is() -> anyhow::Result<()> {
    if !require(Capability::LinuxGuests) {
        return Ok(());
    }
    let options = LinuxOptions::new(Workload::Idle).with_memory(Bytes(128 << 20));
    let [nobody, silent] = ["nobody", "silent"];
    for name in [nobody, silent] {
        let mut pair = Pair::start(&options)?;
        let socket = pair.scene.folder().join(name);
        // Takes what it is told, and says nothing.
        let listener = (name == silent).then(|| UnixListener::bind(&socket)).transpose()?;
        let report = pair.migrate([&socket, &socket]).context(name)?;
        drop(listener);
        ensure!(
            report["outcome"] == "completed" && report["guest"].is_null(),
            "{name}: {report}"
        );
        let warning = report["warnings"][0].as_str().unwrap_or_default();
        ensure!(warning.ends_with("the guest is moved as it is"), "{name}: {report}");
        pair.is_well().with_context(|| format!("{name}: {report}"))?;
    }
    Ok(())
}
