use std::collections::{BTreeMap, BTreeSet};
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::{Memory, boot, specs};
use crate::units::Bytes;
use crate::units::{Gfn, PAGE_SIZE};
use crate::workload::layout::{HOLE, PROGRESS};
use crate::workload::{BootBlock, Fill, Progress, Ram, ResumeError, Runner, RunnerState, Spec, next_free};

/// Runs all vCPUs to their end, one after the other.
fn run(boot: &BootBlock) -> Memory {
    let mut memory = Memory::new(boot);
    for vcpu in 0..boot.vcpus {
        let mut runner = Runner::new(boot, vcpu).expect("fits");
        while !runner.finished() {
            runner.run_batch(&mut memory).expect("nothing is damaged");
        }
    }
    memory
}

/// Remembers who wrote which line.
struct Watched<'a> {
    memory: &'a mut Memory,
    vcpu: u32,
    writers: &'a mut BTreeMap<u64, u32>,
}

impl Ram for Watched<'_> {
    fn read_u64(&self, address: u64) -> u64 {
        self.memory.read_u64(address)
    }

    fn write_u64(&mut self, address: u64, value: u64) {
        let writer = *self.writers.entry(address / 64).or_insert(self.vcpu);
        assert_eq!(writer, self.vcpu, "two vCPUs write the line of {address:#x}");
        self.memory.write_u64(address, value);
    }
}

#[test]
fn a_vcpu_stops_after_its_steps() {
    for (spec, steps) in [
        ("seq", 1),
        ("uniform", 1000),
        ("idle", 129),
        ("phases:(seq)*5+(idle)*6", 100),
    ] {
        let boot = BootBlock { steps, ..boot(spec, 2) };
        let mut memory = run(&boot);
        for vcpu in 0..2 {
            assert_eq!(Progress::read(vcpu, &memory).steps, steps, "{spec}");
        }
        let mut runner = Runner::new(&boot, 0).expect("fits");
        while !runner.finished() {
            assert!(runner.batch() > 0);
            runner.run_batch(&mut Memory::new(&boot)).expect("first touches only");
        }
        assert_eq!((runner.batch(), runner.steps()), (0, steps));
        assert_eq!(runner.run_batch(&mut memory), Ok(0));
        assert_eq!(runner.step(&mut memory), Ok(()));
        assert_eq!(runner.steps(), steps, "{spec}");
    }
}

#[test]
fn without_a_goal_it_never_stops() {
    let boot = boot("idle,rate=4000M", 1);
    let mut memory = Memory::new(&boot);
    let mut runner = Runner::new(&boot, 0).expect("fits");
    for _ in 0..5000 {
        assert_eq!(runner.run_batch(&mut memory), Ok(1024));
    }
    assert!(!runner.finished());
}

#[test]
fn idle_writes_its_progress_only() {
    let memory = run(&BootBlock {
        steps: 1000,
        ..boot("idle", 2)
    });
    assert!(memory.words.keys().copied().eq([PROGRESS, PROGRESS + 64]));
}

#[test]
fn seed_and_fill_are_part_of_what_decides() {
    let boot = BootBlock {
        steps: 500,
        ..boot("uniform", 1)
    };
    let first = run(&boot);
    assert_eq!(first.words, run(&boot).words);
    assert_ne!(
        first.words,
        run(&BootBlock {
            seed: 2,
            ..boot.clone()
        })
        .words
    );
    let random = run(&BootBlock {
        fill: Fill::Random,
        ..boot
    });
    assert_eq!(
        first.words, random.words,
        "a workload overwrites fill, but does not copy it"
    );
}

