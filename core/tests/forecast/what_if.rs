//! A migration page by page, write by write, in virtual time: what forecasts are compared with.
//!
//! Deliberately another way of counting than the forecasts': no curve, no mean, no share; every write sets a bit of a page, and
//! only the switch rule is the same code.

use std::collections::HashSet;

use dunlin_core::choose::{Limits, Link};
use dunlin_core::pattern::{AccessClass, Profile, WwsCurve};
use dunlin_core::strategy::{Clear, First, Strategy};
use dunlin_core::switch::{Decision, RoundEnd, SwitchSetting, Switcher};
use dunlin_core::units::{Nanos, Pages};

/// In which order a guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Any page of the working set as likely as any other.
    Uniform,
    /// The working set from its first page to its last, again and again.
    Cyclic,
    /// Nine of ten writes go to a tenth of the working set.
    HotCold,
}

/// A guest with one vCPU that writes a page every so often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// All pages, none of which is zero.
    pub(crate) total: u64,
    /// Pages that are written, spread evenly; no multiple of 61.
    pub(crate) working_set: u64,
    /// Writes per second.
    pub(crate) writes_per_sec: u64,
    /// In which order.
    pub(crate) order: Order,
    /// Of the random numbers.
    pub(crate) seed: u64,
}

/// The writes of a load, one after the other.
#[derive(Clone)]
struct Writer {
    load: Load,
    state: u64,
    next: u64,
}

impl Writer {
    fn new(load: Load) -> Self {
        let state = load.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut writer = Self { load, state, next: 0 };
        // Anywhere in its circle.
        writer.next = writer.random(load.working_set);
        writer
    }

    /// xorshift64*.
    fn random(&mut self, below: u64) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let random = self.state.wrapping_mul(0x2545_F491_4F6C_DD1D);
        ((u128::from(random) * u128::from(below)) >> 64) as u64
    }

    fn page(&mut self) -> usize {
        let set = self.load.working_set;
        let page = match self.load.order {
            Order::Uniform => self.random(set),
            Order::Cyclic => {
                self.next = (self.next + 1) % set;
                self.next
            }
            Order::HotCold => {
                let hot = self.random(10) < 9;
                // Hot pages are anywhere in the set, so that no order of pushes favours them: 61 shares no factor with a set.
                self.random(if hot { (set / 10).max(1) } else { set }) * 61 % set
            }
        };
        // Spread over the guest: pushes in ascending order then meet the set all the way.
        (page * (self.load.total / set)) as usize
    }
}

impl Load {
    /// Nanoseconds from one write to the next.
    fn interval(&self) -> u64 {
        1_000_000_000 / self.writes_per_sec.max(1)
    }

    /// What a profiler that watches the guest for `span` finds: the mean over windows of each length, side by side.
    pub(crate) fn profile(&self, span: Nanos) -> Profile {
        let mut writer = Writer::new(Self {
            seed: !self.seed,
            ..*self
        });
        let writes: Vec<usize> = (0..span.0 / self.interval()).map(|_| writer.page()).collect();
        let mut points: Vec<(Nanos, Pages)> = Vec::new();
        // Each window 4/3 as long as the one before.
        let parts = (0..30).rev().map(|power| 0.75f64.powi(power));
        for part in parts {
            let window = Nanos((span.0 as f64 * part) as u64);
            let length = (writes.len() as f64 * part) as usize;
            if length == 0 {
                continue;
            }
            let windows = writes.chunks_exact(length);
            let count = windows.len() as u64;
            let distinct: u64 = windows
                .map(|writes| writes.iter().collect::<HashSet<_>>().len() as u64)
                .sum();
            let before = points.last().map_or(Pages::ZERO, |&(_, pages)| pages);
            points.push((window, Pages(distinct / count).max(before)));
        }
        let curve = WwsCurve::new(&points).expect("windows ascend");
        let class = match self.order {
            Order::Uniform => AccessClass::Random,
            Order::Cyclic => AccessClass::Loop,
            Order::HotCold => AccessClass::HotCold,
        };
        Profile {
            class,
            ..Profile::new(Pages(self.total), Pages(self.total), curve, span, 1)
        }
    }
}

/// What a migration cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    /// From the first page to the last.
    pub(crate) time: Nanos,
    /// How long the guest was paused in the hand-over.
    pub(crate) downtime: Nanos,
    /// Pages sent over all channels.
    pub(crate) sent: u64,
    /// Rounds of pre-copy.
    pub(crate) rounds: u32,
    /// Pages demanded.
    pub(crate) faults: u64,
    /// How long the guest waited for them.
    pub(crate) stall: Nanos,
    /// How it ended.
    pub(crate) end: Decision,
}

/// A guest on the move.
struct Machine<'a> {
    link: &'a Link,
    limits: &'a Limits,
    writer: Writer,
    dirty: Vec<bool>,
    now: u64,
    /// When the guest writes next.
    next_write: u64,
}

