//! A workload of Dunlin's own, in memory of a process.

use std::thread;
use std::time::Instant;

use anyhow::{Context as _, bail};
use dunlin_core::units::{Bytes, Nanos, PAGE_SIZE, Pages as PageCount};
use dunlin_core::workload::layout::WORKLOAD;
use dunlin_core::workload::{BootBlock, Fill, Pacer, Ram, Runner, Spec, StampError};

use crate::load::{Fault, Load};

/// Any.
const SEED: u64 = 0x64756e6c696e;

/// The workload at work.
pub(crate) struct Pages {
    runner: Runner,
    pacer: Pacer,
    memory: Memory,
    /// Room for checks.
    sequences: Vec<u16>,
    started: Instant,
    due: Nanos,
}

impl Pages {
    pub(crate) fn new(spec: &str, fill: &str) -> anyhow::Result<Self> {
        let spec: Spec = spec.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
        let fill = match fill {
            "zero" => Fill::Zero,
            "random" => Fill::Random,
            _ => bail!("there is no fill `{fill}`"),
        };
        let ws = spec
            .ws()
            .context("the workload says nothing of its working set (ws=)")?;
        // Behind the ledger, which has two bytes for each page.
        let ledger = PageCount((2 * ws.0).div_ceil(PAGE_SIZE) + 1);
        let boot = BootBlock {
            memory: Bytes(WORKLOAD + ledger.bytes().0 + ws.bytes().0),
            seed: SEED,
            steps: 0,
            vcpus: 1,
            fill,
            spec,
        };
        let runner = Runner::new(&boot, 0).map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(Self {
            pacer: Pacer::new(&boot.spec, boot.vcpus, 0, Nanos(0)),
            memory: Memory::new(&boot, &runner),
            sequences: vec![0; usize::try_from(ws.0)?],
            runner,
            started: Instant::now(),
            due: Nanos(0),
        })
    }

    fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Load for Pages {
    fn work(&mut self, until: Instant) -> Result<(), Fault> {
        while Instant::now() < until {
            let due = self.started + std::time::Duration::from_nanos(self.due.0);
            let wait = due.min(until).saturating_duration_since(Instant::now());
            if !wait.is_zero() {
                thread::sleep(wait);
                continue;
            }
            let steps = self.runner.run_batch(&mut self.memory).map_err(corrupt)?;
            self.due = self.pacer.on_batch(steps, self.now());
        }
        Ok(())
    }

    fn steps(&self) -> u64 {
        self.runner.steps()
    }

    fn check(&mut self) -> Result<u64, Fault> {
        let written = self.runner.check_all(&self.memory, &mut self.sequences);
        written.map(|pages| pages.0).map_err(corrupt)
    }

    fn spoil(&mut self) {
        let last = self.runner.plan().gfn(self.runner.plan().ws().0 - 1).0 * PAGE_SIZE + 1024;
        let word = self.memory.read_u64(last);
        self.memory.write_u64(last, word ^ 1);
    }
}

fn corrupt(error: StampError) -> Fault {
    Fault::Corrupt(format!("page={:#x} {error}", error.gfn.0))
}

/// Memory whose pages are the machine's. What nobody writes takes none.
struct Memory {
    words: Vec<u64>,
    /// The first word of the first whole page.
    start: usize,
}

impl Memory {
    fn new(boot: &BootBlock, runner: &Runner) -> Self {
        let words = vec![0; ((boot.memory.0 + PAGE_SIZE) / 8) as usize];
        let start = words.as_ptr().align_offset(PAGE_SIZE as usize);
        let mut memory = Self { words, start };
        if boot.fill != Fill::Zero {
            for frames in runner.plan().fill_frames() {
                for address in (frames.start.0 * PAGE_SIZE..frames.end.0 * PAGE_SIZE).step_by(8) {
                    memory.write_u64(address, boot.fill.word(boot.seed, address));
                }
            }
        }
        memory
    }
}

impl Ram for Memory {
    fn read_u64(&self, address: u64) -> u64 {
        self.words[self.start + address as usize / 8]
    }

    fn write_u64(&mut self, address: u64, value: u64) {
        self.words[self.start + address as usize / 8] = value;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn worked(fill: &str) -> Pages {
        let mut pages = Pages::new("uniform,ws=2MiB", fill).expect("fits");
        while pages.steps() < 2000 {
            pages.work(Instant::now() + Duration::from_millis(1)).expect("right");
        }
        pages
    }

    #[test]
    fn pages_that_nobody_spoils_are_intact() {
        for fill in ["zero", "random"] {
            let mut pages = worked(fill);
            assert!(pages.check().expect("intact") > 400, "{fill}");
            pages.work(Instant::now() + Duration::from_millis(5)).expect("right");
            pages.check().expect("intact");
        }
    }

    #[test]
    fn a_spoilt_page_is_found() {
        for fill in ["zero", "random"] {
            let mut pages = worked(fill);
            pages.spoil();
            let Err(Fault::Corrupt(why)) = pages.check() else {
                panic!("not found")
            };
            assert!(why.starts_with("page=0x"), "{why}");
            pages.spoil();
            pages.check().expect("as it was");
        }
    }

    #[test]
    fn a_lost_write_is_found() {
        let mut pages = worked("zero");
        // A whole page as it was before its first write.
        let start = pages.runner.plan().gfn(7).0 * PAGE_SIZE;
        for address in (start..start + PAGE_SIZE).step_by(8) {
            pages.memory.write_u64(address, 0);
        }
        assert!(matches!(pages.check(), Err(Fault::Corrupt(_))));
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for (spec, fill) in [("uniform", "zero"), ("uniform,ws=1MiB", "full"), ("nothing", "zero")] {
            assert!(Pages::new(spec, fill).is_err(), "{spec} {fill}");
        }
    }
}
