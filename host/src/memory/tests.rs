use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dunlin_core::units::{Bytes, Gfn, PAGE_SIZE, Pages};
use twox_hash::XxHash3_64;

use super::*;

const MIB: u64 = 1 << 20;

pub(crate) fn run(first: u64, count: u64) -> Run {
    Run::new(Gfn(first), Pages(count))
}

pub(crate) fn memory(bytes: u64) -> GuestMemory {
    GuestMemory::new(MemoryLayout::new(Bytes(bytes)).unwrap()).unwrap()
}

/// Odd multiples of an odd number: no two words of the address space alike, none zero.
pub(crate) fn noise(address: u64) -> u64 {
    (address + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The other way to the same bytes: copied out and hashed in one piece.
fn copied_hash(memory: &GuestMemory, run: Run) -> u64 {
    let mut bytes = vec![0; usize::try_from(run.count.bytes().0).unwrap()];
    memory.copy_run(run, &mut bytes).unwrap();
    XxHash3_64::oneshot(&bytes)
}

#[test]
fn bytes_go_in_and_come_out_and_nothing_past_the_end() {
    let memory = memory(MIB);
    memory.write(4094, b"across").unwrap();
    let mut bytes = [0; 6];
    memory.read(4094, &mut bytes).unwrap();
    assert_eq!(&bytes, b"across");
    memory.write_u64(MIB - 8, 0x0102_0304_0506_0708);
    assert_eq!(memory.read_u64(MIB - 8), 0x0102_0304_0506_0708);
    memory.read(MIB - 8, &mut bytes).unwrap();
    assert_eq!(bytes, [8, 7, 6, 5, 4, 3], "little-endian");
    assert!(matches!(
        memory.read(MIB - 5, &mut bytes),
        Err(MemoryError::OutsideRam { .. })
    ));
    assert!(matches!(
        memory.write(u64::MAX - 2, &bytes),
        Err(MemoryError::OutsideRam { .. })
    ));
    assert!(matches!(
        memory.copy_run(run(255, 2), &mut [0; 8192]),
        Err(MemoryError::OutsideRam { .. })
    ));
    assert!(matches!(
        memory.copy_run(run(0, 2), &mut [0; 8191]),
        Err(MemoryError::BufferLength { .. })
    ));
    assert!(matches!(
        memory.populate(run(0, u64::MAX)),
        Err(MemoryError::OutsideRam { .. })
    ));
}

#[test]
#[should_panic(expected = "no RAM of this guest")]
fn a_single_access_outside_ram_panics() {
    memory(MIB).read_u64(MIB);
}

#[test]
fn memory_around_the_hole_is_reached_and_the_hole_is_not() {
    let memory = memory(8192 * MIB);
    for address in [0xfee0_0000 - 8, 0xfee4_0000, (8192 * MIB + 64 * PAGE_SIZE) - 8] {
        memory.write_u64(address, address);
        assert_eq!(memory.read_u64(address), address);
    }
    assert!(memory.write(0xfee0_0000, b"x").is_err());
    assert!(memory.write(0xfee0_0000 - 1, b"xy").is_err());
    assert!(memory.is_zero(Gfn(0xfee3f)).is_err());
    assert_eq!(memory.resident().unwrap(), Bytes(3 * PAGE_SIZE));
}

#[test]
fn one_byte_anywhere_makes_a_page_data() {
    let memory = memory(MIB);
    for offset in 0..PAGE_SIZE {
        assert!(memory.is_zero(Gfn(1)).unwrap());
        memory.write(PAGE_SIZE + offset, &[1]).unwrap();
        assert!(!memory.is_zero(Gfn(1)).unwrap(), "byte {offset}");
        memory.write(PAGE_SIZE + offset, &[0]).unwrap();
    }
}

/// Data pages, written and unwritten zero pages, and pages only read, in all mixtures; beside page-by-page testing.
#[test]
fn classes_are_those_of_the_single_pages() {
    let memory = memory(4 * MIB);
    let mut state = 1u64;
    for gfn in 0..1024 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Long stretches of one kind as well as quick changes.
        match (state >> 60, gfn / 128 % 4) {
            (0..4, 0) | (_, 1) => memory.write_u64(gfn * PAGE_SIZE + (state >> 33 & 0xff8), state | 1),
            (4..8, 0) => memory.write_u64(gfn * PAGE_SIZE, 0),
            (8..12, 0) => assert_eq!(memory.read_u64(gfn * PAGE_SIZE), 0),
            _ => {}
        }
    }
    for (first, count) in [(0, 1024), (3, 5), (7, 0), (100, 300), (500, 524), (1023, 1)] {
        let mut found = BTreeMap::new();
        let mut last = None;
        let mut next = first;
        memory
            .classify_runs(run(first, count), |part, class| {
                assert_eq!(part.first.0, next, "in order, without gaps");
                assert_ne!(last.replace(class), Some(class), "as long as can be");
                next = part.end().0;
                found.extend((part.first.0..next).map(|gfn| (gfn, class)));
            })
            .unwrap();
        assert_eq!(next, first + count);
        for (gfn, class) in found {
            let zero = copied_hash(&memory, run(gfn, 1)) == XxHash3_64::oneshot(&[0; 4096]);
            assert_eq!(class == RunClass::Zero, zero, "page {gfn}");
        }
    }
}

#[test]
fn classifying_untouched_memory_leaves_it_untouched() {
    let memory = memory(64 * MIB);
    memory.write_u64(32 * MIB, 1);
    let mut runs = Vec::new();
    memory
        .classify_runs(run(0, 64 * 256), |part, class| runs.push((part, class)))
        .unwrap();
    let zero = RunClass::Zero;
    assert_eq!(
        runs,
        [
            (run(0, 8192), zero),
            (run(8192, 1), RunClass::Data),
            (run(8193, 8191), zero)
        ]
    );
    assert_eq!(memory.present_pages(run(0, 64 * 256)).unwrap(), Pages(1));
}

#[test]
fn hashes_are_xxh3_whether_the_guest_runs_or_not() {
    let memory = memory(4 * MIB);
    memory.fill(run(0, 1024), noise).unwrap();
    for part in [run(0, 0), run(0, 1), run(5, 16), run(1, 17), run(0, 1024)] {
        let expected = copied_hash(&memory, part);
        assert_eq!(memory.hash_run(part).unwrap(), expected);
        memory.set_guest_runs(true);
        assert_eq!(memory.hash_run(part).unwrap(), expected);
        memory.set_guest_runs(false);
    }
}

#[test]
fn the_digest_sees_every_byte_and_not_what_is_behind_it() {
    let (one, other) = (memory(4 * MIB), memory(4 * MIB));
    one.fill(run(256, 300), noise).unwrap();
    let mut bytes = vec![0; 4 << 20];
    one.copy_run(run(0, 1024), &mut bytes).unwrap();
    assert_eq!(one.blake3().unwrap(), blake3::hash(&bytes));
    other.populate(run(0, 1024)).unwrap();
    other.write_run(run(0, 1024), &bytes).unwrap();
    assert_eq!(one.blake3().unwrap(), other.blake3().unwrap());
    other.write(4 * MIB - 1, &[1]).unwrap();
    assert_ne!(one.blake3().unwrap(), other.blake3().unwrap());
}

#[test]
fn a_dump_is_ram_in_page_order() {
    let memory = memory(4 * MIB);
    memory.fill(run(3, 20), noise).unwrap();
    memory.write_u64(4 * MIB - 8, 1);
    let mut bytes = vec![0; 4 << 20];
    memory.copy_run(run(0, 1024), &mut bytes).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, &vec![7; 5 << 20]).unwrap();
    memory.dump(file.as_file_mut()).unwrap();
    assert!(
        std::fs::read(file.path()).unwrap() == bytes,
        "the dump differs from memory"
    );
}