impl Machine<'_> {
    fn page_time(&self) -> u64 {
        self.link.bandwidth.time_to_send(Pages(1).bytes()).0
    }

    /// The guest runs until then.
    fn run_until(&mut self, then: u64) {
        while self.next_write <= then {
            let page = self.writer.page();
            self.dirty[page] = true;
            self.next_write += self.writer.load.interval();
        }
        self.now = then;
    }

    fn dirty_pages(&self) -> u64 {
        self.dirty.iter().filter(|dirty| **dirty).count() as u64
    }

    /// Sends what is dirty; returns how much and how long it took.
    fn round(&mut self, clear: Clear) -> (u64, u64) {
        let start = self.now;
        let to_send: Vec<usize> = (0..self.dirty.len()).filter(|page| self.dirty[*page]).collect();
        if clear == Clear::Round {
            self.dirty.fill(false);
        }
        for (sent, page) in (1..).zip(&to_send) {
            self.dirty[*page] &= clear == Clear::Round;
            self.run_until(start + sent * self.page_time());
        }
        let duration = self.now - start;
        self.run_until(start + (duration + self.link.round_trip.0).max(self.limits.min_round.0));
        (to_send.len() as u64, duration)
    }

    /// Pushes what is dirty in ascending order while the guest runs and demands; returns faults and stall.
    fn post_copy(&mut self) -> (u64, u64) {
        let stall = self.link.round_trip.0 + self.link.fault_overhead.0 + self.page_time();
        let mut missing = std::mem::take(&mut self.dirty);
        let (mut faults, mut waited, mut owed, mut push) = (0, 0, 0u64, 0);
        self.next_write = self.now;
        loop {
            // What was demanded has gone ahead on the fault channel, and its bytes are taken from the pushes.
            let pushed = if owed > 0 {
                owed -= 1;
                None
            } else {
                push = (push..missing.len())
                    .find(|page| missing[*page])
                    .unwrap_or(missing.len());
                if push == missing.len() {
                    break;
                }
                Some(push)
            };
            self.now += self.page_time();
            while self.next_write <= self.now {
                let page = self.writer.page();
                if pushed == Some(page) && missing[page] {
                    // On its way already.
                    missing[page] = false;
                    faults += 1;
                    waited += self.now - self.next_write;
                    self.next_write = self.now;
                } else if missing[page] {
                    missing[page] = false;
                    faults += 1;
                    owed += 1;
                    waited += stall;
                    self.next_write += stall;
                }
                self.next_write += self.writer.load.interval();
            }
            if let Some(page) = pushed {
                missing[page] = false;
            }
        }
        self.now += self.link.round_trip.0;
        (faults, waited)
    }
}

/// Migrates the load; `None` if it has not ended after 1000 rounds.
///
/// # Panics
/// If the strategy needs storage that the link has not.
pub(crate) fn migrate(load: Load, strategy: &Strategy, link: &Link, limits: &Limits) -> Option<Ran> {
    let mut machine = Machine {
        link,
        limits,
        writer: Writer::new(load),
        dirty: vec![strategy.first == First::Serial; load.total as usize],
        now: 0,
        next_write: 0,
    };
    let setting = SwitchSetting {
        downtime: limits.downtime.saturating_sub(limits.handover),
        max_rounds: limits.max_rounds,
        fault_stall: Nanos(link.round_trip.0 + link.fault_overhead.0 + machine.page_time()),
        handover_cost: limits.handover,
        ..SwitchSetting::new(Pages(load.total))
    };
    let mut switcher = Switcher::new(strategy.switch, setting);
    let (mut sent, merged_at) = match strategy.first {
        First::Serial => (0, 0),
        First::Parallel => {
            let storage = link.storage_bandwidth.expect("the strategy copies over storage");
            (load.total, storage.time_to_send(Pages(load.total).bytes()).0)
        }
    };
    let mut rounds = 0;
    let mut previous_dirty = Pages(load.total);
    let mut decision = Decision::PostCopy;
    if !switcher.starts_with_post_copy() {
        decision = loop {
            rounds += 1;
            let (pages, duration) = machine.round(strategy.clear);
            sent += pages;
            let end = RoundEnd {
                round: rounds,
                sent: Pages(pages),
                dirty: Pages(machine.dirty_pages()),
                previous_dirty,
                duration: Nanos(duration),
                elapsed: Nanos(machine.now),
            };
            previous_dirty = end.dirty;
            let verdict = switcher.on_round(&end);
            if machine.now < merged_at {
                continue;
            }
            match verdict.decision {
                Decision::Continue if rounds >= 1000 => return None,
                Decision::Continue => {}
                end => break end,
            }
        };
    }
    let rest = machine.dirty_pages();
    let mut ran = Ran {
        time: Nanos::ZERO,
        downtime: limits.handover,
        sent: sent + rest,
        rounds,
        faults: 0,
        stall: Nanos::ZERO,
        end: decision,
    };
    machine.now += limits.handover.0;
    if decision == Decision::StopCopy {
        let copying = rest * machine.page_time();
        ran.downtime = Nanos(limits.handover.0 + copying);
        machine.now += copying;
    } else {
        let (faults, stall) = machine.post_copy();
        (ran.faults, ran.stall) = (faults, Nanos(stall));
    }
    ran.time = Nanos(machine.now);
    Some(ran)
}
