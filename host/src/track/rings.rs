//! The dirty rings of all vCPUs of a VM: what they say together, and what to do when one overran.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use dunlin_core::units::Gfn;

use super::pagemap::set_bits;
use super::ring::{Entry, Reader, is_pushed};
use crate::guest::GuestError;
use crate::memory::Run;

/// How often a reset that was interrupted is tried again before the ring counts as broken.
const RESET_TRIES: u32 = 1000;

/// What is needed of KVM.
pub trait RingKernel {
    /// The entries of a vCPU's ring.
    fn ring(&self, vcpu: usize) -> &[Entry];

    /// Resets entries that were given back, of all rings, and says how many.
    ///
    /// # Errors
    /// [`GuestError::Tracking`].
    fn reset(&self) -> Result<u32, GuestError>;

    /// Switches logging of all slots on or off. Switched on, all pages are protected again; switched off, nothing is pushed any more when
    /// this returns.
    ///
    /// # Errors
    /// [`GuestError::Tracking`].
    fn set_logging(&self, on: bool) -> Result<(), GuestError>;
}

/// What others may know of the rings without waiting for whoever harvests them.
#[derive(Debug)]
pub struct RingGauges {
    next: Vec<AtomicU32>,
    resets: Vec<AtomicU64>,
}

impl RingGauges {
    /// Entries of this vCPU's ring that were reset so far.
    pub fn resets(&self, vcpu: usize) -> u64 {
        self.resets[vcpu].load(Ordering::Acquire)
    }

    /// Whether at least half of the ring waits to be harvested. May be wrong for a moment while somebody does so.
    pub fn is_half_full(&self, vcpu: usize, ring: &[Entry]) -> bool {
        let half = u32::try_from(ring.len() / 2).unwrap_or(0);
        is_pushed(ring, self.next[vcpu].load(Ordering::Relaxed).wrapping_add(half))
    }
}

/// What one vCPU's ring held at a harvest, in its order; a page that the same vCPU's ring held before in the same window is left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingPass {
    /// When it was harvested, in nanoseconds of CLOCK_MONOTONIC: the pages were written before.
    pub at_ns: u64,
    /// Whose ring.
    pub vcpu: u32,
    /// The pages.
    pub pages: Vec<Gfn>,
}

/// What rings tell beyond which pages were written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RingWindow {
    /// The order of writes since the last window, where it is kept; ascending times.
    pub passes: Vec<RingPass>,
    /// For each vCPU the entries harvested since it was built, up to the end of this window.
    pub entries: Vec<u64>,
    /// Harvests since the guest was built that could not be proved complete, each of which made all pages dirty.
    pub overruns: u64,
}

/// All rings of a VM. Owned by whoever harvests; the vCPUs know its [`RingGauges`].
#[derive(Debug)]
pub struct Rings {
    readers: Vec<Reader>,
    /// Where the pages of each slot lie.
    slots: Vec<Run>,
    gauges: Arc<RingGauges>,
    /// What has been harvested and not been taken, one bit for each page.
    dirty: Vec<u64>,
    order: Option<Order>,
    entries: Vec<u64>,
    overruns: u64,
}

/// The order of writes since the last window.
#[derive(Debug)]
struct Order {
    /// For each vCPU the pages that its ring has held, one bit each.
    seen: Vec<Vec<u64>>,
    passes: Vec<RingPass>,
}

impl Rings {
    /// Of so many vCPUs with new rings of `size` entries each, and a VM whose slots hold these pages, slot 0 first.
    pub fn new(vcpus: usize, size: u32, slots: Vec<Run>) -> Self {
        let end = slots.iter().map(|slot| slot.end().0).max().unwrap_or(0);
        let words = usize::try_from(end.div_ceil(64)).expect("bounded by the layout");
        Self {
            readers: (0..vcpus).map(|_| Reader::new(size)).collect(),
            slots,
            gauges: Arc::new(RingGauges {
                next: (0..vcpus).map(|_| AtomicU32::new(0)).collect(),
                resets: (0..vcpus).map(|_| AtomicU64::new(0)).collect(),
            }),
            dirty: vec![0; words],
            order: None,
            entries: vec![0; vcpus],
            overruns: 0,
        }
    }

    /// What the vCPUs may know.
    pub fn gauges(&self) -> Arc<RingGauges> {
        Arc::clone(&self.gauges)
    }

    /// Harvests that could not be proved complete.
    pub const fn overruns(&self) -> u64 {
        self.overruns
    }

    /// Harvests every ring. Pages that are found are dirty until [`take`](Self::take), and protected again when this returns; if a ring
    /// overran, all pages are.
    ///
    /// # Errors
    /// [`GuestError::Tracking`]; pages may have been written that no harvest will name.
    pub fn harvest(&mut self, kernel: &impl RingKernel) -> Result<(), GuestError> {
        for vcpu in 0..self.readers.len() {
            if !self.harvest_one(kernel, vcpu)? {
                return self.recover(kernel, vcpu);
            }
        }
        Ok(())
    }

    /// A vCPU was not run because its ring is full; before it was to run, so many of its entries had been [reset](RingGauges::resets). It
    /// may be tried again after this.
    ///
    /// # Errors
    /// As [`harvest`](Self::harvest).
    pub fn on_full(&mut self, kernel: &impl RingKernel, vcpu: usize, resets: u64) -> Result<(), GuestError> {
        self.harvest(kernel)?;
        if self.gauges.resets(vcpu) == resets {
            self.readers[vcpu].give_back(kernel.ring(vcpu));
            self.settle(kernel, vcpu)?;
        }
        Ok(())
    }

