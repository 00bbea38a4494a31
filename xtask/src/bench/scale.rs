//! What deciding and tracking cost as guests grow: the source's state machine from 1 GiB to 4 TiB, fed with dirty bits as a tracker
//! harvests them, and whole simulated migrations of guests with 1 to 64 vCPUs. No guest runs.

use anyhow::{Context as _, bail};
use dunlin::sim::{SimSetup, simulate};
use dunlin_core::message::{Message, Region, Regions, SessionId, VmId};
use dunlin_core::migrate::{Source, SourceAction, SourceConfig, SourceEvent, SourceMessage};
use dunlin_core::strategy::Strategy;
use dunlin_core::units::{Bytes, BytesPerSec, Gfn, Nanos, PAGE_SIZE, Pages};
use serde_json::{Value, json};

use super::Setting;
use super::figure::{Figure, Table, Target, significant};
use super::sampling::{Samples, cpu_seconds};

const MEMORIES: [(&str, u64); 5] = [
    ("1 GiB", 1),
    ("16 GiB", 16),
    ("128 GiB", 128),
    ("1 TiB", 1 << 10),
    ("4 TiB", 4 << 10),
];
/// Dirty pages of 65 536, and what that is called. A guest with none at all is moved at once.
const SHARES: [(&str, u64); 3] = [("one page", 0), ("0.1 %", 66), ("10 %", 6554)];
const REPETITIONS: usize = 3;
const VCPUS: [u32; 4] = [1, 4, 16, 64];
/// Whose costs are figures of their own.
const LARGEST_GIB: u64 = 4 << 10;
/// The fastest link that is thought of, in bytes per second.
const LINK: f64 = 12.5e9;

pub(super) fn run(setting: &Setting) -> anyhow::Result<Vec<Figure>> {
    let mut rows = Vec::new();
    for (memory, gib) in MEMORIES {
        for (share, of_65536) in SHARES {
            rows.push(Row {
                memory,
                share,
                gib,
                cost: cost(gib, of_65536)?,
            });
        }
    }
    let mut guests = Vec::new();
    for vcpus in VCPUS {
        guests.push(simulated(vcpus)?);
    }
    let mut tables = setting.tables.lock().expect("no group has panicked");
    tables.push(deciding_table(&rows));
    tables.push(vcpus_table(&guests));
    let mut figures = Vec::new();
    for row in rows.iter().filter(|row| row.gib == LARGEST_GIB && row.cost.dirty > 1) {
        let per_page = row.cost.of_a_second() / row.cost.dirty as f64;
        let name = format!("{}, {} dirty: deciding on a page by sending it", row.memory, row.share);
        let figure = Figure::plain(name, per_page / (PAGE_SIZE as f64 / LINK), "x").target(Target::AtMost(1.0));
        figures.push(
            figure.beside("its data on 100 GbE: harvest, plan and runs together take one core less time than the link"),
        );
    }
    let largest = rows.last().context("there are rows")?;
    let share = largest.cost.bytes as f64 / (largest.gib << 30) as f64;
    figures.push(
        Figure::plain(
            format!("{}: state of the source, share of guest memory", largest.memory),
            share,
            "ratio",
        )
        .target(Target::AtMost(0.001))
        .beside("its words and the machine itself"),
    );
    Ok(figures)
}

/// What one round costs.
struct Cost {
    /// From the harvested words to the first action of the next round.
    plan: f64,
    /// All runs of that round, found and taken out one after the other.
    runs: f64,
    run_count: u64,
    dirty: u64,
    bytes: usize,
}

struct Row {
    memory: &'static str,
    share: &'static str,
    gib: u64,
    cost: Cost,
}

impl Cost {
    /// Processor time of a round; the share of a second if rounds end once a second.
    fn of_a_second(&self) -> f64 {
        self.plan + self.runs
    }

    fn per_run(&self) -> Option<f64> {
        (self.run_count > 0).then(|| self.runs / self.run_count as f64)
    }
}