#[test]
fn filling_depends_on_the_address_only() {
    let (whole, parts) = (memory(64 * MIB), memory(64 * MIB));
    whole.fill(run(512, 15_000), noise).unwrap();
    parts.fill(run(512, 1), noise).unwrap();
    parts.fill(run(513, 14_999), noise).unwrap();
    assert_eq!(whole.blake3().unwrap(), parts.blake3().unwrap());
    assert_eq!(
        whole.read_u64(15_511 * PAGE_SIZE + 4088),
        noise(15_511 * PAGE_SIZE + 4088)
    );
    assert!(whole.is_zero(Gfn(15_512)).unwrap());
}

#[test]
fn discarded_pages_are_absent_and_zero() {
    let memory = memory(MIB);
    memory.populate(run(0, 256)).unwrap();
    memory.fill(run(0, 256), noise).unwrap();
    assert_eq!(memory.present_pages(run(0, 256)).unwrap(), Pages(256));
    memory.discard(run(10, 20)).unwrap();
    assert_eq!(memory.present_pages(run(0, 256)).unwrap(), Pages(236));
    assert_eq!(memory.present_pages(run(10, 20)).unwrap(), Pages(0));
    assert!(memory.is_zero(Gfn(29)).unwrap());
    assert!(!memory.is_zero(Gfn(30)).unwrap());
}

