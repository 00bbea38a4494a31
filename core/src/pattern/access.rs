//! In which order pages are written: stride, loop, random or hot-cold.

use core::fmt;

use super::AccessClass;
use super::heat::{Heat, HeatSlot};
use crate::units::{Gfn, Ratio};

/// Distances between neighbouring writes of a vCPU that are remembered.
const STEPS: usize = 4;
/// Fewer writes than this tell nothing.
const WRITES_MIN: u64 = 100;

/// Where a vCPU wrote last, and in which steps it came there. 48 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Trail {
    last: Option<u64>,
    /// Distances between neighbouring writes, the latest first; 0 if there were fewer.
    steps: [i64; STEPS],
}

impl Trail {
    /// Takes a write in: `None` if it is the first, or of the same page as the one before; else whether it goes on
    /// in the direction of the step before, by a distance that was seen among the last four.
    fn on_write(&mut self, gfn: u64) -> Option<bool> {
        let last = self.last.replace(gfn)?;
        let step = gfn.wrapping_sub(last) as i64;
        if step == 0 {
            return None;
        }
        let in_order = step.signum() == self.steps[0].signum() && self.steps.contains(&step);
        let place = self.steps.iter().position(|&seen| seen == step).unwrap_or(STEPS - 1);
        self.steps[..=place].rotate_right(1);
        self.steps[0] = step;
        Some(in_order)
    }
}

/// A write of a vCPU that there is no [`Trail`] for. [`AccessOrder::rejected`] counts how often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct NoTrail {
    /// The vCPU, counted from 0.
    pub vcpu: u32,
    /// How many there is room for.
    pub vcpus: u32,
}

impl fmt::Display for NoTrail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a write of vCPU {}, but there is room for {} from 0 on: give one trail per vCPU",
            self.vcpu, self.vcpus
        )
    }
}

impl core::error::Error for NoTrail {}

/// Watches in which order a guest writes its pages and how unevenly, in bounded memory: 48 bytes per vCPU and the
/// caller's slots, of which 4096 (64 KiB) do for any guest.
///
/// The order is that of each vCPU by itself. A write is *in order* if it goes on in the direction of the vCPU's
/// last step (to another page), by one of its last four distances: steps of 1, steps of 7, and the 1, 1, 3 of a stream that
/// writes three pages of five all are. From this, in this order:
///
/// | of the writes | class |
/// |---|---|
/// | fewer than 100 | unknown |
/// | at least half of the steps in order, at least half of these to pages written before | loop |
/// | at least half of the steps in order | stride |
/// | at least 40 % in the hottest tenth of the pages: four times its share | hot-cold |
/// | otherwise | random |
///
/// A loop looks like a stride until it has gone round, and a hot set like chance until its pages have been written a few
/// times more than the others, which takes about two writes per page of the working set. Where a guest has fewer than a dozen pages, steps repeat by
/// chance. 40 % keeps clear of chance: writing each page once on average, uniformly, puts 21 % into the hottest tenth, and
/// Zipf's law puts 40 % there from an exponent of about 0.6 on. The thresholds are ours; no paper is the source.
#[derive(Debug)]
pub struct AccessOrder<'a> {
    trails: &'a mut [Trail],
    heat: Heat<'a>,
    writes: u64,
    steps: u64,
    in_order: u64,
    /// Of those in order, to pages written before.
    again: u64,
    rejected: u64,
}

impl<'a> AccessOrder<'a> {
    /// Nothing seen. One trail per vCPU; both slices are overwritten. O(both).
    pub fn new(trails: &'a mut [Trail], slots: &'a mut [HeatSlot]) -> Self {
        trails.fill(Trail::default());
        Self {
            trails,
            heat: Heat::new(slots),
            writes: 0,
            steps: 0,
            in_order: 0,
            again: 0,
            rejected: 0,
        }
    }

    /// A write; `again` if the page was written before, which [`Intervals::on_write`](super::Intervals::on_write) tells.
    /// O(1) on average.
    ///
    /// # Errors
    /// [`NoTrail`] if there is none for the vCPU.
    pub fn on_write(&mut self, vcpu: u32, gfn: Gfn, again: bool) -> Result<(), NoTrail> {
        let vcpus = u32::try_from(self.trails.len()).unwrap_or(u32::MAX);
        let Some(trail) = self.trails.get_mut(vcpu as usize) else {
            self.rejected += 1;
            return Err(NoTrail { vcpu, vcpus });
        };
        self.writes += 1;
        if let Some(in_order) = trail.on_write(gfn.0) {
            self.steps += 1;
            self.in_order += u64::from(in_order);
            self.again += u64::from(in_order && again);
        }
        self.heat.on_write(gfn.0);
        Ok(())
    }

