use std::vec::Vec;

use super::{Memory, boot};
use crate::units::Gfn;
use crate::workload::layout::{Progress, State};
use crate::workload::{BootBlock, Fill, Ram as _, Runner, StampError, StampErrorKind};

const PAGE: u64 = 4096;

/// A guest whose vCPU 0 has written each of its ten pages `rounds` times, in order.
fn written(fill: Fill, rounds: u64) -> (Memory, Runner) {
    let boot = BootBlock {
        fill,
        ..boot("seq,ws=40KiB", 1)
    };
    let mut memory = Memory::new(&boot);
    let mut runner = Runner::new(&boot, 0).expect("fits");
    for _ in 0..10 * rounds {
        runner.step(&mut memory).expect("nothing is wrong yet");
    }
    (memory, runner)
}

/// The next touch of page 0 of the working set, after `damage` was done to it.
fn touch_after(fill: Fill, rounds: u64, damage: impl FnOnce(&mut Memory, u64)) -> Result<(), StampError> {
    let (mut memory, mut runner) = written(fill, rounds);
    damage(&mut memory, runner.plan().gfn(0).0 * PAGE);
    runner.step(&mut memory)
}

fn copy(memory: &mut Memory, from: &Memory, source: u64, target: u64, bytes: core::ops::Range<u64>) {
    for offset in bytes.step_by(8) {
        memory.write_u64(target + offset, from.read_u64(source + offset));
    }
}

fn error(kind: StampErrorKind, expected: u64, found: u64) -> Result<(), StampError> {
    Err(StampError {
        kind,
        gfn: Gfn(0x201),
        expected,
        found,
    })
}

#[test]
fn an_undamaged_page_is_accepted() {
    for fill in [Fill::Zero, Fill::Random] {
        for rounds in [0, 1, 2, 9] {
            assert_eq!(
                touch_after(fill, rounds, |_, _| {}),
                Ok(()),
                "{fill:?}, {rounds} rounds"
            );
        }
    }
}

#[test]
fn an_older_copy_is_stale() {
    for fill in [Fill::Zero, Fill::Random] {
        for old in 0..5 {
            let (before, _) = written(fill, old);
            let found = touch_after(fill, 5, |memory, page| copy(memory, &before, page, page, 0..PAGE));
            assert_eq!(found, error(StampErrorKind::Stale, 5, old), "{fill:?}");
        }
        // A newer copy than the ledger's is as wrong.
        let (later, _) = written(fill, 8);
        let found = touch_after(fill, 5, |memory, page| copy(memory, &later, page, page, 0..PAGE));
        assert_eq!(found, error(StampErrorKind::Stale, 5, 8), "{fill:?}");
    }
}

#[test]
fn a_lost_ledger_is_found_as_well() {
    let (before, _) = written(Fill::Zero, 4);
    let found = touch_after(Fill::Zero, 5, |memory, _| {
        copy(memory, &before, 0x20_0000, 0x20_0000, 0..PAGE)
    });
    assert_eq!(found, error(StampErrorKind::Stale, 4, 5));
    let found = touch_after(Fill::Zero, 5, |memory, _| memory.write_u64(0x20_0000, 0));
    assert_eq!(found, error(StampErrorKind::Stale, 0, 5));
}

#[test]
fn a_page_copied_while_it_was_written_is_torn() {
    for fill in [Fill::Zero, Fill::Random] {
        for old in 0..5 {
            let (before, _) = written(fill, old);
            for part in [0..64, 0..2048, 0..2056, 8..PAGE, 2048..PAGE, 4088..PAGE, 2048..2056] {
                let found = touch_after(fill, 5, |memory, page| copy(memory, &before, page, page, part.clone()));
                assert_eq!(found, error(StampErrorKind::Torn, 5, old), "{fill:?} {part:?}");
            }
        }
    }
}

#[test]
fn another_page_is_swapped() {
    for part in [0..PAGE, 0..2048, 2048..PAGE, 4088..PAGE] {
        let found = touch_after(Fill::Random, 5, |memory, page| {
            let from = memory.clone();
            copy(memory, &from, page + 3 * PAGE, page, part.clone());
        });
        assert_eq!(found, error(StampErrorKind::Swapped, 0x201, 0x204), "{part:?}");
    }
    // Also in a page that was never written.
    let found = touch_after(Fill::Random, 0, |memory, page| {
        let (other, _) = written(Fill::Random, 1);
        copy(memory, &other, page + PAGE, page, 0..PAGE);
    });
    assert_eq!(found, error(StampErrorKind::Swapped, 0x201, 0x202));
}

#[test]
fn every_damaged_bit_of_a_stamp_is_found() {
    for offset in [0, 2048, 4088] {
        for bit in 0..64 {
            let found = touch_after(Fill::Zero, 5, |memory, page| {
                memory.write_u64(page + offset, memory.read_u64(page + offset) ^ 1 << bit);
            });
            let found = found.expect_err("a bit was changed");
            assert_eq!(found.kind, StampErrorKind::Corrupt, "offset {offset}, bit {bit}");
            assert_eq!(found.expected ^ found.found, 1 << bit, "offset {offset}, bit {bit}");
        }
    }
}