/// Scattered runs on both sides of the hole, more than fit one call.
#[test]
fn many_runs_are_discarded_and_found_absent_at_once() {
    let memory = memory(4100 * MIB);
    let ends = [(0, 6000), (0xfee40, 0xfee40 + 256)];
    let runs: Vec<Run> = ends
        .iter()
        .flat_map(|(first, end)| (*first..*end).step_by(4))
        .map(|gfn| run(gfn, 2))
        .collect();
    for (first, end) in ends {
        memory.populate(run(first, end - first)).unwrap();
    }
    assert_eq!(memory.first_present(&runs).unwrap(), Some(Gfn(0)));
    memory.discard_runs(&runs).unwrap();
    assert_eq!(memory.first_present(&runs).unwrap(), None);
    assert_eq!(memory.present_pages(run(0, 6000)).unwrap(), Pages(3000));
    assert_eq!(memory.present_pages(run(0xfee40, 256)).unwrap(), Pages(128));
    for present in [1, 2401, 0xfee40, 0xfee40 + 253] {
        memory.write_u64(present * PAGE_SIZE, 1);
        assert_eq!(
            memory.first_present(&runs).unwrap(),
            Some(Gfn(present)),
            "page {present:#x}"
        );
        memory.discard(run(present, 1)).unwrap();
    }
    // Neighbours and empty runs are no matter.
    assert_eq!(
        memory
            .first_present(&[run(2, 0), run(4, 2), run(6, 0), run(8, 0)])
            .unwrap(),
        None
    );
    assert_eq!(memory.first_present(&[run(4, 2), run(5, 2)]).unwrap(), Some(Gfn(6)));
    assert_eq!(memory.first_present(&[]).unwrap(), None);
    assert!(matches!(
        memory.discard_runs(&[run(0, 1), run(0xfee00, 1)]),
        Err(MemoryError::OutsideRam { .. })
    ));
    assert!(memory.first_present(&[run(0xfee00, 1)]).is_err());
    assert!(memory.is_zero(Gfn(0)).unwrap());
}

/// A thread sleeps at missing pages until they are installed, in all three ways, and sees what was installed.
#[test]
fn missing_pages_wait_for_their_content() {
    let memory = Arc::new(memory(4 * MIB));
    let uffd = Userfaultfd::open(memory.clone(), FaultOrigin::UserMode).unwrap();
    memory.write_u64(5 * PAGE_SIZE, 55);
    uffd.register_missing().unwrap();
    assert_eq!(uffd.read_events(&mut [Fault::default(); 4]).unwrap(), 0, "never waits");

    let page = |value: u64| value.to_le_bytes().repeat(512);
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| [5, 6, 7, 600].map(|gfn| memory.read_u64(gfn * PAGE_SIZE)));
        let mut seen = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !guest.is_finished() {
            assert!(Instant::now() < deadline, "the guest is stuck");
            rustix::event::poll(
                &mut [rustix::event::PollFd::new(&uffd.as_fd(), rustix::event::PollFlags::IN)],
                {
                    Some(&rustix::time::Timespec {
                        tv_sec: 0,
                        tv_nsec: 10_000_000,
                    })
                },
            )
            .unwrap();
            let mut faults = [Fault::default(); 4];
            let count = uffd.read_events(&mut faults).unwrap();
            for fault in &faults[..count] {
                assert!(!fault.write);
                seen.push(fault.gfn.0);
                match fault.gfn.0 {
                    6 => assert_eq!(uffd.copy(Gfn(6), &page(66)).unwrap().installed, Pages(1)),
                    7 => assert_eq!(uffd.zero(run(7, 1)).unwrap().installed, Pages(1)),
                    // Woken without content it faults again.
                    600 if seen.iter().filter(|gfn| **gfn == 600).count() == 1 => uffd.wake(run(600, 1)).unwrap(),
                    600 => assert_eq!(uffd.copy(Gfn(600), &page(600)).unwrap().installed, Pages(1)),
                    other => panic!("page {other} is not missing"),
                }
            }
        }
        assert_eq!(guest.join().unwrap(), [55, 66, 0, 600]);
        assert_eq!(seen, [6, 7, 600, 600]);
    });
    uffd.unregister().unwrap();
    assert_eq!(memory.read_u64(700 * PAGE_SIZE), 0, "no longer watched");
}

#[test]
fn installing_goes_around_pages_that_are_there() {
    let memory = Arc::new(memory(4 * MIB));
    let uffd = Userfaultfd::open(memory.clone(), FaultOrigin::UserMode).unwrap();
    uffd.register_missing().unwrap();
    let content = vec![9; 64 << 12];
    for gfn in [100, 103, 163] {
        uffd.copy(Gfn(gfn), &[1; 4096]).unwrap();
    }
    let expected = Installed {
        installed: Pages(61),
        present: Pages(3),
    };
    assert_eq!(uffd.copy(Gfn(100), &content).unwrap(), expected);
    for gfn in 100..164 {
        let expected = if [100, 103, 163].contains(&gfn) { 1 } else { 9 };
        assert_eq!(
            memory.read_u64(gfn * PAGE_SIZE),
            u64::from_ne_bytes([expected; 8]),
            "page {gfn}"
        );
    }
    let expected = Installed {
        installed: Pages(6),
        present: Pages(64),
    };
    assert_eq!(uffd.zero(run(95, 70)).unwrap(), expected);
    assert_eq!(uffd.copy(Gfn(100), &content).unwrap().installed, Pages(0));

    memory.discard(run(100, 2)).unwrap();
    assert_eq!(
        memory.present_pages(run(100, 4)).unwrap(),
        Pages(2),
        "discarded pages are missing again"
    );
    assert_eq!(uffd.copy(Gfn(100), &content).unwrap().installed, Pages(2));

    assert!(matches!(
        uffd.copy(Gfn(1023), &content),
        Err(UserfaultfdError::Operation { .. })
    ));
    assert!(matches!(
        uffd.copy(Gfn(0), &content[..5000]),
        Err(UserfaultfdError::Memory(_))
    ));
}
