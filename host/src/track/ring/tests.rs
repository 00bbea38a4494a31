//! Rings against a model of KVM's side, in every interleaving that chance comes upon.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};

use dunlin_core::units::{Gfn, Pages};
use proptest::prelude::*;

use super::*;
use crate::guest::GuestError;
use crate::memory::Run;
use crate::track::rings::{RingKernel, RingWindow, Rings};

const SIZE: u32 = ENTRIES_MIN;
const PAGES: u64 = 6000;

/// Where KVM's side of one ring stands.
#[derive(Default)]
struct Side {
    dirty: Cell<u32>,
    reset: Cell<u32>,
}

/// KVM's side: `kvm_dirty_ring_push`, `kvm_dirty_ring_reset` and `kvm_dirty_ring_check_request` of virt/kvm/dirty_ring.c.
struct Model {
    rings: Vec<Vec<Entry>>,
    sides: Vec<Side>,
    logging: Cell<bool>,
    /// On hardware, pages that may be written without an entry.
    open: Option<RefCell<BTreeSet<u64>>>,
    /// Entries that KVM keeps in reserve.
    reserved: u32,
    /// What guests write while user space works: so many pages at each moment at which they can.
    meanwhile: RefCell<VecDeque<Vec<u64>>>,
    /// Pages whose newest content nobody has been told of.
    untold: RefCell<BTreeSet<u64>>,
}

impl Model {
    fn new(vcpus: usize, hardware: bool) -> Self {
        Self {
            rings: (0..vcpus)
                .map(|_| (0..SIZE).map(|_| Entry::default()).collect())
                .collect(),
            sides: (0..vcpus).map(|_| Side::default()).collect(),
            logging: Cell::new(false),
            open: hardware.then(RefCell::default),
            reserved: 64,
            meanwhile: RefCell::default(),
            untold: RefCell::default(),
        }
    }

    fn write(&self, vcpu: usize, page: u64) {
        self.untold.borrow_mut().insert(page);
        if !self.logging.get() {
            return;
        }
        if let Some(open) = &self.open
            && !open.borrow_mut().insert(page)
        {
            return;
        }
        let side = &self.sides[vcpu];
        let entry = &self.rings[vcpu][(side.dirty.get() & (SIZE - 1)) as usize];
        entry.slot.store(0, Ordering::Relaxed);
        entry.offset.store(page, Ordering::Relaxed);
        entry.flags.store(DIRTY, Ordering::Release);
        side.dirty.set(side.dirty.get().wrapping_add(1));
    }

    /// The writes that are due at this moment.
    fn let_write(&self) {
        let pages = self.meanwhile.borrow_mut().pop_front();
        for page in pages.into_iter().flatten() {
            self.write(usize::try_from(page).unwrap() % self.sides.len(), page);
        }
    }

    fn used(&self, vcpu: usize) -> u32 {
        let side = &self.sides[vcpu];
        side.dirty.get().wrapping_sub(side.reset.get())
    }

    fn is_soft_full(&self, vcpu: usize) -> bool {
        self.used(vcpu) >= SIZE - self.reserved
    }

    fn protect(&self, page: u64) {
        if let Some(open) = &self.open {
            open.borrow_mut().remove(&page);
        }
    }
}

impl RingKernel for Model {
    fn ring(&self, vcpu: usize) -> &[Entry] {
        // Whoever looks at a ring gives the guest time to write.
        self.let_write();
        &self.rings[vcpu]
    }

    fn reset(&self) -> Result<u32, GuestError> {
        let mut count = 0;
        for (ring, side) in self.rings.iter().zip(&self.sides) {
            loop {
                let entry = &ring[(side.reset.get() & (SIZE - 1)) as usize];
                if entry.flags.load(Ordering::Acquire) & RESET == 0 {
                    break;
                }
                let page = entry.offset.load(Ordering::Relaxed);
                if count % 7 == 0 {
                    self.let_write();
                }
                entry.flags.store(0, Ordering::Release);
                side.reset.set(side.reset.get().wrapping_add(1));
                self.protect(page);
                count += 1;
            }
            assert!(
                side.dirty.get().wrapping_sub(side.reset.get()) < 1 << 31,
                "the reset index is beyond the dirty index"
            );
        }
        Ok(count)
    }

