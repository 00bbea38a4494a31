use super::*;
use dunlin::guest::GuestError;
use dunlin::memory::MemoryLayout;
use dunlin_core::workload::layout::MAILBOX;

/// The pages of a bitmap.
fn pages(words: &[u64]) -> Vec<u64> {
    let bits = |(index, word): (usize, &u64)| {
        let word = *word;
        (0..64)
            .filter(move |bit| word >> bit & 1 == 1)
            .map(move |bit| index as u64 * 64 + bit)
    };
    words.iter().enumerate().flat_map(bits).collect()
}

fn harvest(guest: &AnyGuest) -> Vec<u64> {
    let mut words = vec![0; guest.memory().layout().words()];
    guest.harvest(&mut words).unwrap();
    pages(&words)
}

/// Every way in which this machine tracks such a guest.
fn trackings(config: &GuestConfig) -> Vec<Tracking> {
    let mut trackings = vec![Tracking::Bitmap];
    if config.kind == GuestKind::Kvm && require(Capability::DirtyRing) {
        trackings.push(Tracking::Ring { entries: 65_536 });
    }
    trackings
}

fn guests(configs: Vec<GuestConfig>) -> impl Iterator<Item = (GuestConfig, AnyGuest)> {
    configs.into_iter().flat_map(|config| {
        trackings(&config).into_iter().map(move |tracking| {
            let guest = AnyGuest::create_tracked(config.clone(), tracking).unwrap();
            (config.clone(), guest)
        })
    })
}

/// Copies a running guest round by round. After the last round, with the guest stopped, no page may differ.
#[test]
fn nothing_that_a_running_guest_writes_is_missed() {
    for (config, guest) in guests(shapes("uniform", 10_000_000)) {
        let replica = GuestMemory::new(MemoryLayout::new(config.memory).unwrap()).unwrap();
        guest.resume().unwrap();
        for attempt in 0..2 {
            wait_for_steps(&guest, guest.progress().steps() + 200);
            guest.start_tracking().unwrap();
            guest.start_tracking().unwrap();
            copy_all(guest.memory(), &replica);
            let mut copied = 0;
            for _ in 0..10 {
                wait_for_steps(&guest, guest.progress().steps() + 100);
                let dirty = harvest(&guest);
                copied += dirty.len();
                dirty
                    .into_iter()
                    .for_each(|gfn| copy(guest.memory(), &replica, page(gfn)));
            }
            guest.pause().unwrap();
            harvest(&guest)
                .into_iter()
                .for_each(|gfn| copy(guest.memory(), &replica, page(gfn)));
            assert_eq!(
                differing(guest.memory(), &replica),
                [0; 0],
                "{} attempt {attempt}",
                shape(&config)
            );
            assert!(copied > 300, "the guest was writing: {copied}");
            assert_eq!(harvest(&guest), [0; 0], "nothing is written while it is stopped");
            guest.stop_tracking().unwrap();
            guest.stop_tracking().unwrap();
            let mut words = vec![0; guest.memory().layout().words()];
            assert!(matches!(guest.harvest(&mut words), Err(GuestError::NotTracking)));
            guest.resume().unwrap();
        }
    }
}

#[test]
fn what_the_host_writes_is_harvested_when_it_says_so() {
    for (config, guest) in guests(shapes("seq", 1000)) {
        guest.mark_dirty(page(5));
        guest.start_tracking().unwrap();
        assert_eq!(harvest(&guest), [0; 0]);
        guest.memory().write_u64(MAILBOX, 1);
        guest.memory().write_u64(70 * PAGE_SIZE, 1);
        guest.mark_dirty(page(MAILBOX / PAGE_SIZE));
        guest.mark_dirty(Run::new(Gfn(62), Pages(131)));
        guest.mark_dirty(Run::new(Gfn(u64::MAX), Pages(3)));
        let dirty = harvest(&guest);
        if config.kind == GuestKind::Kvm {
            assert_eq!(dirty, [vec![3], (62..193).collect()].concat());
        } else {
            assert_eq!(dirty, [3, 70], "the kernel sees the host's writes too");
        }
        assert_eq!(harvest(&guest), [0; 0]);
        // A harvest adds to what the caller has.
        guest.memory().write_u64(MAILBOX, 2);
        guest.mark_dirty(page(3));
        let mut words = vec![1 << 60; guest.memory().layout().words()];
        guest.harvest(&mut words).unwrap();
        assert_eq!(words[0], 1 << 60 | 1 << 3);
        assert_eq!(words[1], 1 << 60);
    }
}

/// Writes behind the hole have their place in the bitmap.
#[test]
fn pages_behind_the_hole_are_tracked() {
    if !require(Capability::Kvm) {
        return;
    }
    let config = GuestConfig {
        memory: Bytes(6144 * MIB),
        ..config(GuestKind::Kvm, 2, "uniform", 800)
    };
    for (config, guest) in guests(vec![config]) {
        let replica = GuestMemory::new(MemoryLayout::new(config.memory).unwrap()).unwrap();
        guest.start_tracking().unwrap();
        copy_all(guest.memory(), &replica);
        finish(&guest);
        let dirty = harvest(&guest);
        assert!(dirty.iter().filter(|gfn| **gfn >= 0xfee40).count() > 150);
        dirty
            .into_iter()
            .for_each(|gfn| copy(guest.memory(), &replica, page(gfn)));
        assert_eq!(guest.memory().blake3().unwrap(), replica.blake3().unwrap());
    }
}