#[test]
fn what_fills_a_page_is_checked_before_its_first_write() {
    for fill in [Fill::Zero, Fill::Random] {
        for offset in [0, 2048, 4088] {
            let found = touch_after(fill, 0, |memory, page| {
                memory.write_u64(page + offset, memory.read_u64(page + offset) ^ 0x100);
            });
            assert_eq!(
                found.expect_err("it was changed").kind,
                StampErrorKind::Corrupt,
                "{fill:?}, offset {offset}"
            );
        }
    }
    let found = touch_after(Fill::Random, 0, |memory, page| {
        for offset in (0..PAGE).step_by(8) {
            memory.write_u64(page + offset, 0);
        }
    });
    assert_eq!(found.expect_err("random fill was lost").kind, StampErrorKind::Corrupt);
}

#[test]
fn zeros_instead_of_random_fill_after_writes_are_corrupt_and_instead_of_zeros_stale() {
    let zero = |memory: &mut Memory, page| {
        for offset in (0..PAGE).step_by(8) {
            memory.write_u64(page + offset, 0);
        }
    };
    assert_eq!(touch_after(Fill::Zero, 5, zero), error(StampErrorKind::Stale, 5, 0));
    let found = touch_after(Fill::Random, 5, zero).expect_err("it was lost");
    assert_eq!((found.kind, found.found), (StampErrorKind::Corrupt, 0));
}

#[test]
fn reads_find_damage_too() {
    let boot = boot("lmbench,ws=4KiB", 1);
    let mut memory = Memory::new(&boot);
    let mut runner = Runner::new(&boot, 0).expect("fits");
    let page = runner.plan().gfn(0).0 * PAGE;
    for _ in 0..5 {
        runner.step(&mut memory).expect("right");
    }
    memory.write_u64(page + 2048, 7);
    // Steps 6 and 7 read.
    assert_eq!(
        runner.step(&mut memory).expect_err("damaged").kind,
        StampErrorKind::Corrupt
    );
}

#[test]
fn sequences_start_over_at_one() {
    let boot = boot("seq,ws=4KiB", 1);
    let mut memory = Memory::new(&boot);
    let mut runner = Runner::new(&boot, 0).expect("fits");
    let mut ledger = Vec::new();
    for _ in 0..65_540 {
        runner.step(&mut memory).expect("nothing is wrong");
        ledger.push(memory.read_u16(0x20_0000));
    }
    assert_eq!(ledger[..2], [1, 2]);
    assert_eq!(ledger[65_533..], [65_534, 65_535, 1, 2, 3, 4, 5]);
    // A page as before its first write is stale even now.
    let page = runner.plan().gfn(0).0 * PAGE;
    for offset in [0, 2048, 4088] {
        memory.write_u64(page + offset, 0);
    }
    assert_eq!(runner.step(&mut memory), error(StampErrorKind::Stale, 5, 0));
}

#[test]
fn the_progress_line_names_the_page() {
    let boot = boot("seq,ws=40KiB", 2);
    let mut memory = Memory::new(&boot);
    let mut runner = Runner::new(&boot, 1).expect("fits");
    assert_eq!(runner.run_batch(&mut memory), Ok(64));
    assert_eq!(
        Progress::read(1, &memory),
        Progress {
            steps: 64,
            state: State::Starting,
            error: None
        }
    );
    let page = runner.plan().gfn(7).0;
    memory.write_u64(page * PAGE + 64, 1);
    // Page 7 is the third of the five of vCPU 1, whose head is on its second line; step 65 wrote its fifth.
    let found = runner.run_batch(&mut memory).expect_err("damaged");
    assert_eq!(
        (found.kind, found.gfn, found.found),
        (StampErrorKind::Corrupt, Gfn(page), 1)
    );
    let progress = Progress {
        steps: 68,
        state: State::StampError,
        error: Some(found),
    };
    assert_eq!(Progress::read(1, &memory), progress);
    assert_eq!(Progress::read(0, &memory), Progress::default());
}

#[test]
fn a_progress_line_of_garbage_reads_as_damage() {
    for line in [
        [1, 77, 0, 0, 0, 0, 0, 0],
        [1, State::StampError.code(), 9, 0, 0, 0, 0, 0],
    ] {
        let progress = Progress::from_words(&line);
        let error = progress.error.expect("damage");
        assert_eq!(
            (progress.state, error.kind, error.gfn),
            (State::StampError, StampErrorKind::Corrupt, Gfn(2))
        );
    }
    for state in [
        State::Starting,
        State::Running,
        State::Done,
        State::StampError,
        State::BadBoot,
        State::Panicked,
    ] {
        assert_eq!(State::from_code(state.code()), Some(state));
    }
    for kind in [
        StampErrorKind::Stale,
        StampErrorKind::Torn,
        StampErrorKind::Swapped,
        StampErrorKind::Corrupt,
    ] {
        assert_eq!(StampErrorKind::from_code(kind.code()), Some(kind));
    }
    assert_eq!((State::from_code(6), StampErrorKind::from_code(0)), (None, None));
}

#[test]
fn errors_name_the_page_and_what_to_do() {
    use std::string::ToString as _;

    let text = |kind| {
        StampError {
            kind,
            gfn: Gfn(0x1234),
            expected: 5,
            found: 3,
        }
        .to_string()
    };
    for kind in [
        StampErrorKind::Stale,
        StampErrorKind::Torn,
        StampErrorKind::Swapped,
        StampErrorKind::Corrupt,
    ] {
        let text = text(kind);
        assert!(
            text.starts_with("page 0x1234 ") && text.ends_with("do not use this copy of the guest"),
            "{text}"
        );
    }
}