    /// Moves what was harvested into `dirty`, and what is known of its order into `window`.
    pub fn take(&mut self, dirty: &mut [u64], window: Option<&mut RingWindow>) {
        for (word, found) in dirty.iter_mut().zip(&mut self.dirty) {
            *word |= std::mem::take(found);
        }
        let passes = self.order.as_mut().map(Order::take).unwrap_or_default();
        if let Some(window) = window {
            window.passes = passes;
            window.entries.clone_from(&self.entries);
            window.overruns = self.overruns;
        }
    }

    /// From the next harvest on, keeps the order of writes, or does not.
    pub fn keep_order(&mut self, on: bool) {
        let words = self.dirty.len();
        let order = || Order {
            seen: self.readers.iter().map(|_| vec![0; words]).collect(),
            passes: Vec::new(),
        };
        self.order = on.then(order);
    }

    /// Throws away what the rings hold; logging is off.
    ///
    /// # Errors
    /// As [`harvest`](Self::harvest).
    pub fn discard(&mut self, kernel: &impl RingKernel) -> Result<(), GuestError> {
        for vcpu in 0..self.readers.len() {
            if !self.harvest_one(kernel, vcpu)? {
                self.readers[vcpu].forget(kernel.ring(vcpu));
            }
        }
        self.dirty.fill(0);
        if let Some(order) = &mut self.order {
            order.take();
        }
        Ok(())
    }

    /// Whether it is certain that all was found.
    fn harvest_one(&mut self, kernel: &impl RingKernel, vcpu: usize) -> Result<bool, GuestError> {
        let ring = kernel.ring(vcpu);
        let (slots, dirty) = (&self.slots, &mut self.dirty);
        let mut order = self.order.as_mut().map(|order| order.pass(vcpu));
        let mut sound = true;
        let taken = self.readers[vcpu].take(ring, |slot, offset| {
            // An entry that was overwritten while it was read can name anything.
            let found = slots.get(slot as usize).filter(|slot| offset < slot.count.0);
            let Some(gfn) = found.map(|slot| Gfn(slot.first.0 + offset)) else {
                sound = false;
                return;
            };
            set_bits(dirty, gfn.0, gfn.0 + 1);
            if let Some(pass) = &mut order {
                pass.put(gfn);
            }
        });
        self.entries[vcpu] += u64::from(taken.entries);
        if let Some(pass) = order {
            pass.finish(vcpu);
        }
        let settled = self.settle(kernel, vcpu)?;
        Ok(sound && taken.complete && settled)
    }

    /// Has KVM reset what was given back of a ring; whether all came back, and the ring stayed within a lap.
    fn settle(&mut self, kernel: &impl RingKernel, vcpu: usize) -> Result<bool, GuestError> {
        let (ring, reader) = (kernel.ring(vcpu), &mut self.readers[vcpu]);
        let given = reader.outstanding();
        let mut tries = 0;
        while reader.outstanding() > 0 {
            let reset = kernel.reset()?;
            // Every ring is settled before the next one is taken from, so these are of this one.
            reader.on_reset(reset);
            self.gauges.resets[vcpu].fetch_add(reset.into(), Ordering::Release);
            if reader.outstanding() > given || (reset == 0 && !reader.is_interrupted(ring)) || tries == RESET_TRIES {
                return Ok(false);
            }
            tries += u32::from(reset == 0);
        }
        self.gauges.next[vcpu].store(reader.next(), Ordering::Relaxed);
        Ok(given == 0 || reader.is_within_lap(ring, given))
    }

    /// Finds the way back after a ring overran: which pages it lost is unknown, so all count as written.
    fn recover(&mut self, kernel: &impl RingKernel, broken: usize) -> Result<(), GuestError> {
        self.overruns += 1;
        // While logging is off nothing is pushed; switched on again, it protects all pages, also those whose entries were lost.
        kernel.set_logging(false)?;
        self.readers[broken].forget(kernel.ring(broken));
        for vcpu in (0..self.readers.len()).filter(|vcpu| *vcpu != broken) {
            if !self.harvest_one(kernel, vcpu)? {
                self.readers[vcpu].forget(kernel.ring(vcpu));
            }
        }
        kernel.set_logging(true)?;
        for slot in &self.slots {
            set_bits(&mut self.dirty, slot.first.0, slot.end().0);
        }
        Ok(())
    }
}

impl Order {
    fn take(&mut self) -> Vec<RingPass> {
        for pass in &self.passes {
            let seen = &mut self.seen[pass.vcpu as usize];
            pass.pages.iter().for_each(|gfn| seen[word_of(*gfn)] = 0);
        }
        std::mem::take(&mut self.passes)
    }

    fn pass(&mut self, vcpu: usize) -> OrderPass<'_> {
        OrderPass {
            seen: &mut self.seen[vcpu],
            passes: &mut self.passes,
            pages: Vec::new(),
        }
    }
}

/// The order that one pass over one ring finds.
struct OrderPass<'a> {
    seen: &'a mut [u64],
    passes: &'a mut Vec<RingPass>,
    pages: Vec<Gfn>,
}

impl OrderPass<'_> {
    fn put(&mut self, gfn: Gfn) {
        let (word, bit) = (&mut self.seen[word_of(gfn)], 1 << (gfn.0 % 64));
        if *word & bit == 0 {
            *word |= bit;
            self.pages.push(gfn);
        }
    }

    fn finish(self, vcpu: usize) {
        if !self.pages.is_empty() {
            self.passes.push(RingPass {
                at_ns: super::monotonic_ns(),
                vcpu: u32::try_from(vcpu).expect("few vCPUs"),
                pages: self.pages,
            });
        }
    }
}

fn word_of(gfn: Gfn) -> usize {
    usize::try_from(gfn.0 / 64).expect("an index of the bitmap")
}