    fn set_logging(&self, on: bool) -> Result<(), GuestError> {
        self.let_write();
        self.logging.set(on);
        if let Some(open) = &self.open {
            open.borrow_mut().clear();
        }
        self.let_write();
        Ok(())
    }
}

/// User space: rings, and what they have told.
struct User {
    rings: Rings,
    model: Model,
}

impl User {
    fn new(vcpus: usize, hardware: bool) -> Self {
        let slots = vec![Run::new(Gfn(0), Pages(PAGES))];
        Self {
            rings: Rings::new(vcpus, SIZE, slots),
            model: Model::new(vcpus, hardware),
        }
    }

    fn harvest(&mut self) -> BTreeSet<u64> {
        self.rings.harvest(&self.model).unwrap();
        let mut words = vec![0u64; usize::try_from(PAGES.div_ceil(64)).unwrap()];
        self.rings.take(&mut words, None);
        let told: BTreeSet<u64> = (0..PAGES)
            .filter(|page| words[usize::try_from(page / 64).unwrap()] >> (page % 64) & 1 == 1)
            .collect();
        // Whoever is told of a page reads it now.
        self.model.untold.borrow_mut().retain(|page| !told.contains(page));
        told
    }

    /// Lets a vCPU run: on hardware it leaves when its ring is nearly full, under emulation after it has done all.
    fn run(&mut self, vcpu: usize, pages: impl Iterator<Item = u64>) {
        let resets = self.rings.gauges().resets(vcpu);
        self.enter(vcpu, resets);
        for page in pages {
            if self.model.open.is_some() && self.model.is_soft_full(vcpu) {
                let resets = self.rings.gauges().resets(vcpu);
                self.enter(vcpu, resets);
            }
            self.model.write(vcpu, page);
        }
    }

    /// Until KVM runs the vCPU.
    fn enter(&mut self, vcpu: usize, mut resets: u64) {
        for _ in 0..100 {
            if !self.model.is_soft_full(vcpu) {
                return;
            }
            self.rings.on_full(&self.model, vcpu, resets).unwrap();
            resets = self.rings.gauges().resets(vcpu);
        }
        panic!("KVM refuses to run the vCPU for ever");
    }
}

#[test]
fn entries_come_in_order_and_the_ring_goes_round() {
    let mut user = User::new(1, false);
    user.model.set_logging(true).unwrap();
    for lap in 0..50u64 {
        let pages: Vec<u64> = (0..700).map(|index| (lap * 701 + index * 13) % PAGES).collect();
        user.rings.keep_order(true);
        user.run(0, pages.iter().copied());
        user.rings.harvest(&user.model).unwrap();
        let mut window = RingWindow::default();
        user.rings
            .take(&mut vec![0; PAGES.div_ceil(64) as usize], Some(&mut window));
        let found: Vec<u64> = window
            .passes
            .iter()
            .flat_map(|pass| &pass.pages)
            .map(|gfn| gfn.0)
            .collect();
        let mut seen = BTreeSet::new();
        let once: Vec<u64> = pages.into_iter().filter(|page| seen.insert(*page)).collect();
        assert_eq!(found, once);
        assert_eq!((window.entries[0], window.overruns), ((lap + 1) * 700, 0));
    }
}

#[test]
fn an_overrun_makes_every_page_dirty_and_the_ring_finds_itself_again() {
    // Just a lap, a little more, several laps, and exactly so many that the indices meet.
    for pushed in [SIZE, SIZE + 1, 5 * SIZE / 2, 4 * SIZE] {
        let mut user = User::new(1, false);
        user.model.set_logging(true).unwrap();
        user.run(0, [1, 2, 3].into_iter());
        assert_eq!(user.harvest(), BTreeSet::from([1, 2, 3]));
        user.run(0, (0..u64::from(pushed)).map(|index| index % PAGES));
        assert_eq!(user.harvest().len() as u64, PAGES, "{pushed} entries");
        assert_eq!(user.rings.overruns(), 1);
        user.run(0, [7, 8].into_iter());
        assert_eq!(user.harvest(), BTreeSet::from([7, 8]), "{pushed} entries");
        for round in 0..3 * u64::from(SIZE) / 1000 {
            user.run(
                0,
                (0..1000).map(|index| round * 1000 + index).filter(|page| *page < PAGES),
            );
            assert_eq!(
                user.harvest().len() as u64,
                1000.min(PAGES.saturating_sub(round * 1000))
            );
        }
        assert_eq!(user.rings.overruns(), 1, "{pushed} entries");
        assert_eq!(
            user.model.used(0),
            0,
            "{pushed} entries: both indices are where they should be"
        );
    }
}

