//! A guest that makes itself small before it is moved: it writes what it keeps, forgets what it can read again, and lends what it does
//! not use to its balloon, whose pages are zero. Afterwards it gets everything back.

use std::time::{Duration, Instant};

use dunlin_agent::message::{Abilities, Facts, Notice, Work};
use dunlin_core::steer::{Balloon, MemoryUse};
use dunlin_core::units::Bytes;
use serde_json::{Value, json};

use super::agent::{AgentClient, AgentError};
use super::link::Link;
use super::{Address, Plan, QmpError};
use crate::channel::Cancel;

/// How often the guest is asked how it is doing.
const ASK: Duration = Duration::from_secs(1);
/// How often it is looked how large the balloon is.
const LOOK: Duration = Duration::from_millis(50);
/// A balloon that has not moved for so long does not.
const STILL: Duration = Duration::from_millis(300);
/// It is as large as it was told to be if it lacks no more than this: some of it may be in use just now.
const NEAR: u64 = 1 << 20;
/// How long a guest may take to get its memory back.
const RESTORE: Duration = Duration::from_secs(20);

/// How a guest that has forgotten what it can is made small.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shrinking {
    /// By its balloon, if it has one: it has so much memory.
    Balloon(Option<Bytes>),
    /// Not at all: QEMU asks its balloon for free pages while it copies, which costs no time before, and nothing has to be given back.
    FreePageHints,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct SofteningReport {
    /// The guest's kernel, in its own words.
    pub kernel: String,
    /// How it was doing before, and when it was small.
    pub facts: [Option<Facts>; 2],
    /// What it had, and what it had at the least, by its balloon; `None` without one.
    pub memory: Option<[Bytes; 2]>,
    /// What became free because it forgot what it can read again.
    pub forgotten: Bytes,
    /// Whether QEMU asks its balloon for free pages while it copies, so that none were lent before.
    pub by_hints: bool,
    /// What it was asked for and did, before and after.
    pub done: [Work; 2],
    /// What of it failed.
    pub failed: [Work; 2],
    /// How long the guest was prepared before the first page was sent.
    pub took: Duration,
    /// Whether it was short of memory once, and got some back at once.
    pub was_short: bool,
    /// Whether it was told afterwards that it is over.
    pub was_told: bool,
    /// Whether it has all of its memory again.
    pub restored: Option<bool>,
}

/// A guest that is small, or on its way there.
#[derive(Debug)]
pub(super) struct Softening {
    agent: Option<AgentClient>,
    balloon: Option<Balloon>,
    asked: Option<Instant>,
    next: Instant,
    report: SofteningReport,
}

impl Softening {
    /// Prepares the guest, at most for as long as the plan says. `tell` is told what goes otherwise than it should.
    pub(super) fn begin(
        plan: &Plan,
        source: &Link,
        shrinking: Shrinking,
        interrupt: &Cancel,
        mut tell: impl FnMut(String),
    ) -> Option<Self> {
        let address = plan.agent.as_ref()?;
        let began = Instant::now();
        let deadline = began + plan.agent_timeout;
        let agent = match AgentClient::connect(address) {
            Ok(agent) => agent,
            Err(error) => {
                tell(format!("{error}; the guest is moved as it is"));
                return None;
            }
        };
        let mut softening = Self {
            agent: Some(agent),
            balloon: None,
            asked: None,
            next: began + ASK,
            report: SofteningReport::default(),
        };
        if let Err(error) = softening.prepare(plan, source, (shrinking, deadline), interrupt, &mut tell) {
            tell(format!("{error}; the guest is moved as it is"));
            softening.agent = None;
        }
        softening.report.took = began.elapsed();
        Some(softening)
    }

    /// That of a driver before this one: the guest has less than it had.
    pub(super) fn taken_over(original: Bytes) -> Self {
        Self {
            agent: None,
            balloon: Some(Balloon::new(original, None)),
            asked: None,
            next: Instant::now(),
            report: SofteningReport::default(),
        }
    }

    fn prepare(
        &mut self,
        plan: &Plan,
        source: &Link,
        (shrinking, deadline): (Shrinking, Instant),
        interrupt: &Cancel,
        tell: &mut impl FnMut(String),
    ) -> Result<(), AgentError> {
        let Some(agent) = &mut self.agent else { return Ok(()) };
        self.report.kernel = agent.kernel().to_owned();
        self.report.facts[0] = agent.facts()?;
        let mut work = Work::empty();
        work.set(Work::HOOKS, agent.can(Abilities::HOOKS));
        work.set(Work::FLUSH | Work::DROP_CACHES, agent.can(Abilities::CACHES));
        let left = deadline.saturating_duration_since(Instant::now());
        match agent.notify(Notice::BeforeMigration, work, left)? {
            Some((done, failed)) => (self.report.done[0], self.report.failed[0]) = (done, failed),
            None => tell(format!(
                "the guest was not ready after {} s; it is moved all the same",
                plan.agent_timeout.as_secs()
            )),
        }
        let facts = agent.facts()?;
        if let [Some(before), Some(after)] = [&self.report.facts[0], &facts] {
            self.report.forgotten = after.free.saturating_sub(before.free);
        }
        self.report.facts[1] = facts;
        match (shrinking, agent.can(Abilities::BALLOON)) {
            (Shrinking::FreePageHints, true) => self.report.by_hints = true,
            (Shrinking::Balloon(Some(original)), true) => {
                self.balloon = Some(Balloon::new(original, plan.reserve));
                self.report.memory = Some([original; 2]);
                self.shrink(source, deadline, interrupt, tell)?;
            }
            _ => tell(
                "the guest has no balloon (-device virtio-balloon, and its driver): what is free in it is moved as well".into(),
            ),
        }
        Ok(())
    }

