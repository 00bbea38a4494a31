//! Taking a trace in, item by item.

use dunlin_core::pattern::{AccessOrder, Intervals, Profile, Samples, Sharing};
use dunlin_core::tracefile::{Head, Item, Resolution, VCPU_UNKNOWN};
use dunlin_core::units::{Gfn, Nanos};

use super::frames::Frames;
use super::harvest::Harvest;
use super::heat::Heat;
use super::rate::Rate;
use super::steps::Steps;
use super::touch::FirstTouch;
use super::{Tables, report};
use crate::report::{LossReport, TraceReport};

/// Windows over which rates are taken where writes have times.
const WINDOWS: [Nanos; 5] = [
    Nanos::from_millis(1),
    Nanos::from_millis(10),
    Nanos::from_millis(100),
    Nanos::from_secs(1),
    Nanos::from_secs(10),
];
/// And where they do not: each harvest, and whole harvests that take at least so long.
const HARVESTED: [Nanos; 4] = [
    Nanos(1),
    Nanos::from_millis(100),
    Nanos::from_secs(1),
    Nanos::from_secs(10),
];
/// The first column of a heat map in time.
const COLUMN: Nanos = Nanos::from_millis(1);
/// A source has every write if so many events are of pages that were written in the same window before: one in ten. Where pages are
/// protected one after the other, some are written before the last is.
const EACH_WRITE: u64 = 10;
/// Losses whose times are kept.
const LOSSES: usize = 32;
/// Missing parts that are named.
const GAPS: usize = 8;

/// When pages were written last: at a time, or in a window.
#[derive(Debug)]
pub(super) enum Writes<'t> {
    Times(Intervals<'t>),
    Windows(Samples<'t>),
}

/// What is known after some part of a trace. Items go in as they come, from a file or from a guest that is being watched; a
/// report can be had at any time.
///
/// Memory: that of the [`Tables`], 4 bytes for each page written, and about 200 KiB. O(1) per write.
#[derive(Debug)]
pub struct Analysis<'t> {
    pub(super) head: Head,
    pub(super) frames: Frames,
    pub(super) writes: Writes<'t>,
    pub(super) order: AccessOrder<'t>,
    /// `None` for a single vCPU.
    pub(super) sharing: Option<Sharing<'t>>,
    pub(super) counts: &'t mut [u32],
    pub(super) rates: Vec<Rate>,
    pub(super) heat: Heat,
    pub(super) touch: FirstTouch,
    pub(super) harvest: Harvest,
    /// Writes to a page that had been written since the harvest before.
    pub(super) again: u64,
    pub(super) vcpus: Vec<u64>,
    pub(super) unknown: u64,
    pub(super) events: u64,
    /// Events in the window under way.
    pub(super) open: u64,
    /// Writes outside RAM.
    pub(super) rejected: u64,
    pub(super) losses: Vec<LossReport>,
    /// `None` if nobody knows.
    pub(super) lost: Option<u64>,
    /// Parts of the trace that are missing, in words; the first of them.
    pub(super) gaps: Vec<String>,
    pub(super) steps: Steps,
    pub(super) now: Nanos,
    pub(super) end: Option<(Nanos, Nanos)>,
}

impl<'t> Analysis<'t> {
    /// Of a trace that begins with this. The tables are those [for it](Tables::for_guest); what is in them does not matter. O(pages).
    pub fn new(head: &Head, tables: &'t mut Tables) -> Self {
        let by_window = head.source.resolution() == Resolution::Windows;
        tables.counts.fill(0);
        let writes = match by_window {
            true => Writes::Windows(Samples::new(&mut tables.last)),
            false => Writes::Times(Intervals::new(&mut tables.last, Nanos::ZERO)),
        };
        let windows = if by_window { &HARVESTED[..] } else { &WINDOWS };
        // A harvest at the end of a recording may follow the one before at once; it is no window.
        let whole = if by_window {
            Nanos(head.window.0 / 2)
        } else {
            Nanos::ZERO
        };
        Self {
            head: head.clone(),
            frames: Frames::of(&head.regions),
            writes,
            order: AccessOrder::new(&mut tables.trails, &mut tables.slots),
            sharing: (!tables.sharing.is_empty()).then(|| Sharing::new(&mut tables.sharing)),
            counts: &mut tables.counts,
            rates: windows.iter().map(|window| Rate::over(whole.max(*window))).collect(),
            heat: Heat::new(if by_window { 1 } else { COLUMN.0 }),
            touch: FirstTouch::new(by_window),
            harvest: Harvest::default(),
            again: 0,
            vcpus: vec![0; head.vcpus as usize],
            unknown: 0,
            events: 0,
            open: 0,
            rejected: 0,
            losses: Vec::new(),
            lost: Some(0),
            gaps: Vec::new(),
            steps: Steps::default(),
            now: Nanos::ZERO,
            end: None,
        }
    }