#[test]
fn pages_on_both_sides_of_the_hole_are_written() {
    // Few pages behind the hole, so that a small working set could not reach them: each vCPU's part is cut from all.
    let memory = (HOLE.start.0 + 100) * 4096;
    for (spec, vcpus) in [("seq", 4), ("shared:1", 2)] {
        let boot = BootBlock {
            memory: Bytes(memory),
            ..boot(spec, vcpus)
        };
        let plan = boot.plan().expect("fits");
        let mut memory = Memory::new(&boot);
        let last = plan.ws().0 - 1;
        let part = plan.part(vcpus - 1);
        let mut runner = Runner::new(&boot, vcpus - 1).expect("fits");
        if spec == "seq" {
            // Not through a million pages: from a state shortly before the end of the part.
            let skipped = part.end - part.start - 200;
            let state = std::format!(
                "{{\"generator\":{{\"step\":{skipped},\"random\":1,\"cursor\":{skipped},\"counter\":0}}}}"
            );
            let state = serde_json::from_str(&state).expect("numbers");
            runner = Runner::resume(&boot, vcpus - 1, state).expect("reachable");
        }
        let mut pages = BTreeSet::new();
        let steps = if spec == "seq" { 200 } else { 60_000 };
        for _ in 0..steps {
            runner.step(&mut memory).expect("nothing is damaged");
        }
        pages.extend(
            memory
                .words
                .keys()
                .map(|address| address / 4096)
                .filter(|gfn| *gfn >= plan.gfn(0).0),
        );
        assert!(
            pages.iter().all(|gfn| !(HOLE.start.0..HOLE.end.0).contains(gfn)),
            "{spec}"
        );
        assert!(pages.iter().all(|gfn| *gfn <= plan.gfn(last).0), "{spec}");
        if spec == "seq" {
            let expected = (last - 199..=last).map(|page| plan.gfn(page).0);
            assert!(pages.into_iter().eq(expected));
        } else {
            assert!(
                pages.range(HOLE.end.0..).next().is_some(),
                "of 60 000 draws some are behind the hole"
            );
        }
    }
}

#[test]
fn a_memory_without_16_bit_access_gets_it() {
    let boot = boot("seq", 1);
    let mut memory = Memory::new(&boot);
    memory.write_u64(0x20_0000, 0x4444_3333_2222_1111);
    for (address, value) in [(0x20_0000, 0x1111), (0x20_0002, 0x2222), (0x20_0006, 0x4444)] {
        assert_eq!(memory.read_u16(address), value);
    }
    memory.write_u16(0x20_0004, 0xabcd);
    assert_eq!(memory.read_u64(0x20_0000), 0x4444_abcd_2222_1111);
}

#[test]
fn a_state_beyond_the_goal_is_refused() {
    let endless = boot("seq", 1);
    let mut runner = Runner::new(&endless, 0).expect("fits");
    runner.run_batch(&mut Memory::new(&endless)).expect("fine");
    let state = runner.state();
    assert!(
        Runner::resume(
            &BootBlock {
                steps: 64,
                ..endless.clone()
            },
            0,
            state
        )
        .is_ok()
    );
    let refused = Runner::resume(&BootBlock { steps: 63, ..endless }, 0, state).map(|_| ());
    assert_eq!(refused, Err(ResumeError::State));
}