/// The median of some rounds of a guest of `gib` GiB that has dirtied `of_65536` of every 65 536 pages.
fn cost(gib: u64, of_65536: u64) -> anyhow::Result<Cost> {
    let pages = Pages((gib << 30) / PAGE_SIZE);
    let regions: Regions = [Region {
        first: Gfn::ZERO,
        pages,
    }]
    .into_iter()
    .collect();
    let config = SourceConfig {
        max_rounds: u32::MAX,
        // Nothing fits, so rounds go on.
        downtime: Nanos(1),
        ..SourceConfig::new(SessionId(1), VmId(1), regions, "switch=never".parse::<Strategy>()?)
    };
    let mut storage = vec![0; Source::words_needed(&config)];
    let bytes = storage.len() * 8 + size_of::<Source<'_>>();
    let harvest = dirty_words(pages, of_65536);
    let mut host = Host {
        source: Source::new(config, &mut storage, Nanos::ZERO)?,
        now: Nanos::ZERO,
        round: 0,
    };
    host.start()?;
    host.send_round()?;
    let (mut plans, mut runs, mut run_count) = (Vec::new(), Vec::new(), 0);
    for _ in 0..REPETITIONS {
        let mut outcome = Ok(());
        plans.push(cpu_seconds(|| outcome = host.plan(&harvest)));
        outcome?;
        let mut sent = Ok(0);
        runs.push(cpu_seconds(|| sent = host.send_round()));
        run_count = sent?;
    }
    Ok(Cost {
        plan: Samples::new(plans).median(),
        runs: Samples::new(runs).median(),
        run_count,
        dirty: harvest.iter().map(|word| u64::from(word.count_ones())).sum(),
        bytes,
    })
}

/// A host that does nothing but answer.
struct Host<'w> {
    source: Source<'w>,
    now: Nanos,
    round: u32,
}

impl Host<'_> {
    /// Up to the first round.
    fn start(&mut self) -> anyhow::Result<()> {
        loop {
            match self.source.poll(self.now) {
                SourceAction::Send(SourceMessage::Hello) => {
                    self.source.on(self.now, SourceEvent::Done);
                    let welcome = Message::Welcome { protocol: 1 };
                    self.source.on(self.now, SourceEvent::Message(&welcome));
                }
                SourceAction::OpenFaultChannel | SourceAction::StartTracking => {
                    self.source.on(self.now, SourceEvent::Done);
                }
                SourceAction::Send(SourceMessage::RoundStart { round, .. }) => {
                    self.round = round;
                    self.source.on(self.now, SourceEvent::Done);
                    return Ok(());
                }
                other => bail!("the source begins with {other:?}"),
            }
        }
    }

    /// Sends all runs, up to the harvest at the round's end; how many there were.
    fn send_round(&mut self) -> anyhow::Result<u64> {
        let mut runs = 0;
        loop {
            match self.source.poll(self.now) {
                SourceAction::SendPages { run, .. } => {
                    runs += 1;
                    let sent = SourceEvent::PagesSent {
                        data: run.count,
                        zero: Pages::ZERO,
                    };
                    self.source.on(self.now, sent);
                }
                SourceAction::Send(SourceMessage::RoundEnd { round }) => {
                    // Any time that is not zero will do.
                    self.now = self.now.saturating_add(Nanos::from_secs(1));
                    self.source.on(self.now, SourceEvent::Done);
                    let reached = Message::RoundReached { round };
                    self.source.on(self.now, SourceEvent::Message(&reached));
                }
                SourceAction::Harvest => return Ok(runs),
                other => bail!("a round goes on with {other:?}"),
            }
        }
    }

    /// Hands over what was harvested, up to the beginning of the next round.
    fn plan(&mut self, harvest: &[u64]) -> anyhow::Result<()> {
        self.source.on(self.now, SourceEvent::Harvested(harvest));
        match self.source.poll(self.now) {
            SourceAction::Send(SourceMessage::RoundStart { round, .. }) if round == self.round + 1 => {
                self.round = round;
                self.source.on(self.now, SourceEvent::Done);
                Ok(())
            }
            other => bail!("after a round the source goes on with {other:?}"),
        }
    }
}

/// Dirty bits of which each is set with a probability of `of_65536` in 65 536, from a fixed seed; the last alone if that is 0.
fn dirty_words(pages: Pages, of_65536: u64) -> Vec<u64> {
    if of_65536 == 0 {
        let mut words = vec![0; (pages.0 / 64) as usize];
        if let Some(last) = words.last_mut() {
            *last = 1 << 63;
        }
        return words;
    }
    let mut random = fastrand::Rng::with_seed(1);
    let word = |random: &mut fastrand::Rng| {
        // Bit by bit of the probability, from the lowest: a random word halves what there is, or adds a half to it.
        (of_65536.trailing_zeros()..16).fold(0, |word, bit| match of_65536 >> bit & 1 {
            1 => word | random.u64(..),
            _ => word & random.u64(..),
        })
    };
    (0..pages.0 / 64).map(|_| word(&mut random)).collect()
}