    /// The next item. O(1), a run O(its pages), a harvest O(vCPUs).
    #[inline]
    pub fn take(&mut self, item: &Item) {
        if let Some(at) = item.at() {
            self.now = self.now.max(at);
        }
        match *item {
            Item::Write { vcpu, gfn, .. } => self.on_event(gfn, Some(vcpu)),
            Item::Dirty { run } => {
                // A run may be said to go on for ever; what is beyond RAM is only counted.
                let (first, end) = (run.first.0, run.end().0);
                let last = end.min(self.counts.len() as u64);
                (first..last).for_each(|gfn| self.on_event(Gfn(gfn), None));
                self.rejected = self.rejected.saturating_add(end - last.clamp(first, end));
            }
            Item::WindowEnd { at, vcpu } => {
                if self.harvest.on_end(at, vcpu) {
                    self.end_window();
                }
            }
            Item::Lost { at, events } => self.on_loss(at, events),
            Item::Steps { at, vcpu, steps } => self.steps.on_reading(at, vcpu, steps),
            Item::End { at, overhead } => self.end = Some((at, overhead)),
        }
    }

    #[inline]
    fn on_event(&mut self, gfn: Gfn, vcpu: Option<u32>) {
        let Some(number) = self.frames.number(gfn) else {
            self.rejected += 1;
            return;
        };
        // The tables reach to the end of RAM.
        let (since, tick) = match &mut self.writes {
            Writes::Times(intervals) => {
                let Ok(since) = intervals.on_write(gfn, self.now) else {
                    return;
                };
                for rate in &mut self.rates {
                    rate.advance_to(self.now);
                }
                (since.map(|since| since.0), self.now.0)
            }
            Writes::Windows(samples) => {
                let window = samples.windows();
                let Ok(since) = samples.on_page(gfn) else { return };
                if since == Some(0) {
                    // In several rings, or twice in one: it was dirty in this window all the same.
                    self.on_writer(gfn, vcpu, true);
                    return;
                }
                (since, window)
            }
        };
        self.events += 1;
        self.open += 1;
        let last = since.map(|since| tick - since.min(tick));
        self.again += u64::from(!self.by_window() && last.is_some_and(|last| last > self.harvest.ended().0));
        for rate in &mut self.rates {
            rate.on_page(last);
        }
        self.heat.on_event(tick, number);
        if let Some(count) = self.counts.get_mut(gfn.0 as usize) {
            *count = count.saturating_add(1);
        }
        if last.is_none() {
            self.touch.on_first(gfn, self.now);
        }
        self.on_writer(gfn, vcpu, last.is_some());
    }

    const fn by_window(&self) -> bool {
        matches!(self.writes, Writes::Windows(_))
    }

    /// What the source tells apart here: where KVM emulates, a dirty ring has each write, and not only the first of each page.
    pub(super) fn resolution(&self) -> Resolution {
        match self.head.source.resolution() {
            Resolution::FirstWrites if self.again > self.events / EACH_WRITE => Resolution::EveryWrite,
            resolution => resolution,
        }
    }

    /// Who it was; a run of dirty pages tells neither that nor an order.
    #[inline]
    fn on_writer(&mut self, gfn: Gfn, vcpu: Option<u32>, again: bool) {
        let known = vcpu.filter(|&vcpu| vcpu != VCPU_UNKNOWN);
        let Some((vcpu, count)) = known.and_then(|vcpu| Some((vcpu, self.vcpus.get_mut(vcpu as usize)?))) else {
            self.unknown += 1;
            // Of a single vCPU it is known all the same.
            if self.vcpus.len() == 1 && vcpu.is_some() {
                let _ = self.order.on_write(0, gfn, again);
            }
            return;
        };
        *count += 1;
        // There is a trail for each vCPU, and a word for each page.
        let _ = self.order.on_write(vcpu, gfn, again);
        if let Some(sharing) = &mut self.sharing {
            let _ = sharing.on_write(vcpu, gfn);
        }
    }

    fn end_window(&mut self) {
        self.open = 0;
        if let Writes::Windows(samples) = &mut self.writes {
            samples.end_window();
            self.touch.end_window();
            for rate in &mut self.rates {
                rate.on_harvest(self.harvest.ended(), samples.windows());
            }
        }
    }

    fn on_loss(&mut self, at: Nanos, events: u64) {
        let events = Some(events).filter(|events| *events < u64::MAX);
        self.lost = self.lost.zip(events).map(|(all, more)| all.saturating_add(more));
        if self.losses.len() < LOSSES {
            self.losses.push(LossReport {
                at_us: at.as_micros(),
                events,
            });
        }
    }

    /// A part of the trace is missing here, and nobody knows what was in it.
    pub fn on_gap(&mut self, why: String) {
        self.on_loss(self.now, u64::MAX);
        if self.gaps.len() < GAPS {
            self.gaps.push(why);
        }
    }

    /// How much of the trace there is by now.
    pub fn span(&self) -> Nanos {
        match (self.end, &self.writes) {
            (Some((at, _)), _) => at.max(self.now),
            // What is in no window has no length either.
            (None, Writes::Windows(_)) if self.open == 0 => self.harvest.ended(),
            (None, _) if self.events == 0 => self.now,
            // A write at the last nanosecond is inside.
            (None, _) => self.now.saturating_add(Nanos(1)),
        }
    }

    /// The guest's profile, for what decides about migrations. O(pages).
    pub fn profile(&self) -> Profile {
        report::profile(self)
    }

    /// The pages by their first write.
    pub const fn first_touch(&self) -> &FirstTouch {
        &self.touch
    }

    /// The recording's head.
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// All that is known by now; `trace` is the file's name. O(pages).
    pub fn report(&self, trace: &str) -> TraceReport {
        report::report(self, trace)
    }
}