    /// Step by step, as long as the guest has more than it needs.
    fn shrink(
        &mut self,
        source: &Link,
        deadline: Instant,
        interrupt: &Cancel,
        tell: &mut impl FnMut(String),
    ) -> Result<(), AgentError> {
        let (Some(agent), Some(balloon)) = (&mut self.agent, &mut self.balloon) else {
            return Ok(());
        };
        while Instant::now() < deadline && !interrupt.is_raised() {
            let Some(facts) = agent.facts()? else { break };
            let step = size(source).and_then(|actual| {
                let target = balloon.on_use(actual, &memory_use(&facts));
                target.map(|target| resize(source, target).map(|()| target)).transpose()
            });
            match step {
                Ok(Some(target)) => wait_for(source, target, deadline),
                Ok(None) => break,
                Err(error) => {
                    tell(format!("the balloon cannot be told how large it is to be: {error}"));
                    break;
                }
            }
        }
        self.report.facts[1] = agent.facts()?;
        self.note(source);
        Ok(())
    }

    /// While the guest is copied: gives it more as soon as it is short. Waits for nothing.
    pub(super) fn attend(&mut self, source: &Link) {
        let (Some(agent), Some(balloon)) = (&mut self.agent, &mut self.balloon) else {
            return;
        };
        let now = Instant::now();
        let heard = match self.asked {
            None if now >= self.next => {
                (self.asked, self.next) = (Some(now), now + ASK);
                agent.ask_facts().map(|()| None)
            }
            None => return,
            Some(_) => agent.hear_facts(),
        };
        let facts = match heard {
            Ok(Some(facts)) => facts,
            Ok(None) => {
                self.asked = self.asked.filter(|asked| now.duration_since(*asked) < 3 * ASK);
                return;
            }
            // Whatever it is, the migration goes on; what the guest has lent it gets back by QEMU alone.
            Err(_) => return self.agent = None,
        };
        self.asked = None;
        let told = size(source).and_then(|actual| match balloon.on_use(actual, &memory_use(&facts)) {
            Some(target) => resize(source, target),
            None => Ok(()),
        });
        if told.is_ok() {
            self.note(source);
        }
    }

    fn note(&mut self, source: &Link) {
        if let (Some([_, least]), Ok(actual)) = (&mut self.report.memory, size(source)) {
            *least = actual.min(*least);
        }
        self.report.was_short = self.balloon.is_some_and(|balloon| balloon.was_short());
    }

    /// After the end: gives the guest its memory back wherever it is now, and tells it.
    pub(super) fn end(
        mut self,
        holder: &Link,
        address: Option<&Address>,
        notice: Notice,
        timeout: Duration,
    ) -> SofteningReport {
        if let Some(balloon) = self.balloon {
            self.report.restored = Some(restore(holder, balloon.original()));
        }
        // The port's other end is elsewhere, if the guest is.
        self.agent = None;
        let told = address.and_then(|address| {
            let mut agent = AgentClient::connect(address).ok()?;
            let work = if agent.can(Abilities::HOOKS) {
                Work::HOOKS
            } else {
                Work::empty()
            };
            agent.notify(notice, work, timeout).ok()?
        });
        self.report.was_told = told.is_some();
        if let Some((done, failed)) = told {
            (self.report.done[1], self.report.failed[1]) = (done, failed);
        }
        self.report
    }
}

/// Gives a guest its memory back; whether it has it.
fn restore(holder: &Link, original: Bytes) -> bool {
    if resize(holder, original).is_err() {
        return false;
    }
    wait_for(holder, original, Instant::now() + RESTORE);
    size(holder).is_ok_and(|actual| actual.0 + NEAR > original.0)
}

/// How much memory the guest has, by its balloon.
pub(super) fn size(link: &Link) -> Result<Bytes, QmpError> {
    let answer = link.execute("query-balloon", &json!({}))?;
    Ok(Bytes(answer["actual"].as_u64().unwrap_or(0)))
}

fn resize(link: &Link, target: Bytes) -> Result<(), QmpError> {
    let arguments: Value = json!({ "value": target.0 });
    link.execute("balloon", &arguments).map(drop)
}

/// Until the balloon is as large as it was told to be, or does not move any more.
fn wait_for(link: &Link, target: Bytes, deadline: Instant) {
    let (mut last, mut moved) = (None, Instant::now());
    while Instant::now() < deadline && moved.elapsed() < STILL {
        match size(link) {
            Ok(actual) if actual.0.abs_diff(target.0) < NEAR => return,
            Ok(actual) if last != Some(actual) => (last, moved) = (Some(actual), Instant::now()),
            Ok(_) => {}
            Err(_) => return,
        }
        std::thread::sleep(LOOK);
    }
}

const fn memory_use(facts: &Facts) -> MemoryUse {
    MemoryUse {
        available: facts.available,
        swap_used: facts.swap_used,
        pressure_milli: facts.memory_pressure_milli,
    }
}