    /// What the writes so far look like. O(64 · slots).
    pub fn class(&self) -> AccessClass {
        if self.writes < WRITES_MIN {
            return AccessClass::Unknown;
        }
        let at_least_half = |part: u64, whole: u64| part >= whole - part;
        if at_least_half(self.in_order, self.steps) {
            return if at_least_half(self.again, self.in_order) {
                AccessClass::Loop
            } else {
                AccessClass::Stride
            };
        }
        let (hot, all) = self.heat.hottest_tenth();
        if self.heat.pages() > 0 && hot * 10 >= all * 4 {
            AccessClass::HotCold
        } else {
            AccessClass::Random
        }
    }

    /// The share of steps that were in order; `None` without a step.
    pub const fn in_order(&self) -> Option<Ratio> {
        Ratio::new(self.in_order, self.steps)
    }

    /// The share of writes that fall on the hottest tenth of the pages, in thousandths rounded down; `None` without a
    /// write in the sample. O(64 · slots).
    pub fn hottest_tenth_milli(&self) -> Option<u16> {
        let (hot, all) = self.heat.hottest_tenth();
        // At most 1000.
        (hot * 1000).checked_div(all).map(|milli| milli as u16)
    }

    /// Writes taken in.
    pub const fn writes(&self) -> u64 {
        self.writes
    }

    /// Writes refused.
    pub const fn rejected(&self) -> u64 {
        self.rejected
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The class of one vCPU's writes, and how many steps were in order.
    fn class(writes: impl IntoIterator<Item = u64>) -> (AccessClass, u64, u64) {
        let (mut trails, mut slots) = ([Trail::default(); 1], [HeatSlot::default(); 256]);
        let mut order = AccessOrder::new(&mut trails, &mut slots);
        let mut seen = BTreeSet::new();
        for gfn in writes {
            order.on_write(0, Gfn(gfn), !seen.insert(gfn)).expect("a trail");
        }
        (order.class(), order.in_order, order.steps)
    }

    #[test]
    fn steps_in_order_by_hand() {
        let mut trail = Trail::default();
        let verdicts = [10, 11, 12, 12, 15, 16, 17, 20, 13, 6, 20].map(|gfn| trail.on_write(gfn));
        let (new, other, order) = (None, Some(false), Some(true));
        // Steps: 1 1 0 3 1 1 3 −7 −7 14.
        assert_eq!(
            verdicts,
            [new, other, order, new, other, order, order, order, other, order, other]
        );
    }

    #[test]
    fn a_few_shapes() {
        assert_eq!(class(0..99).0, AccessClass::Unknown);
        assert_eq!(class(0..100).0, AccessClass::Stride);
        assert_eq!(class((0..100).rev()).0, AccessClass::Stride);
        assert_eq!(class((0..100).map(|n| n * 512)).0, AccessClass::Stride);
        assert_eq!(class((0..1000).map(|n| n % 100)).0, AccessClass::Loop);
        assert_eq!(class([7; 100]), (AccessClass::Loop, 0, 0), "a loop over one page");
        assert_eq!(
            class((0..200).map(|n| n % 2)).0,
            AccessClass::Random,
            "to and fro is no order"
        );
        assert_eq!(
            class((0..200).map(|n| if n % 2 == 0 { 5 } else { n * n * n % 1009 })).0,
            AccessClass::HotCold
        );
        assert_eq!(class((0..500).map(|n| n * n * n % 1009)).0, AccessClass::Random);
    }

    #[test]
    fn a_loop_is_one_from_the_second_round_on() {
        // Round 1 has 97 steps in order after the first, and as many again are needed.
        assert_eq!(class((0..296).map(|n| n % 100)).0, AccessClass::Loop);
        assert_eq!(class((0..150).map(|n| n % 100)).0, AccessClass::Stride);
    }

    #[test]
    fn a_vcpu_without_a_trail_is_refused() {
        let (mut trails, mut slots) = ([Trail::default(); 2], [HeatSlot::default(); 4]);
        let mut order = AccessOrder::new(&mut trails, &mut slots);
        assert_eq!(order.on_write(2, Gfn(1), false), Err(NoTrail { vcpu: 2, vcpus: 2 }));
        assert_eq!((order.rejected(), order.writes()), (1, 0));
        assert_eq!((order.in_order().is_none(), order.hottest_tenth_milli()), (true, None));
    }

    #[test]
    fn the_ends_of_the_address_space_do_not_overflow() {
        let far = [0, u64::MAX, 0, 1 << 63, 0, u64::MAX / 2];
        assert_ne!(class(far.into_iter().cycle().take(200)).0, AccessClass::Unknown);
    }
}