fn boots() -> impl Strategy<Value = BootBlock> {
    (specs(4), any::<u64>(), 1u64..400, 1u32..=4, any::<bool>()).prop_map(|(spec, seed, steps, vcpus, random)| {
        let spec = match spec.ws() {
            Some(_) => spec,
            None => spec.with_ws(Some(crate::units::Pages(300))),
        };
        let fill = if random { Fill::Random } else { Fill::Zero };
        BootBlock {
            spec,
            seed,
            steps,
            vcpus,
            memory: Bytes(4 << 20),
            fill,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The heart of it: however the vCPUs take turns, RAM ends up the same, and no line has two writers.
    #[test]
    fn any_interleaving_gives_the_same_memory(
        boot in boots(),
        turns in proptest::collection::vec((0u32..4, 1u8..100), 0..200),
    ) {
        let mut memory = Memory::new(&boot);
        let mut writers = BTreeMap::new();
        let mut runners: std::vec::Vec<Runner> =
            (0..boot.vcpus).map(|vcpu| Runner::new(&boot, vcpu).expect("fits")).collect();
        let rest = (0..boot.vcpus).map(|vcpu| (vcpu, u8::MAX)).cycle();
        for (vcpu, steps) in turns.into_iter().chain(rest) {
            if runners.iter().all(Runner::finished) {
                break;
            }
            let vcpu = vcpu % boot.vcpus;
            let runner = &mut runners[vcpu as usize];
            let mut ram = Watched { memory: &mut memory, vcpu, writers: &mut writers };
            if steps % 2 == 0 {
                runner.run_batch(&mut ram).expect("nothing is damaged");
            } else {
                for _ in 0..steps {
                    runner.step(&mut ram).expect("nothing is damaged");
                }
                Progress::write_steps(runner.steps(), vcpu, &mut ram);
            }
        }
        prop_assert_eq!(memory.words, run(&boot).words);
    }

    #[test]
    fn a_run_can_be_cut_anywhere(boot in boots(), cut in 0u64..400) {
        let mut memory = Memory::new(&boot);
        for vcpu in 0..boot.vcpus {
            let mut runner = Runner::new(&boot, vcpu).expect("fits");
            while !runner.finished() && runner.steps() < cut {
                runner.step(&mut memory).expect("nothing is damaged");
            }
            Progress::write_steps(runner.steps(), vcpu, &mut memory);
            let state = serde_json::to_string(&runner.state()).expect("numbers");
            let state: RunnerState = serde_json::from_str(&state).expect("just written");
            let mut runner = Runner::resume(&boot, vcpu, state).expect("its own state");
            while !runner.finished() {
                runner.run_batch(&mut memory).expect("nothing is damaged");
            }
        }
        prop_assert_eq!(memory.words, run(&boot).words);
    }

    #[test]
    fn everything_written_lies_where_the_plan_says(boot in boots()) {
        let plan = boot.plan().expect("fits");
        for address in run(&boot).words.into_keys() {
            let gfn = crate::units::Gfn(address / 4096);
            let in_ledger = (0..boot.vcpus).any(|vcpu| {
                let (start, entries) = plan.ledger(vcpu);
                (start..start + 2 * (entries.end - entries.start)).contains(&address)
            });
            let in_ws = plan.ws_frames().into_iter().any(|frames| frames.contains(&gfn));
            let in_progress = (PROGRESS..PROGRESS + 64 * u64::from(boot.vcpus)).contains(&address);
            prop_assert!(in_ledger || in_ws || in_progress, "{:#x}", address);
        }
    }

    #[test]
    fn no_state_makes_it_panic(
        boot in boots(),
        (step, random) in any::<(u64, u64)>(),
        cursor in prop_oneof![0u64..500, any::<u64>()],
        counter in prop_oneof![0u64..500, any::<u64>()],
    ) {
        let step = if step % 2 == 0 { step } else { step % 400 };
        let state = std::format!(
            "{{\"generator\":{{\"step\":{step},\"random\":{random},\"cursor\":{cursor},\"counter\":{counter}}}}}"
        );
        let state = serde_json::from_str(&state).expect("any numbers");
        if let Ok(mut runner) = Runner::resume(&boot, 0, state) {
            let mut memory = Memory::new(&boot);
            while !runner.finished() {
                runner.run_batch(&mut memory).expect("first touches, and what it wrote itself");
            }
        }
    }
}

#[test]
fn a_vcpu_whose_pages_are_all_shared_can_resume() {
    let boot = BootBlock {
        spec: "shared:1,ws=4KiB".parse::<Spec>().expect("a workload"),
        ..boot("seq", 1)
    };
    let mut runner = Runner::new(&boot, 0).expect("fits");
    runner.run_batch(&mut Memory::new(&boot)).expect("fine");
    assert!(Runner::resume(&boot, 0, runner.state()).is_ok());
}

/// Everything at once: also what no step would have come to again.
#[test]
fn a_whole_working_set_is_checked() {
    for spec in [
        "seq",
        "uniform",
        "lmbench",
        "memcached",
        "shared:0.5",
        "phases:(seq)*100+(idle)*50+(zipf:0.9,ws=64KiB)*300",
    ] {
        for fill in [Fill::Zero, Fill::Random] {
            let boot = BootBlock {
                steps: 1200,
                fill,
                ..boot(spec, 2)
            };
            let memory = run(&boot);
            for vcpu in 0..2 {
                let steps = Runner::new(&boot, vcpu).expect("fits");
                let mut runner = steps.clone();
                while !runner.finished() {
                    // On a memory of its own: only the number of steps is of interest.
                    runner.run_batch(&mut Forgetful(&boot)).expect("first touches only");
                }
                let mut room = vec![7; runner.plan().ws().0 as usize];
                let written = runner.check_all(&memory, &mut room).expect(spec);
                let expected = room.iter().filter(|sequence| **sequence != 0).count();
                assert_eq!(written.0, expected as u64, "{spec}");
                assert!(written.0 > 0, "{spec}");
                assert!(steps.check_all(&memory, &mut room).is_err(), "{spec}: too many steps");
            }
        }
    }
}

/// Has nothing but what it was filled with.
struct Forgetful<'a>(&'a BootBlock);

impl Ram for Forgetful<'_> {
    fn read_u64(&self, address: u64) -> u64 {
        Memory::new(self.0).read_u64(address)
    }

    fn write_u64(&mut self, _: u64, _: u64) {}
}

#[test]
fn every_changed_word_is_found_by_a_check_of_everything() {
    let boot = BootBlock {
        steps: 600,
        ..boot("hotset:0.2,ws=1MiB", 1)
    };
    let memory = run(&boot);
    let mut runner = Runner::new(&boot, 0).expect("fits");
    let earlier = run(&BootBlock {
        steps: 300,
        ..boot.clone()
    });
    while !runner.finished() {
        runner.run_batch(&mut Forgetful(&boot)).expect("first touches only");
    }
    let mut room = vec![0; runner.plan().ws().0 as usize];
    runner.check_all(&memory, &mut room).expect("nothing is damaged");
    for page in [0, 17, 255] {
        let gfn = runner.plan().gfn(page);
        for offset in [0, 8, 2048, 2056, 3000 & !7, 4088] {
            let mut damaged = memory.clone();
            let address = gfn.0 * 4096 + offset;
            damaged.write_u64(address, memory.read_u64(address) ^ 1 << 40);
            let error = runner.check_all(&damaged, &mut room).expect_err("a bit is wrong");
            assert_eq!(error.gfn, gfn, "{error}");
        }
    }
    // A page that went back in time together with all ledgers is consistent, and wrong.
    assert!(runner.check_all(&earlier, &mut room).is_err());
}

/// The pages of the working set that are free, by the ledgers.
fn free(boot: &BootBlock, memory: &Memory) -> BTreeSet<u64> {
    let plan = boot.plan().expect("fits");
    let (mut pages, mut from) = (BTreeSet::new(), Gfn(0));
    while let Some((found, next)) = next_free(&plan, boot.vcpus, memory, from) {
        assert!(next > from, "it gets on");
        pages.extend(found.into_iter().flat_map(|run| run.first.0..run.end().0));
        from = next;
    }
    pages
}

#[test]
fn pages_are_freed_and_used_again_whatever_was_in_them() {
    for (spec, vcpus, fill) in [
        ("uniform,ws=1MiB,life=3", 1, Fill::Random),
        ("kernel,ws=1MiB,life=2", 2, Fill::Zero),
        ("phases:(seq)*500+(lmbench)*300,ws=512KiB,life=5", 1, Fill::Random),
    ] {
        let boot = BootBlock {
            steps: 5000,
            fill,
            ..boot(spec, vcpus)
        };
        let expected = settled(&boot, |_, _| {});
        let (mut freed, mut garbage) = (BTreeSet::new(), 0);
        let disturbed = settled(&boot, |boot, memory| {
            // A migration by hints: what is free is something else afterwards.
            let now = free(boot, memory);
            for gfn in &now {
                for word in 0..PAGE_SIZE / 8 {
                    garbage += 1;
                    memory.write_u64(gfn * PAGE_SIZE + 8 * word, garbage);
                }
            }
            freed.extend(now);
        });
        assert!(freed.len() > 50, "{spec}: {} pages were ever free", freed.len());
        let differ = expected
            .words
            .keys()
            .chain(disturbed.words.keys())
            .find(|address| expected.read_u64(**address) != disturbed.read_u64(**address));
        assert_eq!(differ, None, "{spec}");
        for gfn in free(&boot, &expected) {
            assert!(
                (0..PAGE_SIZE)
                    .step_by(8)
                    .all(|at| expected.read_u64(gfn * PAGE_SIZE + at) == 0),
                "{spec}"
            );
        }
    }
}

/// The end of a guest that is disturbed between batches.
fn settled(boot: &BootBlock, mut disturb: impl FnMut(&BootBlock, &mut Memory)) -> Memory {
    let mut memory = Memory::new(boot);
    let mut runners: Vec<Runner> = (0..boot.vcpus)
        .map(|vcpu| Runner::new(boot, vcpu).expect("fits"))
        .collect();
    let mut batches = 0;
    while runners.iter().any(|runner| !runner.finished()) {
        for runner in &mut runners {
            runner
                .run_batch(&mut memory)
                .expect("nothing that is in use is damaged");
        }
        batches += 1;
        if batches % 20 == 0 {
            disturb(boot, &mut memory);
            let mut sequences = vec![0; boot.plan().expect("fits").ws().0 as usize];
            for runner in &runners {
                runner
                    .check_all(&memory, &mut sequences)
                    .expect("what is in use is right");
            }
        }
    }
    for runner in &runners {
        runner.settle(&mut memory);
        runner.settle(&mut memory);
    }
    memory
}

#[test]
fn a_page_in_use_that_was_damaged_is_found_in_a_mortal_workload_as_well() {
    let boot = boot("seq,ws=64KiB,life=50", 1);
    let mut memory = Memory::new(&boot);
    let mut runner = Runner::new(&boot, 0).expect("fits");
    runner.run_batch(&mut memory).expect("first touches");
    let gfn = boot.plan().expect("fits").gfn(0).0;
    memory.write_u64(gfn * PAGE_SIZE, 0);
    let error = (0..10)
        .find_map(|_| runner.run_batch(&mut memory).err())
        .expect("found");
    assert_eq!(error.gfn, Gfn(gfn));
}