fn deciding_table(rows: &[Row]) -> Table {
    let text = |row: &Row| {
        let cost = &row.cost;
        vec![
            row.memory.into(),
            row.share.into(),
            cost.dirty.to_string(),
            format!("{} ms", significant(cost.plan * 1e3)),
            cost.run_count.to_string(),
            cost.per_run()
                .map_or_else(|| "–".into(), |run| format!("{} ns", significant(run * 1e9))),
            format!("{} %", significant(cost.of_a_second() * 100.0)),
            format!("{} KiB", significant(cost.bytes as f64 / 1024.0 / row.gib as f64)),
        ]
    };
    let data: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "memory_gib": row.gib,
                "dirty_pages": row.cost.dirty,
                "plan_s": row.cost.plan,
                "runs": row.cost.run_count,
                "run_s": row.cost.per_run(),
                "share_of_a_second": row.cost.of_a_second(),
                "state_bytes": row.cost.bytes,
            })
        })
        .collect();
    Table {
        name: "scale",
        about: format!(
            "The source's state machine: harvested dirty bits in, next round planned, its runs out; pages dirty at random. Time of the processor, \
             median of {REPETITIONS} rounds. Reading the bits from a tracker is not in it. The share is of a second in which one round ends."
        ),
        header: [
            "memory",
            "dirty",
            "pages",
            "harvest and plan",
            "runs",
            "next run",
            "share of a second",
            "state per GiB",
        ]
        .map(String::from)
        .to_vec(),
        rows: rows.iter().map(text).collect(),
        data: data.into(),
    }
}

/// What became of a simulated guest.
struct Simulated {
    vcpus: u32,
    took: f64,
    steps: u64,
    faults: u64,
    /// Of the time in post-copy, the part that a vCPU waited, in the mean.
    waited: f64,
    downtime_ms: f64,
}

/// A guest of 4 GiB whose vCPUs, all together, write as much whatever their number.
fn simulated(vcpus: u32) -> anyhow::Result<Simulated> {
    let workload = "uniform,rate=200k".parse()?;
    let strategy: Strategy = "hybrid:1".parse()?;
    let mut setup = SimSetup::new(workload, Bytes(4 << 30), strategy, BytesPerSec(1_250_000_000));
    setup.vcpus = vcpus;
    let mut result = None;
    let took = cpu_seconds(|| result = Some(simulate(&setup)));
    let result = result.context("it was simulated")??;
    let postcopy = result.report.postcopy.context("it ended with post-copy")?;
    let vcpu_time = postcopy.duration_us as f64 * f64::from(vcpus);
    Ok(Simulated {
        vcpus,
        took,
        steps: result.steps,
        faults: postcopy.faults,
        waited: result.stall.0 as f64 / 1e3 / vcpu_time,
        downtime_ms: result.report.downtime_us as f64 / 1e3,
    })
}

fn vcpus_table(guests: &[Simulated]) -> Table {
    let text = |guest: &Simulated| {
        vec![
            guest.vcpus.to_string(),
            format!("{} ms", significant(guest.took * 1e3)),
            guest.steps.to_string(),
            guest.faults.to_string(),
            format!("{} %", significant(guest.waited * 100.0)),
            format!("{} ms", significant(guest.downtime_ms)),
        ]
    };
    let data: Vec<Value> = guests
        .iter()
        .map(|guest| {
            json!({
                "vcpus": guest.vcpus,
                "simulating_s": guest.took,
                "steps": guest.steps,
                "faults": guest.faults,
                "share_of_postcopy_waited": guest.waited,
                "downtime_ms": guest.downtime_ms,
            })
        })
        .collect();
    Table {
        name: "vcpus",
        about: "Simulated guests of 4 GiB that write 200 000 pages a second in all, uniformly, over 10 GbE: one round, then post-copy, where a \
                fault stops its vCPU alone. Waited is the part of the post-copy that a vCPU stood still, in the mean."
            .into(),
        header: ["vCPUs", "simulating it", "steps", "faults", "waited", "downtime"]
            .map(String::from)
            .to_vec(),
        rows: guests.iter().map(text).collect(),
        data: data.into(),
    }
}