#[test]
fn a_full_ring_on_hardware_is_no_overrun() {
    let mut user = User::new(1, true);
    user.model.set_logging(true).unwrap();
    user.run(0, 0..PAGES);
    let told = user.harvest();
    assert_eq!((told.len() as u64, user.rings.overruns()), (PAGES, 0));
}

#[test]
fn an_entry_that_names_no_page_counts_as_overwritten() {
    let mut user = User::new(1, false);
    user.model.set_logging(true).unwrap();
    user.model.write(0, PAGES);
    assert_eq!(user.harvest().len() as u64, PAGES);
    assert_eq!(user.rings.overruns(), 1);
}

/// The moment that nothing but the look at the lap's last entry gives away.
#[test]
fn a_push_that_falls_on_a_reset_is_noticed() {
    let mut user = User::new(1, false);
    user.model.set_logging(true).unwrap();
    user.run(0, (0..1000).map(|index| index % 50));
    // Before these are reset, the rest of the lap is pushed, and then one onto the entry that is just being reset.
    let rest = (1000..SIZE).map(|index| u64::from(100 + index % 50)).collect();
    user.model.meanwhile.replace(VecDeque::from([vec![], rest, vec![777]]));
    assert_eq!(user.harvest().len() as u64, PAGES);
    assert_eq!(user.rings.overruns(), 1);
}

#[derive(Clone, Debug)]
enum Deed {
    Run { vcpu: usize, first: u64, count: u32 },
    Harvest { meanwhile: Vec<Vec<u64>> },
}

fn deed(vcpus: usize) -> impl Strategy<Value = Deed> {
    let count = prop_oneof![6 => 0..300u32, 2 => 300..SIZE, 2 => SIZE - 700..SIZE + 700, 1 => SIZE..5 * SIZE];
    prop_oneof![
        3 => (0..vcpus, 0..PAGES, count).prop_map(|(vcpu, first, count)| Deed::Run { vcpu, first, count }),
        2 => prop::collection::vec(prop::collection::vec(0..PAGES, 0..5), 0..100)
            .prop_map(|meanwhile| Deed::Harvest { meanwhile }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Whatever is pushed when: after a harvest with all vCPUs stopped, everybody has been told of every page.
    #[test]
    fn nothing_is_lost(hardware: bool, vcpus in 1..3usize, deeds in prop::collection::vec(deed(2), 1..30)) {
        let mut user = User::new(vcpus, hardware);
        user.rings.keep_order(true);
        user.model.set_logging(true).unwrap();
        for deed in deeds {
            match deed {
                Deed::Run { vcpu, first, count } => {
                    user.run(vcpu % vcpus, (0..u64::from(count)).map(|index| (first + index * 7) % PAGES));
                }
                Deed::Harvest { meanwhile } => {
                    // On hardware a vCPU whose ring is nearly full does not run.
                    if !hardware || (0..vcpus).all(|vcpu| user.model.used(vcpu) < SIZE / 2) {
                        user.model.meanwhile.replace(meanwhile.into());
                    }
                    user.harvest();
                    user.model.meanwhile.borrow_mut().clear();
                }
            }
        }
        user.harvest();
        prop_assert!(user.model.untold.borrow().is_empty(), "never told: {:?}", user.model.untold.borrow());
        for vcpu in 0..vcpus {
            user.enter(vcpu, user.rings.gauges().resets(vcpu));
        }
        if hardware {
            prop_assert_eq!(user.rings.overruns(), 0);
        }
    }
}
