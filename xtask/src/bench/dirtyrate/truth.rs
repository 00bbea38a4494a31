//! Which pages a guest has really written: what it does follows from its configuration and its own count of steps.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ops::Range;

use anyhow::ensure;
use dunlin::guest::GuestConfig;
use dunlin_core::units::PAGE_SIZE;
use dunlin_core::workload::{BootBlock, Generator, Kind, Plan};

/// Bytes of a page's entry in the ledger.
const LEDGER_ENTRY: u64 = size_of::<u16>() as u64;
/// The page to which the guest writes how far it is, after each batch.
const PROGRESS_PAGES: u64 = 1;
/// What is in use of the vCPU's stack, again and again in each batch.
const STACK_PAGES: u64 = 2;

/// The workload of a guest with one vCPU, to be done again.
pub(super) struct Truth {
    boot: BootBlock,
    plan: Plan,
}

impl Truth {
    pub(super) fn new(config: &GuestConfig) -> anyhow::Result<Self> {
        let boot = config.boot_block()?;
        ensure!(boot.vcpus == 1, "the order of several vCPUs' steps is not known");
        let plan = boot.plan()?;
        Ok(Self { boot, plan })
    }

    /// How many different pages these steps write: of the working set, of the ledger, and the guest's own for progress and stack.
    pub(super) fn pages(&self, steps: Range<u64>) -> anyhow::Result<u64> {
        let mut generator = Generator::new(&self.boot.spec, self.plan.ws(), self.boot.vcpus, 0, self.boot.seed)?;
        let (ledger, entries) = self.plan.ledger(0);
        let mut written = vec![false; self.plan.ws().0 as usize];
        let Ok(()) = generator.run_steps(steps.start, |_| Ok::<(), Infallible>(()));
        let Ok(()) = generator.run_steps(steps.end - steps.start, |step| {
            written[step.page as usize] |= step.kind == Kind::Write;
            Ok::<(), Infallible>(())
        });
        ensure!(generator.steps() == steps.end, "the workload has phases");
        let written = (0..).zip(written).filter_map(|(page, written)| written.then_some(page));
        let frames = written.flat_map(|page: u64| {
            let entry = ledger + LEDGER_ENTRY * (page - entries.start);
            [self.plan.gfn(page).0, entry / PAGE_SIZE]
        });
        let frames = frames.collect::<BTreeSet<_>>();
        Ok(frames.len() as u64 + PROGRESS_PAGES + STACK_PAGES)
    }

    /// The same as a rate, in bytes per second.
    pub(super) fn rate(&self, steps: Range<u64>, seconds: f64) -> anyhow::Result<f64> {
        Ok(super::rate(self.pages(steps)?, seconds))
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use dunlin::guest::{AnyGuest, Guest as _};
    use dunlin_core::workload::layout::{PROGRESS, STACK_BYTES, STACKS, WORKLOAD};
    use dunlin_tests::{Capability, require};

    use super::super::{WORKLOADS, config};
    use super::*;

    #[test]
    fn pages_are_counted_once_and_with_their_ledger() {
        let truth = Truth::new(&config("seq,ws=16MiB")).unwrap();
        let workload = |steps| truth.pages(steps).unwrap() - PROGRESS_PAGES - STACK_PAGES;
        assert_eq!(workload(100..101), 2);
        // An entry of the ledger takes two bytes.
        assert_eq!(workload(4096..3 * 4096), 4096 + 2);
        assert_eq!(workload(2040..2060), 20 + 2);
    }

    #[test]
    fn a_guest_writes_so_many_pages_of_its_own() {
        if !require(Capability::Kvm) {
            return;
        }
        let stack = STACKS / PAGE_SIZE..(STACKS + STACK_BYTES) / PAGE_SIZE;
        for workload in WORKLOADS {
            let guest = AnyGuest::create(config(workload)).unwrap();
            guest.start_tracking().unwrap();
            guest.resume().unwrap();
            let mut dirty = vec![];
            // The first harvest has what the guest did before its first step.
            for steps in [1000, 5000] {
                let deadline = Instant::now() + Duration::from_secs(60);
                while guest.progress().steps() < steps {
                    assert!(Instant::now() < deadline, "{workload}: the guest stands still");
                    sleep(Duration::from_millis(5));
                }
                dirty = vec![0; guest.memory().layout().words()];
                guest.harvest(&mut dirty).unwrap();
            }
            let is_dirty = |gfn: &u64| dirty[(gfn / 64) as usize] >> (gfn % 64) & 1 == 1;
            let own: Vec<u64> = (0..WORKLOAD / PAGE_SIZE).filter(is_dirty).collect();
            let [progress, of_stack @ ..] = &own[..] else {
                panic!("{workload}: it has written nothing of its own");
            };
            assert_eq!(*progress, PROGRESS / PAGE_SIZE, "{workload}");
            assert_eq!(of_stack.len() as u64, STACK_PAGES, "{workload}: {own:?}");
            assert!(
                of_stack.iter().all(|page| stack.contains(page)),
                "{workload}: {own:?}, its stack is {stack:?}"
            );
        }
    }
}
